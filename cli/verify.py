"""`tunewright verify`: check a version against the evidence of how it was made, or the signature of an exported one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from tunewright.cli import interrupts
from tunewright.cli.command_line import Json, console_of, one_line_errors
from tunewright.cli.registered_model import Alias, Name, Uri, Version, named_as_typed, registry_of
from tunewright.cli.visible import as_line
from tunewright.errors import ConfigError, extra

if TYPE_CHECKING:  # what it imports takes seconds
    from tunewright.evidence.verify import Verification

SHOWN = {  # state -> how it is shown
    "ok": ("ok", "green"),
    "altered": ("ALTERED", "bold red"),
    "changed": ("changed", "yellow"),
    "unknown": ("not checked", "dim"),
}
CODES = {"ok": 0, "altered": 1, "unknown": 1, "changed": 3}


def verify(
    name: Name,
    version: Version = None,
    alias: Alias = "champion",
    tracking_uri: Uri = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY",
            help="Check the signature of an exported folder, whose path takes the place of NAME, and nothing else",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that a version is what was registered, and make its verdict again from the kept answers.

    Checks the model's files, the evidence of its run, the scores and the verdict, the splits, the artifacts and source
    files that are on this machine, and the alias' history. No model is loaded.

    Exit codes: 0 all as registered, 1 something was altered or there is no evidence, 3 only source files have changed
    since, 2 wrong options, or no such version.
    """
    if public_key is not None:
        _verify_folder(Path(name), public_key, version or tracking_uri or alias != "champion", as_json)
        return
    console = console_of(as_json)
    with one_line_errors(as_json), named_as_typed():
        registry = registry_of(name, alias, tracking_uri, as_json)
        with interrupts.at_once():
            from tunewright.evidence import verify as evidence
            from tunewright.tasks.decide import decided

        try:
            found = evidence.verify(registry, version, decided)
        except ConfigError as error:
            if Path(name).is_dir():
                raise ConfigError(f"{error}; of a folder the signature is checked, with --public-key KEY") from None
            raise
        _show(console, found)
    if as_json:
        print(as_line(_as_json(found)))
    raise typer.Exit(CODES[found.state])


def _verify_folder(folder: Path, public_key: Path, is_version: object, as_json: bool) -> None:
    console = console_of(as_json)
    with one_line_errors(as_json, uses_home=False):
        if is_version:
            raise ConfigError("--public-key: checks a folder; leave --version, --alias and --tracking-uri out")
        with extra("sign", "--public-key"):
            from tunewright.export import signing
        fault = signing.fault(folder, public_key)
    if fault:
        console.print(
            Text.assemble(("Altered", "bold red"), f": {folder} is not what was signed: {fault}"), soft_wrap=True
        )
    else:
        said = f": {folder} is what was signed with the key of {public_key}"
        console.print(Text.assemble(("Verified", "bold green"), said), soft_wrap=True)
    if as_json:
        print(as_line({"folder": str(folder), "state": "altered" if fault else "ok", "said": fault}))
    raise typer.Exit(CODES["altered" if fault else "ok"])


def _show(console: Console, found: "Verification") -> None:
    for check in found.checks:
        word, style = SHOWN[check.state]
        console.print(Text.assemble(f"  {check.what:20} ", (f"{word:12}", style), check.said), soft_wrap=True)
    which = f"version {found.version} of {found.name}"
    said = {
        "ok": (("Verified", "bold green"), f": {which} is what was registered"),
        "altered": (("Altered", "bold red"), f": {which} is not what was registered"),
        "unknown": (
            ("Not verified", "bold yellow"),
            f": {', '.join(found.unchecked)} of {which} cannot be checked here",
        ),
        "changed": (
            ("Verified", "bold green"),
            f": {which} is what was registered; its source files have changed since",
        ),
    }
    console.print(Text.assemble(*said[found.state]), soft_wrap=True)


def _as_json(found: "Verification") -> dict[str, Any]:
    return {
        "name": found.name,
        "version": found.version,
        "state": found.state,
        "checks": [check._asdict() for check in found.checks],
    }
