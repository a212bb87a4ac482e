"""Prompts that say the same in other words, by the cosine of a static model's vectors, each verified exactly.

A mean of vectors hardly sees what turns a sentence into its opposite, and not at all in which order words stand. So
only rows of one kind are compared: with the same numbers, as many words that reverse a meaning, and the same answer.
"""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from tunewright.serving import LENGTH, StaticModel
from tunewright.similarity.engine import over_batches, read_pieces
from tunewright.similarity.folding import fold_messages, fold_texts
from tunewright.similarity.prompts import cut, exact_hashes, joined, kept_segments, segments, with_chats, words

# English, German, French, Spanish, Italian, Portuguese, Dutch, Russian, Chinese. Of a pair such as on and off one is
# enough: where the other stands instead, there is one less.
REVERSING = (
    "not no never none nothing nobody nowhere neither nor without cannot unable cant wont dont doesnt didnt isnt arent "
    "wasnt werent hasnt havent hadnt shouldnt wouldnt couldnt mustnt neednt aint off out down before below under less "
    "fewer least last nicht nichts nie niemals niemand kein keine keinen keinem keiner ohne weder ne pas jamais rien "
    "aucun aucune sans nunca nada ningún ninguna sin tampoco non mai niente nessun nessuno senza não nem nenhum "
    "nenhuma sem niet geen nooit niets zonder не нет ни никогда без 不 没 無 无 未 非"
)
BLOCK = 2_048  # rows that are compared with each other at once
CELL_ROWS = 512  # rows of one kind for each cell that they are sorted into
CELL_SAMPLE = 32  # rows for each cell that the cells are found by
ROUNDS = 2  # in which they are
PROBES = 16  # cells that a row is compared with
COARSER, CENTER_LENGTH = 8, 4_000  # so that products of rows and cells are small
ROUNDING = 2e-3  # more than what float32 makes of vectors of about LENGTH is away from the cosine


def find_leaders(
    file: Path, rows: np.ndarray, settled: np.ndarray, left_out: np.ndarray, model: StaticModel, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each of `rows`, find the place of the most similar earlier row of its kind that stays, or -1, and the cosine.

    A row stays if there is none, or if it is `settled` (rows,). `left_out` is the boilerplate.
    """
    kinds = np.concatenate(over_batches(file, ["messages", "chat"], hash_kinds, left_out=left_out))[rows]
    _, of, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[of] > 1)
    vectors = _embed_rows(file, rows[shared], left_out, model)
    leader, cosine = np.full(len(rows), -1), np.zeros(len(rows))
    found, cosine[shared] = leaders(vectors, of[shared], settled[shared], threshold)
    leader[shared] = np.where(found >= 0, shared[found], -1)
    return leader, cosine


def hash_kinds(batch: pa.Table, left_out: np.ndarray) -> np.ndarray:
    """(rows,) uint64, equal for rows that may be compared."""
    from tunewright.similarity.hashing import hash_sequences

    folded = fold_messages(batch["messages"])
    prompts, said_last = cut(folded), exact_hashes(batch["messages"].combine_chunks(), folded.answers)[0]
    rows, kept = prompts.segments.indptr, kept_segments(prompts.segments, left_out)
    said, numbers = prompts.words.of_rows(rows, kept), prompts.numbers.of_rows(rows, kept)
    known = _reversing()
    reverses = known[np.minimum(np.searchsorted(known, said.hashes), len(known) - 1)] == said.hashes
    reversing = np.concatenate([[0], np.cumsum(reverses)])[said.indptr]
    return joined(hash_sequences(*numbers), np.diff(reversing).astype(np.uint64), with_chats(batch, said_last))


def prompt_texts(batch: pa.Table, left_out: np.ndarray) -> list[str]:
    """Return the prompts of a batch in lower case, without boilerplate."""
    folded = fold_messages(batch["messages"])
    found = segments(folded, folded.prompts)
    kept = kept_segments(found, left_out)
    pieces = [
        folded.data[begin:end].tobytes().decode().lower() if keep else ""
        for begin, end, keep in zip(found.begins.tolist(), found.ends.tolist(), kept.tolist(), strict=True)
    ]
    bounds = found.indptr.tolist()
    return [" ".join(" ".join(pieces[begin:end]).split()) for begin, end in pairwise(bounds)]


def leaders(
    vectors: np.ndarray, kinds: np.ndarray, settled: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each row, find the most similar earlier row of its kind that stays, or -1, and the cosine; settled rows stay.

    Exact for kinds of up to CELL_ROWS * PROBES rows. The rows of larger kinds are assigned to cells by the nearest of
    some sampled rows and compared with the rows of the nearest cells only (inverted file: Jégou et al. 2011, "Product
    quantization for nearest neighbor search"), so that time does not grow with the square of a kind. A near-duplicate
    can be missed there, but no row below the threshold is removed.
    """
    leader, cosine = np.full(len(kinds), -1), np.zeros(len(kinds))
    for pack in _packs(kinds, np.flatnonzero(vectors.any(axis=1))):
        centers, shift = _centers(vectors[pack])
        held = [np.empty(0, np.int64) for _ in centers]  # of each cell the rows that stay
        for start in range(0, len(pack), BLOCK):
            block = pack[start : start + BLOCK]
            home, asked = _cells(vectors[block], centers, shift)
            asked &= ~settled[block, None]
            for row, others in _candidates(vectors, kinds, block, asked, held, threshold - ROUNDING):
                staying = others[leader[others] < 0]
                # A float64 holds the sums of products of integers exactly, in any order.
                one, many = vectors[row].astype(np.float64), vectors[staying].astype(np.float64)
                exact = (many @ one) / np.sqrt((one @ one) * (many * many).sum(axis=1))
                if exact.max(initial=0) >= threshold:
                    leader[row], cosine[row] = staying[exact.argmax()], exact.max()
            for cell in np.unique(home):
                held[cell] = np.concatenate([held[cell], block[(home == cell) & (leader[block] < 0)]])
    return leader, cosine


def _packs(kinds: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows by kind, as many whole kinds at once as a block has room for; a larger kind is by itself."""
    order = rows[np.argsort(kinds[rows], kind="stable")]
    begin = end = 0
    for stop in np.flatnonzero(np.diff(kinds[order], append=-1)) + 1:
        if stop - begin > BLOCK and end > begin:
            yield order[begin:end]
            begin = end
        end = stop
    yield order[begin:end]


def _centers(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cells, dimensions) float32 and (cells,): the means of rows that lie together (k-means), from the mean of all.

    Seen from there no row is near to all others, as a short and general one is from where it is.
    """
    num_cells = max(1, len(vectors) // CELL_ROWS)
    mean = vectors.mean(axis=0, dtype=np.float64) if num_cells > 1 else np.zeros(vectors.shape[1])
    centers, shift = _seen_from(mean, np.unique(vectors[:: -(-max(1, len(vectors)) // num_cells)], axis=0))
    some = vectors[:: max(1, len(vectors) // (num_cells * CELL_SAMPLE))]
    for _ in range(ROUNDS if num_cells > 1 else 0):
        home, _ = _cells(some, centers, shift)
        order = np.argsort(home, kind="stable")
        begins = np.flatnonzero(np.diff(home[order], prepend=-1))
        sums = np.add.reduceat(some[order].astype(np.float64), begins)
        centers, shift = _seen_from(mean, sums / np.diff(begins, append=len(some))[:, None])
    return centers, shift


def _seen_from(mean: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points' directions from the mean, of length CENTER_LENGTH, and the product of each with the mean."""
    away = points - mean
    lengths = np.linalg.norm(away, axis=1, keepdims=True)
    centers = np.rint(CENTER_LENGTH * away[lengths[:, 0] > 0] / lengths[lengths[:, 0] > 0])
    return centers.astype(np.float32), centers @ mean / COARSER


def _cells(vectors: np.ndarray, centers: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) the nearest cell, and (rows, cells) bool, the few nearest.

    A float32 holds the sums of products of integers exactly, in any order, as long as they are under 2 ** 24.
    """
    products = (vectors // COARSER).astype(np.float32) @ centers.T - shift
    asked = np.ones(products.shape, np.bool_)
    if len(centers) > PROBES:
        np.put_along_axis(asked, np.argpartition(-products, PROBES, axis=1)[:, PROBES:], False, axis=1)
    return products.argmax(axis=1), asked


def _candidates(
    vectors: np.ndarray, kinds: np.ndarray, block: np.ndarray, asked: np.ndarray, held: list[np.ndarray], floor: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each row that asks a cell, with earlier rows of its kind whose similarity is about the floor."""
    near = vectors[block].astype(np.float32) / LENGTH
    same = np.equal.outer(kinds[block], kinds[block])
    one, other = _where(np.tril(near @ near.T >= floor, -1) & same & asked.any(axis=1, keepdims=True))
    ones, others = [one], [block[other]]
    for rows, asks in zip(held, np.ascontiguousarray(asked.T), strict=True):
        asking = np.flatnonzero(asks) if len(rows) else rows
        for start in range(0, len(rows) if len(asking) else 0, BLOCK):
            part = rows[start : start + BLOCK]
            one, other = _where(near[asking] @ vectors[part].astype(np.float32).T >= floor * LENGTH)
            ones.append(asking[one])
            others.append(part[other])
    one, other = np.concatenate(ones), np.concatenate(others)
    order = np.lexsort((other, one))
    one, other = one[order], other[order]
    for begin, end in pairwise([*np.flatnonzero(np.diff(one, prepend=-1)).tolist(), len(one)]):
        yield int(block[one[begin]]), other[begin:end]


def _where(similar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As np.nonzero (rows, columns) of mostly False, and faster."""
    row, column = np.divmod(np.flatnonzero(similar), similar.shape[1])
    return row, column


def _embed_rows(file: Path, rows: np.ndarray, left_out: np.ndarray, model: StaticModel) -> np.ndarray:
    """(rows, dimensions) int16; `rows` are numbers of rows of the file, rising."""
    vectors = np.empty((len(rows), model.vectors.shape[1]), np.int16)
    start, done = 0, 0
    for batch in read_pieces(file, ["messages"]):
        here = rows[done : np.searchsorted(rows, start + batch.num_rows)]
        texts = prompt_texts(batch.take(pa.array(here - start)), left_out)
        vectors[done : done + len(here)] = model.embed(texts)
        start, done = start + batch.num_rows, done + len(here)
    return vectors


@cache
def _reversing() -> np.ndarray:
    """The hashes of REVERSING, rising."""
    folded = fold_texts([REVERSING])
    return np.unique(words(folded, segments(folded, folded.prompts), np.empty(0, np.uint64)).hashes)
