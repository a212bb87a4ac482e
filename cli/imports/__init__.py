"""`tunewright import`: a configuration of another tool as a deployment file, and what became of each of its keys."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tunewright.accepted import did_you_mean, shown
from tunewright.cli import interrupts
from tunewright.cli.command_line import Json, console_of, one_line_errors
from tunewright.cli.visible import as_line, visible
from tunewright.errors import ConfigError

TOOLS = ("axolotl", "llama-factory", "trl", "openai")
OF_TRL = {"trl-dpo": "dpo", "trl-kto": "kto", "trl-orpo": "orpo"}  # where the keys do not tell them from one another


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A configuration of Axolotl, LLaMA-Factory, TRL or an OpenAI job")
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="OUTPUT", help="Deployment file to write; default: stdout", show_default=False),
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option("--from", metavar="TOOL", help=f"{', '.join((*TOOLS, *OF_TRL))}; default: told by the keys"),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="BASE", help="Base model in place of theirs; needed for an OpenAI job")
    ] = None,
    devices: Annotated[
        int, typer.Option(metavar="N", min=1, max=100_000, help="Devices it ran on, which multiply the batch")
    ] = 1,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUTPUT")] = False,
    as_json: Json = False,
) -> None:
    """Turn a configuration of another tool into a deployment file, and list every key that has no counterpart.

    The list says of each key what it became: a setting, not needed here, no counterpart, or not known. Nothing is
    downloaded. Paths are those from OUTPUT's folder, or from the current folder where the file goes to stdout.

    Exit codes: 0 imported, 2 a configuration that cannot be imported, or wrong options, 1 anything else.
    """
    is_list_beside = as_json or output is None  # stdout is for the file, or for a program
    with one_line_errors(as_json, uses_home=False):
        if tool is not None and tool not in (*TOOLS, *OF_TRL):
            raise ConfigError(f"--from {shown(tool)}: {did_you_mean(tool, (*TOOLS, *OF_TRL))}")
        if output is not None and output.exists() and not force:
            raise ConfigError(f"{output}: exists; accepted: another --output, or --force to overwrite it")
        with interrupts.at_once():
            from tunewright.cli.imports import importing, writing

        folder = Path.cwd() if output is None else output.parent
        if not folder.is_dir():
            raise ConfigError(f"{output}: there is no folder {folder}; accepted: a file in a folder that is there")
        found = importing.import_file(file, folder, tool, base, devices)
        text = writing.text_of(found)
        writing.check(found, text, output or Path("stdout"))
        if output is not None:
            _write(output, text, force)
        elif not as_json:
            sys.stdout.write(visible_lines(text))
        console = console_of(is_list_beside)
        writing.show(console, found)
        if output is not None:
            console.print()
            console.print(Text(f"Written: {output}", "bold green"))
            console.print(Text("next", "bold"))
            console.print(Text(f"  tunewright plan {output}"), soft_wrap=True)
    if as_json:
        print(as_line(writing.as_json(found, text, output)))


def visible_lines(text: str) -> str:
    """Text for a terminal, whose line breaks stay."""
    return "".join(f"{visible(line)}\n" for line in text.splitlines())


def _write(output: Path, text: str, force: bool) -> None:
    """Write the whole file or none of it. Raises ConfigError where that cannot be."""
    try:
        if not force:
            with output.open("x", encoding="utf-8") as file:
                file.write(text)
            return
        unfinished = output.with_name(f".{output.name}.{os.getpid()}")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(output)
    except FileExistsError:
        raise ConfigError(f"{output}: exists; accepted: another --output, or --force to overwrite it") from None
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror}") from None
