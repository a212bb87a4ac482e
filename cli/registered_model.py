"""The arguments and options of commands that name a registered model, and the registry that they give."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from pydantic import ValidationError

from tunewright.cli.command_line import console_of, note_address, prepare
from tunewright.config import Registry
from tunewright.errors import ConfigError, TunewrightError
from tunewright.registry.address import by_environment

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Registered model: registry.name, by default the deployment's")
]
Version = Annotated[
    str | None,
    typer.Option(metavar="N", help="Version number; default: the version with the alias", show_default=False),
]
Alias = Annotated[str, typer.Option(metavar="NAME", help="Alias, as in registry.alias")]
Uri = Annotated[
    str | None,
    typer.Option(
        metavar="URI", help="MLflow's address; default: MLFLOW_TRACKING_URI, or the database in the home folder"
    ),
]


TYPED = (
    ("registry.tracking_uri=", "--tracking-uri "),
    ("registry.tracking_uri and MLFLOW_TRACKING_URI, runs go", "--tracking-uri and MLFLOW_TRACKING_URI, it goes"),
    ("registry.tracking_uri in the deployment file", "--tracking-uri"),
)


@contextmanager
def named_as_typed(*typed: tuple[str, str]) -> Iterator[None]:
    """Names in errors the option that was typed in place of the setting; `typed` are further pairs of both."""
    try:
        yield
    except TunewrightError as error:
        said = str(error)
        for setting, option in (*TYPED, *typed):
            said = said.replace(setting, option)
        raise type(error)(said) from error


def registry_of(
    name: str,
    alias: str,
    tracking_uri: str | None,
    as_json: bool,
    *,
    quiet: bool | None = None,
) -> Registry:
    """Prepare the command as `prepare` does, and return the registry to look at. Raises ConfigError."""
    prepare(console_of(as_json), quiet=quiet)
    try:
        registry = Registry(alias=alias, tracking_uri=tracking_uri)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False)
        if "tracking_uri" in first["loc"]:
            raise ConfigError(f"--tracking-uri: {first['msg'].removeprefix('Value error, ')}") from None
        field = Registry.model_fields["alias"]
        raise ConfigError(
            f"--alias {alias}: refused; accepted: {(field.description or '').partition(': ')[2]}"
        ) from None
    registry = by_environment(registry)
    note_address(registry, "--tracking-uri")
    return registry.model_copy(update={"name": name})  # one that no pipeline can have is no model that there is
