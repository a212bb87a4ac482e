"""Nothing is done twice and nothing stale is reused.

`@cached` turns a function that writes files into a folder into one that is looked up first. Its key is the hash of the
stage's name and of all that shapes its output (cache_key.py): the values of its arguments, the code that it
reaches, the versions of Python and of its libraries.

The folder is written beside its place, synced and renamed, manifest.json last: it is whole or it is not there. A hit is
checked against the manifest, file by file. A lock of the kernel's (freed when its holder dies) makes two identical runs
do the work once. What a stage that refuses its data has to show is kept apart (refusals.py). Why a stage would run
is said in miss_reasons.py.
"""

import contextlib
import inspect
import logging
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from prefect.context import FlowRunContext, TaskRunContext
from prefect.states import Completed

from tunewright import config
from tunewright.artifacts import Artifact
from tunewright.errors import NO_SPACE, DataError, TunewrightError
from tunewright.store import disk, locks, manifest, refusals
from tunewright.store.cache_key import Ingredients, differing, hash_of, key_of, of_call
from tunewright.store.disk import now
from tunewright.store.manifest import MANIFEST, Damaged, Manifest, Whole, digest_of, folder_of
from tunewright.store.naming import naming_machine
from tunewright.store.refusals import StoppedStage
from tunewright.store.shared import path_in_home, shared_store

__all__ = [
    "MANIFEST",
    "Cached",
    "Found",
    "cached",
    "count_waiting",
    "digest_of",
    "kept",
    "lock",
    "making",
    "manifest_of",
    "seconds_of",
    "work_folder",
]

log = logging.getLogger("tunewright")

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)

_MAKING: ContextVar[Callable[[], None] | None] = ContextVar("making", default=None)
_WAITED: ContextVar[list[float] | None] = ContextVar("waited", default=None)


@contextlib.contextmanager
def making(begins: Callable[[], None]) -> Iterator[None]:
    """Calls `begins` before each artifact that is made in the block, and not found."""
    token = _MAKING.set(begins)
    try:
        yield
    finally:
        _MAKING.reset(token)


def count_waiting(seconds: float) -> None:
    """Counts seconds in which what is being made had to wait for a device: they are none that it took."""
    if (waited := _WAITED.get()) is not None:
        waited.append(seconds)


@contextlib.contextmanager
def _waiting() -> Iterator[list[float]]:
    """The seconds that are counted in the block, which a block around it counts as well."""
    waited: list[float] = []
    token = _WAITED.set(waited)
    try:
        yield waited
    finally:
        _WAITED.reset(token)
        count_waiting(sum(waited))


@dataclass(frozen=True, kw_only=True)
class Found(Generic[A]):
    """The state of a stage's call in the store."""

    key: str
    ingredients: Ingredients
    record: A | None  # the artifact, where it is whole
    fault: str  # what is wrong with the one that is there
    stopped: StoppedStage | None  # what the stage left where it refused its data
    work: Path  # where an attempt at it left its work in progress
    was_made: bool  # whether it was whole at any time
    is_being_made: bool  # by a process that lives


class Cached(Generic[P, A]):
    """A stage's function with its key; calling it returns the artifact, made now or found whole."""

    def __init__(
        self,
        build: Callable[Concatenate[Path, P], A],
        libraries: tuple[str, ...],
        volatile: tuple[str, ...],
        unkeyed: tuple[str, ...],
        lost: Callable[[A], str] | None,
    ) -> None:
        self.build = build
        self.libraries = libraries
        self.volatile = volatile
        self.unkeyed = unkeyed
        self.lost = lost
        self.waited: dict[str, float] = {}  # key -> seconds that the last call waited for another that made the same
        self.stage: str = getattr(build, "__name__")  # noqa: B009 a Callable need not have a name
        update_wrapper(self, build)
        signature = inspect.signature(build)
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    def ingredients(self, *args: P.args, **kwargs: P.kwargs) -> Ingredients:
        """Return the parts of the key by name: "training.learning_rate", "code tunewright.tasks.split:draw"."""
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        keyed = {name: value for name, value in bound.arguments.items() if name not in self.unkeyed}
        return of_call(keyed, self.build.__module__, self.libraries)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of a call with these arguments: 20 hex digits."""
        return key_of(self.stage, self.ingredients(*args, **kwargs))

    def look_up(self, *args: P.args, **kwargs: P.kwargs) -> Found[A]:
        """Return the state of a call with these arguments in the store, without running it."""
        ingredients = self.ingredients(*args, **kwargs)
        folder = folder_of(self.stage, key_of(self.stage, ingredients))
        record, fault = None, ""
        try:
            record = self._whole(folder.name).record
        except Damaged as error:
            fault = str(error)
        return Found(
            key=folder.name,
            ingredients=ingredients,
            record=record,
            fault=fault if folder.exists() else "",
            stopped=None if record else refusals.find(self.stage, folder.name),
            work=work_folder(folder),
            was_made=manifest.was_made(self.stage, folder.name),
            is_being_made=record is None and locks.is_held(_lock_of(folder)),
        )

    def nearest(self, ingredients: Ingredients, keys: Iterable[str]) -> Whole[A] | None:
        """Return the artifact of these keys, newest first, with the fewest differing ingredients."""
        found: list[Whole[A]] = []
        for key in keys:
            with contextlib.suppress(Damaged):  # altered, or gone
                found.append(manifest.read(self.record_type, self.stage, key, with_files=False))
        return min(found, key=lambda each: len(differing(each.manifest.ingredients, ingredients)), default=None)

    @property
    def record_type(self) -> type[A]:
        """The stage's return type."""
        return inspect.get_annotations(self.build, eval_str=True)["return"]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> A:
        """The artifact. Inside a Prefect task a hit is the state Cached, with what it saved in its message."""
        with naming_machine():  # also for the state of the stage's task, and the warning before it is tried again
            record, found = self._obtain(*args, **kwargs)
        if found is None or TaskRunContext.get() is None:
            return record
        message = f'{record.key} from run "{found.made_by}", {self._says_saved(record.key, found.seconds)}'
        return Completed(name="Cached", message=message, data=record)  # pyright: ignore[reportReturnType] Prefect unwraps it

    def _says_saved(self, key: str, seconds: float) -> str:
        waited = f" (it took {seconds:.1f} s, for which this run waited)" if key in self.waited else ""
        return f"{self.saved(key, seconds):.1f} s saved{waited}"

    def saved(self, key: str, seconds: float) -> float:
        """Return the seconds an artifact took, less those that the last call waited for another to make it."""
        return max(0.0, seconds - self.waited.get(key, 0.0))

    def record(self, *args: P.args, **kwargs: P.kwargs) -> A:
        """The artifact itself, inside a task as well: for a stage that is put together from cached parts."""
        return self._obtain(*args, **kwargs)[0]

    def _obtain(self, *args: P.args, **kwargs: P.kwargs) -> tuple[A, Manifest | None]:
        """The artifact, and its manifest where it was found and not made."""
        ingredients = self.ingredients(*args, **kwargs)
        folder = folder_of(self.stage, key_of(self.stage, ingredients))
        task = TaskRunContext.get()
        is_refreshed = bool(task and task.task.refresh_cache)
        with self._alone(folder), contextlib.ExitStack() as held:
            found = None if is_refreshed else self._found(folder)
            if found is None and (store := shared_store()):
                started = time.monotonic()
                held.enter_context(store.lease(path_in_home(folder)))
                seconds = time.monotonic() - started
                found = None if is_refreshed else self._found(folder)
                if found:  # another machine made it meanwhile
                    self.waited[folder.name] = self.waited.get(folder.name, 0.0) + seconds
            record = found.record if found else self._make(folder, ingredients, *args, **kwargs)
            manifest.share(folder)
        return record, found.manifest if found else None

    def _found(self, folder: Path) -> Whole[A] | None:
        with contextlib.suppress(Damaged):
            found = self._whole(folder.name)
            os.utime(folder)  # when it was last used (needless.py)
            return found
        return None

    @contextlib.contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Hold the right to make `folder`; where another process has it, log that, and count the seconds of waiting."""
        self.waited.pop(folder.name, None)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock(folder, wait=False))
            except BlockingIOError:
                log.info("  waiting for another run that is making this artifact: %s %s", self.stage, folder.name)
                started = time.monotonic()
                stack.enter_context(lock(folder))
                self.waited[folder.name] = time.monotonic() - started
            yield

    def _make(self, folder: Path, ingredients: Ingredients, *args: P.args, **kwargs: P.kwargs) -> A:
        if begins := _MAKING.get():
            begins()
        started = time.monotonic()
        for leftover in folder.parent.glob(f".{folder.name}.*/"):  # of a killed holder, since the lock is ours
            shutil.rmtree(leftover)
        unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        unfinished.mkdir(parents=True)
        try:
            with _waiting() as waited:
                draft = self.build(unfinished, *args, **kwargs)
            files = manifest.files_in(unfinished)
            lasting = {
                n: file.sha256 for n, file in files.items() if not (self.volatile and n.startswith(self.volatile))
            }
            record = draft.model_copy(
                update={
                    "stage": self.stage,
                    "key": folder.name,
                    "folder": folder,
                    "digest": hash_of(lasting),
                    "waited_seconds": round(sum(waited), 1),
                }
            )
            written = Manifest(
                stage=self.stage,
                key=folder.name,
                files=files,
                record=record.model_dump(mode="json"),
                record_type=type(record).__name__,
                ingredients=ingredients,
                made=now(),
                made_by=_flow_run_name(),
                seconds=round(time.monotonic() - started - sum(waited) + draft.earlier_seconds, 3),
            )
            manifest.write(unfinished, written)
            disk.sync(*unfinished.rglob("*"), unfinished)
            manifest.remember(unfinished, self.stage, folder.name)
            if folder.exists():
                folder.rename(unfinished.with_suffix(".old"))
            unfinished.rename(folder)
            shutil.rmtree(work_folder(folder), ignore_errors=True)
            refusals.discard(self.stage, folder.name)
            shutil.rmtree(unfinished.with_suffix(".old"), ignore_errors=True)
        except BaseException as error:
            if isinstance(error, DataError):
                refusals.keep(unfinished, self.stage, folder.name, error, _flow_run_name(), ingredients)
            shutil.rmtree(unfinished, ignore_errors=True)
            if "No space left on device" in str(error):  # safetensors and others have types of their own for it
                raise TunewrightError(NO_SPACE.format(folder.parent)) from error
            raise
        return record

    def _whole(self, key: str) -> Whole[A]:
        """The artifact that is whole and still stands for what was made. Raises Damaged."""
        found = manifest.read(self.record_type, self.stage, key)
        if self.lost and (fault := self.lost(found.record)):
            raise Damaged(fault)
        return found


def cached(
    *,
    libraries: tuple[str, ...] = (),
    volatile: tuple[str, ...] = (),
    unkeyed: tuple[str, ...] = (),
    lost: Callable[[Any], str] | None = None,
) -> Callable[[Callable[Concatenate[Path, P], A]], Cached[P, A]]:
    """Caches a stage's function `f(folder, ...) -> record`, which writes its files into `folder`.

    `libraries` are the distributions whose version shapes the output. Files whose names begin with one of `volatile`
    (reports, timings) are kept and verified, but are not part of the content hash that later stages see. The arguments
    in `unkeyed` say where the work is done, or are for the log, which changes no file: they are not part of the key.
    What a stage makes elsewhere than in its folder can be lost there: `lost` says so of a record, and then it is made
    again.
    """
    return lambda build: Cached(build, libraries, volatile, unkeyed, lost)


def kept(kind: type[A], stage: str, key: str) -> A | None:
    """The record of the whole and unaltered artifact that a stage keeps under a key, or None."""
    with contextlib.suppress(Damaged):
        return manifest.read(kind, stage, key).record
    return None


def manifest_of(record: Artifact) -> Manifest:
    """The manifest of a whole artifact."""
    return manifest.read(type(record), record.stage, record.key, with_files=False).manifest


def seconds_of(record: Artifact) -> float:
    """Return the seconds that a whole artifact took."""
    return manifest_of(record).seconds


def work_folder(folder: Path) -> Path:
    """A place for work in progress that outlives a failed attempt at `folder`, and goes when the artifact is whole."""
    key = folder.name.strip(".").split(".")[0]
    return config.home() / "work" / folder.parent.name / key


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the right to make `path`. The kernel frees it when the holder dies, however it dies.

    Raises BlockingIOError where another holds it and it is not waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(_lock_of(path), wait=math.inf if wait else 0):
        yield


def _lock_of(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"


def _flow_run_name() -> str:
    context = FlowRunContext.get()
    return context.flow_run.name if context and context.flow_run else "a call outside a flow"
