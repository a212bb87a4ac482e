"""`tunewright release`: the history of an alias, and a person's say on which version carries it.

All of it is done in MLflow, so that a rollback needs no other server.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli import interrupts
from tunewright.cli.command_line import Json, console_of, one_line_errors
from tunewright.cli.registered_model import Alias, Name, Uri, named_as_typed, registry_of
from tunewright.cli.visible import as_line
from tunewright.config import Registry

if TYPE_CHECKING:  # what it imports takes seconds
    from tunewright.registry.release import ReleaseDecision

app = typer.Typer(
    name="release",
    help="Manage which version has the alias: history, approval, manual promotion, rollback, withdrawal.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Version = Annotated[str, typer.Argument(metavar="VERSION", help="Version number")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Reason; kept in the history")]
By = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Your name; default: your account at the MLflow server, or else the system user"),
]


@app.command("history")
def show_history(name: Name, alias: Alias = "champion", tracking_uri: Uri = None, as_json: Json = False) -> None:
    """Show the versions with their verdicts, and every move of the alias (when, by whom, why)."""
    with one_line_errors(as_json), named_as_typed():
        registry = registry_of(name, alias, tracking_uri, as_json)
        with interrupts.at_once():
            from tunewright.cli.release import view
            from tunewright.registry import release

        found = release.look_up(registry)
        view.show_history(console_of(as_json), registry, found)
    if as_json:
        print(as_line(view.history_json(found)))


def _decision(decide: Callable[..., "ReleaseDecision"]) -> Callable[..., None]:
    """Make a command of `decide(release, registry, by, why, ...)`, with the options of all decisions and its own.

    The command decides, ends the run that asks a person in Prefect, and shows what was decided.
    """

    def command(
        name: Name,
        reason: Reason,
        by: By = None,
        alias: Alias = "champion",
        tracking_uri: Uri = None,
        as_json: Json = False,
        **own: Any,
    ) -> None:
        with one_line_errors(as_json), named_as_typed():
            registry = registry_of(name, alias, tracking_uri, as_json, quiet=False)
            with interrupts.at_once():
                from tunewright.cli.release import view
                from tunewright.flows import release as requests
                from tunewright.registry import release

            decided = decide(release, registry, by, reason, **own)
            requests.end_for(registry, decided.event)
            view.show_decision(console_of(as_json), registry, decided)
        if as_json:
            asked = {"rehearsed": decided.rehearsed, "near_ties": decided.near_ties}
            print(as_line({"name": registry.name, **decided.event.model_dump(), **asked}))

    first, *others, _ = inspect.signature(command).parameters.values()
    _, _, _, _, *own = inspect.signature(decide).parameters.values()
    options = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (first, *own, *others)]
    command.__dict__["__signature__"] = inspect.Signature(options)  # which typer reads
    command.__name__, command.__doc__ = decide.__name__, decide.__doc__
    return command


@app.command()
@_decision
def approve(
    release: Any,  # tunewright.registry.release
    registry: Registry,
    by: str | None,
    why: str,
    version: Annotated[
        str | None,
        typer.Argument(metavar="[VERSION]", help="Version that waits; default: the newest", show_default=False),
    ] = None,
    reject: Annotated[bool, typer.Option("--reject", help="Reject the version: the alias stays where it is")] = False,
) -> "ReleaseDecision":
    """Approve or reject a version that waits (gate.approval); approval reloads and checks it, then moves the alias."""
    return release.decide(registry, version, "reject" if reject else "approve", by=by, why=why)


@app.command()
@_decision
def reject(
    release: Any,  # tunewright.registry.release
    registry: Registry,
    by: str | None,
    why: str,
    version: Annotated[
        str | None,
        typer.Argument(metavar="[VERSION]", help="Version that waits; default: the newest", show_default=False),
    ] = None,
) -> "ReleaseDecision":
    """Reject a version that waits (gate.approval), as approve --reject does: the alias stays where it is."""
    return release.decide(registry, version, "reject", by=by, why=why)


@app.command()
@_decision
def promote(release: Any, registry: Registry, by: str | None, why: str, version: Version) -> "ReleaseDecision":
    """Move the alias to a version, whatever its verdict, after reloading and checking it."""
    return release.promote(registry, version, by=by, why=why)


@app.command()
@_decision
def rollback(
    release: Any,  # tunewright.registry.release
    registry: Registry,
    by: str | None,
    why: str,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Version that had the alias; default: the previous one")
    ] = None,
) -> "ReleaseDecision":
    """Move the alias back to the previous version, after reloading and checking it.

    No pipeline promotes the rolled-back version again; release promote does.
    """
    return release.rollback(registry, to, by=by, why=why)


@app.command()
@_decision
def withdraw(release: Any, registry: Registry, by: str | None, why: str) -> "ReleaseDecision":
    """Remove the alias from its version, without a successor: the next run has no champion.

    No pipeline promotes the withdrawn version again; release promote does.
    """
    return release.withdraw(registry, by=by, why=why)
