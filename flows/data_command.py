"""What `tunewright data` shows: the stages and versions behind a pipeline's data, or the whole life of one row.

Nothing is run: the stages are looked up as in a plan. Where the sources have changed since the last run, what is shown
is the version that was accepted last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.finetune import plan
from tasks import lineage, versions
from tasks.artifacts import Artifact, CheckedRows, Rows, Splits, Tokens, UniqueRows
from tasks.caching import kept
from tasks.config import STAGES, Settings
from tasks.errors import ConfigError
from tasks.lineage import MOST_MATCHES, Found, Made, excerpt
from tasks.versions import Version

RECORDS = {"ingest": Rows, "check": CheckedRows, "dedupe": UniqueRows, "split": Splits, "render": Tokens}


@dataclass(frozen=True, kw_only=True)
class Data:
    """One version of a pipeline's data, as far as its stages ran, and the accepted versions of its history."""

    name: str
    made: Made
    past: Sequence[Version]
    missing: str = ""  # the first stage that has not run on it
    because: Sequence[str] = ()  # why not
    changed: Sequence[str] = ()  # since it was accepted, what differs in the sources

    @property
    def version(self) -> Version | None:
        """The accepted version that this is."""
        return next((v for v in self.past if v.rows.digest == self.made.rows.digest), None)

    @property
    def title(self) -> str:
        """What it is called: "version 2 of 3 of the data of triage"."""
        if self.version is None:
            return f"the data of {self.name}, not accepted as a version yet"
        return f"version {self.version.number} of {len(self.past)} of the data of {self.name}"

    @property
    def earlier(self) -> list[Version]:
        """The accepted versions before it."""
        return [v for v in self.past if self.version is None or v.number < self.version.number]


def look_up(settings: Settings, number: int | None = None) -> Data:
    """The data as the sources and settings are now, or an accepted version. Raises ConfigError where there is none."""
    name = settings.registry.name
    past = versions.history(name, settings.split.seed, settings.split.by)
    if number is not None:
        chosen = next((version for version in past if version.number == number), None)
        if chosen is None:
            known = ", ".join(str(version.number) for version in past) or "none yet"
            raise ConfigError(f"--version {number}: no such version of {name}; accepted: {known}")
        return _accepted(name, chosen, past)
    steps = [step for step in plan(settings, "render", ()) if step.stage in RECORDS]
    first = next((position for position, step in enumerate(steps) if step.state != "cached"), len(steps))
    made = {step.stage: step.record for step in steps[:first]}
    if made:
        missing, because = (steps[first].stage, steps[first].because) if first < len(steps) else ("", ())
        return Data(name=name, made=_made(made), past=past, missing=missing, because=because)
    if not past:
        raise ConfigError(f"registry.name={name}: no stage has run on its data; tunewright run FILE --until split does")
    return _accepted(name, past[-1], past, changed=steps[0].because)


def find(data: Data, row: str | None, line: str | None, text: str | None) -> list[Found]:
    """The records that one of three ways to name a row finds. Raises ConfigError where there is none."""
    rows = data.made.rows
    if row is not None:
        said, found = f"--row {row}", lineage.by_id(rows, row)
    elif line is not None:
        file, _, number = line.rpartition(":")
        if not file or not number.isdecimal():
            raise ConfigError(f"--line {line}: accepted: FILE:LINE, such as data/mine.jsonl:12")
        said, found = f"--line {line}", lineage.by_line(rows, file, int(number))
    else:
        said, words = f"--text {text}", (text or "").split()
        if not words:
            raise ConfigError("--text: accepted: one word or more")
        found = lineage.by_text(rows, words)
    if not found:
        raise ConfigError(f"{said}: no such record among the {rows.num_read:,} of {data.title}")
    return found


def row_json(data: Data, found: Sequence[Found]) -> dict[str, Any]:
    """What `--json` prints of a row: its life, or the matches where several rows are meant."""
    if _several(found):
        matches = [_place(record) | {"text": excerpt(record)} for record in found[:MOST_MATCHES]]
        return {"matches": matches, "more": len(found) > MOST_MATCHES}
    record = found[0]
    before = lineage.sides(record["row_id"], data.earlier) if record["row_id"] else []
    events = lineage.life(data.made, record)
    ended = events[-1]["outcome"] in lineage.SET_ASIDE
    place = _place(record) | {"text": excerpt(record)}
    missing = "" if ended else data.missing
    return place | {"life": events, "missing": missing, "changed": list(data.changed), "versions": before}


def data_json(data: Data) -> dict[str, Any]:
    """What `--json` prints of the data: the stages, their parents, and the versions."""
    return {
        "name": data.name,
        "version": data.version.number if data.version else None,
        "sources": data.made.rows.detected,
        "stages": [stage(artifact) for artifact in data.made],
        "missing": data.missing,
        "because": list(data.because),
        "changed": list(data.changed),
        "versions": [version.model_dump() for version in data.past],
    }


def stage(artifact: Artifact) -> dict[str, Any]:
    """An artifact with what it was made from: the stages that it read, by their digests."""
    manifest = lineage.manifest(artifact)
    read = [str(value).split(" ") for value in manifest["ingredients"].values()]
    parents = {parts[0]: parts[1] for parts in read if len(parts) == 2 and parts[0] in STAGES}
    made = {name: manifest[name] for name in ("made", "made_by", "seconds")}
    named = {"stage": artifact.stage, "digest": artifact.digest, "artifact": str(artifact.folder)}
    return named | {"rows": counts(artifact), "parents": parents} | made


def counts(artifact: Artifact) -> dict[str, int]:
    """How many rows its stage counted, by what became of them."""
    fields = artifact.model_dump()
    return {name.removeprefix("num_"): fields[name] for name in fields if name.startswith("num_")}


def _accepted(name: str, version: Version, past: Sequence[Version], changed: Sequence[str] = ()) -> Data:
    parts = {part.stage: part for part in (version.rows, version.checked, version.unique, version.splits)}
    made = {stage: kept(RECORDS[stage], stage, part.key) for stage, part in parts.items()}
    gone = [stage for stage, artifact in made.items() if artifact is None]
    if gone:
        folder = parts[gone[0]].folder
        raise ConfigError(f"version {version.number} of {name}: {folder} is gone or was altered")
    return Data(name=name, made=_made(made), past=past, changed=changed)


def _made(records: dict[str, Any]) -> Made:
    return Made(
        rows=records["ingest"],
        checked=records.get("check"),
        unique=records.get("dedupe"),
        splits=records.get("split"),
        tokens=records.get("render"),
    )


def _several(found: Sequence[Found]) -> bool:
    return len({record["row_id"] or (record["file"], record["line"]) for record in found}) > 1


def _place(record: Found) -> dict[str, Any]:
    return {name: record[name] for name in lineage.PLACE}
