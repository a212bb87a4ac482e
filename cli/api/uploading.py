"""Uploads: a multipart form, read part by part, whose file goes to the disk as it comes."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from tunewright.accepted import shown
from tunewright.cli.api.files import LARGEST, UPLOAD, IncomingFile, StoredFile, StoredFiles
from tunewright.cli.serve.asking import RequestError

FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")  # the latter change nothing: no file expires
LONGEST_FIELD = 1_000  # bytes
MOST_PARTS = 8
MOST_BUFFERED = 4_000_000  # bytes that the decoder holds
LONGEST_NAME = 255  # characters of the file's
ACCEPTED = "accepted: a form of the type multipart/form-data with the fields purpose and file"


class UploadForm:
    """The fields of a form and its file, as far as they have come."""

    def __init__(self, files: StoredFiles, announced: int) -> None:
        self.files, self.announced = files, announced
        self.fields: dict[str, str] = {}
        self.file: IncomingFile | None = None
        self.filename = ""
        self._part: tuple[str, bytearray] | None = None  # the field that is being read; None for the file

    def take(self, event: Any) -> None:
        """Take the next event of the decoder. Raises RequestError."""
        if isinstance(event, File):
            if event.name != "file" or self.file:
                raise RequestError(f"{shown(event.name)}: {ACCEPTED}, each once", param=event.name)
            self.file, self.filename, self._part = self.files.incoming(self.announced), event.filename, None
        elif isinstance(event, Field):
            if event.name not in FIELDS or event.name in self.fields:
                said = "not supported; leave it out" if event.name not in FIELDS else "is there twice"
                raise RequestError(f"{shown(event.name)}: {said}", param=event.name, code="unknown_parameter")
            self._part = (event.name, bytearray())
        elif isinstance(event, Data) and self._part is None:
            assert self.file
            self.file.add(event.data)
        elif isinstance(event, Data) and self._part:
            name, text = self._part
            text += event.data
            if len(text) > LONGEST_FIELD:
                raise RequestError(f"{name}: is longer than {LONGEST_FIELD:,} bytes", param=name)
            if not event.more_data:
                self.fields[name] = text.decode(errors="replace")
                if name == "purpose":
                    self._require_purpose()

    def kept(self) -> StoredFile:
        """Keep the file. Raises RequestError where something is missing."""
        self._require_purpose()
        if self.file is None or not self.filename:
            raise RequestError("file: is missing", param="file")
        if not self.file.num_bytes:
            raise RequestError("file: is empty; accepted: JSON lines", param="file", code="invalid_file_format")
        name = self.filename.replace("\\", "/").rpartition("/")[2][:LONGEST_NAME]
        return self.files.keep(self.file, name, UPLOAD)

    def _require_purpose(self) -> None:
        if (purpose := self.fields.get("purpose")) != UPLOAD:
            said = "is missing" if purpose is None else shown(purpose)
            raise RequestError(f"purpose: {said}; accepted: {UPLOAD}", param="purpose")


async def upload(request: Request, files: StoredFiles) -> StoredFile:
    """The file of a request, kept. Raises RequestError."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise RequestError(f"the content type is {shown(kind)}; {ACCEPTED}", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    announced = request.headers.get("content-length", "0")
    form = UploadForm(files, int(announced) if announced.isdecimal() else 0)
    decoder = MultipartDecoder(options["boundary"].encode(), MOST_BUFFERED, max_parts=MOST_PARTS)
    try:
        await _read(request.stream(), decoder, form)
        return await asyncio.to_thread(form.kept)
    except OSError as error:
        said = f"the file cannot be written: {error.strerror}"
        raise RequestError(said, HTTPStatus.INSUFFICIENT_STORAGE, param="file") from error
    finally:
        if form.file:
            form.file.discard()


async def _read(chunks: AsyncIterator[bytes], decoder: MultipartDecoder, form: UploadForm) -> None:
    """Read a form to its end. Raises RequestError, once the client has sent all of it and reads the answer."""
    refused: RequestError | None = None
    num_bytes = 0
    async for chunk in chunks:
        if refused:
            num_bytes += len(chunk)
            if num_bytes > LARGEST:
                break
            continue
        try:
            decoder.receive_data(chunk or None)
            while not isinstance(event := decoder.next_event(), NeedData):
                form.take(event)
                if isinstance(event, Epilogue):
                    return
        except RequestError as error:
            refused = error
        except (HTTPException, ValueError) as error:  # the decoder's, of a form that is none
            refused = RequestError(f"the form cannot be read ({type(error).__name__}); {ACCEPTED}")
    raise refused or RequestError(f"the form has no end; {ACCEPTED}")
