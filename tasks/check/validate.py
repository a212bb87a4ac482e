"""Holds rows against the suite: row by row, then prompt by prompt, then as a set."""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import ASSIGNMENTS_FILE, ROW_SCHEMA, Artifact
from tunewright.data_checks.batches import Ask, look, rows_at
from tunewright.data_checks.columns import Columns
from tunewright.data_checks.expectations import conflict_expectations, row_expectations, set_expectations
from tunewright.data_checks.own import looks_at_texts, own_expectation
from tunewright.data_checks.profile import (
    Measure,
    Profile,
    RowChanges,
    changed_rows,
    label_name,
    labels_at,
    measures,
    profile,
    table_of,
)
from tunewright.data_checks.rules import columns_of, contradictions, num_answers
from tunewright.data_checks.suite import Entry
from tunewright.data_checks.table import schema_expectations, table_expectations
from tunewright.data_checks.validation import ExpectationOutcome, joined, run
from tunewright.errors import ConfigError, DataError
from tunewright.machine.cluster import EngineName
from tunewright.privacy.excerpts import in_a_line, masked
from tunewright.reports.pages import located
from tunewright.tools.conversation import prompt_and_answer

# What the table's own expectations and the profile look at, whatever the suite asks.
COUNTED = {
    "num_turns",
    "num_incomplete_turns",
    "prompt_chars",
    "max_answer_chars",
    "prompt_language",
    "answer_language",
    "chosen_chars",
    "rejected_chars",
}

RARE = 5  # times as many rows as another label has a usual one from which it differs in accents alone
FEWEST_LETTERS, SHORTEST = 4, 6  # of a word with a typing error, and of its label: "card" and "cart" are two labels
_NO_WORD = re.compile(r"[\W_]+")
_ACCENTS = re.compile("[\u0300-\u036f]")

# What a replay row, which belongs to another task, is not compared by with the rows of this one: null in its columns.
OF_TASK = {"prompt_language", "answer_language", "no_json"}

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ValidatedRows:
    """The rows' frame, and the outcome of each expectation on rows."""

    frame: pd.DataFrame
    outcomes: list[ExpectationOutcome]

    @property
    def quarantined(self) -> list[ExpectationOutcome]:
        """The outcomes whose rows do not pass, critical ones first: a row is blamed for what stops the run."""
        found = [o for o in self.outcomes if len(o.rows) and o.entry.severity in ("critical", "warning")]
        return sorted(found, key=lambda outcome: outcome.entry.severity != "critical")

    def failing(self) -> Mask:
        """A line for each outcome of `quarantined`, in order, and a column for each row: whether it fails."""
        outcomes = self.quarantined
        lines = np.zeros((len(outcomes), len(self.frame)), dtype=np.bool_)
        for line, outcome in zip(lines, outcomes, strict=True):
            line[outcome.rows] = True
        return lines

    def kept(self) -> Mask:
        """Whether each row passes all that sets rows aside or stops."""
        return np.logical_not(self.failing().any(axis=0))

    def conflicting(self) -> pd.DataFrame | None:
        """The kept rows whose prompt has several answers; None where that was not looked at, or quarantines."""
        found = (o.rows for o in self.outcomes if o.entry.name == "conflicting_answers" and o.entry.severity == "info")
        rows = next(found, None)
        return None if rows is None else self.frame.iloc[rows]

    def value(self, outcome: ExpectationOutcome, position: int) -> str:
        """Return a row's value in the column that an expectation checked, in one line."""
        return in_a_line(self.frame[outcome.column].iloc[position]) if outcome.column in self.frame else ""

    def said(self, outcome: ExpectationOutcome) -> str:
        """Describe the fault, the number of failing rows and the first of them; for a whole table only the fault."""
        if not len(outcome.rows):
            return outcome.says()
        position = int(outcome.rows[0])
        first, what = self.frame.iloc[position], outcome.says(self.value(outcome, position))
        place = located(first["file"], first["line"])
        return f"{what} in {outcome.failed} of {len(self.frame)} rows; first: {place}"


def validate_rows(
    file: Path, suite: Sequence[Entry], special_tokens: Sequence[str], engine: EngineName = "local"
) -> ValidatedRows:
    """Every row against what it must satisfy by itself, then the rows that pass against each other.

    Raises DataError where the table itself is broken, ConfigError where one of the team's could not be evaluated.
    """
    schema = pq.read_schema(file)
    empty = schema.empty_table().to_pandas(types_mapper=pd.ArrowDtype)
    stop_if_broken(ValidatedRows(empty, run(empty, schema_expectations(ROW_SCHEMA))), file)
    frame, of_texts = _look(file, suite, special_tokens, engine)
    of_table, of_rows = table_expectations(ROW_SCHEMA), row_expectations(suite, _own_rows(frame))
    validated = ValidatedRows(frame, [*run(frame, of_table), *(run(frame, of_rows) if of_rows else []), *of_texts])
    stop_if_broken(validated, file)

    passing = frame[validated.kept()]
    of_prompts = {"num_answers": num_answers(passing), "contradicted_by": contradictions(passing)}
    if any(entry.name == "label_spelling" for entry in suite):
        of_prompts["usual_label"] = unusual_spellings(file, passing)
    frame = frame.assign(**{name: column.reindex(frame.index) for name, column in of_prompts.items()})
    conflicts = conflict_expectations(suite)
    validated = ValidatedRows(frame, [*validated.outcomes, *(run(frame, conflicts) if conflicts else [])])
    stop_if_broken(validated, file)
    if validated.kept().sum() < len(passing):
        validated = _of_kept_answers(validated, suite)
    return ValidatedRows(validated.frame, _kept_findings(validated))


def _of_kept_answers(validated: ValidatedRows, suite: Sequence[Entry]) -> ValidatedRows:
    """The outcomes, with conflicting_answers, where it only reports, of the answers that other checks have left."""
    frame, kept = validated.frame, validated.kept()
    entry = next((each for each in suite if each.name == "conflicting_answers" and each.severity == "info"), None)
    if not entry:
        return validated
    frame = frame.assign(num_answers=num_answers(frame[kept]).reindex(frame.index))
    (again,) = run(frame, conflict_expectations([entry]))
    return ValidatedRows(frame, [again if each.entry == entry else each for each in validated.outcomes])


def _kept_findings(validated: ValidatedRows) -> list[ExpectationOutcome]:
    """The outcomes, of which those of severity info are of kept rows alone: a quarantined row is no finding."""
    kept, outcomes = validated.kept(), list[ExpectationOutcome]()
    for outcome in validated.outcomes:
        if outcome.entry.severity == "info" and outcome.of_rows:
            rows = outcome.rows[kept[outcome.rows]]
            values = validated.frame.get(outcome.column)
            skips_nulls = values is not None and outcome.evaluated == values.notna().sum()
            left = values[kept].notna() if values is not None and skips_nulls else kept
            evaluated = min(outcome.evaluated, int(left.sum()))
            outcome = replace(outcome, rows=rows, failed=len(rows), evaluated=evaluated)
        outcomes.append(outcome)
    return outcomes


def _look(
    file: Path, suite: Sequence[Entry], special_tokens: Sequence[str], engine: EngineName
) -> tuple[pd.DataFrame, list[ExpectationOutcome]]:
    of_texts = tuple(entry for entry in suite if entry.own and looks_at_texts(own_expectation(entry)))
    looked = list(look(file, Ask(_columns(suite), tuple(special_tokens), of_texts), engine))
    if not looked:
        return pd.DataFrame({name: [] for name in (*Columns._fields, "use_as")}), []
    starts = list(accumulate((batch.columns.num_rows for batch in looked[:-1]), initial=0))
    outcomes = [joined(parts, starts) for parts in zip(*(batch.of_texts for batch in looked), strict=True)]
    table = pa.concat_tables(batch.columns for batch in looked)
    frame = table.to_pandas(types_mapper=pd.ArrowDtype, self_destruct=True)
    frame.loc[is_replay(frame), [name for name in frame if name in OF_TASK]] = None
    return frame, outcomes


def _columns(suite: Sequence[Entry]) -> frozenset[str]:
    """The derived columns that something looks at: what costs most to derive can be left out."""
    own = [own_expectation(entry).expectation for entry in suite if entry.own]
    asked = [each.expectation for each in row_expectations(suite, pd.DataFrame({name: [] for name in Columns._fields}))]
    named = {column for expectation in (*asked, *own) for column in columns_of(expectation)}
    return frozenset(named | COUNTED) & frozenset(Columns._fields)


@dataclass(frozen=True)
class ValidatedSet:
    """The rows that pass as a whole: what they look like, how far that is from before, and what came of that."""

    profile: Profile
    earlier: Profile | None  # that of the last accepted version
    changed: RowChanges | None  # against its rows
    measures: dict[str, Measure]
    outcomes: list[ExpectationOutcome]


def validate_set(
    file: Path, validated: ValidatedRows, suite: Sequence[Entry], before: Artifact | None, globs: Mapping[str, str]
) -> ValidatedSet:
    """Validate the rows that pass as a set; the profile leaves replay rows out.

    `globs` are those that name files; for drift all files of one are a source.
    """
    frame = validated.frame[validated.kept()]
    described = _own_rows(frame)
    found = profile(described, labels(file, described), _listed(described, globs))
    earlier = json.loads(before.path("profile.json").read_text(encoding="utf-8")) if before else None
    changed = changed_rows(_row_ids(before), frame["row_id"]) if before else None
    measured = measures(found, earlier, changed)
    asked = set_expectations(suite, measured)
    outcomes = run(table_of(measured), asked) if asked else []
    return ValidatedSet(found, earlier, changed, measured, outcomes)


def is_replay(frame: pd.DataFrame) -> Mask:
    """(rows,) whether each is a replay row."""
    return frame["use_as"].eq("replay").fillna(value=False).to_numpy(dtype=np.bool_)


def _own_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `frame` but replay rows."""
    return frame[~is_replay(frame)]


def _listed(frame: pd.DataFrame, globs: Mapping[str, str]) -> pd.Series:
    """The source of each row; where that is a file that a glob names, the glob."""
    if not globs:
        return frame["source"]
    source, file = (frame[name].astype(object) for name in ("source", "file"))
    is_named_after_file = source == file.map({path: path.rpartition("/")[2] for path in globs})
    return source.mask(is_named_after_file, file.map(globs))


def labels(file: Path, frame: pd.DataFrame) -> dict[str, int] | None:
    """Count each answer of the rows of `frame`, where the answers are a closed set of labels."""
    found = _label_rows(file, frame)
    if found is None:
        return None
    counts: Counter[str] = Counter()
    for each in found:
        counts[label_name(masked(each.text))] += each.num_rows
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class LabelRows(NamedTuple):
    """One of the different answers, where these are labels."""

    position: int  # of the first row that has it
    text: str
    num_rows: int


def _label_rows(file: Path, frame: pd.DataFrame) -> list[LabelRows] | None:
    known = frame["answer_hash"].dropna()
    found = labels_at(known.to_numpy(dtype=np.int64))
    if found is None:
        return None
    number_at = dict(zip(known.index[found[0]].tolist(), found[1].tolist(), strict=True))
    answers = ((at, prompt_and_answer(row["messages"])[1]) for at, row in rows_at(file, number_at))
    return [LabelRows(at, (answer or {}).get("content") or "", number_at[at]) for at, answer in answers]


def unusual_spellings(file: Path, frame: pd.DataFrame) -> pd.Series:
    """For each row whose answer is a label in another form than most rows have it, both forms; else null.

    Forms differ in case, white space or Unicode normal form; and, where one is rare beside the other, in accents or in
    one letter of a word.
    """
    labels = _label_rows(file, _own_rows(frame)) or []
    forms = defaultdict[str, list[LabelRows]](list)
    for each in labels:
        forms[_ACCENTS.sub("", unicodedata.normalize("NFD", _folded(each.text)))].append(each)
    said: dict[int, str] = {}
    for usual, *others in (sorted(alike, key=lambda each: (-each.num_rows, each.text)) for alike in forms.values()):
        for each in others:
            if _folded(each.text) == _folded(usual.text) or each.num_rows * RARE <= usual.num_rows:
                said[int(frame["answer_hash"][each.position])] = _spelling(each.text, usual.text)
    for each in labels:
        usual = max(labels, key=lambda other: (other.num_rows, other.text) if _is_typo(each, other) else (0, ""))
        if _is_typo(each, usual):
            said.setdefault(int(frame["answer_hash"][each.position]), f"{each.text!r}, perhaps {usual.text!r}")
    return frame["answer_hash"].map(said).astype(object)


def _folded(label: str) -> str:
    return " ".join(unicodedata.normalize("NFC", label).casefold().split())


def _is_typo(label: LabelRows, usual: LabelRows) -> bool:
    """Whether a label, rare beside a usual one, has one word of it with a letter wrong, missing, more or swapped."""
    if label.num_rows * RARE > usual.num_rows or len(label.text) < SHORTEST:
        return False
    words, others = (_NO_WORD.split(_folded(each.text)) for each in (label, usual))
    differing = [pair for pair in zip(words, others, strict=False) if pair[0] != pair[1]]
    if len(words) != len(others) or len(differing) != 1 or not all(map(str.isalpha, differing[0])):
        return False
    start = next(
        (at for at, (a, b) in enumerate(zip(*differing[0], strict=False)) if a != b), min(map(len, differing[0]))
    )
    typed, meant = (word[start:] for word in differing[0])
    is_swapped = typed[:2] == meant[1::-1] and typed[2:] == meant[2:]
    one_edit = typed[1:] == meant[1:] or typed[1:] == meant or typed == meant[1:] or is_swapped
    return one_edit and min(map(len, differing[0])) >= FEWEST_LETTERS


def _spelling(label: str, usual: str) -> str:
    if label.split() == usual.split():
        return f"{usual!r} with other white space"
    if unicodedata.normalize("NFC", label) == unicodedata.normalize("NFC", usual):
        return f"{usual!r} in another Unicode normal form (data.repair=[nfc] makes them one)"
    return f"{label!r}, usually {usual!r}"


def stop_if_broken(validated: ValidatedRows, file: Path) -> None:
    """Raises DataError where the table is not what it must be, another error where something was not evaluated."""
    for outcome in validated.outcomes:
        if outcome.error and outcome.entry.own:
            raise ConfigError(f"{outcome.entry.key} ({outcome.entry.name}) did not run: {in_a_line(outcome.error)}")
        if outcome.error:
            what = f"{outcome.expectation} of {outcome.column}"
            raise RuntimeError(f"{file}: {what} did not run: {in_a_line(outcome.error)}")
        if outcome.entry.name == "table" and outcome.failed:
            raise DataError(f"{file}: {validated.said(outcome)}")


def _row_ids(before: Artifact) -> pd.Series:
    """Those of the rows that passed: of a version only sides.parquet is kept (tunewright/store/data_history.py)."""
    kept = before.path(ASSIGNMENTS_FILE)
    file, passed = (kept, pc.field("checked")) if kept.is_file() else (before.path("rows.parquet"), None)
    table = pq.read_table(file, columns=["row_id"], filters=passed)
    return table.to_pandas(types_mapper=pd.ArrowDtype)["row_id"]
