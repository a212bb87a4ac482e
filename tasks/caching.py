"""Nothing is done twice and nothing stale is reused.

`@cached` turns a function that writes files into a folder into one that is looked up first. Its key is the hash of

- the stage's name and the values of its arguments: settings as they are, artifacts by their content hash;
- the code it runs: its own module, and of every first-party module it imports the definitions that it reaches;
- the versions of Python and of the libraries that shape its output.

The folder is written beside its place, synced and renamed, manifest.json last: it is whole or it is not there. A hit is
checked against the manifest, file by file. A lock of the kernel's (freed when its holder dies) makes two identical runs
do the work once. What a stage that refuses its data has to show is kept apart (tasks/stopped.py).
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import inspect
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import update_wrapper
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from prefect.context import FlowRunContext, TaskRunContext
from prefect.states import Completed
from pydantic import BaseModel

from tasks import config, stopped
from tasks.artifacts import Artifact
from tasks.errors import NO_SPACE, DataError, TunewrightError
from tasks.fingerprint import fingerprints
from tasks.stopped import Stopped

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)

MANIFEST = "manifest.json"


class Cached(Generic[P, A]):
    """A stage's function with its key; calling it returns the artifact, made now or found whole."""

    def __init__(
        self, build: Callable[Concatenate[Path, P], A], libraries: tuple[str, ...], volatile: tuple[str, ...]
    ) -> None:
        self.build = build
        self.libraries = libraries
        self.volatile = volatile
        self.stage: str = getattr(build, "__name__")  # noqa: B009 a Callable need not have a name
        update_wrapper(self, build)
        signature = inspect.signature(build)
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def ingredients(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """What the key is made of, by names that a person understands: "training.learning_rate", "code tasks.split"."""
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        named = {name: value for argument, given in bound.arguments.items() for name, value in flat(argument, given)}
        named |= {f"code {name}": digest for name, digest in fingerprints(self.build.__module__).items()}
        named |= {f"library {name}": importlib.metadata.version(name) for name in self.libraries}
        named["python"] = f"{sys.version_info.major}.{sys.version_info.minor}"  # its Unicode tables shape texts
        return named

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of a call with these arguments: 20 hex digits."""
        return _key(self.stage, self.ingredients(*args, **kwargs))

    def find(self, *args: P.args, **kwargs: P.kwargs) -> A | None:
        """The whole and unaltered artifact of a call with these arguments, or None."""
        manifest, _ = _read(self._folder(self.key(*args, **kwargs)))
        return None if manifest is None else self._record(manifest)

    def because(self, *args: P.args, **kwargs: P.kwargs) -> list[str]:
        """Why a call with these arguments would run: what differs from the nearest artifact that there is."""
        ingredients = self.ingredients(*args, **kwargs)
        folder = self._folder(_key(self.stage, ingredients))
        _, fault = _read(folder)
        if folder.exists() and fault:
            return [fault]
        if stop := stopped.find(self.stage, folder.name):
            return [f"it stopped on the same data, {stop.when}: {stop.message}"]
        earlier = _earlier(ingredients, folder.parent)
        return earlier[1] if earlier else ["never made before"]

    def stopped(self, *args: P.args, **kwargs: P.kwargs) -> Stopped | None:
        """What the stage left where a call with these arguments refused its data, or None."""
        return stopped.find(self.stage, self.key(*args, **kwargs))

    def nearest(self, *args: P.args, **kwargs: P.kwargs) -> A | None:
        """The artifact that a call with these arguments would most likely resemble: what a plan reckons with."""
        earlier = _earlier(self.ingredients(*args, **kwargs), config.home() / "artifacts" / self.stage)
        return self._record(earlier[0]) if earlier else None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> A:
        """The artifact. Inside a Prefect task a hit is the state Cached, with what it saved in its message."""
        record, manifest = self._obtain(*args, **kwargs)
        if manifest is None or TaskRunContext.get() is None:
            return record
        message = f"{record.key} of {manifest['made_by']}, {manifest['seconds']:.1f} s saved"
        return Completed(name="Cached", message=message, data=record)  # pyright: ignore[reportReturnType] Prefect unwraps it

    def record(self, *args: P.args, **kwargs: P.kwargs) -> A:
        """The artifact itself, inside a task as well: for a stage that is put together from cached parts."""
        return self._obtain(*args, **kwargs)[0]

    def _obtain(self, *args: P.args, **kwargs: P.kwargs) -> tuple[A, dict[str, Any] | None]:
        """The artifact, and its manifest where it was found and not made."""
        ingredients = self.ingredients(*args, **kwargs)
        folder = self._folder(_key(self.stage, ingredients))
        task = TaskRunContext.get()
        with lock(folder):
            manifest, _ = _read(folder) if not (task and task.task.refresh_cache) else (None, "")
            if manifest is None:
                return self._make(folder, ingredients, *args, **kwargs), None
        return self._record(manifest), manifest

    def _make(self, folder: Path, ingredients: dict[str, Any], *args: P.args, **kwargs: P.kwargs) -> A:
        started = time.monotonic()
        for leftover in folder.parent.glob(f".{folder.name}.*/"):  # of a killed holder, since the lock is ours
            shutil.rmtree(leftover)
        unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        unfinished.mkdir(parents=True)
        try:
            draft = self.build(unfinished, *args, **kwargs)
            files = {name: digest_of(unfinished / name) for name in _names(unfinished)}
            lasting = {n: d for n, d in files.items() if not n.startswith(self.volatile)} if self.volatile else files
            record = draft.model_copy(
                update={"stage": self.stage, "key": folder.name, "folder": folder, "digest": _hash(lasting)}
            )
            manifest = {
                "stage": self.stage,
                "key": folder.name,
                "files": {n: {"sha256": d, "size": (unfinished / n).stat().st_size} for n, d in files.items()},
                "record": record.model_dump(mode="json"),
                "record_type": type(record).__name__,
                "ingredients": ingredients,
                "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "made_by": _flow_run_name(),
                "seconds": round(time.monotonic() - started, 3),
            }
            (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
            _sync(unfinished)
            if folder.exists():
                folder.rename(unfinished.with_suffix(".old"))
            unfinished.rename(folder)
            shutil.rmtree(work_folder(folder), ignore_errors=True)
            stopped.discard(self.stage, folder.name)
            shutil.rmtree(unfinished.with_suffix(".old"), ignore_errors=True)
        except BaseException as error:
            if isinstance(error, DataError):
                stopped.keep(unfinished, self.stage, folder.name, error, _flow_run_name(), ingredients)
            shutil.rmtree(unfinished, ignore_errors=True)
            if "No space left on device" in str(error):  # safetensors and others have types of their own for it
                raise TunewrightError(NO_SPACE.format(folder.parent)) from error
            raise
        return record

    def _folder(self, key: str) -> Path:
        return config.home() / "artifacts" / self.stage / key

    def _record(self, manifest: dict[str, Any]) -> A:
        record_type: type[A] = inspect.get_annotations(self.build, eval_str=True)["return"]
        folder = self._folder(manifest["key"])
        return record_type.model_validate(manifest["record"] | {"folder": folder})


def cached(
    *, libraries: tuple[str, ...] = (), volatile: tuple[str, ...] = ()
) -> Callable[[Callable[Concatenate[Path, P], A]], Cached[P, A]]:
    """Caches a stage's function `f(folder, ...) -> record`, which writes its files into `folder`.

    `libraries` are the distributions whose version shapes the output. Files whose names begin with one of `volatile`
    (reports, timings) are kept and verified, but are not part of the content hash that later stages see.
    """
    return lambda build: Cached(build, libraries, volatile)


def kept(kind: type[A], stage: str, key: str) -> A | None:
    """The record of the whole and unaltered artifact that a stage keeps under a key, or None."""
    folder = config.home() / "artifacts" / stage / key
    manifest, _ = _read(folder)
    return None if manifest is None else kind.model_validate(manifest["record"] | {"folder": folder})


def work_folder(folder: Path) -> Path:
    """A place for work in progress that outlives a failed attempt at `folder`, and goes when the artifact is whole."""
    key = folder.name.strip(".").split(".")[0]
    return config.home() / "work" / folder.parent.name / key


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """An argument as named values: a section field by field, an artifact by its digest, a contender by its parts."""
    if isinstance(value, Artifact):
        yield name, f"{value.stage} {value.digest}"
    elif isinstance(value, BaseModel):
        for field in type(value).model_fields:
            inner = getattr(value, field)
            if not isinstance(inner, Path):  # where it lies is not what it is
                yield from flat(f"{name}.{field}", inner)
    elif isinstance(value, tuple | list) and any(isinstance(item, BaseModel) for item in value):
        for position, item in enumerate(value):
            yield from flat(f"{name}[{position}]", item)
    else:
        yield name, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        raise TypeError(f"{value}: a path is not an input; pass the digest of what it holds")
    return value


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _key(stage: str, ingredients: dict[str, Any]) -> str:
    return _hash([stage, ingredients])[:20]


def digest_of(file: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _read(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The manifest of a whole artifact, or None and what is wrong with it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
    except FileNotFoundError:
        return None, f"artifact {folder.name} has no {MANIFEST}"
    except (ValueError, KeyError, TypeError):
        return None, f"artifact {folder.name}: {MANIFEST} altered"
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            return None, f"artifact {folder.name}: {name} is missing"
        if file.stat().st_size != expected["size"] or digest_of(file) != expected["sha256"]:
            return None, f"artifact {folder.name}: {name} was altered"
    return manifest, ""


def _earlier(ingredients: dict[str, Any], stage_folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The nearest earlier manifest and what sets a call apart from it: fewest differences, the newest of those."""
    found: list[tuple[int, str, dict[str, Any], list[str]]] = []
    for file in stage_folder.glob(f"*/{MANIFEST}"):
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            before, made = manifest["ingredients"], manifest["made"]
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            continue
        changes = differences(before, ingredients)
        found.append((len(changes), made, manifest, changes))
    if not found:
        return None
    fewest = min(number for number, *_ in found)
    _, _, manifest, changes = max((f for f in found if f[0] == fewest), key=lambda f: f[1])
    return manifest, changes


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What sets the ingredients of one call apart from those of another, each as a person reads it."""
    names = sorted(before.keys() | now.keys())
    return [_change(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]


def _change(name: str, before: Any, now: Any) -> str:
    if name.startswith("code "):
        return f"{name} changed"
    if isinstance(before, str) and isinstance(now, str) and len(before) > 60 and len(now) > 60:
        return f"{name} changed"
    return f"{name}: {_shown(before)} -> {_shown(now)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}…"


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds the right to make `path`. The kernel frees it when the holder dies, however it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flow_run_name() -> str:
    context = FlowRunContext.get()
    return context.flow_run.name if context and context.flow_run else "a call outside a flow"
