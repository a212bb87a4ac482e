"""The store that machines share, a folder or URL in TUNEWRIGHT_STORE, behind the home of each.

Stages read and write the home as ever. What they make is copied to the store, and what a home lacks is fetched from it:

    content/SHA256           a file of artifacts, which can be made again
    apart/PATH/SHA256        a file of another tree, which goes with it
    trees/PATH.json          the files of the folder PATH of a home, by name: an artifact, checkpoints, assigned splits
    histories/PATH/NUMBER    a state of the file PATH of a home, such as the uses of test sets (histories.py)
    recent_runs/PATH         the keys that the newest runs of a pipeline in a home asked for (pipelines.py)
    leases/PATH/NUMBER       a machine that makes or changes PATH

A tree is written after its files, and a file is held against its sha256 when it arrives, so that what is fetched is
whole or not there. Whatever decides who is first is a write that fails where the object is there: two machines never
both hold a lease, or write a state of the same number. The stores accepted are those with such a write.
"""

import contextlib
import errno
import importlib
import logging
import os
import platform
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from tunewright import config
from tunewright.config import outside
from tunewright.errors import ConfigError, StoreError, StoreRefused, TunewrightError, extra, shortened
from tunewright.store import disk

log = logging.getLogger("tunewright")

ACCEPTED = "the absolute path of a folder, or a URL s3://BUCKET/..., gs://BUCKET/... or abfs://CONTAINER/..."
S3, GCS, AZURE = ("s3fs", "s3"), ("gcsfs", "gcs"), ("adlfs", "azure")  # a library, and the extra that has it
LIBRARIES = {"s3": S3, "s3a": S3, "gs": GCS, "gcs": GCS, "abfs": AZURE, "abfss": AZURE, "az": AZURE}
CONTENT = "content"
RECENT_RUNS = "recent_runs"
LEASE_SECONDS = 60.0  # without a sign of life of its holder
SIGNS = 4  # of life, in that time
POLL_SECONDS = 1.0
KEPT_STATES = 20  # of a history
DIGITS = 10  # of a number in a name
WRITERS = 8  # that try a store at the same time
TRIALS = 2  # the first one opens their connections, so that the second one's writes arrive together
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError"}  # of botocore, which only the extra s3 brings
CONFLICT_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6)  # before a write is sent again that met another one


class File(BaseModel, frozen=True):
    """A file of a folder as it was written."""

    sha256: str
    size: int  # bytes


class Stored(BaseModel, frozen=True):
    """An object of the store."""

    size: int  # bytes
    written: float  # seconds since the epoch


TREE = TypeAdapter(dict[str, File])


def require_library(url: str, setting: str) -> None:
    """Raises ConfigError where the library of a URL's protocol is not installed; it names the extra that has it."""
    if needed := LIBRARIES.get(url.partition("://")[0]):
        library, its_extra = needed
        with extra(its_extra, setting):
            importlib.import_module(library)


class SharedStore:
    """A store. Every method raises StoreError where it cannot be reached, which is retried as MLflow's faults are."""

    def __init__(self, variable: str, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = outside.without_credentials(url)
        self.named = f"{variable}={self.url}"
        with self._reached():
            require_library(url, self.named)
            self.files, root = url_to_fs(url)
        self.root = root.rstrip("/")
        self.is_folder = "file" in self.files.protocol
        self.is_checked = False

    def has_tree(self, at: str) -> bool:
        """Whether the store has a tree for the folder `at` of a home."""
        return self._size(f"trees/{at}.json") is not None

    def put(self, at: str, folder: Path, files: Mapping[str, File]) -> None:
        """Copies these files of a folder, and then the tree; a tree that is there is replaced."""
        place = content_of(at)
        for name, file in files.items():
            self._upload(folder / name, file, f"{place}/{file.sha256}")
        self._write(f"trees/{at}.json", TREE.dump_json(dict(files)))
        if place != CONTENT:
            for needless in {*self._names(place)} - {file.sha256 for file in files.values()}:
                self._delete(f"{place}/{needless}")

    def listed(self, at: str) -> dict[str, File]:
        """The files of a tree; none where the store has none."""
        try:
            return TREE.validate_json(self._read(f"trees/{at}.json") or b"{}")
        except ValidationError:
            return {}

    def get(self, at: str, folder: Path) -> bool:
        """Copies a tree to a folder that is not there, in one step; False where the store has none that is whole.

        A tree whose content was altered is removed, so that whoever makes it next puts it there again.
        """
        content = self._read(f"trees/{at}.json")
        if content is None:
            return False
        config.make_home()  # for its owner alone, before anything is laid into it
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        try:
            fault = self._fetch(content, unfinished, content_of(at))
            if fault:
                log.warning("%s: %s of %s; it is made anew", self.url, fault, at)
                self.remove(at)
                return False
            with contextlib.suppress(OSError):  # another process was faster
                unfinished.rename(folder)
                disk.sync(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return True

    def remove(self, at: str) -> None:
        """Removes a tree; its content stays where others may have it too."""
        self._delete(f"trees/{at}.json")
        if (place := content_of(at)) != CONTENT:
            for name in self._names(place):
                self._delete(f"{place}/{name}")

    def trees(self, folder: str, prefix: str = "") -> list[str]:
        """The names of the trees in a folder that begin with `prefix`."""
        names = (name.removesuffix(".json") for name in self._names(f"trees/{folder}"))
        return sorted(name for name in names if name.startswith(prefix))

    def objects(self, folder: str) -> dict[str, Stored]:
        """All objects beneath a folder of the store, by their names from there."""
        place = self._at(folder)
        with self._reached():
            self.files.invalidate_cache()
            found = self.files.find(place, detail=True)
        return {
            name.removeprefix(f"{place}/"): Stored(size=info["size"], written=_written(info))
            for name, info in found.items()
            if not Path(name).name.startswith(".")
        }

    def remove_content(self, sha256: str) -> None:
        """Removes the content of a file of artifacts."""
        self._delete(f"{CONTENT}/{sha256}")

    def note_runs(self, path: str, content: bytes) -> None:
        """Writes the keys of a home's newest runs, in the place of the earlier ones."""
        self._write(f"{RECENT_RUNS}/{path}", content)

    def noted_runs(self, path: str) -> bytes | None:
        """Return the keys of a home's newest runs; None where they were removed."""
        return self._read(f"{RECENT_RUNS}/{path}")

    def remove_runs(self, path: str) -> None:
        """Removes the keys of a home's newest runs."""
        self._delete(f"{RECENT_RUNS}/{path}")

    def newest(self, path: str) -> tuple[int, bytes]:
        """The number and the content of the newest state of a history; 0 and b"" where there is none."""
        for number in reversed(self._numbers(f"histories/{path}")):
            if (content := self._read(_numbered(f"histories/{path}", number))) is not None:
                return number, content
        return 0, b""

    def add(self, path: str, number: int, content: bytes) -> bool:
        """Writes the state `number` of a history; False where another machine wrote one of that number before."""
        if not self._create(_numbered(f"histories/{path}", number), content):
            return False
        for old in self._numbers(f"histories/{path}")[:-KEPT_STATES]:
            self._delete(_numbered(f"histories/{path}", old))
        return True

    @contextlib.contextmanager
    def lease(self, what: str) -> Iterator[None]:
        """Hold the right to make or change `what`; waits while another machine holds it and gives signs of life."""
        self.check_once()
        own, ended = uuid.uuid4().hex, threading.Event()
        name = self._take(f"leases/{what}", own)
        signs = threading.Thread(target=self._give_signs, args=(name, own, ended), daemon=True)
        signs.start()
        try:
            yield
        finally:
            ended.set()
            signs.join()
            with contextlib.suppress(StoreError):  # it then ends by itself
                self._delete(name)

    def check_once(self) -> None:
        """Check the store, and warn of an empty one, before this process first needs it."""
        if not self.is_checked:
            self.check()
            if self.is_empty():
                log.warning("%s", self.said_empty)

    def check(self) -> None:
        """Raises ConfigError where not exactly one of several writers creates an object.

        Some servers ignore the condition of a write; others look first and write then, so that two writers can succeed.
        """
        for _ in range(TRIALS):
            name = f"leases/.check/{uuid.uuid4().hex}"
            try:
                with ThreadPoolExecutor(WRITERS) as writers:
                    created = [*writers.map(partial(self._create, name), [b"1"] * WRITERS)]
            finally:
                self._delete(name)
            if sum(created) != 1:
                raise ConfigError(
                    f"{self.named}: {sum(created)} of {WRITERS} writers created one object at the same time, "
                    "so this store cannot keep two machines apart; accepted: a store with atomic conditional writes, "
                    "such as S3's If-None-Match"
                )
        self.is_checked = True

    @property
    def said_empty(self) -> str:
        """A warning of an empty store, and what may be the cause."""
        unmounted = " or the folder is not mounted" if self.is_folder else ""
        return f"{self.url}: this store is empty; if other machines have used it, the address is wrong{unmounted}"

    def is_empty(self) -> bool:
        """Whether no machine has kept a history here."""
        return not self._names("histories")

    def _take(self, place: str, own: str) -> str:
        """Wait for a lease; returns the name of its object."""
        seen, since, is_told = b"", time.monotonic(), False
        while True:
            last = max(self._numbers(place), default=1)
            now = self._read(_numbered(place, last))
            if now != seen:
                seen, since = now or b"", time.monotonic()
            is_lost = now is not None and time.monotonic() - since > LEASE_SECONDS
            number = last + 1 if is_lost else last
            if (is_lost or now is None) and self._create(_numbered(place, number), _sign(own, 0)):
                for old in self._numbers(place):
                    if old < number:
                        self._delete(_numbered(place, old))
                return _numbered(place, number)
            if now and not is_told:
                is_told, at = True, place.removeprefix("leases/")
                lost = f"it counts as lost after {LEASE_SECONDS:g} s without a sign of life, from now on"
                log.info("  waiting for another machine%s: %s; %s", _machine_of(now), at, lost)
            time.sleep(POLL_SECONDS)

    def _give_signs(self, name: str, own: str, ended: threading.Event) -> None:
        """Writes a new content to a lease from time to time, for as long as it is this holder's."""
        count = 0
        while not ended.wait(LEASE_SECONDS / SIGNS):
            count += 1
            with contextlib.suppress(StoreError):  # the next sign may arrive
                if not (self._read(name) or b"").startswith(own.encode()):
                    return
                self._write(name, _sign(own, count))

    def _fetch(self, content: bytes, folder: Path, place: str) -> str:
        """Copy the files of a tree to a new folder, synced; returns what is wrong with one, or ""."""
        try:
            tree = TREE.validate_json(content)
        except ValidationError:
            return "the list of files"
        folder.mkdir()
        for name, file in tree.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                return f"the name {name!r}"
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not self._download(f"{place}/{file.sha256}", target, file.sha256):
                return f"{name} is missing or was altered in the store, the content"
        disk.sync(*folder.rglob("*"), folder)
        return ""

    def _download(self, name: str, target: Path, sha256: str) -> bool:
        """Copy a file's content; returns whether it is what was put there. Content that is not is removed."""
        with self._reached():
            try:
                self.files.get_file(self._at(name), str(target))
            except FileNotFoundError:
                return False
        is_whole = disk.digest_of(target) == sha256
        if not is_whole:
            self._delete(name)
        return is_whole

    def _upload(self, path: Path, file: File, name: str) -> None:
        """Copy a file's content, unless it is there."""
        if self._size(name) != file.size:
            self._write(name, path)

    def _create(self, name: str, content: bytes) -> bool:
        """Write an object unless it is there; returns whether it was not."""
        with self._reached("written"):
            try:
                if self.is_folder:
                    with self._beside(name, content) as written:
                        os.link(written, self._at(name))
                else:
                    self._pipe_new(self._at(name), content)
            except FileExistsError:
                return False
        return True

    def _pipe_new(self, place: str, content: bytes) -> None:
        """Write an object at a URL. Raises FileExistsError where it is there.

        A write that meets another one is sent again, as S3's documentation of 409 ConditionalRequestConflict asks for.
        """
        for seconds in (*CONFLICT_SECONDS, None):
            try:
                self.files.pipe_file(place, content, mode="create")
                return
            except FileExistsError:
                raise
            except Exception as error:  # botocore's are not even OSErrors
                status = _http_status(error)
                if status == HTTPStatus.PRECONDITION_FAILED:
                    raise FileExistsError(place) from error
                if status != HTTPStatus.CONFLICT or seconds is None:
                    raise
                time.sleep(seconds)

    def _write(self, name: str, content: bytes | Path) -> None:
        """Write an object, whole or not at all, of bytes or of a file."""
        with self._reached("written"):
            if self.is_folder:
                with self._beside(name, content) as written:
                    written.replace(self._at(name))
            elif isinstance(content, Path):
                self.files.put_file(str(content), self._at(name))
            else:
                self.files.pipe_file(self._at(name), content)

    @contextlib.contextmanager
    def _beside(self, name: str, content: bytes | Path) -> Iterator[Path]:
        """A file on the disk beside the place of an object in a folder, which goes at the end unless it was moved."""
        place = Path(self._at(name))
        place.parent.mkdir(parents=True, exist_ok=True)
        written = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
        try:
            if isinstance(content, Path):
                shutil.copyfile(content, written)
            else:
                written.write_bytes(content)
            disk.sync(written)
            yield written
        finally:
            written.unlink(missing_ok=True)

    def _read(self, name: str) -> bytes | None:
        with self._reached():
            try:
                return self.files.cat_file(self._at(name))
            except FileNotFoundError:
                return None

    def _size(self, name: str) -> int | None:
        with self._reached():
            try:
                self.files.invalidate_cache()
                return self.files.info(self._at(name))["size"]
            except FileNotFoundError:
                return None

    def _names(self, folder: str) -> list[str]:
        with self._reached():
            try:
                self.files.invalidate_cache()
                found = self.files.ls(self._at(folder), detail=False)
            except FileNotFoundError:
                return []
        return [name for each in found if not (name := each.rstrip("/").rpartition("/")[2]).startswith(".")]

    def _numbers(self, folder: str) -> list[int]:
        return sorted(int(name) for name in self._names(folder) if name.isdecimal())

    def _delete(self, name: str) -> None:
        with self._reached("written"), contextlib.suppress(FileNotFoundError):
            self.files.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        """The place of an object. Raises StoreRefused where a folder is not there.

        It is never created: where a folder that all machines share is not mounted, it would be on this machine's disk.
        """
        if self.is_folder and not Path(self.root).is_dir():
            raise StoreRefused(
                f"{self.named}: this machine ({platform.node()}) has no such folder; accepted: a folder that exists"
            )
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def _reached(self, done: Literal["read", "written"] = "read") -> Iterator[None]:
        """Raises StoreError for what the library of a store raises, but what says that an object is or is not there.

        Raises StoreRefused where another attempt would end alike: without the bucket, credentials or rights.
        """
        try:
            yield
        except (TunewrightError, FileExistsError):
            raise
        except FileNotFoundError as error:
            if _answer(error).get("Error", {}).get("Code") == "NoSuchBucket":
                raise StoreRefused(f"{self.named}: there is no such bucket; accepted: one that exists") from error
            raise
        except ImportError as error:
            raise ConfigError(f"{self.named}: {error}") from error
        except Exception as error:  # botocore's are not even OSErrors
            said = " ".join(str(error).split())[:200] or type(error).__name__
            is_read_only = isinstance(error, OSError) and error.errno == errno.EROFS
            if is_read_only or isinstance(error, PermissionError) or type(error).__name__ in NO_CREDENTIALS:
                raise StoreRefused(
                    f"{self.named}: this store cannot be {done} ({said}); accepted: a store that this user may "
                    f"{'read and write' if done == 'written' else 'read'}"
                ) from error
            raise StoreError(f"{self.named}: the shared store does not answer as it should ({said})") from error


def shared_store() -> SharedStore | None:
    """The store that the environment names, or None. Raises ConfigError where it can be none."""
    variable, url = config.store()
    return _opened(variable, url) if url else None


def path_in_home(path: Path) -> str:
    """Where a file or folder of this home lies in every home."""
    return path.relative_to(config.home()).as_posix()


def content_of(at: str) -> str:
    """Where the content of a tree lies."""
    return CONTENT if at.startswith("artifacts/") else f"apart/{at}"


def _written(info: Mapping[str, Any]) -> float:
    """When an object was written, by what the library of a store says of it."""
    when = next(info[key] for key in ("mtime", "LastModified", "last_modified") if key in info)
    return when if isinstance(when, float) else when.timestamp()


def _http_status(error: Exception) -> int:
    """The status of the answer of S3's protocol that an error is about, and 0 of any other error.

    s3fs knows by an element of the answer's XML, which not every server sends, that an object is there. Otherwise it
    raises an OSError with the number of an invalid argument, and botocore's error as its cause.
    """
    return _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _answer(error: Exception) -> dict[str, Any]:
    """The answer of S3's protocol that an error is about; empty of any other error."""
    answers = (getattr(each, "response", None) for each in (error, error.__cause__))
    return next((each for each in answers if isinstance(each, dict)), {})


def _sign(own: str, count: int) -> bytes:
    """The content of a lease: its holder's mark, the number of the sign of life, and the machine."""
    return f"{own} {count} {platform.node()}".encode()


def _machine_of(sign: bytes) -> str:
    """Return " (NAME)" of the machine that wrote a lease; empty where an earlier version did, which wrote no name."""
    name = shortened(sign.decode("utf-8", "replace").partition(" ")[2].partition(" ")[2])
    return f" ({name})" if name else ""


def _numbered(place: str, number: int) -> str:
    return f"{place}/{number:0{DIGITS}d}"


@cache
def _opened(variable: str, url: str) -> SharedStore:
    try:
        outside.require_no_secret(url, "the variables of the store's own library, such as AWS_ACCESS_KEY_ID")
    except ValueError as error:
        raise ConfigError(f"{variable}={error}") from None
    protocol = url.partition("://")[0] if "://" in url else "file"
    if not (Path(url.removeprefix("file://")).is_absolute() if protocol == "file" else protocol in LIBRARIES):
        raise ConfigError(f"{variable}={outside.without_credentials(url)}: accepted: {ACCEPTED}")
    return SharedStore(variable, url)
