"""`tunewright serve`: a registered version behind an OpenAI-compatible endpoint, of this project or of another server.

asking.py reads requests, answering.py is the loaded version, queue.py the requests that wait for it, endpoint.py the
watch on the alias, app.py the HTTP side, and engines.py the servers of transformers and vLLM.
"""

from typing import Annotated

import typer
from rich.text import Text

from tunewright.accepted import did_you_mean, shown
from tunewright.cli import interrupts
from tunewright.cli.command_line import console_of, one_line_errors
from tunewright.cli.registered_model import Alias, Name, Uri, Version, named_as_typed, registry_of
from tunewright.errors import ConfigError
from tunewright.machine.addresses import LOOPBACK

ENGINES = ("tunewright", "transformers", "vllm")
TYPED = (("model.base", "the version"),)


def serve(
    name: Name,
    version: Version = None,
    alias: Alias = "champion",
    engine: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="tunewright: this project's own server; transformers: that of `transformers serve`; vllm: vLLM, where "
            "it is installed",
        ),
    ] = "tunewright",
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65_535, help="Port to listen on")] = 8000,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; the default is this machine alone")
    ] = LOOPBACK,
    no_key: Annotated[
        bool, typer.Option("--no-key", help="Ask for no API key; accepted on the default address only")
    ] = False,
    max_waiting: Annotated[
        int, typer.Option(metavar="N", min=0, help="Requests that may wait while one is answered; more get status 429")
    ] = 32,
    tracking_uri: Uri = None,
) -> None:
    """Serve a registered version under the OpenAI API, asked as in its evaluation, until Ctrl-C.

    It computes in the precision of the evaluation: float32, or bfloat16 where the processor is fast in it. In bfloat16
    a near tie between two tokens can fall otherwise (evaluation.precision).

    When the alias moves, the new version is verified, loaded and served, without a restart. The API key is
    TUNEWRIGHT_API_KEY, or the file api_key in the home, which is created at the first call.

    Exit codes: 0 stopped by Ctrl-C, 143 by SIGTERM, 2 wrong options or a port that is taken, 1 anything else.
    """
    console = console_of(as_json=False)
    with one_line_errors(as_json=False), named_as_typed(*TYPED):
        if engine not in ENGINES:
            raise ConfigError(f"--engine {shown(engine)}: {did_you_mean(engine, ENGINES)}")
        if no_key and host != LOOPBACK:
            raise ConfigError(f"--no-key: accepted only without --host, as whoever reaches {host} could use the model")
        registry = registry_of(name, alias, tracking_uri, as_json=False)

        def tell(line: str) -> None:
            console.print(Text(line), soft_wrap=True)

        with interrupts.at_once():
            from tunewright.cli.serve import key, server
        at = server.Listening(host, port, "" if no_key else key.api_key(), max_waiting)
        if engine == "tunewright":
            return server.serve(registry, version, at, tell)
        with interrupts.at_once():
            from tunewright.cli.serve import engines
        serve_by = engines.serve_by_transformers if engine == "transformers" else engines.serve_by_vllm
        return serve_by(registry, version, at, tell)
