"""The output of `tunewright data --json`: a pipeline's data by stage and by version, or the history of one row."""

from collections.abc import Sequence
from typing import Any

from tunewright.artifacts import Artifact
from tunewright.cli.data import PipelineData
from tunewright.config import STAGES
from tunewright.store import lineage
from tunewright.store.data_history import Version
from tunewright.store.refusals import StoppedStage
from tunewright.store.row_search import MOST_MATCHES, Found, excerpt, manifest, place


def row_json(data: PipelineData, found: Sequence[Found]) -> dict[str, Any]:
    """Return the output of `--json` for a row: its history, or the matches if several rows match."""
    if len({record["row_id"] or (record["file"], record["line"]) for record in found}) > 1:
        matches = [place(record) | {"text": excerpt(record)} for record in found[:MOST_MATCHES]]
        return {"matches": matches, "more": len(found) > MOST_MATCHES}
    record = found[0]
    before = lineage.splits(record["row_id"], data.name, data.earlier) if record["row_id"] else []
    events = lineage.refused(data.stop_of_ingest, record) if data.stop_of_ingest else []
    if not events:
        assert data.made  # find() has no record otherwise
        events = lineage.life(data.made, record)
    ended = events[-1]["outcome"] in lineage.OUT_OF_DATA
    asked = {name: record[name] for name in ("asked_line",) if name in record}
    found_at = place(record) | asked | {"text": excerpt(record)}
    missing = "" if ended else data.missing
    return found_at | {"life": events, "missing": missing, "changed": list(data.changed), "versions": before}


def data_json(data: PipelineData) -> dict[str, Any]:
    """Return the output of `--json` for the data: the stages, their parents, the versions, and what a stage refused."""
    return {
        "name": data.name,
        "version": data.version.number if data.version else None,
        "as_accepted": data.is_as_accepted,
        "rotation": data.rotation or None,
        "sources": data.made.all_rows.detected if data.made else {},
        "stages": [stage(artifact) for artifact in data.made or ()],
        "missing": data.missing,
        "because": list(data.because),
        "changed": list(data.changed),
        "stopped": _stopped_json(data.stopped) if data.stopped else None,
        "outdated": _stopped_json(data.outdated) if data.outdated else None,
        "versions": [version.model_dump() | {"figures": figures(version)} for version in data.past],
    }


def figures(version: Version) -> dict[str, int | None]:
    """Count the records of a version by outcome; None where it cannot be known any more.

    read + general (made by rehearse) = refused (quarantined by ingest) + rows; rows = those of the version before + new
    - gone = quarantined (later) + removed + the three splits.
    """
    count = version.counts
    general = count.get("general", 0)  # of an earlier Tunewright among those that were read
    splits = {name: count[name] for name in ("train", "validation", "test")}
    removed = count["checked"] - count["unique"]
    return {
        "read": count["read"],
        "general": general,
        "refused": count["read"] + general - count["rows"],
        "rows": count["rows"],
        "new": version.added,
        "gone": version.removed,
        "quarantined": count["rows"] - removed - sum(splits.values()),
        "removed": removed,
        **splits,
    }


def _stopped_json(stopped: StoppedStage) -> dict[str, Any]:
    said = stopped.model_dump(include={"stage", "message", "when", "run"})
    refused = {"num_refused": lineage.num_refused(stopped), "first": lineage.first_refused(stopped)}
    return said | {"files": [str(path) for path in stopped.paths]} | refused


def stage(artifact: Artifact) -> dict[str, Any]:
    """An artifact with what it was made from: the stages that it read, by their digests."""
    about = manifest(artifact)
    read = [str(value).split(" ") for value in about["ingredients"].values()]
    parents = {parts[0]: parts[1] for parts in read if len(parts) == 2 and parts[0] in STAGES}
    made = {name: about[name] for name in ("made", "made_by", "seconds")}
    named = {"stage": artifact.stage, "digest": artifact.digest, "artifact": str(artifact.folder)}
    named |= {"files": sorted(about["files"])}
    return named | {"rows": counts(artifact), "parents": parents} | made


def counts(artifact: Artifact) -> dict[str, int]:
    """Return the stage's counts of rows by outcome."""
    fields = artifact.model_dump()
    return {name.removeprefix("num_"): fields[name] for name in fields if name.startswith("num_")}
