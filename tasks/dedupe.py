"""Rows that repeat an earlier row: exactly, or nearly and verified; each removal names the kept row that it repeats.

Near duplicates have similar prompts, the same numbers in them, the same tools and the same answer, of preference pairs
both answers: rows that differ in a number, a tool or an answer say different things, however alike they look. Answers
are the same if they are equal but for white space at their end; similar ones are not, since in slots and labels one
word of the answer is all that differs, and in code an indentation. In a prompt of under twelve words one word can be
all that differs too, so all of them must be equal. A row that its source puts on the test or validation split always
stays: split quarantines the training row that repeats it.

Semantic duplicates, on request, say the same in other words (tunewright/similarity/semantic.py).
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import REMOVED_SCHEMA, ROW_SCHEMA, Artifact, CheckedRows, UniqueRows
from tunewright.config import Dedupe
from tunewright.data_checks import duplicates
from tunewright.errors import DataError, visible
from tunewright.machine.cluster import EngineName
from tunewright.privacy.excerpts import excerpt, masked
from tunewright.reports.account import MOST_BOILERPLATE
from tunewright.similarity.embedding import load_model
from tunewright.similarity.engine import engine_of, read_pieces
from tunewright.similarity.folding import fold_messages
from tunewright.similarity.prompts import (
    ComparedPrompts,
    Shingles,
    cut,
    distinct_segments,
    find_boilerplate,
    hashed_conversations,
    read_boilerplate,
    segment_texts,
    segments,
    shingles,
    with_chats,
    write_boilerplate,
)
from tunewright.similarity.semantic import find_leaders
from tunewright.store.stage import stage
from tunewright.tools.conversation import shown_turns

REASONS = ("", "exact_duplicate", "near_duplicate", "semantic_duplicate")
STAYS, EXACT, NEAR, SEMANTIC = range(4)
REPORTED_CHARS = 200
REMOVED_CHARS = 500


class Repeats(NamedTuple):
    """For each row, the number of the earlier kept row that it repeats, the reason, and the similarity of the two."""

    reason: np.ndarray  # (rows,) a position in REASONS
    partner: np.ndarray  # (rows,) -1 where the row stays
    similarity: np.ndarray  # (rows,)

    @property
    def stays(self) -> np.ndarray:
        """(rows,) bool."""
        return self.reason == STAYS

    def add(self, reason: int, rows: np.ndarray, leader: np.ndarray, similarity: np.ndarray) -> None:
        """For each of `rows` which of them it repeats, by its place among them, or -1."""
        gone = np.flatnonzero(leader >= 0)
        self.reason[rows[gone]], self.partner[rows[gone]] = reason, rows[leader[gone]]
        self.similarity[rows[gone]] = similarity[gone]


class Read(NamedTuple):
    """The hashes of a batch of rows that are compared."""

    conversations: np.ndarray  # (rows, 2)
    prompts: ComparedPrompts
    answers: np.ndarray  # (rows,) and of the tools and of rejected answers


def read(batch: pa.Table) -> Read:
    """The rows of a batch."""
    chats = batch["chat"] if "chat" in batch.column_names else None
    folded, messages, conversations = hashed_conversations(batch["messages"], chats)
    return Read(conversations, cut(folded), with_chats(batch, messages[0, folded.answers]))


def first_pass(rows: Read) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The hashes of the conversations (rows, 2); those of the segments of prompts, and the row of each segment."""
    return rows.conversations, *distinct_segments(rows.prompts.segments)


def guarded_shingles(rows: Read, left_out: np.ndarray) -> Shingles:
    """Return the shingles that near-duplicates are found by, with each row's answer."""
    return shingles(rows.prompts, left_out, rows.answers)


def first_equal(hashes: np.ndarray) -> np.ndarray:
    """(rows,) the first row with the same hashes (rows, 2)."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: of equal rows the first comes first
    new = np.ones(len(hashes), np.bool_)
    new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    first = np.empty(len(hashes), np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return first


def find_repeats(
    file: Path, settings: Dedupe, name: EngineName = "local", earlier: np.ndarray | None = None
) -> tuple[Repeats, dict[int, int]]:
    """Find the row that each row of rows.parquet repeats, and the boilerplate ignored in comparisons: hash -> rows.

    `earlier` are the hashes of sentences that are boilerplate even if few rows have them.
    """
    with engine_of(name) as engine:
        rows_read = engine.over_batches(file, ["messages", "chat"], read)
        conversations, segments, rows_of = zip(*engine.collect(engine.over(rows_read, first_pass)), strict=True)
        first = first_equal(np.concatenate(conversations))
        again = first != np.arange(len(first))
        repeats = Repeats(np.where(again, EXACT, STAYS), np.where(again, first, -1), again.astype(np.float64))
        stays = np.split(~again, np.cumsum([len(batch) for batch in conversations])[:-1])
        chosen = [each[kept[rows]] for each, rows, kept in zip(segments, rows_of, stays, strict=True)]
        distinct = np.concatenate(chosen)
        boilerplate = find_boilerplate(distinct, int((~again).sum()), settings.boilerplate_share, earlier)
        left_out = np.array(sorted(boilerplate), np.uint64)
        if settings.near:
            del conversations, segments, rows_of, chosen, distinct
            shingled = engine.instead(rows_read, guarded_shingles, left_out=left_out)
            rows = np.flatnonzero(repeats.stays)
            sets = engine.sets(shingled)[rows]
            repeats.add(NEAR, rows, *engine.leaders(sets, settings.threshold))
    # A row whose exact partner went as a near duplicate repeats what that one repeats.
    chained = np.flatnonzero((repeats.reason == EXACT) & (repeats.reason[repeats.partner] == NEAR))
    through = repeats.partner[chained]
    for column in repeats:
        column[chained] = column[through]
    if settings.semantic is not None:
        rows = np.flatnonzero(repeats.stays)
        model = load_model(settings.semantic_model)
        settled = np.isin(rows, repeats.partner)
        repeats.add(SEMANTIC, rows, *find_leaders(file, rows, settled, left_out, model, settings.semantic))
    given = np.isin(pq.read_table(file, columns=["use_as"])["use_as"].to_numpy(), ("validation", "test"))
    repeats.reason[given], repeats.partner[given], repeats.similarity[given] = STAYS, -1, 0.0
    return repeats, boilerplate


def texts_of(file: Path, boilerplate: dict[int, int]) -> dict[int, str]:
    """The texts of the segments (hashes)."""
    texts: dict[int, str] = {}
    for batch in read_pieces(file, ["messages"]):
        if texts.keys() == boilerplate.keys():
            break
        folded = fold_messages(batch["messages"])
        texts |= segment_texts(folded, segments(folded, folded.prompts), boilerplate.keys() - texts.keys())
    return texts


def _write(folder: Path, file: Path, repeats: Repeats) -> None:
    """rows.parquet with the rows that stay, in their order, and removed.parquet with the others."""
    places = pq.read_table(file, columns=["row_id", "file", "line"], schema=ROW_SCHEMA)
    start = 0
    with (
        pq.ParquetWriter(folder / "rows.parquet", ROW_SCHEMA, compression="zstd") as kept,
        pq.ParquetWriter(folder / "removed.parquet", REMOVED_SCHEMA, compression="zstd") as removed,
    ):
        for batch in read_pieces(file):
            rows = np.arange(start, start + batch.num_rows)
            stays = repeats.stays[rows]
            start += batch.num_rows
            kept.write_table(batch.filter(pa.array(stays)).cast(ROW_SCHEMA))
            gone, rows = batch.filter(pa.array(~stays)), rows[~stays]
            partner = places.take(pa.array(repeats.partner[rows]))
            prompts = ("\n".join(turn["content"] for turn in turns[:-1]) for turns in gone["messages"].to_pylist())
            columns = {
                **{name: gone[name] for name in places.column_names},
                **{f"partner_{name}": partner[name] for name in places.column_names},
                "reason": [REASONS[reason] for reason in repeats.reason[rows].tolist()],
                "similarity": repeats.similarity[rows],
                "text": [masked(prompt)[:REMOVED_CHARS] for prompt in prompts],
            }
            removed.write_table(pa.table([columns[name] for name in REMOVED_SCHEMA.names], schema=REMOVED_SCHEMA))


def _kinds(file: Path, repeats: Repeats, settings: Dedupe) -> list[duplicates.RemovedKind]:
    """The removed rows by reason: those that compare by a threshold with the pairs nearest to it, then the others."""
    kinds = []
    of_reasons = (
        (NEAR, "dedupe.threshold", settings.threshold),
        (SEMANTIC, "dedupe.semantic", settings.semantic or 0.0),
        (EXACT, "", 1.0),
    )
    for reason, setting, threshold in of_reasons:
        rows = np.flatnonzero(repeats.reason == reason)
        if len(rows):
            similarity = repeats.similarity[rows]
            nearest = rows[np.argsort(similarity, kind="stable")[: duplicates.SHOWN]]
            removed, kept = (_shown(file, pair) for pair in (nearest, repeats.partner[nearest]))
            pairs = map(duplicates.RemovedPair, repeats.similarity[nearest].tolist(), removed, kept)
            bars = duplicates.bars(similarity.tolist(), threshold)
            kinds.append(duplicates.RemovedKind(REASONS[reason], setting, threshold, bars, [*pairs]))
    return kinds


def _shown(file: Path, rows: np.ndarray) -> list[duplicates.RowShown]:
    import pyarrow.dataset as ds  # with pandas

    found = ds.dataset(file).take(pa.array(rows), columns=["file", "line", "messages", "chat"]).to_pylist()
    return [duplicates.RowShown(visible(row["file"]), row["line"], visible(excerpt(shown_turns(row)))) for row in found]


def _stop_if_too_many(repeats: Repeats, file: Path, settings: Dedupe) -> None:
    rows = np.flatnonzero(~repeats.stays)
    if len(rows) <= settings.max_removed_share * len(repeats.stays):
        return
    places = pq.read_table(file, columns=["file", "line"])
    row, partner = places.take(pa.array([rows[0], repeats.partner[rows[0]]])).to_pylist()
    raise DataError(
        f"{len(rows)} of {len(repeats.stays)} rows repeat an earlier one, more than dedupe.max_removed_share="
        f"{settings.max_removed_share:g} accepts; the first is {row['file']}:{row['line']}, which repeats "
        f"{partner['file']}:{partner['line']} (similarity {repeats.similarity[rows[0]]:.2f})",
        see=("report.html", "removed.parquet"),
    )


@stage("threshold={settings.threshold}", libraries=("pyarrow", "numpy", "numba", "scipy"), unkeyed=("engine",))
def dedupe(
    folder: Path,
    rows: CheckedRows,
    settings: Dedupe,
    embedding: str = "",
    earlier: Artifact | None = None,
    engine: EngineName = "local",
) -> UniqueRows:
    """The rows that repeat no earlier one, in their order, and the removed ones; DataError where too many go.

    Boilerplate of `earlier`, the version before, stays boilerplate: the same rows are similar as before, and keep their
    splits. `embedding` is model_identity(settings) of tunewright/similarity/embedding.py, for the key.
    """
    file = rows.path("rows.parquet")
    kept = read_boilerplate(earlier.folder, settings.boilerplate_share) if earlier else None
    repeats, boilerplate = find_repeats(file, settings, engine, kept)
    texts = {value: masked(text).casefold() for value, text in texts_of(file, boilerplate).items()}
    write_boilerplate(folder, settings.boilerplate_share, boilerplate, texts)
    _write(folder, file, repeats)
    counts = Counter(REASONS[reason] for reason in repeats.reason[~repeats.stays].tolist())
    page = duplicates.render(len(repeats.stays), dict(sorted(counts.items())), _kinds(file, repeats, settings))
    (folder / "report.html").write_text(page, encoding="utf-8")
    _stop_if_too_many(repeats, file, settings)
    reported = [texts[value][:REPORTED_CHARS] for value in boilerplate][:MOST_BOILERPLATE]
    return UniqueRows(
        num_rows=int(repeats.stays.sum()),
        num_removed=int((~repeats.stays).sum()),
        reasons=dict(sorted(counts.items())),
        boilerplate=tuple(sorted(reported)),
    )
