"""A standard Prefect deployment file as one pipeline: read, checked, and changed from the command line.

Each effective value remembers where it came from: a line of the file, the command line, or the default.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as field_
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

from prefect.client.schemas.schedules import SCHEDULE_TYPES
from prefect.types import BANNED_CHARACTERS

from tunewright.cli.deployment_file import strict_yaml
from tunewright.cli.deployment_file.keys import check, mappings, schedule_of
from tunewright.cli.deployment_file.strict_yaml import Document
from tunewright.config import CommaSeparated, LocalPath, Settings, Source, Stage, called_in, from_folder
from tunewright.config.outside import holds_secret
from tunewright.errors import ConfigError, DataError, TunewrightError
from tunewright.flows.parameters import (
    DEPLOYMENT_NAME,
    Parameters,
    checked,
    field,
    flat,
    named,
    present,
    renamed,
    shown,
    slug,
)
from tunewright.registry.address import VARIABLE

ENTRYPOINT = "tunewright.flows.finetune.finetune"
OLD_ENTRYPOINT = "flows.finetune.finetune"  # accepted for one release, as is what deployments on a server name
MAX_BYTES = 1_000_000
DATA = re.compile(r"\.(jsonl|ndjson|csv|tsv|parquet|arrow)(\.(gz|zst))?$|\.(gz|zst)$", re.I)
A_DEPLOYMENT_FILE = "accepted: a deployment file such as mine.yaml"

TYPED = "command line: "  # before an error about what was given there

log = logging.getLogger("tunewright")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One deployment of a file: what was given, and the effective settings that it makes.

    `parameters` are only the values that were set, plain, as Prefect is given them. `origins` has the dotted keys of
    `flat`, until and refresh, each with "deployments/demo.yaml line 14", "command line", "default" or, of a
    registry.name that nobody set, "the deployment's name". That of an address of MLflow may be MLFLOW_TRACKING_URI.
    """

    path: Path
    name: str
    settings: Settings
    until: Stage
    refresh: tuple[Stage, ...]
    parameters: dict[str, Any]
    origins: dict[str, str]
    work_pool: str = ""  # empty where the file names none
    schedules: tuple[SCHEDULE_TYPES | None, ...] | None = None  # None where the file does not say when it is due
    places: tuple[str, ...] = ()  # where each schedule stands
    place_of_pool: str = ""
    triggers: tuple[str, ...] = ()  # the names of the automations that Prefect makes of them
    pull: tuple[dict[str, Any], ...] | None = None  # steps by which a run gets to its folder; None: that of the file
    document: Document | None = None  # the whole file
    typed: Mapping[str, str] = field_(default_factory=dict)  # a path as the file would name it -> as it was typed


def read(path: Path) -> Document:
    """The content of a file, whose keys and schedules are Prefect's. Raises ConfigError."""
    document = strict_yaml.parse(_text(path), str(path))
    check(document)
    return document


def names(document: Document) -> list[str]:
    """The deployments in a file. Raises ConfigError."""
    return [deployment["name"] for _, deployment in _named(document)]


def load(file: Path | Document, deployment: str | None = None, assignments: Sequence[str] = ()) -> Pipeline:
    """The pipeline in a deployment file; of several, the one named `deployment`.

    `assignments` are those of --set, which can replace a wrong value of the file. Raises ConfigError.
    """
    document = read(file) if isinstance(file, Path) else file
    at, chosen = _choose(document, deployment)
    entrypoint = chosen.get("entrypoint")
    if entrypoint == OLD_ENTRYPOINT:
        old = document.place(f"{at}.entrypoint")
        log.warning("%s: entrypoint: write %s; the old name works for one more release", old, ENTRYPOINT)
    elif entrypoint != ENTRYPOINT:
        found = "missing" if entrypoint is None else f"{shown(entrypoint)} is refused"
        raise ConfigError(f"{document.place(f'{at}.entrypoint')}: entrypoint: {found}; accepted: {ENTRYPOINT}")

    parameters = _parameters(document, at, chosen)

    place = partial(_place, document, at)
    run, typed = None if assignments else checked(parameters, place), dict[str, str]()
    given = [place(key) for key in flat(parameters)]
    parameters = chosen["parameters"] = renamed(parameters, place)  # what Prefect is given
    origins = dict(zip(flat(parameters), given, strict=True))
    if run is None:
        try:
            parameters, run, origins, typed = _override(parameters, origins, Path(document.name), assignments, "--set")
        except ConfigError as error:
            _raise_if_of_file(error, parameters, place)
            raise
    for under, schedule in mappings(document, f"{at}.schedules", chosen.get("schedules")):
        own = _parameters(document, under, schedule)
        place_of = partial(_place, document, under)
        checked(parameters | own, place_of)
        if own:
            schedule["parameters"] = renamed(own, place_of)
    pool, due = chosen.get("work_pool"), mappings(document, f"{at}.schedules", chosen.get("schedules"))
    triggers = enumerate(chosen.get("triggers") or (), start=1)
    pull = _pull(document, at, chosen)
    return replace(
        _pipeline(Path(document.name), chosen["name"], parameters, run, origins),
        document=document,
        typed=typed,
        work_pool=(pool.get("name") if isinstance(pool, dict) else None) or "",
        place_of_pool=document.place(f"{at}.work_pool.name"),
        schedules=None if chosen.get("schedules") is None else tuple(schedule_of(document, *each) for each in due),
        places=tuple(document.place(under) for under, _ in due),
        triggers=tuple(each.get("name") or f"{chosen['name']}__automation_{number}" for number, each in triggers),
        pull=pull,
    )


def override(pipeline: Pipeline, assignments: Iterable[str], option: str = "--set") -> Pipeline:
    """The pipeline with `section.field=value` assignments of the command line on top. Raises ConfigError."""
    given, origins = pipeline.parameters, pipeline.origins
    parameters, run, origins, typed = _override(given, origins, pipeline.path, list(assignments), option)
    changed = _pipeline(pipeline.path, pipeline.name, parameters, run, origins)
    changed = replace(changed, typed={**pipeline.typed, **typed})
    # No --set changes these.
    kept = ("work_pool", "place_of_pool", "schedules", "places", "triggers", "pull", "document")
    return replace(changed, **{name: getattr(pipeline, name) for name in kept})


def _override(
    parameters: dict[str, Any], origins: Mapping[str, str], path: Path, assignments: Sequence[str], option: str
) -> tuple[dict[str, Any], Parameters, dict[str, str], dict[str, str]]:
    """Return the parameters with the assignments on top, as they are given and checked, and where each came from.

    The last are the paths that were typed, each by what the file would call it.
    """
    parameters, paths = dict(parameters), TypedPaths(called_in() / path.parent)
    typed = {_assign(parameters, each, option, paths): each for each in assignments}
    places = {key: f"{option} {_said(each)}" for key, each in typed.items()}

    def place(key: str) -> str:
        near = [text for name, text in places.items() if _inside(key, name) or _inside(name, key)]
        origin = origins.get(key, "default")
        return " ".join(near) or (origin if origin != "default" else " ".join(places.values()))

    run = checked(
        parameters, place, left_empty=[key for key, each in typed.items() if not each.partition("=")[2].strip()]
    )
    changed = {
        key: "command line" if any(_inside(key, name) for name in places) else origins[key] for key in flat(parameters)
    }
    return parameters, run, changed, paths.typed


def _raise_if_of_file(error: ConfigError, parameters: dict[str, Any], place: Callable[[str], str]) -> None:
    """Raises an error of the parameters with assignments at its place in the file, where the file alone has it too."""
    try:
        checked(parameters, place)
    except ConfigError as own:
        if str(own).partition(": ")[2].partition(" (also ")[0] in str(error):
            raise own from None


@contextmanager
def placed(pipeline: Pipeline) -> Iterator[None]:
    """Put the place of a setting before an error that begins with its key."""
    try:
        yield
    except TunewrightError as error:
        key = re.split(r"[^\w.\[\]]", str(error))[0]
        place = _given_at(pipeline, key)
        error.args = (f"{place}{_as_typed(pipeline, key, str(error)) if place == TYPED else error}",)
        raise


def _as_typed(pipeline: Pipeline, key: str, said: str) -> str:
    """A sentence on a setting of the command line, with its path, and others beside it, as they are called there."""
    for path, typed in pipeline.typed.items():
        if f"{key}={path}" in said:
            name = typed.rpartition("/")[2]
            there, here = path.removesuffix(name), typed.removesuffix(name)
            said = said.replace(f"did you mean {there}", f"did you mean {here}")
            return said.replace(f"{key}={path}", f"{key}={typed}")
    return said


def _given_at(pipeline: Pipeline, key: str) -> str:
    """Return where a setting was given, or the nearest one around it; a whole section has no place."""
    while "." in key:
        if origins := [origin for name, origin in pipeline.origins.items() if _inside(name, key)]:
            given = next((origin for origin in origins if origin != "default"), "")
            return f"{'taken from ' if given == DEPLOYMENT_NAME else ''}{given}: " if given else ""
        key = key[: max(key.rfind("."), key.rfind("["))]
    return ""


def effective(pipeline: Pipeline) -> list[tuple[str, Any, str]]:
    """Rows of key, value and origin: every setting, and until and refresh where they were given."""
    values = flat(pipeline.settings) | {"until": pipeline.until, "refresh": ", ".join(pipeline.refresh)}
    rows = [(key, value, pipeline.origins[key]) for key, value in values.items()]
    return [row for row in rows if row[0] not in {"until", "refresh"} or row[2] != "default"]


def _pipeline(path: Path, name: str, parameters: dict[str, Any], run: Parameters, origins: dict[str, str]) -> Pipeline:
    settings = run.settings()
    if settings.registry.tracking_uri != run.registry.tracking_uri:
        origins = origins | {"registry.tracking_uri": VARIABLE}
    if not settings.registry.name:
        settings = settings.model_copy(update={"registry": named(settings.registry, name)})
        origins = origins | {"registry.name": DEPLOYMENT_NAME}
    return Pipeline(
        path=path,
        name=name,
        settings=settings,
        until=run.until,
        refresh=run.refresh,
        parameters=parameters,
        origins={key: origins.get(key, "default") for key in flat(run)},
    )


def _text(path: Path) -> str:
    try:
        if not path.exists():
            is_url = re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.I)
            raise ConfigError(f"{path}: {'a URL; accepted: a file on this machine' if is_url else 'no such file'}")
        if not path.is_file():
            raise ConfigError(f"{path}: not a file; {A_DEPLOYMENT_FILE}")
        if DATA.search(path.name):
            raise ConfigError(
                f"{path}: a data file, which data.sources of a deployment file names; {A_DEPLOYMENT_FILE}"
            )
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes; a deployment file is a page of text")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        said = f"{path} line {line}: byte {content[error.start]:#04x} is not UTF-8"
        raise ConfigError(f"{said}{_encoding_advice(path, said)}") from None


def _encoding_advice(path: Path, said: str) -> str:
    """Return the advice for a data file whose encoding is not accepted."""
    from tunewright.tasks.ingest.opening import compression_of  # with what opens stores
    from tunewright.tasks.ingest.readers import encoding_advice

    try:
        compression = compression_of(str(path))
    except DataError as error:
        raise ConfigError(str(error)) from None
    return encoding_advice(str(path), "text", compression, said)


def _named(document: Document) -> list[tuple[str, dict[str, Any]]]:
    """The deployments, each with a name that tells it and its champion from the others."""
    deployments = mappings(document, "deployments", document.value.get("deployments"))
    if not deployments:
        raise ConfigError(f"{document.place('deployments')}: deployments: missing; accepted: a list of one or more")
    names: dict[str, str] = {}  # of the earlier ones, each with its line
    for at, deployment in deployments:
        found = deployment.get("name")
        if not isinstance(found, str) or not found:
            said = "missing" if found is None else f"{shown(found)} is refused"
            raise ConfigError(f"{document.place(f'{at}.name')}: {at}.name: {said}; accepted: text, such as triage")
        if bad := [character for character in found if character in BANNED_CHARACTERS or not character.isprintable()]:
            raise ConfigError(
                f"{document.place(f'{at}.name')}: {at}.name: {shown(found)} is refused for its {shown(bad[0])}; "
                "accepted: text, such as triage"
            )
        if found in names:
            raise ConfigError(
                f"{document.place(f'{at}.name')}: {at}.name: {shown(found)} is the name of the one on "
                f"{names[found]} too; rename one"
            )
        if alike := [other for other in names if slug(found) and slug(other) == slug(found)]:
            raise ConfigError(
                f"{document.place(f'{at}.name')}: {at}.name: {shown(found)} and {shown(alike[0])} on "
                f"{names[alike[0]]} would share registry.name={slug(found)}, and so a champion; rename one"
            )
        names[found] = document.place(f"{at}.name").removeprefix(f"{document.name} ")
    return deployments


def _choose(document: Document, name: str | None) -> tuple[str, dict[str, Any]]:
    deployments = _named(document)
    names = [deployment["name"] for _, deployment in deployments]
    if name is None and len(names) > 1:
        raise ConfigError(
            f"{document.name}: holds several deployments; choose one with --deployment: {', '.join(names)}"
        )
    if name is not None and name not in names:
        raise ConfigError(f"{document.name}: no deployment is named {shown(name)}; accepted: {', '.join(names)}")
    return deployments[0 if name is None else names.index(name)]


def _parameters(document: Document, at: str, holder: dict[str, Any]) -> dict[str, Any]:
    parameters = {} if holder.get("parameters") is None else holder["parameters"]
    if not isinstance(parameters, dict):
        place = document.place(f"{at}.parameters")
        raise ConfigError(f"{place}: parameters: {shown(parameters)} is refused; accepted: a mapping of sections")
    return parameters


def _pull(document: Document, at: str, deployment: dict[str, Any]) -> tuple[dict[str, Any], ...] | None:
    """The pull steps of a deployment, or else those of the file, as Prefect has it."""
    holder, path = (deployment, f"{at}.pull") if deployment.get("pull") is not None else (document.value, "pull")
    return None if holder.get("pull") is None else tuple(step for _, step in mappings(document, path, holder["pull"]))


def _place(document: Document, at: str, key: str) -> str:
    return document.place(f"{at}.parameters.{key}")


def _said(assignment: str) -> str:
    """An assignment for a message, without its value where that holds a secret."""
    return f"{assignment.partition('=')[0]}=..." if holds_secret(assignment) else shown(assignment)


def _assign(parameters: dict[str, Any], assignment: str, option: str, paths: "TypedPaths") -> str:
    """Sets what an assignment says and returns its key; whether key and value are accepted is for `checked` to say.

    A path in it is relative to where the command was called, and becomes one relative to the file's folder.
    """
    key, equals, text = assignment.partition("=")
    around, _, name = key.rpartition(".")
    names = [around, name] if "." in key else [name]
    if entry := re.match(r"(\w+\.\w+)(?:\[\d+\]|\.\d+)\.(\w+)", key):
        raise ConfigError(
            f"{option} {_said(assignment)}: an entry of a list is set in the file; accepted: the whole list, such as "
            f"{entry[1]}=[{{{entry[2]}: ...}}]"
        )
    if entry := re.fullmatch(r"(\w+\.\w+)\.(\w+)", key):
        raise ConfigError(
            f"{option} {_said(assignment)}: an entry of a mapping; accepted: the whole mapping, such as "
            f"{entry[1]}={{{entry[2]}: ...}}"
        )
    if not equals or not assignment.isprintable() or not all(name.isidentifier() for name in names):
        raise ConfigError(f"{option} {_said(assignment)}: accepted: section.field=value, such as training.epochs=2")
    key = present(key, lambda _: f"{option} {_said(assignment)}")
    name = key.rpartition(".")[2]
    value = paths.from_folder(key, _value(key, text, f"{option} {_said(assignment)}"))
    value = renamed({name: value}, lambda _: f"{option} {_said(assignment)}", around)[name]
    section = parameters.get(around)
    parameters |= {around: (section if isinstance(section, dict) else {}) | {name: value}} if around else {name: value}
    return key


class TypedPaths:
    """The paths of the command line, which become relative to the `folder` of the deployment file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.typed: dict[str, str] = {}  # a path as the file would name it -> as it was typed

    def from_folder(self, key: str, value: Any) -> Any:
        """A value with the paths in it as the file would name them."""

        def named_so(path: str, mark: LocalPath) -> str:
            found = from_folder(path, self.folder, or_name=mark.or_name)
            if found != path:
                self.typed[found] = path
            return found

        return with_paths(key, value, named_so)


def with_paths(key: str, value: Any, named: Callable[[str, LocalPath], str]) -> Any:
    """The value of a dotted key, with the paths in it under other names."""
    if isinstance(value, list):
        return [with_paths(key, item, named) for item in value]
    if isinstance(value, dict):
        return {name: with_paths(f"{key}.{name}" if key else name, inner, named) for name, inner in value.items()}
    found = field(key) if key else None
    local = next((mark for mark in found.metadata if isinstance(mark, LocalPath)), None) if found else None
    return named(value, local) if local and isinstance(value, str) else value


def _inside(key: str, name: str) -> bool:
    return f"{key}.".startswith((f"{name}.", f"{name}["))


def _value(key: str, text: str, place: str) -> Any:
    """Text is taken as it stands, a list may be a,b or [a, b], and all else is YAML; empty is null."""
    found = field(key)
    annotation = found.annotation if found else None
    kinds = (annotation,) if get_origin(annotation) is dict else (annotation, *get_args(annotation))
    in_brackets = text.strip().startswith("[")
    if get_origin(annotation) is tuple and not in_brackets:
        items: Any = [part.strip() for part in text.split(",") if part.strip()]
    elif found and CommaSeparated() in found.metadata and in_brackets:
        names = strict_yaml.parse(text, place).value
        return ", ".join(names) if isinstance(names, list) and all(isinstance(each, str) for each in names) else names
    elif get_origin(annotation) is not tuple and str in kinds and text[:1] not in {"'", '"'}:
        return None if type(None) in kinds and text in {"", "~", "null"} else text
    else:
        items = strict_yaml.parse(text, place).value
    if isinstance(items, list) and Source in kinds:
        return [{"path": item} if isinstance(item, str) else item for item in items]
    return items
