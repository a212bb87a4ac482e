"""Sentences for clients: files by the names they were uploaded under, and no path or command of this machine."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from tunewright import config
from tunewright.cli.api.files import StoredFile, StoredFiles

UPLOAD_AS = "upload it as JSON Lines in UTF-8: one JSON object on each line"
FOR_OPERATORS = (  # parts of sentences that only who has the machine or the deployment file can follow
    r"; see [^;]*/[^;]*$",
    r"; to convert it.*$",
    r"; other lines are in UTF-8, so iconv.*$",
    r", in which it reads .*?: check that it reads right",
    r"; if the (?:whole )?file is one JSON array, .*?set format to json",
    r"; columns of the source can map them",
    r"; data\.sources\[\]\.layout chooses one",
    r"data\.sources\[\d+\]: ",
)
OWN_MLFLOW = re.compile(r"registry\.tracking_uri=(?:sqlite|file):\S+?(?=: |$)")
A_PATH = re.compile(r"""(?<![\w/.:~-])/[^\s'",;:()]*""")


def named(file: StoredFile) -> str:
    """A file as its client knows it: chats.jsonl (file-4kX...)."""
    return f"{file.filename} ({file.id})"


def for_client(said: str, files: StoredFiles, uploaded: Iterable[StoredFile], folder: Path) -> str:
    """A sentence as a client may read it and act on it; `folder` is that of the deployment file."""
    said = OWN_MLFLOW.sub("MLflow's database", without_advice(said))
    for file in uploaded:
        path, name = files.path(file), named(file)
        for spelled in (str(path), os.path.relpath(path)):
            said = said.replace(spelled, name)
        said = re.sub(rf"\S*{re.escape(path.name)}", lambda _, name=name: name, said)
    for root in (config.home().absolute(), files.folder.parent.absolute(), folder.absolute()):
        for spelled in {str(root), os.path.relpath(root)} - {".", "/"}:
            said = re.sub(rf"""(?<![\w/.~-]){re.escape(spelled)}(/[^\s'",;:()]*)?(?![\w-])""", _last_part, said)
    return A_PATH.sub(_last_part, said)


def without_advice(said: str) -> str:
    """A sentence without what only an operator can do."""
    for part in FOR_OPERATORS:
        said = re.sub(part, "", said)
    return said


def _last_part(path: re.Match[str]) -> str:
    return path[0].rstrip("/").rpartition("/")[2] or path[0]
