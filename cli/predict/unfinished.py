"""The answers that are not complete yet: in parts, in a folder beside the output, where a killed call is resumed.

A part is there whole or not at all, and so is the output. The folder goes with the last step.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.accepted import shown
from tunewright.artifacts import MESSAGES
from tunewright.cli.visible import as_line
from tunewright.errors import ConfigError, TunewrightError
from tunewright.store import disk
from tunewright.store.cache_key import Ingredients, differing
from tunewright.store.locks import try_lock

log = logging.getLogger("tunewright")

ENDINGS = (".jsonl", ".parquet")
KEY, LOCK = "key.json", "lock"

ANSWER_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),  # as ingest has it; null of a record that cannot be read
        ("file", pa.string()),
        ("line", pa.int64()),
        ("answer", pa.string()),  # null where the record was refused
        ("stopped", pa.bool_()),  # by a stop token of the model's own, not by the limit
        ("num_tokens", pa.int64()),  # of the answer, the stop token left out
        ("reference", pa.string()),  # the record's own answer
        ("messages", MESSAGES),  # the question as texts, and the answer; null unless asked for
        ("reason", pa.string()),  # why the record was refused
        ("detail", pa.string()),
    ]
)


def check_output(output: Path, files: list[str], *, overwrite: bool) -> None:
    """Raises ConfigError where the output cannot be written, exists, or is what is read."""
    if output.suffix not in ENDINGS:
        raise ConfigError(f"--output {output}: ends in {shown(output.suffix)}; accepted: {' or '.join(ENDINGS)}")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise ConfigError(f"--output {output}: is a folder; accepted: a file")
    if any(Path(file).exists() and output.exists() and output.samefile(file) for file in files):
        raise ConfigError(f"--output {output}: is the file to answer; accepted: another file")
    _check_is_new(output, overwrite=overwrite)


def _check_is_new(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise ConfigError(f"--output {output}: exists; --overwrite replaces it, or name another file")


class Parts:
    """The finished parts of one output."""

    def __init__(self, output: Path, folder: Path) -> None:
        self.output, self.folder = output, folder
        self.files: list[Path] = []

    def resume(self, key: Ingredients) -> list[str]:
        """Take over the parts that a call with this key left; return what changed where they are of another one."""
        before = self._key()
        if before == key:
            self.files = [*self._whole()]
            return []
        had = [*self.folder.glob("part-*.parquet")]
        for file in had:
            file.unlink()
        disk.replace(self.folder / KEY, json.dumps(key))
        return differing(before, key) if had else []

    def _key(self) -> Ingredients:
        try:
            return dict(json.loads((self.folder / KEY).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def _whole(self) -> Iterator[Path]:
        """The parts up to the first that is missing, or that the disk did not keep."""
        for number in range(len([*self.folder.glob("part-*.parquet")])):
            file = self._part(number)
            try:
                pq.read_metadata(file)
            except (OSError, pa.ArrowException):
                return
            yield file

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.parquet"

    def add(self, table: pa.Table) -> None:
        """Keep another part."""
        file, unwritten = self._part(len(self.files)), self.folder / "unwritten"
        pq.write_table(table, unwritten)
        disk.sync(unwritten)
        unwritten.replace(file)
        self.files.append(file)

    def tables(self) -> Iterator[pa.Table]:
        """The parts in their order."""
        yield from map(pq.read_table, self.files)

    def finish(self, *, overwrite: bool) -> None:
        """Make the output of the parts, in one step, and remove them. Raises ConfigError where it exists by now."""
        whole = self.folder / f"whole{self.output.suffix}"
        if whole.suffix == ".parquet":
            with pq.ParquetWriter(whole, ANSWER_SCHEMA, compression="zstd") as writer:
                for table in self.tables():
                    writer.write_table(table)
        else:
            with whole.open("w", encoding="utf-8") as lines:
                for table in self.tables():
                    lines.writelines(f"{as_line(_there(row))}\n" for row in table.to_pylist())
        disk.sync(whole)
        _check_is_new(self.output, overwrite=overwrite)
        whole.replace(self.output)
        disk.sync(self.output.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder)


def _there(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


@contextmanager
def unfinished(output: Path) -> Iterator[Parts]:
    """The parts of an output, which no other process adds to within the block.

    Raises TunewrightError where one does, ConfigError where the folder cannot be made.
    """
    folder = output.with_name(f"{output.name}.unfinished")
    with ExitStack() as stack:
        while True:
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise _unwritable(output, folder, error) from error
            try:
                file = stack.enter_context((folder / LOCK).open("a+b"))
            except FileNotFoundError:  # whoever had it finished just now
                continue
            except OSError as error:
                raise _unwritable(output, folder, error) from error
            if not try_lock(file):
                raise TunewrightError(
                    f"--output {output}: another tunewright predict writes it; wait for its end, or name another file"
                )
            if _is_at(folder / LOCK, file.fileno()):
                break
        try:
            yield Parts(output, folder)
        finally:
            if folder.is_dir() and not any(folder.glob("part-*.parquet")):
                shutil.rmtree(folder)


def _unwritable(output: Path, folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"--output {output}: {folder} cannot be written: {error.strerror}")


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
