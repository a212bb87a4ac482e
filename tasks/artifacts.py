"""What a stage hands to the next: small frozen records that point at a folder, with its counts and its content hash.

Every stage's folder holds a manifest.json written last (tasks/caching.py); the files named here are its content.
A row table has the columns row_id, source, file, line, group and messages; ROW_SCHEMA says their types.
"""

from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

ROW_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),  # sha256 of the canonical JSON of the messages
        ("source", pa.string()),  # the row's own `source` field, or the file's name
        ("file", pa.string()),
        ("line", pa.int64()),  # counted from 1; for an array or Parquet the number of the record
        ("byte", pa.int64()),  # where the record begins in the file, unpacked; null where a file has no such place
        ("group", pa.string()),  # rows of one group stay on one side of the split; null where there is none
        ("time", pa.string()),  # ISO 8601 in UTC, so that text order is time order; null where there is none
        ("side", pa.string()),  # the side that the source's settings say; null where split decides
        ("repairs", pa.string()),  # what was repaired in its texts, such as "mojibake, nfc"; null for nothing
        ("messages", MESSAGES),
    ]
)

QUARANTINE_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("byte", pa.int64()),
        ("row_id", pa.string()),  # null where it never became a row
        ("reason", pa.string()),  # a code, such as bad_json
        ("detail", pa.string()),  # one sentence for a person
        ("text", pa.string()),  # the beginning of what stood there, at most 500 characters
    ]
)

# What a record of an evaluation file says, all its texts joined by line breaks.
HELD_OUT_SCHEMA = pa.schema([("file", pa.string()), ("line", pa.int64()), ("text", pa.string())])

REMOVED_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),  # exact_duplicate, near_duplicate or semantic_duplicate
        ("partner_row_id", pa.string()),  # the kept row that it repeats
        ("partner_file", pa.string()),
        ("partner_line", pa.int64()),
        ("similarity", pa.float64()),  # exact Jaccard of the compared keys, 1.0 for an exact duplicate; or the cosine
        ("text", pa.string()),
    ]
)

SPLIT_SCHEMA = ROW_SCHEMA.append(pa.field("cluster", pa.int64()))  # near duplicates and groups share one

# What the next version of the data must know of a row: its side, or the one that it would return to if it is set aside.
SIDES_FILE = "sides.parquet"
SIDES_SCHEMA = pa.schema([("row_id", pa.string()), ("side", pa.string()), ("because", pa.string())])

IGNORED = -100  # the label of a token that is not trained, to every loss of PyTorch's

TOKEN_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("cluster", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),  # input_ids where the token is trained, IGNORED elsewhere, not shifted
        ("prompt_length", pa.int32()),  # tokens before the last answer: input_ids[:prompt_length] is what is asked
        ("reference", pa.string()),  # the text of the last answer
    ]
)


class Artifact(BaseModel):
    """One stage's output: `<home>/artifacts/<stage>/<key>/`. `digest` depends on the content alone."""

    model_config = ConfigDict(frozen=True)

    stage: str = ""
    key: str = ""
    folder: Path = Path()
    digest: str = ""

    def path(self, name: str) -> Path:
        """The file or folder `name` of this artifact."""
        return self.folder / name


class Base(Artifact):
    """The base model: `weights` is a folder with safetensors, config and tokenizer that transformers reads offline."""

    reference: str
    revision: str | None
    location: Path  # of the weights; a relative one lies inside the artifact
    weights_digest: str
    special_tokens: tuple[str, ...] = ()  # that text must not contain: they would become control tokens

    @property
    def weights(self) -> Path:
        """The folder with the weights."""
        return self.folder / self.location


class Rows(Artifact):
    """ingest: rows.parquet (ROW_SCHEMA), quarantine.parquet (QUARANTINE_SCHEMA), held_out.parquet (HELD_OUT_SCHEMA)."""

    num_read: int
    num_rows: int
    num_quarantined: int
    reasons: dict[str, int]
    detected: dict[str, str]  # file -> "jsonl, alpaca"
    repaired: dict[str, int] = {}  # repair -> rows in which it changed something
    num_held_out: int = 0


class CheckedRows(Artifact):
    """check: rows.parquet, quarantine.parquet, profile.json, results.json and report.html."""

    num_rows: int
    num_quarantined: int
    reasons: dict[str, int]
    findings: dict[str, int]


class UniqueRows(Artifact):
    """dedupe: rows.parquet and removed.parquet (REMOVED_SCHEMA)."""

    num_rows: int
    num_removed: int
    reasons: dict[str, int]
    boilerplate: tuple[str, ...]


class Splits(Artifact):
    """split: train, validation, test.parquet (SPLIT_SCHEMA), quarantine, sides.parquet (SIDES_SCHEMA), proof.json."""

    num_train: int
    num_validation: int
    num_test: int
    num_clusters: int
    num_quarantined: int = 0
    reasons: dict[str, int] = {}
    findings: dict[str, int] = {}
    largest_similarity: float  # of any pair of rows on two sides, or the floor under which none was looked at
    random_leak_share: float  # of test rows that a random split of the same sizes would have leaked


class Tokens(Artifact):
    """render: train, validation and test.parquet (TOKEN_SCHEMA), contract.json, quarantine.parquet and report.html."""

    num_train: int
    num_validation: int
    num_test: int
    num_quarantined: int
    reasons: dict[str, int]
    num_trained_tokens: int
    longest: int


class Scan(Artifact):
    """scan: scan.json (module -> SNR), chosen.json (the modules that learn) and report.html."""

    num_modules: int
    chosen: tuple[str, ...]


class Adapter(Artifact):
    """train: model/ (adapter or full weights), contract.json, metrics.jsonl, summary.json and curves.html."""

    method: str
    steps: int
    best_step: int
    best_by: str
    best_value: float  # of best_by, at the best step
    best_validation_loss: float  # at the best step
    stopped_early: bool
    warnings: tuple[str, ...] = ()  # in plain words
    train_seconds: float


class Contender(BaseModel):
    """Something that answers the test rows: a base, and the tuned weights on top of it where there are any."""

    model_config = ConfigDict(frozen=True)

    name: str  # base, candidate or champion
    base: Base
    model: Path | None = None  # train's model/ folder, or that of a registered version
    model_digest: str = ""
    version: str = ""  # of the registered model, for the champion


class Answers(Artifact):
    """evaluate: answers.parquet (one line a test row) and scores.json, of one contender."""

    contender: str
    num_rows: int
    scores: dict[str, float]


class Verdict(Artifact):
    """decide: verdict.json. Intervals are of the paired difference candidate - opponent, in the metric's unit."""

    decision: str  # promote, keep or inconclusive
    sentence: str
    metric: str
    differences: dict[str, tuple[float, float, float]]  # opponent -> (low, mean, high)
    intervals: dict[str, tuple[float, float, float]]  # contender -> (low, mean, high) of its own score
    rows_needed: int | None


class Registered(Artifact):
    """register: model.json. `alias` is empty where the alias did not move."""

    name: str
    version: str
    alias: str
    uri: str
    run_id: str
    experiment_id: str
    tracking_uri: str
