"""Settings of the data: sources, checks, deduplication and split."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from tunewright.config import outside
from tunewright.config.section import LocalPath, Section

Layout = Literal["auto", "alpaca", "prompt_completion", "sharegpt", "messages", "preference", "ranked"]
Format = Literal["auto", "jsonl", "json", "csv", "parquet", "arrow"]
Repair = Literal["mojibake", "nfc"]
Severity = Literal["critical", "warning", "info", "skip"]
Use = Literal["train", "validation", "test", "replay"]


class RecordFiles(Section):
    """One file, several by a glob or under a URL, a folder of save_to_disk, or a data set of the Hugging Face Hub."""

    path: Annotated[str, LocalPath()] = Field(
        min_length=1,
        description="A file, a glob (data/*.csv.gz) or a folder written by datasets.save_to_disk; a relative path "
        "starts at the folder of the deployment file. Or a URL (s3://bucket/train.jsonl), or a data set of the Hugging "
        "Face Hub (hub:org/name, hub:org/name/config:split)",
    )
    layout: Layout = Field(
        default="auto", description="How a record holds its conversation; auto looks at each record's keys"
    )
    format: Format = Field(
        default="auto",
        description="The file's format; auto goes by its ending; csv is separated by "
        "commas or, where the header has none, by semicolons, tabs or vertical bars",
    )
    columns: dict[str, str] = Field(
        default={},
        description="Maps Tunewright's field names to those of the records: {instruction: question, output: answer, "
        "group: customer}; source and time can be mapped too",
    )
    split: str | None = Field(
        default=None,
        description="The split to read from a folder saved by datasets.save_to_disk; empty: the only split",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a hub data set; empty takes its main branch"
    )

    @field_validator("path")
    @classmethod
    def _holds_no_secret(cls, path: str) -> str:
        """Settings are shown, logged and kept, so what opens a store must not be among them."""
        query = r"https?://[^?]*\?."  # any, since what a key is called there is for each server to say
        if outside.holds_secret(path) or re.search(query, path, re.I | re.S):
            raise ValueError(
                f"{outside.without_secrets(path)}: a URL with credentials or a query; leave them out and set the "
                "credentials in the environment"
            )
        return path


class Source(RecordFiles):
    """Files whose records become rows."""

    use_as: Use | None = Field(
        default=None,
        validation_alias=AliasChoices("use_as", "side"),  # its name before, accepted for one release
        description="The split that all rows of this source go to; if empty, the split stage decides. Replay rows are "
        "general rows that are mixed into training against forgetting, as many as split.replay allows",
    )


class Data(Section):
    """The files of conversations to read, one record each."""

    sources: tuple[Source, ...] = Field(min_length=1, description="The files to read, in this order")
    held_out: tuple[RecordFiles, ...] = Field(
        default=(), description="Evaluation files; training rows that repeat them are removed (see split.decontaminate)"
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="Read at most this many records, a deterministic sample; the sources with use_as: validation or "
        "test are read whole all the same; empty reads all",
    )
    repair: tuple[Repair, ...] = Field(
        default=(),
        description="Text repairs to apply; each is counted: mojibake (wrongly decoded text), nfc (Unicode NFC)",
    )
    max_refused_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Stop if more than this share of the records is quarantined by ingest, or more than this share of "
        "the records of one file is not UTF-8; 0 to 1",
    )
    max_line_bytes: int = Field(
        default=1_000_000, ge=1_000, description="Quarantine records longer than this, in bytes; at least 1000"
    )

    engine: Literal["local", "ray"] = Field(
        default="local",
        description="Where rows are parsed, checked, compared and turned into tokens: on this machine or a Ray cluster "
        "(RAY_ADDRESS), with the same result",
    )

    @model_validator(mode="after")
    def _not_all_is_replay(self) -> Self:
        if all(source.use_as == "replay" for source in self.sources):
            raise ValueError(
                "sources: all have use_as: replay, which needs other rows to be mixed into; "
                "accepted: at least one without it"
            )
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
        description="What a failure does: critical stops the run, warning quarantines the row, info only reports, skip "
        "disables it; empty keeps the built-in's, or warning",
    )
    arguments: dict[str, Any] = Field(default={}, description="Its arguments: {max_answer_chars: 4000}")


class Checks(Section):
    """The data validation; a row that fails a check is quarantined with its reason."""

    expectations: tuple[Expectation, ...] = Field(
        default=(),
        description="Changes to the built-in suite, and your own expectations; empty uses the suite unchanged",
    )
    max_quarantined_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Stop if more than this share of the rows is quarantined, by checks or the chat template, 0 to 1; "
        "of rows that model.on_long=quarantine leaves out it only warns",
    )
    label_error_folds: int | None = Field(
        default=None,
        ge=2,
        le=20,
        description="Number of folds, 2 to 20, of a cross-validation that finds likely label errors among the "
        "training rows: for each fold a model is trained on the others, so it takes about as long as so many "
        "trainings; empty looks for none",
    )


class Dedupe(Section):
    """Removal of duplicates and near-duplicates; each removal is verified and names its partner."""

    near: bool = Field(default=True, description="Remove near-duplicates too, not only exact ones")
    threshold: float = Field(
        default=0.6,
        ge=0.3,
        le=1,
        description="Jaccard similarity of word 2-grams (of 3-grams of characters where words have no spaces between "
        "them) from which prompts are near-duplicates, 0.3 to 1; prompts under twelve words, or such characters, must "
        "be equal",
    )
    boilerplate_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Ignore a sentence as boilerplate if more than this share of the rows, and at least ten rows, "
        "contain it, 0 to 1",
    )
    max_removed_share: float = Field(
        default=0.5, ge=0, le=1, description="Stop if more than this share of the rows would be removed, 0 to 1"
    )
    semantic: float | None = Field(
        default=None,
        ge=0.5,
        le=1,
        description="Cosine similarity of embeddings from which paraphrased prompts are removed too, 0.5 to "
        "1. Of the pairs found at 0.95 about 1 % mean something else, at 0.9 about 3 %; if more than 8,192 rows share "
        "one answer, a few per thousand of their pairs are not found. Empty compares words only",
    )
    semantic_model: Annotated[str, LocalPath(or_name=True)] = Field(
        default="package:wordllama",
        description="Static embedding model of dedupe.semantic and of retrieval: package:wordllama (installed by the "
        "extra semantic; European languages), or a model2vec folder",
    )


class Split(Section):
    """Train, validation and test splits; near-duplicates and rows of one group stay in one split."""

    validation: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of the rows in the validation split, for early stopping, above 0 and below 1",
    )
    test: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of the rows in the test split, for the decision only, above 0 and below 1",
    )
    threshold: float = Field(
        default=0.6, ge=0.3, le=1, description="Similarity from which two rows must be in the same split, 0.3 to 1"
    )
    by: Literal["cluster", "time"] = Field(
        default="cluster",
        description="How rows are split: cluster draws clusters of near-duplicates, time tests on the newest of "
        "them, each as old as its oldest row",
    )
    stratify: Literal["none", "source", "label"] = Field(
        default="source",
        description="Keep the shares of sources or of labels equal in all splits, as far as clusters of "
        "near-duplicates allow",
    )
    sticky: bool = Field(
        default=True,
        description="Rows of the last accepted version keep their split, and near-duplicates of them join it",
    )
    replay: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Largest share of replay rows (sources with use_as: replay) among the training rows, up to "
        "1, which takes all",
    )
    decontaminate: Literal["remove", "report"] = Field(
        default="remove",
        description="Training rows that share 13 consecutive words (26 characters of a script without spaces), or a "
        "short prompt, with a validation or test row or with data.held_out: remove them, or only report them",
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="Random seed of the split; another seed starts a new history of data versions, "
        "in which rows do not keep the split that they had",
    )

    @model_validator(mode="after")
    def _train_is_left(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation={self.validation} and test={self.test} leave nothing to train on; accepted: a sum below 1"
            )
        return self
