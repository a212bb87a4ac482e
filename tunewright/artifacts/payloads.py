"""The JSON files that stages leave for others, as classes.

The stage that makes a file writes it with `save`; reports, pages and other stages read it with `load`. The records
(__init__.py) have the few figures that later stages and summaries need; these files have the details.
"""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel

from tunewright.artifacts import Artifact, Verdict, part_of_rows

Interval = tuple[float, float, float]  # low, mean, high
Because = Literal["", "worse", "too low", "regression", "prompting is enough"]
Decided = Literal["promote", "keep", "inconclusive", "invalid"]


class Payload(BaseModel, frozen=True):
    """The content of a file of an artifact."""

    FILE: ClassVar[str]

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Read the file of an artifact."""
        return cls.load_from(artifact.folder)

    @classmethod
    def load_from(cls, folder: Path) -> Self:
        """Read the file in a folder."""
        return cls.model_validate_json((folder / cls.FILE).read_bytes())

    def save(self, folder: Path) -> None:
        """Write the file into a folder."""
        (folder / self.FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


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
    failed: int  # rows, with severity info those that were kept; of the set as a whole 1
    share: float  # failed / evaluated
    value: float | None  # what was measured, of the set as a whole

    @property
    def is_finding(self) -> bool:
        """True where it failed and quarantines no row."""
        return bool(self.failed) and (self.severity == "info" or self.of_set)


class DriftMeasure(BaseModel, frozen=True):
    """The population stability index of one distribution, and how large sampling noise makes it."""

    psi: float
    noise: float


class Since(BaseModel, frozen=True):
    """The data compared with the last accepted version."""

    version: str  # the key of its artifact
    number: int | None = None  # of the version; empty in what an earlier Tunewright wrote
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


class CheckResults(Payload, frozen=True):
    """check: the account, the reasons, every expectation's outcome, the sources, and what changed since last time."""

    FILE = "results.json"

    stopped: str  # why the run stops; empty where it goes on
    read: int  # records, those that ingest refused among them
    general: int = 0  # rows that rehearse made, which are checked with the others
    refused: int  # by ingest
    rows: int  # that were checked
    kept: int
    quarantined: int  # by check
    reasons: dict[str, dict[str, int]]  # ingest and check -> reason -> rows
    findings: dict[str, int]  # expectation that failed and quarantines nothing -> rows
    user_provided_splits: tuple[str, ...]  # what was quarantined of splits that a source provides, in words
    held_out: tuple[tuple[str, str, int], ...]  # of each evaluation file: path, how it was read, records
    conflicting_prompts: int  # prompts with several answers
    files: tuple[FileCount, ...]  # the largest first
    since: Since | None
    expectations: tuple[ExpectationResult, ...]


class PlacedRow(BaseModel, frozen=True):
    """A row, by where it stands and its split."""

    split: str
    row_id: str
    file: str
    line: int


class Decontamination(BaseModel, frozen=True):
    """Passages that training rows share with evaluation rows."""

    training_rows: int
    removed: bool
    by_partner: dict[str, int]  # validation, test or held_out -> training rows
    held_out_records: int
    in_held_out: dict[str, int]  # split -> rows that share a passage with a record of data.held_out
    rows_in_held_out: tuple[PlacedRow, ...] = ()  # the first of these


class EarlierRows(BaseModel, frozen=True):
    """Counts of the rows that the last version of the data had in its splits, by their outcome."""

    earlier: str | None  # the digest of its splits
    known_rows: int
    stayed: int
    given_elsewhere: int
    freed_by_a_given_split: int
    gone: int
    quarantined: int = 0
    returned: int | None = None  # rows that it had in no split; None in records of versions that did not count them
    returned_in_split: int | None = None  # those of them that are in one now; None as above


class Stratum(BaseModel, frozen=True):
    """The share of one stratum in all rows and in each split."""

    name: str
    all: float
    train: float
    validation: float
    test: float


class Deviation(BaseModel, frozen=True):
    """Which share of which split differs most from the share in all rows."""

    split: str
    stratum: str


class Balance(BaseModel, frozen=True):
    """The distribution of the strata over the splits."""

    by: str | None
    num_strata: int
    largest_deviation: float  # 0 to 1
    deviates_most: Deviation | None
    strata: tuple[Stratum, ...]


class TimeSpans(BaseModel, frozen=True):
    """The time span of each split."""

    spans: dict[str, tuple[str, ...]]  # first and last time; empty where no row has one
    train_rows_newer_than_a_test_row: int


class LeakProof(Payload, frozen=True):
    """split: that no rows of two splits are near-duplicates or of one group, and how the splits came about."""

    FILE = "proof.json"

    threshold: float
    pairs_compared: int
    largest_similarity: float  # or the floor, where no pair is above it
    largest_pair: tuple[PlacedRow, ...]  # empty, or two
    floor: float
    num_groups: int = 0  # with rows in a split; no group is in two splits
    random_leak_share: float  # of test rows with a near-duplicate, or a row of their group, in another split
    rows: dict[str, int]
    because: dict[str, dict[str, int]]  # split -> why rows are in it -> rows
    quarantined: dict[str, int]  # reason -> quarantined rows
    cluster_sizes: dict[str, int]
    test_clusters: int
    smallest_visible_difference: float
    balance: Balance
    user_provided_splits: tuple[str, ...]
    versions: EarlierRows
    time: TimeSpans | None
    decontamination: Decontamination
    settings: dict[str, Any]
    findings: dict[str, int] = {}


class Contract(Payload, frozen=True):
    """render and train: what a server must agree with to prompt the model as it was trained."""

    FILE = "contract.json"

    chat_template: str
    chat_template_sha256: str
    date_in_template: str | None
    generation_prompt: str
    add_special_tokens: bool
    stop_token: str
    stop_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int
    pad_is_stop_token: bool
    special_tokens: dict[str, int]
    tokenizer_sha256: str | None
    transformers: str  # its version
    system_message: str = ""  # that every training row begins with; empty where some have another or none


class TrainingSummary(Payload, frozen=True):
    """train: where training ended, and what was chosen."""

    FILE = "summary.json"

    steps: int
    planned_steps: int
    best_step: int
    best_by: str
    best_value: float
    best_validation_loss: float
    stopped_early: bool
    chosen: dict[str, Any]  # tunewright/modeling/compute.py: Chosen
    learning_parameters: int
    parameters: int
    skipped_checkpoints: tuple[str, ...]


class Comparison(BaseModel, frozen=True):
    """The candidate compared with one opponent. A positive difference is in the candidate's favour, in any metric."""

    metric: str
    opponent: str
    threshold: float  # what the difference should be above: a margin, or less a tolerance
    finding: Literal["above", "below", "unclear"]
    difference: Interval
    bootstrap: tuple[float, float]  # bounds of the difference by resampled clusters; not part of the decision
    candidate_mean: float
    opponent_mean: float
    num_rows: int
    num_unanswered: int = 0  # test rows that are left out, since the opponent was ended before
    confidence: float | None = None  # of each bound; None in earlier records: that of the decision
    wins: int
    losses: int
    ties: int
    p_below: float  # one-sided, of a difference as low if the true one were at the threshold; of guardrails adjusted
    mcnemar_p: float | None  # exact and one-sided, of the wins and losses; None unless all scores are 0 or 1
    rows_needed: int | None  # for this gain, or .01 over the threshold; None unless more rows can show it
    smallest_visible: float | None  # true difference detectable at 80 % power; None where it is more than there can be
    power: float  # to show that the difference is above the threshold where the true one is `effect`
    effect: float = 0.05  # 0 of guardrails: nothing got worse

    @property
    def in_part(self) -> str:
        """The test rows that the opponent answered, where these are not all; otherwise empty."""
        return part_of_rows(self.num_rows, self.num_unanswered)

    @property
    def digits(self) -> int:
        """The digits that its means and its difference have wherever they are shown."""
        from tunewright.reports.pages import digits_of

        return digits_of(self.candidate_mean, self.opponent_mean, self.difference, self.threshold)

    @property
    def is_beyond(self) -> bool:
        """Whether the whole interval is below the threshold, and the finding unclear: one of several guardrails."""
        return self.finding == "unclear" and self.difference[2] <= self.threshold

    @property
    def is_behind(self) -> bool:
        """Whether the finding is unclear and the mean difference is at most the threshold."""
        return self.finding == "unclear" and self.difference[1] <= self.threshold

    @property
    def rows_to_tell(self) -> float:
        """Test rows that would show the candidate above the threshold: inf if it is behind, 0 if it is not unclear."""
        return math.inf if self.is_behind else self.rows_needed or 0


class Decision(BaseModel, frozen=True):
    """The outcome of all comparisons, and the sentence that reports it."""

    decision: Decided
    because: Because  # of keep
    sentence: str
    metric: str
    margin: float
    tolerance: float
    confidence: float  # of each test: gate.confidence is that of all uses of the test rows together
    num_rows: int
    num_clusters: int
    closest: Comparison | None = None  # what the candidate fails, or what it passes by the least
    gain: str = ""  # of the closest comparison, and against whom
    is_poor: bool = False  # promoted although it is wrong more often than right, and no score was required
    comparisons: tuple[Comparison, ...] = ()
    guardrails: tuple[Comparison, ...] = ()
    rows_needed: int | None = None  # where more rows could decide otherwise
    smallest_visible: float | None = (
        None  # gain of the metric detectable at 80 % power, where it is the hardest to show
    )
    visible_against: str = ""  # the opponent of that gain


OTHER_ROWS = "all others"  # the slice of the rows whose own slices are not listed
ROWS_OF_A_SLICE = 5  # on average, or labels have no slices


class Slice(BaseModel, frozen=True):
    """A part of the test rows. A positive difference is in the candidate's favour."""

    by: str  # source, language, length or label
    name: str
    num_rows: int
    candidate: float
    base: float
    difference: Interval
    is_small: bool


class VerdictDetails(Payload, Decision, frozen=True):
    """decide: the decision with all that led to it."""

    FILE = "verdict.json"

    own: dict[str, dict[str, Interval]]  # contender -> metric -> interval of its own score
    slices: tuple[Slice, ...]
    beside: tuple[Comparison, ...] = ()  # with models behind APIs, which the decision does not depend on
    general: dict[str, dict[str, float]]  # base and candidate -> scores on general tasks and texts
    constant_answer: str = ""  # the beginning of the answer that the constant opponent always gives
    languages: dict[str, int] = {}  # language -> test rows, the most first, or unknown; empty in older verdicts

    @classmethod
    def score_of(cls, opponent: str, verdict: Verdict) -> float | None:
        """Return an opponent's mean in the metric that decides; None where the candidate was not compared with it."""
        if opponent not in verdict.differences:
            return None
        return next((each.opponent_mean for each in cls.load(verdict).comparisons if each.opponent == opponent), None)
