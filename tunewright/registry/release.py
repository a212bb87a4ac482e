"""A person's actions on a registered model: view its history, approve, reject, promote, roll back, withdraw.

The alias moves to a version only after that was loaded and rehearsed once more (rehearsal.py), and each decision is
entered into the history with who, when and why. A server of MLflow with passwords knows who that is: its account is
entered, beside the name that was given if that is another one.
"""

import contextlib
import getpass
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunewright import config
from tunewright.accepted import did_you_mean, shown
from tunewright.artifacts import Registered
from tunewright.config import Registry
from tunewright.errors import ConfigError, TunewrightError
from tunewright.registry import alias, rehearsal
from tunewright.registry.address import SQLITE, account_at, as_set, tracking_uri
from tunewright.registry.alias import as_it_stands, enter, held_by, move, waiting
from tunewright.registry.alias_history import Event, What, events_of, moving, past_champions
from tunewright.registry.alias_state import (
    TAG,
    TO_APPROVE,
    WARNINGS,
    alias_state,
    command,
    deciding_run,
    named,
    said,
    set_alias_state,
    verdict_of,
)
from tunewright.registry.candidate import PAGE
from tunewright.registry.tracking import connected, patient, starts_with, ui
from tunewright.registry.versions import current_version
from tunewright.store import pipelines

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

LONGEST_REASON = 1_000  # characters


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A version that waits for a person."""

    version: str
    since: str
    sentence: str  # the verdict's
    gain: str
    challenged: str  # the champion that it was compared with; empty where there was none
    page: str  # its verdict page: the link in MLflow, or the file where no server of MLflow is up
    warnings: tuple[str, ...]  # the verdict's


@dataclass(frozen=True, kw_only=True)
class VersionSummary:
    """A registered version in a list."""

    version: str
    registered: str  # UTC, ISO 8601
    verdict: str  # such as "keep: regression"; empty for a version that another tool registered
    state: str  # waiting, or what became of it; empty where nobody decided or has to
    gain: str


@dataclass(frozen=True, kw_only=True)
class History:
    """The versions of a model, all that happened to an alias, the newest first, and where it is."""

    name: str
    alias: str
    current_version: str  # the version that carries it; empty for none
    versions: list[VersionSummary]
    waiting: list[Waiting]
    events: list[Event]

    @property
    def is_elsewhere(self) -> bool:
        """Whether somebody moved the alias by other means since the last move here."""
        return self.current_version != next((event.after for event in self.events if event.is_move), "")


@dataclass(frozen=True, kw_only=True)
class ReleaseDecision:
    """A decision on a version, and the sentence of the pipeline's verdict on it."""

    event: Event
    sentence: str
    rehearsed: int  # rows that it was asked once more
    near_ties: int = 0  # of them those with an answer that differs from a near tie on
    note: str = ""  # that the alias is new, since any name makes one


def look_up(registry: Registry) -> History:
    """The history of an alias. Raises ConfigError where there is no such model."""
    with opened(registry) as client:
        _numbers(client, registry)
        return History(
            name=registry.name,
            alias=registry.alias,
            current_version=held_by(client, registry),
            versions=_versions(client, registry),
            waiting=[_waiting(client, registry, version) for version in waiting(client, registry)],
            events=events_of(client, registry)[::-1],
        )


@patient
def as_now(registry: Registry, registered: Registered) -> Registered:
    """The record of a version with what became of it since it was registered."""
    with connected(registry) as client:
        return as_it_stands(client, registry, registered)


@patient
def waits(registry: Registry, number: str | None = None) -> Waiting:
    """The version with this number, or the newest, that waits for a person. Raises TunewrightError if it does not."""
    with opened(registry) as client:
        return _waiting(client, registry, _that_waits(client, registry, number))


def decide(
    registry: Registry, number: str | None, decision: Literal["approve", "reject"], *, by: str | None, why: str
) -> ReleaseDecision:
    """Moves the alias to the version that waits, or ends its wait; without a number, of the newest.

    Raises ConfigError for what is not there, TunewrightError where it does not wait, or has to be compared anew.
    """
    by, why = _who_and_why(registry, by, why)
    with opened(registry) as client:
        version, held = _that_waits(client, registry, number), held_by(client, registry)
        if decision == "reject":
            set_alias_state(client, registry, version, "rejected", by, why)
            event = enter(client, registry, version, "rejected", held, held, by, why)
            return ReleaseDecision(event=event, sentence=verdict_of(version), rehearsed=0)
        challenged = version.tags.get("challenged", "")
        if held not in ("", challenged, str(version.version)):
            raise TunewrightError(
                f"version {version.version} of {registry.name} was compared with "
                f"{f'version {challenged}' if challenged else 'no champion'}, but version {held} has become "
                f"{registry.alias} since: run its pipeline again to compare them, or move the alias without a "
                f"comparison: {command('promote', registry, str(version.version))}"
            )
        return _moved(client, registry, version, "approved", held, by, why)


def promote(registry: Registry, number: str, *, by: str | None, why: str) -> ReleaseDecision:
    """Moves the alias to a version, whatever its verdict was. Raises ConfigError, or TunewrightError if it is there."""
    by, why = _who_and_why(registry, by, why)
    with opened(registry) as client:
        version, held = version_of(client, registry, number), held_by(client, registry)
        if held == str(version.version):
            raise TunewrightError(f"version {held} of {registry.name} is {registry.alias} already")
        note = _said_of_new(client, registry)
        return replace(_moved(client, registry, version, "promoted by hand", held, by, why), note=note)


def _said_of_new(client: "MlflowClient", registry: Registry) -> str:
    """Return that the alias is new where no version has or had it and others exist, or it is not the usual one."""
    aliases = sorted(client.get_registered_model(registry.name).aliases)
    if registry.alias in aliases or events_of(client, registry) or registry.alias == Registry().alias:
        return ""
    others = f"; {registry.name} has: {', '.join(aliases)}" if aliases else ""
    return (
        f"@{registry.alias} is a new alias: no version had it before{others}. To remove it: "
        f"{command('withdraw', registry)}"
    )


def rollback(registry: Registry, number: str | None = None, *, by: str | None, why: str) -> ReleaseDecision:
    """Moves the alias back to a version that carried it: `number`, or the one before. No pipeline undoes that.

    Raises ConfigError where that is none of those that carried it, TunewrightError where there is none.
    """
    by, why = _who_and_why(registry, by, why)
    with opened(registry) as client:
        there, held = _numbers(client, registry), held_by(client, registry)
        events = events_of(client, registry)
        known = dict.fromkeys(reversed(past_champions(events, held)))
        before = [each for each in known if each != held and each in there]
        ever = {held, *(version for event in events if event.is_move for version in (event.before, event.after))}
        if number in there and number not in ever:
            raise ConfigError(
                f"--to {number}: version {number} was never {registry.alias}; "
                f"{command('promote', registry, number)} moves it there all the same"
            )
        if not before:
            if number is not None and number not in there:
                raise ConfigError(f"--to {shown(number)}: {registry.name} has no such version")
            raise TunewrightError(_none_before(registry, events, held, there))
        if number is not None and number not in before:
            raise ConfigError(
                f"--to {shown(number)}: accepted: versions that were {registry.alias} before: {', '.join(before)}; "
                f"{command('promote', registry, 'VERSION')} moves it to any other"
            )
        version = client.get_model_version(registry.name, number or before[0])
        decision = _moved(client, registry, version, "rolled back", held, by, why)
        if held:
            set_alias_state(client, registry, client.get_model_version(registry.name, held), "rolled back", by, why)
        return decision


def withdraw(registry: Registry, *, by: str | None, why: str) -> ReleaseDecision:
    """Takes the alias off the version that carries it, without a successor. No pipeline gives it back.

    Raises ConfigError where there is no such model, TunewrightError where no version carries the alias.
    """
    by, why = _who_and_why(registry, by, why)
    with opened(registry) as client:
        _numbers(client, registry)
        with moving(registry.name):
            version = current_version(client, registry)
            if version is None:
                raise TunewrightError(
                    f"no version of {registry.name} is {registry.alias}: there is nothing to withdraw"
                )
            event = alias.withdraw(client, registry, version, by, why)
        set_alias_state(client, registry, version, "withdrawn", by, why)
        return ReleaseDecision(event=event, sentence=verdict_of(version), rehearsed=0)


def _none_before(registry: Registry, events: Sequence[Event], held: str, there: Collection[str]) -> str:
    """Why no version is left to roll back to, and what moves the alias all the same."""
    became: dict[str, str] = {}  # version that carried the alias -> what it is now
    for event in filter(lambda event: event.is_move, events):
        if event.before:
            became[event.before] = event.what if event.what in ("rolled back", "withdrawn") else "replaced"
        became.pop(event.after, None)
    became |= {version: "deleted" for version in became if version not in there}
    was = [f"version {version} was {what}" for version, what in became.items() if version != held]
    if held and not was:
        return (
            f"{registry.name}: version {held} is the first {registry.alias}; there is no earlier one; "
            f"{command('withdraw', registry)} takes {registry.alias} off it"
        )
    none = f"{registry.name} has nothing to roll {registry.alias} back to"
    if not was:
        return f"{none}: no version has had it"
    now = [f"version {held} has it"] if held else []
    return (
        f"{none}: {', '.join([*now, *was])}, and no other version was {registry.alias} before; "
        f"{command('promote', registry, 'VERSION')} moves it to any"
        + (f", and {command('withdraw', registry)} takes it off" if held else "")
    )


def _moved(
    client: "MlflowClient", registry: Registry, version: "ModelVersion", what: What, held: str, by: str, why: str
) -> ReleaseDecision:
    """Moves the alias from the version that carries it, `held`, once this one was rehearsed again.

    Raises TunewrightError where another process moved it meanwhile.
    """
    asked = rehearsal.again(client, version)
    with moving(registry.name):
        if (now := held_by(client, registry)) != held:
            became = f"version {now} became {registry.alias}" if now else f"{registry.alias} was withdrawn"
            raise TunewrightError(
                f"{became} while this command checked version {version.version}; nothing was moved: look at "
                f"tunewright release history {named(registry)}, and call it again"
            )
        event = move(client, registry, version, what, held, by, why)
    if what != "rolled back" or alias_state(version, registry) not in ("", "approved"):
        set_alias_state(client, registry, version, "approved", by, why, what)
    return ReleaseDecision(
        event=event, sentence=verdict_of(version), rehearsed=asked.num_rows, near_ties=asked.num_near_ties
    )


def _versions(client: "MlflowClient", registry: Registry) -> list[VersionSummary]:
    found = client.search_model_versions(f"name = '{registry.name}'")
    return [
        VersionSummary(
            version=str(each.version),
            registered=datetime.fromtimestamp((each.creation_timestamp or 0) / 1000, UTC).isoformat(timespec="seconds"),
            verdict=each.tags.get("verdict", ""),
            state=alias_state(each, registry),
            gain=each.tags.get("gain", ""),
        )
        for each in sorted(found, key=lambda each: int(each.version), reverse=True)
    ]


def _waiting(client: "MlflowClient", registry: Registry, version: "ModelVersion") -> Waiting:
    run_id, uri = deciding_run(version), tracking_uri(registry)
    run = client.get_run(run_id).info
    served = f"{ui(uri, run.experiment_id)}/runs/{run_id}/artifacts/{PAGE}"
    return Waiting(
        version=str(version.version),
        since=version.tags[f"{TAG}.when"],
        sentence=said(version, registry).partition(TO_APPROVE)[0],
        gain=version.tags.get("gain", ""),
        challenged=version.tags.get("challenged", ""),
        page=f"{run.artifact_uri}/{PAGE}" if starts_with(uri) else served,
        warnings=tuple(version.tags.get(WARNINGS, "").splitlines()),
    )


def _that_waits(client: "MlflowClient", registry: Registry, number: str | None) -> "ModelVersion":
    if number is not None:
        version = version_of(client, registry, number)
        if alias_state(version, registry) != "waiting":
            raise TunewrightError(
                f"version {number} of {registry.name} does not wait for approval: {said(version, registry)}"
            )
        return version
    _numbers(client, registry)
    if newest := waiting(client, registry):
        return newest[0]
    raise TunewrightError(
        f"no version of {registry.name} waits for approval; with gate.approval=true one that passes the gate "
        f"waits, and {command('promote', registry, 'VERSION')} moves {registry.alias} to any version"
    )


def version_of(client: "MlflowClient", registry: Registry, number: str) -> "ModelVersion":
    """The version with this number. Raises ConfigError where there is none."""
    there = _numbers(client, registry)
    if number not in there:
        raise ConfigError(f"version {shown(number)} of {registry.name}: no such version; {did_you_mean(number, there)}")
    return client.get_model_version(registry.name, number)


def chosen(client: "MlflowClient", registry: Registry, number: str | None) -> "ModelVersion":
    """The version with this number, or without one that under the alias. Raises ConfigError where there is none."""
    if number is not None:
        return version_of(client, registry, number)
    numbers = _numbers(client, registry)
    if (version := current_version(client, registry)) is None:
        match numbers:
            case []:
                there = "it has no version at all"
            case [only]:
                there = f"give --version {only}, the only one"
            case _:
                there = f"give --version, one of {', '.join(numbers)}"
        raise ConfigError(f"no version of {registry.name} is @{registry.alias}: {there}")
    return version


def _numbers(client: "MlflowClient", registry: Registry) -> list[str]:
    """The versions that there are. Raises ConfigError where there is no such model."""
    names = [model.name for model in client.search_registered_models(max_results=1000)]
    if not names and registry.tracking_uri is None:
        raise _none_registered()
    if registry.name not in names:
        known = did_you_mean(registry.name, names) if names else "no model is registered there yet"
        raise ConfigError(f"{shown(registry.name)}: no such model in {tracking_uri(registry)}; {known}")
    found = client.search_model_versions(f"name = '{registry.name}'")
    return sorted((str(version.version) for version in found), key=int)


@contextlib.contextmanager
def opened(registry: Registry) -> Iterator["MlflowClient"]:
    """MLflow's client. Raises ConfigError where there is no database, which MLflow would make."""
    if registry.tracking_uri is None and not config.mlflow_database().is_file():
        raise _none_registered()
    uri = tracking_uri(registry)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise ConfigError(f"{as_set(uri)}: no such file; no model is registered there")
    with connected(registry) as client:
        yield client


def _none_registered() -> ConfigError:
    unfinished = ", ".join(pipelines.names())
    why = f": no run of {unfinished} has reached register yet; if none is under way, run it again" if unfinished else ""
    return ConfigError(
        f"no model is registered in this home yet ({config.home()}){why}; if it is in another home, set "
        "TUNEWRIGHT_HOME; if it is on an MLflow server, give --tracking-uri"
    )


def person(registry: Registry, by: str | None) -> str:
    """The name that is given, on one line; else the account at the MLflow server; else the user of this system.

    Raises ConfigError where the name is blank, or there is none.
    """
    if by is not None and not by.strip():
        raise ConfigError("--by: missing; accepted: your name")
    if name := " ".join((by or "").split()) or account_at(tracking_uri(registry)):
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConfigError("--by: missing, and this system has no name for its user; accepted: your name") from None


def _who_and_why(registry: Registry, by: str | None, why: str) -> tuple[str, str]:
    """Who decides, as the history keeps it, and why, each on one line. Raises ConfigError where one is missing."""
    name, why = person(registry, by), " ".join(why.split())
    if not why or len(why) > LONGEST_REASON:
        wrong = f"has {len(why):,} characters" if why else "missing"
        raise ConfigError(f"--reason: {wrong}; accepted: why, in up to {LONGEST_REASON:,} characters")
    account = account_at(tracking_uri(registry)) if by else ""  # else it is the name already
    return name if account in ("", name) else f"{name} (MLflow account: {account})", why
