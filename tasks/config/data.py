"""What is read, and what becomes of it before a model sees it."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.config.section import Local, Section

Layout = Literal["auto", "alpaca", "prompt_completion", "sharegpt", "messages"]
Format = Literal["auto", "jsonl", "json", "csv", "parquet", "arrow"]
Repair = Literal["mojibake", "nfc"]
Severity = Literal["critical", "warning", "info", "skip"]
Side = Literal["train", "validation", "test", "replay"]


class RecordFiles(Section):
    """One file, several by a glob or under a URL, a folder that datasets saved, or a data set of the hub."""

    path: Annotated[str, Local()] = Field(
        min_length=1,
        description="A file, a glob (data/*.csv.gz) or a folder that datasets saved, relative to the deployment file; "
        "or a URL (s3://bucket/train.jsonl), or hub:org/name, hub:org/name/config:split",
    )
    layout: Layout = Field(
        default="auto", description="How a record holds its conversation; auto looks at each record's keys"
    )
    format: Format = Field(
        default="auto", description="The file's format; auto goes by its ending; csv is separated by commas"
    )
    columns: dict[str, str] = Field(
        default={},
        description="Which of a record's fields stands for one of ours, ours first: {instruction: question, output: "
        "answer, group: customer}; also source, group and time",
    )
    split: str | None = Field(
        default=None,
        description="Which split of a folder that save_to_disk of datasets wrote; empty takes the only one",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a hub data set; empty takes its main branch"
    )

    @field_validator("path")
    @classmethod
    def _holds_no_secret(cls, path: str) -> str:
        """Settings are shown, logged and kept, so what opens a store must not be among them."""
        credentials = r"://[^/]*@|[?&#][\w-]*(?:key|sig|signature|token|password|secret|credential)="
        query = r"https?://[^?]*\?."  # any, since what a key is called there is for each server to say
        if re.search(f"{credentials}|{query}", path, re.I | re.S):
            kept_out = re.sub(r"(?<=//)[^/]*@|[?#].*", "", path, flags=re.S)
            raise ValueError(
                f"{kept_out}: a URL with credentials or a query; leave them out and set what opens the store in the "
                "environment"
            )
        return path


class Source(RecordFiles):
    """Files whose records become rows."""

    side: Side | None = Field(
        default=None,
        description="The side of the split that all rows of this source are on; replay: general rows that train beside "
        "the others, so that the model forgets less, as many as split.replay says; empty lets split decide",
    )


class Data(Section):
    """What is read: files of conversations, one record each."""

    sources: tuple[Source, ...] = Field(min_length=1, description="The files to read, in this order")
    held_out: tuple[RecordFiles, ...] = Field(
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
        default=0.2,
        ge=0,
        le=1,
        description="Stop when more than this share of the rows is set aside, by checks or the chat template, 0 to 1",
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
    semantic_model: Annotated[str, Local(or_name=True)] = Field(
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
