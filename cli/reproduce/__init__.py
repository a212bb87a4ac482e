"""`tunewright reproduce`: make a registered version again from the same inputs, and compare bytes.

__main__.py is the process that runs the stages, in a home of its own, so that nothing is found in a cache and nothing
of this home or its servers changes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.text import Text

from tunewright import config
from tunewright.cli import interrupts
from tunewright.cli.command_line import Json, console_of, one_line_errors
from tunewright.cli.registered_model import Alias, Name, Uri, Version, named_as_typed, registry_of
from tunewright.cli.visible import as_line
from tunewright.errors import DataError, TunewrightError

if TYPE_CHECKING:  # what it imports takes seconds
    from tunewright.evidence.bundle import EvidenceBundle, StageEvidence
    from tunewright.evidence.start import Start

SETTINGS, DIGESTS = "settings.json", "digests.json"  # in the folder of a reproduction: what to run, what came of it
LEFT_OUT = (
    *("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_DATABASE_CONNECTION_URL"),
    *("PREFECT_LOCAL_STORAGE_PATH", "MLFLOW_TRACKING_URI"),
    "TUNEWRIGHT_STORE",  # which has the artifacts that are to be made again
)
# What comes after the answers, and what another version answered; nor is a model behind an API asked again.
NOT_MADE = ("champion", "decide", "judge")
SHOWN = 5  # packages in one line
STDERR = 2


class Stage(NamedTuple):
    """A stage of the version, and what came of it again."""

    name: str
    kept: str  # digest of its content
    again: str  # empty where it was not made

    @property
    def is_same(self) -> bool:
        """Whether every byte that counts is the same."""
        return self.kept == self.again


def reproduce(
    name: Name,
    version: Version = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep what is made in this new folder; default: it is removed"),
    ] = None,
    alias: Alias = "champion",
    tracking_uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Make a version again from the same source files and settings, and compare every stage, byte by byte.

    It takes as long as the run did: all stages up to the answers to the test rows run again, in a home of their own.
    On another machine or with other versions of the packages, bytes may differ.

    Exit codes: 0 the same bytes, 1 other bytes or a stage failed, 3 a source file, an earlier version of the data or
    the version that it began as is not here any more, 2 wrong options, or no such version.
    """
    console, started = console_of(as_json), time.monotonic()
    with one_line_errors(as_json), named_as_typed():
        registry = registry_of(name, alias, tracking_uri, as_json)
        with interrupts.at_once():
            from tunewright.evidence import bundle
            from tunewright.evidence.start import start_of

        with tempfile.TemporaryDirectory() as local:
            number, evidence = bundle.evidence_of(registry, version, Path(local))
            began = start_of(registry, evidence, Path(local))
        _require_sources(evidence)
        made = _new(folder)
        try:
            _history_until(evidence, made)
            _copy_uses(evidence, made)
            console.print(Text(f"making version {number} of {name} again; this takes as long as its run did", "dim"))
            stages = _compared(evidence, _run(evidence, began, made, STDERR if as_json else None))
        finally:
            if folder is None:
                shutil.rmtree(made, ignore_errors=True)
        differing = _differing_packages(evidence)
        is_same = all(stage.is_same for stage in stages)
        _show(console, f"version {number} of {name}", stages, differing, time.monotonic() - started)
    if as_json:
        print(as_line(_as_json(name, number, stages, differing)))
    raise typer.Exit(0 if is_same else 1)


def _require_sources(evidence: "EvidenceBundle") -> None:
    """Raises DataError where a source file is not here, or is not what it was."""
    from tunewright.store.manifest import digest_of

    for name, digest in evidence.sources.items():
        path = Path(evidence.folder, name)
        if "://" in name or (path.is_file() and digest_of(path) == digest):  # what is elsewhere, ingest looks at
            continue
        fault = "was changed since" if path.is_file() else "is not here"
        raise DataError(f"{path} {fault}; restore the file that the version was made of (sha256 {digest[:12]})")


def _new(folder: Path | None) -> Path:
    """An empty folder for the reproduction: a new one of this name, or a temporary one in the home.

    Raises ConfigError where it is not empty.
    """
    if folder is None:
        config.make_home()
        return Path(tempfile.mkdtemp(prefix="reproduce-", dir=config.home()))
    from tunewright.store import disk

    made = disk.free_folder(folder)
    made.mkdir(exist_ok=True)
    return made


def _history_until(evidence: "EvidenceBundle", made: Path) -> None:
    """Copies the versions of the data before the one of this version, whose rows keep their splits.

    Raises DataError where they are not in this home any more.
    """
    from tunewright.store import data_history

    split = evidence.settings["split"]
    past = data_history.history(evidence.name, split["seed"], split["by"])
    rows = next(stage.digest for stage in evidence.stages if stage.stage == "ingest")
    known = next((version for version in past if version.rows.digest == rows), None)
    number = known.number if known else evidence.data_version or len(past) + 1
    earlier = [version for version in past if version.number < number]
    if len(earlier) != number - 1:
        file = data_history.file_of(evidence.name)
        raise DataError(
            f"{file} has {len(earlier)} of the {number - 1} versions of the data before this one, whose rows keep "
            "their splits; restore versions/ from a backup, or call this on the machine that made the version"
        )
    there = made / "home" / "versions"
    for version in earlier:
        folder = data_history.folder_of(evidence.name, version)
        if folder.is_dir():
            shutil.copytree(folder, there / folder.relative_to(config.home() / "versions"))
    if earlier:
        data_history.write(there / f"{evidence.name}.jsonl", earlier)


def _copy_uses(evidence: "EvidenceBundle", made: Path) -> None:
    """Copies the uses of the test rows: by the level of its use, a prompt is ended after as many rows."""
    from tunewright.store import test_set_uses

    uses = test_set_uses.file_of(evidence.name)
    if uses.is_file():
        there = made / "home" / uses.relative_to(config.home())
        there.parent.mkdir(parents=True)
        shutil.copy(uses, there)


def _run(evidence: "EvidenceBundle", began: "Start", made: Path, progress: int | None) -> dict[str, str]:
    """The digest of each stage that ran again; its progress goes to a file descriptor, None for stdout.

    `began` is what the training began as, where that was not always the base.

    Raises TunewrightError where the run did not finish.
    """
    from tunewright.store import bases

    gate = {**evidence.settings["gate"], "rotate": False}  # split.seed is the one that was drawn
    settings = {**evidence.settings, "gate": gate, "registry": {"name": evidence.name}}
    weights = began.weights.model_dump(mode="json") if began.weights else None
    with config.working_in(Path(evidence.folder)):
        base = bases.at_hand(evidence.name, evidence.settings["model"]["base"])
    job = {
        "folder": evidence.folder,
        "settings": settings,
        "base": base,
        "files": [*evidence.sources],
        "start": [weights, began.said],
    }
    (made / SETTINGS).write_text(json.dumps(job), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tunewright.cli.reproduce", str(made)],
        env=environment | {"TUNEWRIGHT_HOME": str(made / "home")},
        stdin=subprocess.DEVNULL,
        stdout=progress,
        check=False,
    )
    if done.returncode:
        raise TunewrightError("the version was not made again: a stage failed, as said above")
    return json.loads((made / DIGESTS).read_text(encoding="utf-8"))


def _compared(evidence: "EvidenceBundle", again: dict[str, str]) -> list[Stage]:
    return [Stage(each.name, each.digest, again.get(each.name, "")) for each in evidence.stages if _is_made(each)]


def _is_made(stage: "StageEvidence") -> bool:
    return not ({stage.stage, stage.of} & {*NOT_MADE, "forgetting", "lm_eval", "divergence"} or stage.record.get("api"))


def _differing_packages(evidence: "EvidenceBundle") -> list[str]:
    """Such as "torch 2.10.0, here 2.11.0"."""
    from tunewright.evidence import bundle
    from tunewright.store.cache_key import pipeline_hash

    here = bundle.packages() | {"Python": bundle.python_version()}
    kept = evidence.packages | {"Python": evidence.python}
    said = [f"{name} {kept[name]}, here {here.get(name, 'none')}" for name in kept if here.get(name) != kept[name]]
    if evidence.code != pipeline_hash():
        said.append("the code of Tunewright")
    return said


def _show(console: Console, which: str, stages: list[Stage], differing: list[str], seconds: float) -> None:
    for stage in stages:
        word, style = (
            ("same", "green") if stage.is_same else ("OTHER", "bold red") if stage.again else ("none", "yellow")
        )
        console.print(Text.assemble(f"  {stage.name:20} ", (f"{word:6}", style), f" {stage.kept[:12]}"))
    if first := next((stage for stage in stages if not stage.is_same), None):
        said = f": {which}; {first.name} is the first stage with other content"
        console.print(Text.assemble(("Not reproduced", "bold red"), said), soft_wrap=True)
        if differing:
            more = f", and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            console.print(Text(f"  what differs here: {'; '.join(differing[:SHOWN])}{more}"), soft_wrap=True)
    else:
        said = f": {which}, {len(stages)} stages with the same bytes, {seconds:,.0f} s"
        console.print(Text.assemble(("Reproduced", "bold green"), said), soft_wrap=True)


def _as_json(name: str, number: str, stages: list[Stage], differing: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "version": number,
        "is_same": all(stage.is_same for stage in stages),
        "stages": [stage._asdict() | {"is_same": stage.is_same} for stage in stages],
        "differing": differing,
    }
