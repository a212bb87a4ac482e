"""Files under a URL, through fsspec: s3://, gs://, abfs://, https://, memory:// and whatever else is installed.

Credentials come from where each store's own library looks for them, the environment first; none are taken from
settings (tunewright/config/ refuses a URL that holds some), so none can reach a key, a manifest or a message.
"""

import glob
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tunewright.errors import ConfigError, TunewrightError
from tunewright.store.shared import require_library

# What a store says of an object that is certain to change with its content. Other stores are asked for the content.
TELLING = ("ETag", "etag", "md5Hash", "content_md5", "generation", "VersionId", "version_id", "version")
TIMES = ("mtime", "Last-Modified", "LastModified", "created")  # of others, which with the size tell well enough
TELLING_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})


def is_url(path: str) -> bool:
    """Whether a source's path is a URL; a hub id (hub:org/name) is none."""
    return "://" in path


def matches(url: str, setting: str) -> list[str]:
    """The URLs of the objects that a URL or a glob under one means, sorted. Raises ConfigError where there are none."""
    with explained(setting):
        require_library(url, setting)
        store, name = _store(url)
        if glob.has_magic(name) and not url.startswith("http"):  # a ? begins a query there
            names = sorted(match for match, said in store.glob(name, detail=True).items() if said["type"] == "file")
        else:
            names = [name] if store.info(name)["type"] == "file" else []
        found = [store.unstrip_protocol(match) for match in names]
    if not found:
        raise ConfigError(f"{setting}: no object found; accepted: the URL of one, or a glob that matches some")
    return found


def identity(url: str) -> str:
    """Return an id that changes with the object's content: the store's metadata, or the sha256 of the content.

    Object stores (S3, Google, Azure) answer with an entity tag, the size and, if versioned, a version: one request, no
    download. A tag is no digest of the content (it also depends on how it was uploaded), so the same content
    uploaded in another way is read again. From other stores the content is read.
    """
    store, name = _store(url)
    protocol = url.partition("://")[0]
    said = store.info(name) if protocol in TELLING_STORES else {}
    tags = {key: str(said[key]).strip('"') for key in TELLING if said.get(key)}
    if tags:
        return ", ".join([protocol, *(f"{key} {value}" for key, value in tags.items()), f"{said['size']} bytes"])
    with store.open(name, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()  # pyright: ignore[reportArgumentType] it has readinto


def stamp(url: str) -> str | None:
    """Return a stamp that changes with the object, from its store's metadata; None if the store has none."""
    if url.partition("://")[0] in TELLING_STORES:
        return identity(url)
    store, name = _store(url)
    said = store.info(name)
    tags = {key: said[key] for key in (*TELLING, *TIMES) if said.get(key)}
    return f"{said.get('size')} bytes, {tags}" if tags else None


def num_bytes(path: str) -> int:
    """The size of a local file or an object in bytes; where a store does not say it, as of a stream, sys.maxsize."""
    if not is_url(path):
        return Path(path).stat().st_size
    store, name = _store(path)
    return store.info(name).get("size") or sys.maxsize


def opened(path: str) -> BinaryIO:
    """The bytes of a local file or an object as they lie there, in a file that can seek."""
    if not is_url(path):
        return Path(path).open("rb", buffering=0)
    store, name = _store(path)
    return store.open(name, "rb")


@contextmanager
def explained(setting: str) -> Iterator[None]:
    """Turns any failure to reach a store into a ConfigError of one line."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{setting}: {_first_line(error)}") from error
    except TunewrightError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__  # of fsspec's https any fault is one, also where nobody answers
        if cause and not isinstance(cause, FileNotFoundError) and getattr(cause, "status", None) not in (404, 410):
            raise ConfigError(f"{setting}: cannot be downloaded ({_first_line(cause)})") from error
        raise ConfigError(f"{setting}: no such object") from error
    except Exception as error:  # each store's library raises exceptions of its own, botocore's are not even OSErrors
        raise ConfigError(f"{setting}: cannot be downloaded ({_first_line(error)})") from error


def _store(url: str) -> tuple[Any, str]:
    """The file system of a URL and the object's name in it. What it remembers of earlier listings is dropped."""
    from fsspec.core import url_to_fs

    store, name = url_to_fs(url)
    store.invalidate_cache()
    return store, name


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
