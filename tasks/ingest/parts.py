"""The parts that ingest is put together from, each an artifact of its own: what did not change is not parsed again.

A local JSONL file, compressed or not, is read in tiles: runs of whole lines, about 8 MB each. Where a tile ends depends
only on the bytes before. So a file that grew keeps its old tiles, and only the last of them and what follows is parsed,
also if the last line had no end. What else there is, another format or an object in a store, is one part:
stores do not append. Parts lie beside the other artifacts, in <home>/artifacts/ingest_part, and are kept like those;
one that is deleted is made again when it is needed.
"""

import hashlib
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from tunewright.artifacts import Artifact
from tunewright.config import Repair
from tunewright.machine.cluster import EngineName, worker_map
from tunewright.store.caching import cached
from tunewright.tasks.ingest.files import SourceFile, is_remote, unchanged
from tunewright.tasks.ingest.layouts import FIELDS
from tunewright.tasks.ingest.opening import decompressed
from tunewright.tasks.ingest.readers import Line, json_lines, lines, plausible, read
from tunewright.tasks.ingest.tables import Tables, Tally

TILE_BYTES = 8_000_000
TILE_LINES = 50_000
LIBRARIES = ("pyarrow", "ftfy", "datasets", "detect-secrets", "phonenumbers")  # the last two mask what is refused


class Tile(BaseModel):
    """A run of whole lines of one file. The lines travel along but are no input of their own: the digest is of them."""

    model_config = ConfigDict(frozen=True)

    first_line: int
    byte: int
    sha256: str
    _lines: list[Line] = PrivateAttr()
    _parsed: "ParsedTile | None" = PrivateAttr(None)

    @classmethod
    def of(cls, run: list[Line]) -> "Tile":
        """The tile of some lines, at least one."""
        digest = hashlib.sha256()
        for line in run:
            digest.update(line.content)
            if line.size != len(line.content):
                digest.update(b"%d\n" % line.size)  # what follows a long line stands behind all of it
        tile = cls(first_line=run[0].number, byte=run[0].byte, sha256=digest.hexdigest())
        tile._lines = run
        return tile

    @property
    def lines(self) -> list[Line]:
        """The lines, in their order."""
        return self._lines

    @property
    def parsed(self) -> "ParsedTile | None":
        """The two tables of these lines, where another process made them."""
        return self._parsed

    def with_parsed(self, parsed: "ParsedTile | None") -> Self:
        """The tile with its tables."""
        self._parsed = parsed
        return self


class ParsedTile(NamedTuple):
    """The files of a part, as a worker of a cluster made them."""

    files: dict[str, bytes]
    tally: Tally


class IngestedPart(Artifact, frozen=True):
    """A part of what ingest read: rows.parquet and quarantine.parquet."""

    tally: Tally


@cached(libraries=LIBRARIES)
def ingest_part(
    folder: Path, file: SourceFile, tile: Tile | None, max_bytes: int, repairs: tuple[Repair, ...]
) -> IngestedPart:
    """The rows of a tile, or of a whole file where there is none."""
    if tile and tile.parsed:
        for name, content in tile.parsed.files.items():
            (folder / name).write_bytes(content)
        return IngestedPart(tally=tile.parsed.tally)
    with Tables(folder) as tables:
        if tile:
            return IngestedPart(tally=tables.fill(json_lines(tile.lines), file, max_bytes, repairs))
        with unchanged(file):
            return IngestedPart(tally=tables.fill(read(file, max_bytes, columns_of(file)), file, max_bytes, repairs))


def parts_of(
    file: SourceFile, max_bytes: int, repairs: tuple[Repair, ...], engine: EngineName = "local"
) -> Iterator[IngestedPart]:
    """The parts of a file in their order, found or made. Raises DataError where it changes while it is read."""
    file = file.model_copy(update={"setting": "", "glob": ""})  # which source names it changes no row
    if file.format != "jsonl" or is_remote(file.path):
        yield ingest_part.record(file, None, max_bytes, repairs)
        return
    with unchanged(file):
        bare = file.model_copy(update={"digest": ""})
        read_tiles = tiles(file, max_bytes)
        for tile in read_tiles if engine == "local" else _by_workers(bare, read_tiles, max_bytes, repairs):
            yield ingest_part.record(bare, tile, max_bytes, repairs)


def _by_workers(
    file: SourceFile, read_tiles: Iterator[Tile], max_bytes: int, repairs: tuple[Repair, ...]
) -> Iterator[Tile]:
    """The tiles in their order, each with the tables that a worker of the cluster made of it, unless it is kept."""
    sent = deque[Tile]()

    def lines_to_parse() -> Iterator[list[Line] | None]:
        for tile in read_tiles:
            sent.append(tile)
            yield None if ingest_part.look_up(file, tile, max_bytes, repairs).record else tile.lines

    with worker_map("ray") as apply:
        for parsed in apply(parse, lines_to_parse(), file=file, max_bytes=max_bytes, repairs=repairs):
            yield sent.popleft().with_parsed(parsed)


def parse(run: list[Line] | None, file: SourceFile, max_bytes: int, repairs: tuple[Repair, ...]) -> ParsedTile | None:
    """The two tables of the lines of a tile; None of none."""
    if run is None:
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Tables(folder) as tables:
            tally = tables.fill(json_lines(run), file, max_bytes, repairs)
        return ParsedTile({path.name: path.read_bytes() for path in folder.iterdir()}, tally)


def tiles(file: SourceFile, max_bytes: int) -> Iterator[Tile]:
    """The lines of a file in tiles."""
    run: list[Line] = []
    num_bytes = 0
    with decompressed(file.path, file.compression) as stream:
        for line in plausible(file.path, lines(stream, max_bytes)):
            run.append(line)
            num_bytes += len(line.content)
            if num_bytes >= TILE_BYTES or len(run) >= TILE_LINES:
                yield Tile.of(run)
                run, num_bytes = [], 0
        if run:
            yield Tile.of(run)


def columns_of(file: SourceFile) -> frozenset[str]:
    """The columns that a table is asked for."""
    return FIELDS | set(file.columns.values())
