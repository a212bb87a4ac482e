"""Options, consoles and error messages that all commands share."""

import difflib
import errno
import inspect
import logging
import os
import shlex
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperGroup

from tunewright import config
from tunewright.accepted import did_you_mean, shown
from tunewright.cli import interrupts
from tunewright.cli.visible import Visible, as_line, is_plain, visible
from tunewright.config import STAGES, Registry, outside
from tunewright.errors import NO_LOCKS, NO_SPACE, READ_ONLY, ConfigError, TunewrightError
from tunewright.machine import addresses

File = Annotated[Path, typer.Argument(metavar="FILE", help="A deployment file, such as mine.yaml")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change one setting; repeatable")
]
Until = Annotated[str | None, typer.Option(metavar="STAGE", help=f"The last stage: {', '.join(STAGES)}")]
Refresh = Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run a stage again even if nothing changed")]
Deployment = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the deployment, if the file has several")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of stdout; docs/json.md lists its keys")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only the result line and errors")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print all settings and the logs of the libraries")]

OF_THE_DISK = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EROFS: READ_ONLY,
    errno.ENOLCK: NO_LOCKS,
}
UNWRITABLE = {errno.EROFS, errno.EACCES, errno.ENOTDIR}


UsageError: Any = typer.BadParameter.__mro__[1]  # which typer has no public name for


class OneLine(TyperGroup):
    """Commands whose errors of usage, such as a missing option, are one line as all others are."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find a command; its help flows, where typer would break it as its docstring is broken."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _flow_help(command)
            _hide_types_of_flags(command, ctx)
        return command

    def get_params(self, ctx: Any) -> list[Any]:
        """Returns the options of the group itself; the help shows no type for its flags."""
        return _without_types_of_flags(super().get_params(ctx))

    def main(
        self, args: Sequence[str] | None = None, *others: Any, standalone_mode: bool = True, **options: Any
    ) -> Any:
        """Runs a command as typer does."""
        if not standalone_mode:
            return super().main(args, *others, standalone_mode=False, **options)
        if is_plain():
            from typer import rich_utils

            rich_utils.COLOR_SYSTEM = None  # of the help
        given = [*(sys.argv[1:] if args is None else args), "--"]
        as_json = "--json" in given[: given.index("--")]  # also where what is before it cannot be parsed
        try:
            code = super().main(args, *others, standalone_mode=False, **options)
        except UsageError as error:
            command = error.ctx.command_path if error.ctx else "tunewright"
            if possible := getattr(error, "possibilities", None):
                bare = {each.lstrip("-"): each for each in possible}  # the dashes, which all have, do not count
                close = difflib.get_close_matches(error.option_name.lstrip("-"), bare, cutoff=0.7)
                error.possibilities = [bare[each] for each in close]
            said = _refused_value(error) or error.format_message().strip().rstrip(".")
            if "\n" in said:  # the help, where nothing was asked for
                print(said, file=sys.stderr)
            elif said:  # it was printed already where there is nothing to say
                _print_error(f"{command}: {said}; see {command} --help", error.exit_code, as_json)
            code = error.exit_code
        code = code if isinstance(code, int) else 0
        interrupts.leave(code)
        sys.exit(code)


def _refused_value(error: Any) -> str:
    """Return an option, the value given to it and what is accepted, or "" where `error` is about no number."""
    if not isinstance(error.__cause__, ValidationError):
        return ""
    (first, *_) = error.__cause__.errors(include_url=False)
    limits = error.param.type_descriptor.parameter_info
    if not first["type"].startswith("int") and first["type"] not in ("greater_than_equal", "less_than_equal"):
        return ""
    bounds = "" if limits.min is None else f", {limits.min} or more"
    if limits.max is not None:
        bounds = f" from {limits.min} to {limits.max}"
    return f"{max(error.param.opts, key=len)} {shown(first['input'])}: accepted: a whole number{bounds}"


def _flow_help(command: Any) -> None:
    """Join the lines of each paragraph of the help of a command and of those in it."""
    if command.help:
        paragraphs = inspect.cleandoc(command.help).split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for each in getattr(command, "commands", {}).values():
        _flow_help(each)


def _hide_types_of_flags(command: Any, ctx: Any) -> None:
    """Hide `<bool>`, which typer shows for flags, in the help of a command and of those in it."""
    _without_types_of_flags(command.get_params(ctx))
    for each in getattr(command, "commands", {}).values():
        _hide_types_of_flags(each, ctx)


def _without_types_of_flags(parameters: list[Any]) -> list[Any]:
    for each in parameters:
        if getattr(each, "is_flag", False):
            each.metavar = ""
    return parameters


def console_of(as_json: bool) -> Console:
    """For people: stdout, or stderr where stdout is for a program.

    It is as wide as the terminal or COLUMNS, and otherwise wide enough for the tables.
    """
    width = None if (sys.stderr if as_json else sys.stdout).isatty() or os.environ.get("COLUMNS") else 120
    return Visible(stderr=as_json, highlight=False, width=width)


def load(
    until_end: ExitStack,
    file: Path,
    deployment: str | None,
    assignments: list[str] | None,
    until: str | None = None,
    refresh: list[str] | None = None,
) -> Any:
    """The pipeline of a file, with what the command line changes, in its folder and the environment that it asks for.

    Raises ConfigError.
    """
    note_home_beside(file)
    with interrupts.at_once():
        from tunewright.cli import deployment_file

    given = list(assignments or [])
    given += [] if until is None else [f"until={_stage('--until', until)}"]
    given += [f"refresh=[{', '.join(_stage('--refresh', stage) for stage in refresh)}]"] if refresh else []
    pipeline = deployment_file.load(file, deployment, given)
    until_end.enter_context(config.working_in(file.parent))
    config.prepare_environment(pipeline.settings)
    note_address(pipeline.settings.registry, "registry.tracking_uri")
    return pipeline


def note_address(registry: Registry, option: str) -> None:
    """Print to stderr that MLFLOW_TRACKING_URI names the MLflow that is used."""
    if (uri := registry.tracking_uri) and uri == os.environ.get("MLFLOW_TRACKING_URI"):
        print(visible(f"note: MLFLOW_TRACKING_URI={uri} names the MLflow; {option} overrides it"), file=sys.stderr)


def note_home_beside(file: Path) -> None:
    """Print to stderr that the home is a new one, where there is one beside the deployment file already."""
    beside, here = file.resolve().parent / ".tunewright", config.home()
    if not os.environ.get("TUNEWRIGHT_HOME") and beside.is_dir() and not here.exists():
        said = (
            f"note: the home here is {here}; {beside} beside the deployment file exists; set TUNEWRIGHT_HOME to use it"
        )
        print(visible(said), file=sys.stderr)


def _stage(option: str, name: str) -> str:
    if name not in STAGES:
        raise ConfigError(f"{option} {shown(name)}: {did_you_mean(name, STAGES)}")
    return name


def repeated(file: Path, deployment: str | None, assignments: list[str] | None) -> str:
    """The file, which of its deployments, and its changes, for the commands to run next."""
    chosen = ["--deployment", deployment] if deployment else []
    return shlex.join([str(file), *chosen, *(text for change in assignments or [] for text in ("--set", change))])


def prepare(console: Console, *, quiet: bool | None = None, verbose: bool = False) -> None:
    """Environment and logs, before Prefect is imported and reads its server, its database and how much it says.

    A command without --quiet, where `quiet` is None, shows warnings. Raises ConfigError for --quiet with --verbose.
    """
    if quiet and verbose:
        raise ConfigError("--quiet and --verbose exclude each other; accepted: one of them, or neither")
    config.quiet_libraries()
    shown_from = logging.DEBUG if verbose else logging.INFO
    print_log(console, logging.WARNING if quiet is None else logging.ERROR if quiet else shown_from)
    # Prefect's own view keeps everything; the terminal has ours, and one line for an error instead of a traceback.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO" if verbose else "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "tunewright")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")  # what a command says outside of a run
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
    if is_plain():
        os.environ.setdefault("PREFECT_LOGGING_COLORS", "false")
    if found := addresses.running():
        url = os.environ.setdefault("PREFECT_API_URL", found.api)
        if found.is_prefect(url):  # no other server is told the password
            os.environ["PREFECT_API_AUTH_STRING"] = addresses.auth_string()
    os.environ.setdefault("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{config.prefect_database()}")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # 20 is too few on a busy machine


def print_log(console: Console, level: int) -> None:
    """Shows what the pipeline logs, from this level on, and no more where an earlier command of the process did."""
    handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False, markup=False)
    logger = logging.getLogger("tunewright")
    logger.setLevel(level)
    for earlier in [each for each in logger.handlers if isinstance(each, RichHandler)]:
        logger.removeHandler(earlier)
    logger.addHandler(handler)


@contextmanager
def one_line_errors(as_json: bool, *, uses_home: bool = True) -> Iterator[ExitStack]:
    """An error that a user can act on is one line and its exit code, as an end by a signal is; others keep a traceback.

    The exit code after a signal is a shell's: 128 and the signal's number. What is entered into the stack is left when
    the command ends. A command that uses the home does not begin where something else is at its path.
    """
    try:
        if uses_home:
            config.require_no_other_home()
        with interrupts.raised(), ExitStack() as until_end:
            yield until_end
    except TunewrightError as error:
        _fail(str(error), error.exit_code, as_json)
    except (OSError, sqlite3.OperationalError) as error:
        if refused := _refused_home(error):
            _fail(str(refused), refused.exit_code, as_json)
        if not isinstance(error, OSError) or error.errno not in OF_THE_DISK:
            raise
        _fail(OF_THE_DISK[error.errno].format(error.filename or config.home()), 1, as_json)
    except KeyboardInterrupt as error:
        number = interrupts.number_of(error)
        _fail(interrupts.said(number), 128 + number, as_json)


def _refused_home(error: OSError | sqlite3.OperationalError) -> ConfigError | None:
    """Return the error of a home that cannot be written, as a run reports it, or None if `error` has another cause."""
    if isinstance(error, sqlite3.OperationalError):
        return config.refused_database() if config.READ_ONLY_DATABASE in str(error) else None
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else None
    if error.errno not in UNWRITABLE or place is None or not place.is_relative_to(config.home()):
        return None
    return config.refused_home(error)


def _fail(message: str, code: int, as_json: bool) -> NoReturn:
    _print_error(message, code, as_json)
    raise typer.Exit(code) from None


def _print_error(message: str, code: int, as_json: bool) -> None:
    line = outside.without_credentials(" ".join(message.split()))
    print(f"error: {visible(line)}", file=sys.stderr)
    if as_json:
        print(as_line({"error": line, "exit_code": code}))
