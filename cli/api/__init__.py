"""`tunewright api`: the fine-tuning API of OpenAI over a deployment file.

template.py makes the settings of a job, files.py and uploading.py keep what is uploaded, jobs.py has the records,
creating.py reads requests, validating.py and running.py do the work, curves.py and results.py read what a run makes,
models.py answers with it, and app.py has the paths.
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tunewright.cli import interrupts
from tunewright.cli.command_line import (
    Deployment,
    Set,
    console_of,
    note_address,
    note_home_beside,
    one_line_errors,
    prepare,
)
from tunewright.machine.addresses import LOOPBACK


def api(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A deployment file, whose settings hold for every job")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=BASE]",
            help="A model that requests may name, and its base; default: that of the file; repeatable",
        ),
    ] = None,
    assignments: Set = None,
    deployment: Deployment = None,
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65_535, help="Port to listen on")] = 8000,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; the default is this machine alone")
    ] = LOOPBACK,
    max_waiting: Annotated[
        int, typer.Option(metavar="N", min=0, help="Requests that may wait while one is answered; more get status 429")
    ] = 32,
) -> None:
    """Serve OpenAI's API for files, fine-tuning jobs and the models that they make, until Ctrl-C.

    Jobs run one after the other on this machine, and go on when the server is started again. The API key is
    TUNEWRIGHT_API_KEY, or the file api_key in the home, which is created at the first call.

    Exit codes: 0 stopped by Ctrl-C, 143 by SIGTERM, 2 wrong options or a port that is taken, 1 anything else.
    """
    console = console_of(as_json=False)
    with one_line_errors(as_json=False):
        environment = dict(os.environ)  # as a run finds it that a person starts
        prepare(console)
        note_home_beside(file)

        def tell(line: str) -> None:
            console.print(Text(line), soft_wrap=True)

        with interrupts.at_once():
            from tunewright.cli.api import server, template
            from tunewright.cli.serve import key
            from tunewright.cli.serve.server import Listening
        found = template.load(file, deployment, assignments or [], model or [])
        template.require_bases(found, tell)
        note_address(found.settings.registry, "registry.tracking_uri")
        server.serve(found, environment, Listening(host, port, key.api_key(), max_waiting), tell)
