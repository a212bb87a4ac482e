"""Look up for `tunewright data` the stages and versions of a pipeline's data, or the history of one row.

No stage is run; they are looked up as in a plan. If the sources have changed since the last run, the version accepted
last is shown. If a stage refused the data, current or before the change, its reason and its files are shown too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunewright.artifacts import CheckedRows, LabelErrors, Rehearsed, Rows, Splits, Tokens, UniqueRows
from tunewright.config import Settings, from_here
from tunewright.errors import ConfigError
from tunewright.flows.calls import Step
from tunewright.flows.finetune import plan
from tunewright.flows.inputs import draw, inputs
from tunewright.store import lineage, refusals
from tunewright.store.cache_key import Ingredients, flat
from tunewright.store.caching import kept
from tunewright.store.data_history import StageOutput, Version, history
from tunewright.store.lineage import Made
from tunewright.store.miss_reasons import causes
from tunewright.store.refusals import StoppedStage
from tunewright.store.row_search import QUARANTINE, Found, RowQuery, files_named, is_csv, is_named, manifest, place

FILE = re.compile(r"files\[\d+\]\.path")  # of ingest's ingredients
RECORDS = {
    "ingest": Rows,
    "check": CheckedRows,
    "dedupe": UniqueRows,
    "split": Splits,
    "render": Tokens,
    "label_errors": LabelErrors,
    "rehearse": Rehearsed,
}


@dataclass(frozen=True, kw_only=True)
class PipelineData:
    """One version of a pipeline's data, as far as its stages ran, and the accepted versions of its history."""

    name: str
    made: Made | None  # None where ingest refused them, or has not run on them
    past: Sequence[Version]
    missing: str = ""  # the first stage that has not run on it
    because: Sequence[str] = ()  # why not
    changed: Sequence[str] = ()  # since it was accepted, what differs in the sources
    stopped: StoppedStage | None = None  # what the stage left that refused the data as they are now
    rotation: str = ""  # which test rows were drawn anew, and why
    outdated: StoppedStage | None = None  # or as they were before the sources changed
    limit: int | None = None  # data.limit, where these are a sample by it

    @property
    def version(self) -> Version | None:
        """The accepted version that this is."""
        return next((v for v in self.past if self.made and v.rows.digest == self.made.rows.digest), None)

    @property
    def is_as_accepted(self) -> bool:
        """Whether its stages made the same of it as when it was accepted: other settings can make something else."""
        accepted = {part.stage: part.digest for part in _parts(self.version)} if self.version else {}
        return all(accepted.get(artifact.stage, artifact.digest) == artifact.digest for artifact in self.made or ())

    @property
    def title(self) -> str:
        """Its title: "data of triage: version 2 of 3"."""
        if self.version is None and self.limit is not None:
            return f"data of {self.name}: a sample (data.limit={self.limit}), which is not recorded as a version"
        if self.version is None:
            return f"data of {self.name}: not recorded as a version yet"
        title = f"data of {self.name}: version {self.version.number} of {len(self.past)}"
        return title if self.is_as_accepted else f"{title}, with other settings than when it was accepted"

    @property
    def stop_of_ingest(self) -> StoppedStage | None:
        """The record that ingest left if it refused the current data, else None."""
        return self.stopped if self.stopped and self.stopped.stage == "ingest" else None

    @property
    def earlier(self) -> list[Version]:
        """The accepted versions before it."""
        return [v for v in self.past if self.version is None or v.number < self.version.number]


def look_up(settings: Settings, version: str | None = None, what: str = "FILE") -> PipelineData:
    """The data as the sources and settings are now, or an accepted version. Raises ConfigError where there is none.

    `what` is the file and its changes, for the command to run first.
    """
    split, rotation = settings.split, ""
    if settings.gate.rotate:
        drawn = draw(settings, inputs(settings))
        split, rotation = drawn.settings(settings).split, drawn.said
    past = history(settings.registry.name, split.seed, split.by)
    found = _look_up(settings, past, version, what)
    for left in filter(None, (found.stopped, found.outdated)):
        lineage.stop_on_damage(left, what)
    return replace(found, rotation=rotation)


def _look_up(settings: Settings, past: Sequence[Version], version: str | None, what: str) -> PipelineData:
    name = settings.registry.name
    if version is not None:
        return _accepted(name, _chosen(version, name, past), past, what)
    last = "label_errors" if settings.checks.label_error_folds else "render"
    steps = [step for step in plan(settings, last, ()) if step.stage in RECORDS]
    first = next((position for position, step in enumerate(steps) if step.state != "cached"), len(steps))
    made = {step.stage: step.record for step in steps[:first]}
    missing = steps[first].stage if first < len(steps) else ""
    stopped = steps[first].stopped if missing else None
    if made:
        because = steps[first].because if missing else ()
        found = PipelineData(
            name=name, made=_made(made, stopped), past=past, missing=missing, because=because, stopped=stopped
        )
        return replace(found, limit=settings.data.limit)
    outdated = None if stopped else _outdated(steps, settings, past)
    if past:
        accepted = _accepted(name, past[-1], past, what, stopped, outdated)
        return replace(accepted, changed=_changed(accepted, stopped) if stopped else steps[0].because)
    if stopped or outdated:
        return PipelineData(name=name, made=None, past=past, missing=missing, stopped=stopped, outdated=outdated)
    raise ConfigError(
        f"no stage has run on the data of {name} with these settings; next: tunewright run {what} --until split, or "
        "give the --set of an earlier run, such as --set data.limit=300"
    )


def find(data: PipelineData, row: str | None, line: str | None, text: str | None) -> list[Found]:
    """The records that one of three ways to name a row finds. Raises ConfigError where there is none."""
    asked, stop = RowQuery.of(row, line, text), data.stop_of_ingest
    found = asked.refused(stop) if stop else []
    if data.made and not (found and asked.place):  # a line is what it is now
        found += [each for each in asked.among(data.made.rows) if place(each) not in map(place, found)]
        if general := data.made.rehearsed:
            found += [each for each in asked.among(general) if each["file"] not in data.made.rows.detected]
    if not found:
        raise ConfigError(f"{asked.said}: {_not_found(data, asked)}")
    return found


def _not_found(data: PipelineData, asked: RowQuery) -> str:
    """Explain where a record was looked for, and where it is instead or what else to look at."""
    stop = data.stop_of_ingest
    look = f"; see {from_here(stop.paths[0])}" if stop and stop.files else ""
    if data.made is None:
        return (
            f"{_not_refused(data.name, stop, asked)}{look}"
            if stop
            else (f"no row of {data.name} was read: {data.missing} has not run since the sources changed")
        )
    files = list(data.made.rows.detected)
    named = files_named(data.made.rows, asked.place[0]) if asked.place else []
    if asked.place and not named:
        there = _no_file(files)
    elif asked.place and asked.place[1] == 1 and all(is_csv(data.made.rows, file) for file in named):
        there = "line 1 of a CSV file is its header row; the first record begins in line 2"
    elif data.limit is not None:
        there = f"no such record among the {data.made.rows.num_read:,} records drawn by data.limit={data.limit}"
    else:
        there = f"no such record among the {data.made.rows.num_read:,} records ({data.title})"
    others = ((v.number, kept(Rows, "ingest", v.rows.key)) for v in reversed(data.past) if v != data.version)
    if elsewhere := next((number for number, rows in others if rows and asked.among(rows)), None):
        there += f"; version {elsewhere} has it: add --version {elsewhere}"
    return f"{there}, and none that ingest quarantined when it stopped on {stop.when[:10]}{look}" if stop else there


def _not_refused(name: str, stop: StoppedStage, asked: RowQuery) -> str:
    """Explain why ingest did not refuse a row: it stopped first, and kept none of the data."""
    whole = f"ingest stopped, so none of the data of {name} was kept: {stop.message}"
    read = [path for key, path in stop.ingredients.items() if FILE.fullmatch(key)]
    named = [path for path in read if asked.place and is_named(path, asked.place[0])]
    if asked.place and not named:
        return f"{_no_file(read)}; {whole}"
    if QUARANTINE not in stop.files:  # it stopped before it could say which records
        return whole
    if asked.place:
        return f"line {asked.place[1]} of {named[0]} is not among those that ingest quarantined; {whole}"
    return f"no record that ingest quarantined; {whole}"


def _no_file(read: Sequence[str]) -> str:
    return f"not a file of the current data; files read: {', '.join(read[:3])}{' and more' * (len(read) > 3)}"


def _chosen(number: str, name: str, past: Sequence[Version]) -> Version:
    if not number.isdecimal():
        raise ConfigError(f"--version {number}: accepted: a number")
    chosen = next((version for version in past if version.number == int(number)), None)
    if chosen is None:
        known = ", ".join(str(version.number) for version in past) or "none yet"
        raise ConfigError(f"--version {number}: no such version of {name}; accepted: {known}")
    return chosen


def _accepted(
    name: str,
    version: Version,
    past: Sequence[Version],
    what: str,
    stopped: StoppedStage | None = None,
    outdated: StoppedStage | None = None,
) -> PipelineData:
    parts = {part.stage: part for part in _parts(version)}
    made = {stage: kept(RECORDS[stage], stage, part.key) for stage, part in parts.items()}
    gone = [stage for stage, artifact in made.items() if artifact is None]
    if gone:
        folder = parts[gone[0]].folder
        raise ConfigError(
            f"version {version.number} of the data of {name}: {folder} is missing or altered (a backup has no "
            f"artifacts); run tunewright run {what} --until split first, which rebuilds it from the current data, with "
            "the same splits"
        )
    return PipelineData(name=name, made=_made(made), past=past, stopped=stopped, outdated=outdated)


def _changed(accepted: PipelineData, stopped: StoppedStage) -> list[str]:
    """Return the differences between the data that ingest stopped on and an accepted version."""
    assert accepted.made
    rows = accepted.made.rows
    return causes("ingest", manifest(rows)["ingredients"], stopped.ingredients, rows)


def _outdated(steps: Sequence[Step], settings: Settings, past: Sequence[Version]) -> StoppedStage | None:
    """The last stop on these sources, read with the same settings, since a version was accepted."""
    stops = [stop for stop in refusals.of_stage("ingest") if _is_read_so(stop.ingredients, settings)]
    rows = steps[0].last
    if rows and _is_read_so(manifest(rows)["ingredients"], settings):  # what stages made of the sources as they were
        behind = next((step for step in steps[1:] if step.record is None), None)
        stops += [behind.stopped] if behind and behind.stopped else []
    since = past[-1].accepted if past else ""
    return max((stop for stop in stops if stop.when > since), key=lambda stop: stop.when, default=None)


def _is_read_so(ingredients: Ingredients, settings: Settings) -> bool:
    return all(ingredients.get(name) == value for name, value in flat("data", settings.data.without("engine")))


def _parts(version: Version) -> tuple[StageOutput, ...]:
    return version.rows, version.checked, version.unique, version.splits


def _made(records: dict[str, Any], stopped: StoppedStage | None = None) -> Made:
    artifacts: list[Any] = [records.get(stage) for stage in RECORDS]
    return Made(*artifacts, stopped=stopped)
