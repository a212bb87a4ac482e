"""Holds every row against one Great Expectations suite: keeps it, or quarantines it with its reason, file and line.

A critical failure is one of the table itself, and stops. Every other failure is of single rows, which are set aside
with the first expectation that they fail in the order of checks.expectations.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

from tasks.artifacts import MESSAGES, QUARANTINE_SCHEMA, ROW_SCHEMA, CheckedRows, Rows
from tasks.caching import cached
from tasks.config import Checks
from tasks.errors import DataError, retry_transient

if TYPE_CHECKING:
    import pandas as pd

    from data_checks.columns import Turn
    from data_checks.suite import Outcome

TEXT_CHARS = 500  # of a quarantined row's text


def frame_of(table: pa.Table, special_tokens: Sequence[str]) -> "pd.DataFrame":
    """The table as a frame that keeps its Arrow types, with the columns that expectations look at beside them."""
    import pandas as pd

    from data_checks.columns import derive

    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    if "messages" in table.schema.names and table.schema.field("messages").type == MESSAGES:
        frame = frame.join(derive(table["messages"].to_pylist(), special_tokens))
    return frame  # without messages of that type a critical expectation fails before any that needs these columns


def hold(frame: "pd.DataFrame", checks: Checks) -> "list[Outcome]":
    """The outcome of every expectation: those of the table first, then those of the rows in the configured order."""
    from data_checks.expectations import row_expectations, table_expectations
    from data_checks.suite import run

    of_rows = row_expectations(
        checks.expectations,
        max_prompt_chars=checks.max_prompt_chars,
        min_answer_chars=checks.min_answer_chars,
        max_answer_chars=checks.max_answer_chars,
    )
    return run(frame, [*table_expectations(ROW_SCHEMA), *of_rows])


def stop_on_critical(outcomes: "Sequence[Outcome]", frame: "pd.DataFrame", file: Path) -> None:
    """Raises DataError where the table itself failed, and RuntimeError where an expectation could not be evaluated."""
    for outcome in outcomes:
        if outcome.error:
            raise RuntimeError(f"{file}: {outcome.expectation} of {outcome.column} did not run: {outcome.error}")
        if outcome.severity == "critical" and outcome.failed:
            where = ""
            if len(outcome.rows):
                first = frame.iloc[int(outcome.rows[0])]
                where = f" in {outcome.failed} of {len(frame)} rows; first: {first['file']} line {first['line']}"
            raise DataError(f"{file}: {outcome.fault}{where}")


def blame(outcomes: "Sequence[Outcome]") -> "dict[int, list[Outcome]]":
    """For each row that fails, by its position, the expectations it fails in the configured order."""
    failed: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.severity == "warning":
            for position in outcome.rows.tolist():
                failed.setdefault(position, []).append(outcome)
    return dict(sorted(failed.items()))


def quarantine(table: pa.Table, frame: "pd.DataFrame", blamed: "dict[int, list[Outcome]]") -> pa.Table:
    """The failing rows (QUARANTINE_SCHEMA), each once, in the order of the table."""
    records = [
        located(table, position) | {"reason": failed[0].code, "detail": _detail(failed, frame, position)}
        for position, failed in blamed.items()
    ]
    return pa.Table.from_pylist(records, QUARANTINE_SCHEMA)


def located(table: pa.Table, position: int) -> dict[str, Any]:
    """Where a row came from, and the beginning of what stands there."""
    return {
        "file": table["file"][position].as_py(),
        "line": table["line"][position].as_py(),
        "text": excerpt(table["messages"][position].as_py()),
    }


def _detail(failed: "Sequence[Outcome]", frame: "pd.DataFrame", position: int) -> str:
    first = failed[0]
    value = frame[first.column].iloc[position]
    value = int(value) if isinstance(value, float) else value  # counts stand as floats where some are null
    said = clipped(" ".join(str(value).split()), 100)
    others = list(dict.fromkeys(outcome.code for outcome in failed if outcome.code != first.code))
    return first.fault.replace("{value}", said) + (f"; also {', '.join(others)}" if others else "")


def excerpt(messages: "Sequence[Turn]") -> str:
    """The beginning of each turn, so that the answer is seen below a long prompt; at most TEXT_CHARS characters."""
    share = max(TEXT_CHARS // len(messages) - 15, 20)
    return "\n".join(f"{turn['role']}: {clipped(turn['content'] or '', share)}" for turn in messages)[:TEXT_CHARS]


def clipped(text: str, length: int) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def conflict(table: pa.Table, positions: Sequence[int]) -> tuple[str, list[dict[str, Any]]]:
    """The prompt that these rows share, and where each of its answers stands."""
    from data_checks.columns import prompt_and_answer

    prompt: Sequence[Turn] = ()
    answers = []
    for position in positions:
        prompt, answer = prompt_and_answer(table["messages"][position].as_py())
        answers.append(located(table, position) | {"text": answer["content"] if answer else ""})
    return excerpt(prompt), answers


def stop_on_share(quarantined: pa.Table, num_rows: int, limit: float) -> None:
    """Raises DataError where no row is left, or where more than `limit` of the rows was quarantined."""
    share = len(quarantined) / num_rows
    if share <= limit and share < 1:
        return
    counts = Counter(quarantined["reason"].to_pylist()).most_common()
    first = quarantined.slice(0, 1).to_pylist()[0]
    over = f"over checks.max_quarantined_share={limit:g}" if share > limit else "none is left"
    raise DataError(
        f"{len(quarantined)} of {num_rows} rows quarantined ({share:.1%}), {over}: "
        f"{', '.join(f'{count} {reason}' for reason, count in counts)}; first: {first['file']} line {first['line']}"
    )


def results(outcomes: "Sequence[Outcome]", counts: dict[str, Any]) -> str:
    """The counts and the suite's outcome per expectation, as JSON."""
    described = [
        {name: value for name, value in asdict(outcome).items() if name not in ("rows", "error")}
        | {"share": round(outcome.share, 6)}
        for outcome in outcomes
    ]
    return json.dumps(counts | {"expectations": described}, indent=1, ensure_ascii=False) + "\n"


@task(
    name="check",
    task_run_name="check {rows.num_rows} rows",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=retry_transient,
)
@cached(libraries=("great-expectations", "pandas"), volatile=("report", "results"))
def check(folder: Path, rows: Rows, checks: Checks, special_tokens: tuple[str, ...]) -> CheckedRows:
    """The rows that pass; the others in quarantine.parquet. `special_tokens` are the base's, which no text may hold."""
    from data_checks.findings import conflicting_answers
    from data_checks.report import render

    file = rows.path("rows.parquet")
    table = pq.read_table(file)
    table = table.select([name for name in ROW_SCHEMA.names if name in table.column_names])
    frame = frame_of(table, special_tokens)
    outcomes = hold(frame, checks)
    stop_on_critical(outcomes, frame, file)
    blamed = blame(outcomes)
    quarantined = quarantine(table, frame, blamed)
    stop_on_share(quarantined, len(table), checks.max_quarantined_share)

    passed = [position not in blamed for position in range(len(table))]
    kept = table.filter(pa.array(passed)).cast(ROW_SCHEMA)
    conversations = kept["messages"].to_pylist()
    conflicts = conflicting_answers(conversations)
    reasons = dict(Counter(quarantined["reason"].to_pylist()))
    findings = {"conflicting_answers": len(conflicts)} if conflicts else {}

    pq.write_table(kept, folder / "rows.parquet")
    pq.write_table(quarantined, folder / "quarantine.parquet")
    counts = {"rows": len(table), "kept": len(kept), "quarantined": len(quarantined), "findings": findings}
    (folder / "results.json").write_text(results(outcomes, counts), encoding="utf-8")
    page = render(
        frame,
        passed,
        outcomes,
        refused=pq.read_table(rows.path("quarantine.parquet")).to_pylist(),
        quarantined=quarantined.to_pylist(),
        conflicts=[conflict(kept, positions) for positions in conflicts],
        bounds=(f"up to {checks.max_prompt_chars:,}", f"{checks.min_answer_chars:,} to {checks.max_answer_chars:,}"),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return CheckedRows(num_rows=len(kept), num_quarantined=len(quarantined), reasons=reasons, findings=findings)
