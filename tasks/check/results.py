"""The results of a check: results.json, from which the report and the summary are made."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import pyarrow as pa

from tunewright.artifacts import Artifact
from tunewright.artifacts.payloads import CheckResults, DriftMeasure, ExpectationResult, FileCount, Since, SourceCount
from tunewright.data_checks.given import Given
from tunewright.data_checks.profile import counts
from tunewright.data_checks.report import SOURCES
from tunewright.data_checks.validation import ExpectationOutcome
from tunewright.tasks.check.validate import ValidatedRows, ValidatedSet

VALUES = (  # how a fault is said without the value of one row or of the data
    (r": \{value(:\.0f)?\}$", ""),
    (r"\{value:\.1%\}", "too large a share"),
    (r" \{value:\.2f\}, over", " over"),
    (r"\{value\} (characters|different answers), (more|fewer) than (\w+=\d+)", r"\2 than \3 \1"),
    (r"\{value\} characters, the length", "the length"),
    (r"\{value[^}]*\}", "…"),
)
LANGUAGES = 5  # that are named of those that rows fail by
OF_PAIRS = ("identical_pair", "rejected_elsewhere")  # which look at rejected answers alone

C = TypeVar("C", bound=SourceCount)


def results(
    validated: ValidatedRows,
    of_set: ValidatedSet,
    refused: dict[str, int],
    quarantined: dict[str, int],
    since: Since | None,
    stopped: str,
    given: Sequence[Given],
    held_out: Sequence[tuple[str, str, int]],
    num_general: int,
) -> CheckResults:
    """The account, the reasons, every expectation with its outcome, and the files.

    `since` is what changed since the version before, and `held_out` has the evaluation files: how each was read, and
    its records. `num_general` of the rows are from rehearse and were read from no file.
    """
    num_refused, num_quarantined, num_rows = sum(refused.values()), sum(quarantined.values()), len(validated.frame)
    values = {name: measure.value for name, measure in of_set.measures.items()}
    conflicting = validated.conflicting()
    return CheckResults(
        stopped=stopped,  # why the run does; empty where it goes on
        read=num_rows + num_refused - num_general,
        general=num_general,
        refused=num_refused,
        rows=num_rows,
        kept=num_rows - num_quarantined,
        quarantined=num_quarantined,
        reasons={"ingest": refused, "check": quarantined},
        findings=_findings(validated, of_set) | {name: n for each in given for name, n in each.findings.items()},
        user_provided_splits=tuple(said for each in given for said in each.says()),
        held_out=tuple(held_out),
        conflicting_prompts=0 if conflicting is None else int(conflicting["prompt_hash"].nunique()),
        files=_files(validated),
        since=since,
        expectations=(
            *(_described(outcome, None, validated, of_set=not outcome.of_rows) for outcome in validated.outcomes),
            *(_described(outcome, values[outcome.column], validated, of_set=True) for outcome in of_set.outcomes),
        ),
    )


def _findings(validated: ValidatedRows, of_set: ValidatedSet) -> dict[str, int]:
    """Expectation that failed and sets nothing aside -> rows that fail it, or 1 for one of the table as a whole."""
    failed: dict[str, set[int]] = {}
    for outcome in validated.outcomes:
        if outcome.failed and (outcome.entry.severity == "info" or not outcome.of_rows):
            failed.setdefault(outcome.entry.name, set()).update(outcome.rows.tolist())
    return {name: len(rows) or 1 for name, rows in failed.items()} | {
        outcome.entry.name: 1 for outcome in of_set.outcomes if outcome.failed
    }


def _described(
    outcome: ExpectationOutcome, value: float | None, validated: ValidatedRows, *, of_set: bool
) -> ExpectationResult:
    """Describe an outcome; of several rows, and of what did not fail, without a value.

    Of languages it has the most frequent ones, each with its rows.
    """
    many = _without_value(outcome.fault)
    if outcome.entry.name == "language" and outcome.failed:
        found = counts(validated.frame[outcome.column].iloc[outcome.rows]).items()
        more = f" and {len(found) - LANGUAGES} more" if len(found) > LANGUAGES else ""
        many += f" ({', '.join(f'{code} {count:,}' for code, count in [*found][:LANGUAGES])}{more})"
    evaluated, rejected = outcome.evaluated, validated.frame.get("rejected_chars")
    if outcome.entry.name in OF_PAIRS and rejected is not None:
        evaluated = min(evaluated, int(rejected.notna().sum()))
    return ExpectationResult(
        name=outcome.entry.name,
        severity=outcome.entry.severity,
        arguments=outcome.entry.given,
        of_set=of_set,
        fault=outcome.says(value) if of_set and outcome.failed else many,
        expectation=outcome.expectation,
        column=outcome.column,
        evaluated=evaluated,
        failed=outcome.failed,
        share=round(outcome.failed / evaluated, 6) if evaluated else 0.0,
        value=None if value is None else round(value, 6),
    )


def _without_value(fault: str) -> str:
    """Return a fault without the value of one row or of the data: "too large a share" for "{value:.1%}"."""
    for value, said in VALUES:
        fault = re.sub(value, said, fault)
    return fault


def _files(validated: ValidatedRows) -> tuple[FileCount, ...]:
    """Each file with its kept and quarantined rows, and those of each source that its rows name themselves.

    The largest first; files, and sources of a file, beyond SOURCES are in one line. Of a file whose rows name no source
    there are none; otherwise "" has those of its rows that name none.
    """
    columns = {name: pa.array(validated.frame[name], pa.string()) for name in ("file", "source")}
    counts = (
        pa.table(columns | {"kept": validated.kept()})
        .group_by(["file", "source", "kept"])
        .aggregate([([], "count_all")])
    )
    of_files: dict[str, dict[str, Counter[str]]] = {}
    for each in counts.to_pylist():
        file, source = str(each["file"]), str(each["source"])
        named = "" if source == file.rpartition("/")[2] else source
        became = "kept" if each["kept"] else "quarantined"
        of_files.setdefault(file, {}).setdefault(named, Counter())[became] += each["count_all"]
    found = []
    for file, of_sources in of_files.items():
        named = of_sources if any(of_sources) else {}
        sources = [SourceCount(name=source, **_sums([counted])) for source, counted in named.items()]
        found.append(FileCount(name=file, **_sums(of_sources.values()), sources=_first(sources, SourceCount)))
    return _first(found, FileCount)


def _sums(counted: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return {became: sum(each[became] for each in counted) for became in ("kept", "quarantined")}


def _first(counts: list[C], kind: type[C]) -> tuple[C, ...]:
    """The largest, and the others as one."""
    counts.sort(key=lambda each: (-each.kept - each.quarantined, each.name))
    rest = [{"kept": each.kept, "quarantined": each.quarantined} for each in counts[SOURCES:]]
    more = [kind(name=f"{len(rest)} more", **_sums(rest))] if rest else []
    return (*counts[:SOURCES], *more)


def since_version(of_set: ValidatedSet, before: Artifact | None, number: int | None) -> Since | None:
    """Compare the set with the version `before`, which has this number; None without one."""
    if before is None or of_set.changed is None:
        return None
    drift = {
        name: DriftMeasure(psi=round(measure.value, 4), noise=round(measure.noise, 4))
        for name, measure in of_set.measures.items()
        if name.endswith("_psi") and measure.value is not None
    }
    return Since(version=before.key, number=number, **of_set.changed._asdict(), drift=drift)
