"""What a check found, as data: the report, the summary and the views read it."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class ExpectationResult(BaseModel, frozen=True):
    """One expectation of Great Expectations with its outcome."""

    name: str  # in the suite, such as length_out_of_bounds; "table" for those of the table's own columns
    severity: str
    arguments: dict[str, Any]
    of_set: bool  # whether it is about the data set as a whole and not about rows
    fault: str  # in words
    expectation: str  # the class of Great Expectations
    column: str
    evaluated: int  # rows
    failed: int  # rows; of the set as a whole 1
    share: float  # failed / evaluated
    value: float | None  # what was measured, of the set as a whole


class DriftMeasure(BaseModel, frozen=True):
    """The population stability index of one distribution, and how large sampling noise makes it."""

    psi: float
    noise: float


class Since(BaseModel, frozen=True):
    """How the data differ from the last accepted version."""

    version: str  # the key of its artifact
    before: int  # rows
    added: int
    removed: int
    drift: dict[str, DriftMeasure]  # by measure, such as label_psi


class SourceCount(BaseModel, frozen=True):
    """The rows of one source."""

    name: str  # empty for rows that name no source, where others of their file do
    kept: int
    quarantined: int


class FileCount(SourceCount, frozen=True):
    """The rows of one file."""

    sources: tuple[SourceCount, ...] = ()  # that its rows name themselves; empty where none does


class Results(BaseModel):
    """The account, the reasons, every expectation with its outcome, the sources, and what changed since last time."""

    model_config = ConfigDict(frozen=True)

    stopped: str  # why the run stops; empty where it goes on
    read: int  # records, those that ingest refused among them
    refused: int  # by ingest
    rows: int  # that were checked
    kept: int
    quarantined: int  # by check
    reasons: dict[str, dict[str, int]]  # ingest and check -> reason -> rows
    findings: dict[str, int]  # expectation that failed and quarantines nothing -> rows
    given_sides: tuple[str, ...]  # what was quarantined of splits that a source provides, in words
    held_out: tuple[tuple[str, str, int], ...]  # of each evaluation file: path, how it was read, records
    conflicting_prompts: int  # prompts with several answers
    files: tuple[FileCount, ...]  # the largest first
    since: Since | None
    expectations: tuple[ExpectationResult, ...]
