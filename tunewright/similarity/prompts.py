"""Compared parts of a row: its prompt without boilerplate, as words and shingles, and the fields that must be equal."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunewright.similarity.folding import Folded, bytes_of, character_classes, fold_messages
from tunewright.tools.conversation import answer_hash, identity_beside_texts

ROLES = ("system", "user", "assistant", "tool")
FEWEST_BOILERPLATE_ROWS = 10  # in fewer rows a shared line says that the rows are similar
COMMON_SHARE = 0.05  # of the rows, from which a segment tells nothing of one of them
FEWEST_WORDS = 12
BOILERPLATE = "boilerplate.json"  # in the folder of the unique rows: what was left out of the comparison


class Segments(NamedTuple):
    """The sentences of the lines of each row: row i has indptr[i]..indptr[i + 1] of the others."""

    indptr: np.ndarray
    begins: np.ndarray  # in the folded bytes
    ends: np.ndarray
    hashes: np.ndarray  # uint64, without case and runs of white space


class Runs(NamedTuple):
    """Hashes in their order, of each row or of each segment: of the i-th hashes[indptr[i]:indptr[i + 1]]."""

    indptr: np.ndarray
    hashes: np.ndarray  # uint64

    def of_rows(self, rows: np.ndarray, kept: np.ndarray) -> "Runs":
        """Those of each row, from those of its segments rows[i]..rows[i + 1] that are `kept` (bool)."""
        lengths = np.diff(self.indptr)
        ends = np.concatenate([[0], np.cumsum(lengths * kept)])
        return Runs(ends[rows], self.hashes[np.repeat(kept, lengths)])


class ComparedPrompts(NamedTuple):
    """The prompts of some rows, as far as they are compared: the texts are not needed any more."""

    segments: Runs  # of each row
    words: Runs  # of each segment, without case and punctuation; of scripts without spaces the characters
    numbers: Runs  # of each segment, with their signs


class Shingles(NamedTuple):
    """The set of shingles of each row: row i has items[indptr[i]:indptr[i + 1]]."""

    indptr: np.ndarray
    items: np.ndarray  # uint64, different within a row
    kinds: np.ndarray  # (rows,) uint64: rows of two kinds have no item in common


def segments(folded: Folded, messages: np.ndarray) -> Segments:
    """The segments of the messages (rows, 2) of each row; a colon ends one too, as after "Classify this message:"."""
    from tunewright.similarity.hashing import segment

    return Segments(*segment(folded.data, folded.starts, messages))


def words(folded: Folded, found: Segments, left_out: np.ndarray) -> Runs:
    """The words of each row but in segments `left_out` (hashes); of all its segments where none would be left."""
    return segment_words(folded, found).of_rows(found.indptr, kept_segments(found, left_out))


def segment_words(folded: Folded, found: Segments) -> Runs:
    """The words of each segment."""
    from tunewright.similarity.hashing import hash_words

    return Runs(*hash_words(folded.data, found.begins, found.ends, character_classes()))


def cut(folded: Folded) -> ComparedPrompts:
    """The prompts of the rows, cut into segments, words and numbers."""
    from tunewright.similarity.hashing import hash_numbers

    found = segments(folded, folded.prompts)
    numbers = Runs(*hash_numbers(folded.data, found.begins, found.ends))
    return ComparedPrompts(Runs(found.indptr, found.hashes), segment_words(folded, found), numbers)


def shingles(prompts: ComparedPrompts, left_out: np.ndarray, answers: np.ndarray | None = None) -> Shingles:
    """The shingles of each prompt without the segments `left_out`: word 2-grams, 3-grams of characters without spaces.

    Three characters of such a script react to an edited word as two words do. With `answers` (rows,) shingles are equal
    only in rows with the same of them and the same numbers in the prompt, and under twelve words with the same words.
    """
    from tunewright.similarity.hashing import hash_sequences, hash_shingles

    rows, kept = prompts.segments.indptr, kept_segments(prompts.segments, left_out)
    said = prompts.words.of_rows(rows, kept)
    kinds = np.zeros(len(rows) - 1, np.uint64)
    if answers is not None:
        numbers = hash_sequences(*prompts.numbers.of_rows(rows, kept))
        short = np.where(np.diff(said.indptr) < FEWEST_WORDS, hash_sequences(*said), np.uint64(0))
        kinds = joined(numbers, short, answers)
    indptr, items = hash_shingles(*said, hash_sequences(*prompts.segments), kinds)
    return Shingles(indptr, items, kinds)


def joined(*hashes: np.ndarray) -> np.ndarray:
    """(rows,) uint64: one hash of several (rows,) in their order."""
    from tunewright.similarity.hashing import hash_sequences

    together = np.stack(hashes, axis=1)
    return hash_sequences(np.arange(0, together.size + 1, len(hashes)), together.ravel())


def message_hashes(folded: Folded) -> np.ndarray:
    """(2, messages) uint64: two hashes of each message, equal for those that differ in case and white space only."""
    from tunewright.similarity.hashing import hash_messages

    return hash_messages(folded.data, folded.starts[:-1], folded.starts[1:])


def exact_hashes(messages: pa.Array, which: np.ndarray) -> np.ndarray:
    """(2, which) uint64: two hashes of each of these messages (positions) as it is, but for white space at its end."""
    from tunewright.similarity.hashing import hash_exactly

    data, starts = bytes_of(pc.fill_null(messages.flatten().field("content"), "").cast(pa.large_string()))
    return hash_exactly(data, starts[:-1][which], starts[1:][which])


def answers(folded: Folded) -> np.ndarray:
    """(rows,) uint64: the normalized last message of each row."""
    from tunewright.similarity.hashing import hash_messages

    return hash_messages(folded.data, folded.starts[folded.answers], folded.starts[folded.answers + 1])[0]


def conversation_hashes(rows: np.ndarray, roles: np.ndarray, messages: np.ndarray) -> np.ndarray:
    """(rows, 2) uint64: two hashes of each row's messages rows[i]..rows[i + 1], from two of each (message_hashes).

    `roles` (messages,) uint64 are small numbers, one for each role.
    """
    from tunewright.similarity.hashing import hash_sequences

    return np.stack([hash_sequences(2 * rows, np.stack([roles, of], axis=1).ravel()) for of in messages], axis=1)


def hashed_conversations(
    messages: pa.ChunkedArray | pa.Array, chats: pa.ChunkedArray | pa.Array | None = None
) -> tuple[Folded, np.ndarray, np.ndarray]:
    """The folded conversations of a messages column; the hashes of its messages; (rows, 2) those of the conversations.

    The hashes of two conversations are equal where one is an exact duplicate of the other: their prompts are equal but
    for case and white space, and their answers as they are, since case and indentation make other code. With `chats`,
    the column of that name, their tools, reasoning, weights and rejected answers are equal as well.
    """
    folded = fold_messages(messages)
    lists = messages.combine_chunks() if isinstance(messages, pa.ChunkedArray) else messages
    roles = pc.index_in(lists.flatten().field("role"), pa.array(ROLES))  # pyright: ignore[reportAttributeAccessIssue]
    of_messages, said = message_hashes(folded), np.flatnonzero(np.asarray(roles) == ROLES.index("assistant"))
    of_messages[:, said] = exact_hashes(lists, said)
    hashes = conversation_hashes(folded.rows, np.asarray(roles).astype(np.uint64), of_messages)
    if chats is not None and chats.null_count < len(chats):
        hashes = hashes ^ of_chats(chats, identity_beside_texts)[:, None]
    return folded, of_messages, hashes


def of_chats(chats: pa.ChunkedArray | pa.Array, identity: Callable[[str], str]) -> np.ndarray:
    """(rows,) uint64: a hash of what is told of each column `chat`; 0 where there is none."""
    told = (int(identity(chat)[:16], 16) if chat else 0 for chat in chats.to_pylist())
    return np.fromiter(told, np.uint64, len(chats))


def with_chats(batch: pa.Table, answers: np.ndarray) -> np.ndarray:
    """The hashes of answers (rows,), other ones where rows have other tools or rejected answers (the column `chat`)."""
    chats = batch["chat"] if "chat" in batch.column_names else None
    return answers if chats is None or chats.null_count == len(chats) else answers ^ of_chats(chats, answer_hash)


def distinct_segments(found: Runs | Segments) -> tuple[np.ndarray, np.ndarray]:
    """(hash, row) of each row's segments, a segment that a row has twice once."""
    from tunewright.similarity.hashing import distinct

    indptr, hashes = distinct(found.indptr, found.hashes)
    return hashes, np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


def find_boilerplate(
    hashes: np.ndarray, num_rows: int, share: float, earlier: np.ndarray | None = None
) -> dict[int, int]:
    """Hash -> rows of the segments that more than `share` of the rows and at least ten have, the most frequent first.

    `hashes` has one for each row and segment. Those of `earlier` are boilerplate in however few rows.
    """
    unique, counts = np.unique(hashes, return_counts=True)
    is_common = counts > max(share * num_rows, FEWEST_BOILERPLATE_ROWS - 1)
    many = np.flatnonzero(is_common if earlier is None else is_common | np.isin(unique, earlier))
    order = many[np.lexsort((unique[many], -counts[many]))]
    return dict(zip(unique[order].tolist(), counts[order].tolist(), strict=True))


def common_segments(messages: pa.ChunkedArray) -> np.ndarray:
    """The hashes of the segments that many prompts of a messages column have, and that say nothing of one of them."""
    folded = fold_messages(messages)
    hashes, _ = distinct_segments(segments(folded, folded.prompts))
    return np.array(sorted(find_boilerplate(hashes, len(messages), COMMON_SHARE)), np.uint64)


def segment_texts(folded: Folded, found: Segments, wanted: Iterable[int]) -> dict[int, str]:
    """The wanted segments (hashes) that are there, as one of their texts has them but for white space."""
    unique, where = np.unique(found.hashes, return_index=True)
    there = np.isin(unique, np.array(sorted(wanted), np.uint64))
    return {
        int(value): " ".join(folded.data[found.begins[at] : found.ends[at]].tobytes().decode().split())
        for value, at in zip(unique[there], where[there], strict=True)
    }


def write_boilerplate(folder: Path, share: float, counts: dict[int, int], texts: dict[int, str]) -> None:
    """Keeps what is left out of the comparison, for the stages that compare the same rows again, and later versions."""
    sentences = [{"hash": f"{value:016x}", "rows": rows, "text": texts[value]} for value, rows in counts.items()]
    _write(folder, {"share": share, "sentences": sentences})


def copy_boilerplate(file: Path, folder: Path) -> None:
    """Keeps the hashes of a boilerplate.json in another folder, without the texts."""
    found = json.loads(file.read_text(encoding="utf-8"))
    _write(folder, found | {"sentences": [{"hash": each["hash"]} for each in found["sentences"]]})


def read_boilerplate(folder: Path, share: float | None = None) -> np.ndarray:
    """The hashes of the segments that are kept in this folder, for words() and shingles().

    There are none if they were found by another `share`.
    """
    found = json.loads((folder / BOILERPLATE).read_text(encoding="utf-8"))
    is_same = share in (None, found["share"])
    return np.array(sorted(int(each["hash"], 16) for each in found["sentences"] if is_same), np.uint64)


def _write(folder: Path, found: dict[str, Any]) -> None:
    (folder / BOILERPLATE).write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")


def kept_segments(found: Runs | Segments, left_out: np.ndarray) -> np.ndarray:
    """(segments,) bool: those that are not left out, and all of a row that would have none."""
    out = np.isin(found.hashes, left_out)
    rows = np.repeat(np.arange(len(found.indptr) - 1), np.diff(found.indptr))
    some = np.bincount(rows, weights=~out, minlength=len(found.indptr) - 1) > 0
    return ~out | ~some[rows]
