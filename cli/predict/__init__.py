"""`tunewright predict`: answer the records of a file with a registered version."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import ValidationError

from tunewright.accepted import did_you_mean, shown
from tunewright.cli import interrupts
from tunewright.cli.command_line import Json, Quiet, console_of, one_line_errors
from tunewright.cli.registered_model import Alias, Name, Uri, Version, named_as_typed, registry_of
from tunewright.cli.visible import as_line
from tunewright.config import Evaluation, RecordFiles
from tunewright.config.data import Format, Layout
from tunewright.errors import ConfigError

if TYPE_CHECKING:  # what it imports takes seconds
    from tunewright.cli.predict.answering import Request

FILE = "FILE"  # in place of the setting that names a source
LIMIT = "1,000,000 bytes"
TYPED = (  # settings in errors about files -> what is typed here
    ("data.max_line_bytes=1000000", LIMIT),
    ("data.sources[].layout chooses one", "--layout chooses one"),
    ("data.sources[].format says", "--format says"),
    ("set format to json", "give --format json"),
    ("or set format", "or give --format"),
    ("columns of the source can map them", "--columns maps others, such as --columns instruction=question"),
    ("no known column in", "no column that is known, or that --columns names, in"),
    ("model.base", "the version"),
    (f"{FILE}.path=", f"{FILE} "),
    (f"{FILE}.columns.", "--columns "),
    (f"{FILE}.columns:", "--columns:"),
    (f"{FILE}.format=", "--format "),
    (f"{FILE}.split=", "--split "),
    (f"{FILE}.split:", "--split:"),
    (f"{FILE}: ", ""),
)


def predict(
    name: Name,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Records to answer, in any format of data.sources (JSONL, JSON, CSV, Parquet, Arrow), or .txt with a "
            "question a line; a URL and a hub data set too",
        ),
    ],
    version: Version = None,
    alias: Alias = "champion",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="OUTPUT", help="Answers, .jsonl or .parquet; default: FILE's name with .answers.jsonl, here"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output if it exists, once the new answers are complete")
    ] = False,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="Field in FILE: instruction=question, output=answer; repeatable"),
    ] = None,
    layout: Annotated[
        str, typer.Option(metavar="NAME", help=f"Layout of the records: {', '.join(get_args(Layout))}")
    ] = "auto",
    file_format: Annotated[
        str, typer.Option("--format", metavar="NAME", help=f"Format of FILE: {', '.join(get_args(Format))}")
    ] = "auto",
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Split to read of a folder that datasets.save_to_disk wrote")
    ] = None,
    messages: Annotated[
        bool,
        typer.Option("--messages", help="Write the question with the answer too, for people who judge or correct it"),
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Maximum number of tokens in an answer; default: as measured"),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Rows answered at once")] = Evaluation().batch,
    tracking_uri: Uri = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer the records of a file with a registered version, asked as in its evaluation, in the same precision.

    A killed or interrupted call resumes: the same command goes on after the rows that are done. A record that cannot
    be read or has no room in the model's context gets a line with the reason.

    Exit codes: 0 finished, 2 wrong options, 3 no record can be answered, 130 interrupted by Ctrl-C, 143 ended by
    SIGTERM, 1 anything else.
    """
    console = console_of(as_json)
    with one_line_errors(as_json), named_as_typed(*TYPED):
        registry = registry_of(name, alias, tracking_uri, as_json, quiet=quiet)
        source = _source(file, columns or [], layout, file_format, split)
        with interrupts.at_once():
            from tunewright.cli.predict import answering, view
        request: Request = answering.Request(
            registry=registry,
            version=version,
            source=source,
            output=output,
            overwrite=overwrite,
            messages=messages,
            max_new_tokens=max_new_tokens,
            batch=batch,
        )
        predicted = answering.predict(request)
        view.show(console, predicted, quiet=quiet)
    if as_json:
        print(as_line(view.as_json(predicted)))


def as_typed(text: str) -> str:
    """Names in a text what is typed here in place of settings."""
    for setting, option in TYPED:
        text = text.replace(setting, option)
    return text


def _source(file: str, columns: list[str], layout: str, file_format: str, split: str | None) -> RecordFiles:
    """The files to read and how. Raises ConfigError."""
    for option, name, names in (("--layout", layout, get_args(Layout)), ("--format", file_format, get_args(Format))):
        if name not in names:
            raise ConfigError(f"{option} {shown(name)}: {did_you_mean(name, names)}")
    mapped: dict[str, str] = {}
    for each in columns:
        ours, equals, theirs = each.partition("=")
        if not (ours and equals and theirs):
            raise ConfigError(f"--columns {shown(each)}: accepted: OURS=THEIRS, such as instruction=question")
        if ours in mapped:
            raise ConfigError(f"--columns {ours}: appears twice; accepted: one field of the file for each of ours")
        mapped[ours] = theirs
    given: dict[str, Any] = {"path": file, "columns": mapped, "layout": layout, "format": file_format, "split": split}
    try:
        return RecordFiles(**given)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False)
        raise ConfigError(f"{FILE}: {first['msg'].removeprefix('Value error, ')}") from None
