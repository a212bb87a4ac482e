"""Uploaded files and result files: each has its bytes and a JSON record in a folder that its owner alone can read."""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ValidationError

from tunewright.accepted import shown
from tunewright.cli.api.identifiers import new_id
from tunewright.cli.serve.asking import RequestError
from tunewright.store import disk

LARGEST = 512_000_000  # bytes of a file, as at OpenAI
ROOM_BYTES = 1_000_000_000  # that an upload leaves free on the disk, for the job that runs
Purpose = Literal["fine-tune", "fine-tune-results"]
UPLOAD: Purpose = "fine-tune"
RESULT: Purpose = "fine-tune-results"
UNFINISHED = ".upload-"  # begins the name of a file that is on its way


class StoredFile(BaseModel, frozen=True):
    """The record of a file."""

    id: str
    filename: str
    num_bytes: int
    sha256: str
    created: float
    purpose: Purpose

    def as_object(self) -> dict[str, Any]:
        """The file object of the API."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": int(self.created),
            "expires_at": None,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class IncomingFile:
    """A file that grows while it is uploaded, and is gone unless it is kept."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{UNFINISHED}{new_id('part')}"
        self._digest, self.num_bytes = hashlib.sha256(), 0
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        self._file: BinaryIO = os.fdopen(descriptor, "wb")

    @property
    def sha256(self) -> str:
        """The digest of what has come so far."""
        return self._digest.hexdigest()

    def add(self, data: bytes) -> None:
        """Append bytes. Raises RequestError where they are too many."""
        self.num_bytes += len(data)
        if self.num_bytes > LARGEST:
            raise RequestError(
                f"file: is larger than {LARGEST:,} bytes", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, param="file"
            )
        self._file.write(data)
        self._digest.update(data)

    def finish(self) -> None:
        """Have all of it on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Remove what was not kept."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class StoredFiles:
    """The files of the API by their ids."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        """Read the records; one that cannot be read is told, and its file left alone."""
        self.folder = folder
        self._lock = threading.Lock()
        self._files: dict[str, StoredFile] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob(f"{UNFINISHED}*"):
            left.unlink()
        for record in folder.glob("*.json"):
            try:
                file = StoredFile.model_validate_json(record.read_bytes())
            except (OSError, ValidationError):
                tell(f"{record}: cannot be read; the file is not listed")
                continue
            if self.path(file).is_file():
                self._files[file.id] = file

    def path(self, file: StoredFile) -> Path:
        """The bytes of a file, named by their digest, so that a job on the same rows finds what an earlier one made."""
        return self.folder / f"{file.sha256}{'.jsonl' if file.purpose == UPLOAD else '.csv'}"

    def get(self, name: str, param: str | None = None) -> StoredFile:
        """The file with this id. Raises RequestError where there is none."""
        if file := self._files.get(name):
            return file
        status = HTTPStatus.BAD_REQUEST if param else HTTPStatus.NOT_FOUND
        raise RequestError(f"{param or 'file'}: there is no file {shown(name)}", status, param=param or "id")

    def of_job(self, *names: str | None) -> list[StoredFile]:
        """The files with these ids, as far as they are there."""
        return [self._files[name] for name in names if name in self._files]

    def newest_first(self) -> list[StoredFile]:
        """All files."""
        return sorted(self._files.values(), key=lambda file: file.created, reverse=True)

    def incoming(self, announced: int) -> IncomingFile:
        """A file that is about to be uploaded, of about so many bytes. Raises RequestError where they do not fit."""
        if announced > LARGEST + 100_000:  # the other fields, and the lines between them
            message = f"file: {announced:,} bytes; accepted: at most {LARGEST:,}"
            raise RequestError(message, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, param="file")
        if shutil.disk_usage(self.folder).free < announced + ROOM_BYTES:
            raise RequestError("the disk has no room for the file", HTTPStatus.INSUFFICIENT_STORAGE, param="file")
        return IncomingFile(self.folder)

    def keep(self, incoming: IncomingFile, filename: str, purpose: Purpose) -> StoredFile:
        """Keep a file that has come as a whole, and return its record."""
        file = StoredFile(
            id=new_id("file"),
            filename=filename,
            num_bytes=incoming.num_bytes,
            sha256=incoming.sha256,
            created=time.time(),
            purpose=purpose,
        )
        incoming.finish()
        with self._lock:
            incoming.path.rename(self.path(file))
            disk.replace(self.folder / f"{file.id}.json", file.model_dump_json())  # last: with it the file is there
            self._files[file.id] = file
        return file

    def write(self, text: str, filename: str) -> StoredFile:
        """Keep a result file."""
        incoming = IncomingFile(self.folder)
        try:
            incoming.add(text.encode())
            return self.keep(incoming, filename, RESULT)
        finally:
            incoming.discard()

    def delete(self, file: StoredFile) -> None:
        """Remove a file's record, and its bytes unless another file has the same."""
        with self._lock:
            self._files.pop(file.id, None)
            (self.folder / f"{file.id}.json").unlink(missing_ok=True)
            if not any(self.path(other) == self.path(file) for other in self._files.values()):
                self.path(file).unlink(missing_ok=True)
