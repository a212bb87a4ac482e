"""`python -m tunewright.cli.reproduce FOLDER`: run the stages of a version again, and leave the digest of each."""

import json
import sys
from pathlib import Path

import typer

from tunewright import config
from tunewright.cli import interrupts
from tunewright.cli.command_line import console_of, one_line_errors, prepare
from tunewright.cli.reproduce import DIGESTS, SETTINGS
from tunewright.config import Settings


def main(folder: Path) -> None:
    """Runs what settings.json in the folder says, up to the answers, and writes digests.json there."""
    job = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    with one_line_errors(as_json=False):
        prepare(console_of(as_json=False), quiet=False)  # with the progress of the stages
        config.make_home()
        settings = Settings.model_validate(job["settings"])
        with interrupts.at_once():
            from tunewright.artifacts import Artifact
            from tunewright.cli import prefect_server
            from tunewright.evidence.start import GIVEN, Start
            from tunewright.flows.finetune import ASKS_APIS, finetune
            from tunewright.flows.inputs import looked_at, reading
            from tunewright.tasks.ingest import source_files
        ASKS_APIS.set(False)  # who would be paid again, and may answer otherwise
        weights, said = job["start"]
        GIVEN.set(Start(weights and Artifact.model_validate(weights), said))
        sections = {name: getattr(settings, name) for name in Settings.model_fields}
        with config.working_in(Path(job["folder"])):
            there = source_files(settings.data)
            files = [file for file in there if file.path in job["files"]]
            with reading(files), looked_at(settings, job["base"]):
                steps = prefect_server.call(finetune, **sections, until="evaluate")
        digests = {step.name: step.record.digest for step in steps if step.record}
        (folder / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except typer.Exit as error:  # whose line is printed
        sys.exit(error.exit_code)
