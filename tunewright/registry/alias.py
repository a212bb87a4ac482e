"""The alias: moved by the pipeline to a version that won, or left where it is until a person has said yes."""

from typing import TYPE_CHECKING

from tunewright.artifacts import Registered
from tunewright.config import Registry
from tunewright.errors import AnotherChampion
from tunewright.registry import files
from tunewright.registry.alias_history import PIPELINE, Event, What, append_event, events_of, moving, now
from tunewright.registry.alias_state import (
    FINAL,
    alias_state,
    clear,
    head,
    note_in_run,
    said,
    set_alias_state,
    verdict_of,
)
from tunewright.registry.candidate import Candidate
from tunewright.registry.versions import current_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def conclude(client: "MlflowClient", candidate: Candidate, number: str) -> list[str]:
    """Moves the alias to the version of a promoted candidate, or with gate.approval lets the version wait for a person.

    Returns the versions that had waited until now and that it supersedes. What a person has rejected, rolled back or
    withdrawn gets no alias. Raises AnotherChampion where one came up that it was not compared with.
    """
    with moving(candidate.settings.registry.name):
        return _concluded(client, candidate, number)


def _concluded(client: "MlflowClient", candidate: Candidate, number: str) -> list[str]:
    registry = candidate.settings.registry
    version = client.get_model_version(registry.name, number)
    state, held = alias_state(version, registry), held_by(client, registry)
    if candidate.run.verdict.decision != "promote":
        if state == "waiting":
            clear(client, version)
            enter(client, registry, version, "superseded", held, held, PIPELINE, candidate.run.verdict.sentence)
        return []
    if state in FINAL:
        head(client, registry, number)
        note_in_run(client, version, state)  # whatever this run found of it
        return []
    if held not in ("", number, candidate.challenged) and not _is_same_model(client, candidate, held):
        raise AnotherChampion(
            f"version {held} of {registry.name} became {registry.alias} while this run compared its candidate "
            f"with {f'version {candidate.challenged}' if candidate.challenged else 'no champion'}"
        )
    if held != number and candidate.settings.gate.approval:
        set_alias_state(client, registry, version, "waiting")
    else:
        if state in ("waiting", "superseded"):
            clear(client, version)
        head(client, registry, number)
        moves = [event.after for event in events_of(client, registry) if event.is_move]
        if held != number or moves[-1:] != [number]:  # an attempt that died may have moved the alias, and no more
            before = candidate.challenged if held == number else held
            move(client, registry, version, "promoted", before, PIPELINE, candidate.run.verdict.sentence)
    others = [other for other in waiting(client, registry) if str(other.version) != number]
    held = held_by(client, registry)
    for other in others:  # whose wait ends so
        set_alias_state(client, registry, other, "superseded", by=number)
        why = f"version {number} took its place before a person decided"
        enter(client, registry, other, "superseded", held, held, PIPELINE, why)
    return [str(other.version) for other in others]


def _is_same_model(client: "MlflowClient", candidate: Candidate, number: str) -> bool:
    """Whether a version has the candidate's weights and splits: it was measured in another precision, say."""
    tags = client.get_model_version(candidate.name, number).tags
    same = candidate.run.adapter.digest, candidate.run.splits.digest
    return (tags.get(files.WEIGHTS), tags.get("data.splits")) == same


def move(
    client: "MlflowClient", registry: Registry, version: "ModelVersion", what: What, before: str, by: str, why: str
) -> Event:
    """Moves the alias to a version, from `before`, and enters that into the history."""
    client.set_registered_model_alias(registry.name, registry.alias, version.version)
    client.update_registered_model(registry.name, verdict_of(version))
    return enter(client, registry, version, what, before, str(version.version), by, why)


def withdraw(client: "MlflowClient", registry: Registry, version: "ModelVersion", by: str, why: str) -> Event:
    """Takes the alias off the version that carries it, and enters that into the history."""
    client.delete_registered_model_alias(registry.name, registry.alias)
    said = f"No version is {registry.alias}: version {version.version} was withdrawn."
    client.update_registered_model(registry.name, said)
    return enter(client, registry, version, "withdrawn", str(version.version), "", by, why)


def enter(
    client: "MlflowClient",
    registry: Registry,
    version: "ModelVersion",
    what: What,
    before: str,
    after: str,
    by: str,
    why: str,
) -> Event:
    """Enters a decision on a version into the history; `before` and `after` are who carries the alias."""
    event = Event(
        when=now(),
        alias=registry.alias,
        what=what,
        version=str(version.version),
        before=before,
        after=after,
        by=by,
        why=why,
        verdict=version.tags.get("verdict", ""),
        gain=version.tags.get("gain", ""),
    )
    return append_event(client, registry.name, event)


def waiting(client: "MlflowClient", registry: Registry) -> list["ModelVersion"]:
    """The versions that wait for a person, the newest first."""
    found = client.search_model_versions(f"name = '{registry.name}' and tags.approval = 'waiting'")
    ours = (version for version in found if alias_state(version, registry) == "waiting")
    return sorted(ours, key=lambda version: int(version.version), reverse=True)


def held_by(client: "MlflowClient", registry: Registry) -> str:
    """The number of the version that carries the alias; empty where none does."""
    held = current_version(client, registry)
    return str(held.version) if held else ""


def as_it_stands(client: "MlflowClient", registry: Registry, registered: Registered) -> Registered:
    """The record of a version with who carries the alias now, and what a person decided by now."""
    version, held = client.get_model_version(registry.name, registered.version), held_by(client, registry)
    return registered.model_copy(
        update={
            "alias": registry.alias if held == registered.version else "",
            "current_version": held,
            "approval": alias_state(version, registry),
            "stands": said(version, registry),
        }
    )
