"""The rows' frame, made a batch of rows at a time in a few processes: what is held in memory are its small columns.

The messages of a row are in memory while its batch is looked at, and only there.
"""

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.data_checks.columns import Columns, Turn, derive
from tunewright.data_checks.suite import Entry
from tunewright.machine.cluster import EngineName, worker_map
from tunewright.tools.conversation import more_texts, prompt_and_answer, tools_hash

if TYPE_CHECKING:
    from tunewright.data_checks.validation import ExpectationOutcome

BATCH = 20_000  # rows
BATCH_BYTES = 32_000_000  # of the columns that are read, in memory
MAX_PROCESSES = 8  # each holds about 400 MB
HASHES = ("prompt_hash", "answer_hash", "rejected_hash")

_ARROW = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}


class Looked(NamedTuple):
    """Result of one batch: its small columns, and the outcomes of the expectations on texts."""

    columns: pa.Table
    of_texts: "list[ExpectationOutcome]"


@dataclass(frozen=True)
class Ask:
    """The columns to derive and the expectations to evaluate in each batch."""

    columns: frozenset[str]  # of columns.py's
    special_tokens: tuple[str, ...]
    of_texts: tuple[Entry, ...] = ()  # the team's expectations that look at prompts and answers


def look(file: Path, ask: Ask, engine: EngineName = "local", processes: int | None = None) -> Iterator[Looked]:
    """Looks at the row table `file` batch by batch, in order, in as many processes as there are cores, or on Ray.

    One batch is looked at here, without another process. The result does not depend on where that is done.
    """
    one = partial(look_at, ask=ask)
    batches = row_batches(file)
    if engine == "ray":
        with worker_map(engine) as apply:
            yield from apply(look_at, batches, ask=ask)
        return
    metadata = pq.read_metadata(file)
    num_bytes = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    num_batches = max(-(-metadata.num_rows // BATCH), -(-num_bytes // BATCH_BYTES))  # about
    processes = processes or min(os.cpu_count() or 1, MAX_PROCESSES, num_batches)
    if processes <= 1:
        yield from map(one, batches)
        return
    with _pool(processes) as pool:
        waiting: deque[Future[Looked]] = deque()
        for batch in batches:
            waiting.append(pool.submit(one, batch))
            if len(waiting) > processes:  # one more than they work on, so that none idles
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def row_batches(file: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a row table in order, as many at a time as BATCH and BATCH_BYTES allow: long texts come in few rows.

    Row groups are put together or divided. One row that is larger than BATCH_BYTES comes alone.
    """
    waiting: list[pa.RecordBatch] = []
    for piece in _pieces(pq.ParquetFile(file), columns):
        together = [*waiting, piece]
        fits = sum(map(len, together)) <= BATCH and sum(each.nbytes for each in together) <= BATCH_BYTES
        if waiting and not fits:
            yield from _one(waiting)
        waiting = together if fits else [piece]
    if waiting:
        yield from _one(waiting)


def _pieces(opened: pq.ParquetFile, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Each row group, divided where it is too large."""
    for number in range(opened.num_row_groups):
        group = opened.metadata.row_group(number)
        fitting = BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)  # of rows of its mean size
        for batch in opened.iter_batches(max(1, min(BATCH, fitting)), row_groups=[number], columns=columns):
            yield from _halved(batch)


def _halved(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """As often as it needs: the rows of a group may differ much, and equal texts are stored once."""
    if batch.nbytes <= BATCH_BYTES or len(batch) == 1:
        yield batch
        return
    half = len(batch) // 2
    yield from _halved(batch.slice(0, half))
    yield from _halved(batch.slice(half))


def _one(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    return pa.Table.from_batches(batches).combine_chunks().to_batches()


def look_at(batch: pa.RecordBatch, ask: Ask) -> Looked:
    """One batch: the columns of its row table without messages, those of columns.py that are asked for, and HASHES.

    They are of what stands before the last answer, of that answer and of the rejected one, null where there is none; an
    undesirable answer is a rejected one. Equal texts have equal hashes. num_turns is null where there are no messages.
    """
    conversations = batch["messages"].to_pylist()
    texts = batch["chat"].to_pylist() if "chat" in batch.schema.names else [None] * len(batch)
    chats = [json.loads(text) if text else {} for text in texts]
    more = [more_texts(chat) if chat else () for chat in chats]
    rejected = [chat.get("rejected") for chat in chats]
    undesirable = [chat.get("undesirable", False) for chat in chats]
    derived = derive(conversations, ask.special_tokens, ask.columns, more, rejected, undesirable)
    derived["num_turns"] = derived["num_turns"].where(np.array([turns is not None for turns in conversations], bool))
    held = [name for name in ("messages", "chat") if name in batch.schema.names]
    small = pa.Table.from_batches([batch]).drop_columns(held)
    for name, hint in get_type_hints(Columns).items():
        if name in ask.columns:  # pandas has no type for a column of nothing but None
            type_ = _ARROW[next(t for t in (*get_args(hint), hint) if t in _ARROW)]
            small = small.append_column(name, pa.array(derived[name], type_, from_pandas=True))
    hashes = list(map(_hashes, conversations, chats))
    for position, name in enumerate(HASHES):
        small = small.append_column(name, pa.array([of_row[position] for of_row in hashes], pa.int64()))
    return Looked(small, _outcomes(small, conversations, ask.of_texts) if ask.of_texts else [])


def _outcomes(
    small: pa.Table, conversations: Sequence[list[Turn] | None], entries: Sequence[Entry]
) -> "list[ExpectationOutcome]":
    import pandas as pd

    from tunewright.data_checks.own import own_expectation
    from tunewright.data_checks.validation import run

    texts = [_texts(turns or []) for turns in conversations]
    frame = small.to_pandas(types_mapper=pd.ArrowDtype)
    for position, name in enumerate(("prompt", "answer")):
        frame[name] = pd.Series([text[position] for text in texts], dtype=object)
    return run(frame, [own_expectation(entry) for entry in entries])


def _texts(turns: Sequence[Turn]) -> tuple[str, str | None]:
    prompt, answer = prompt_and_answer(turns)
    return "\n".join(turn["content"] or "" for turn in prompt), answer["content"] if answer else None


def _hashes(turns: Sequence[Turn] | None, chat: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    prompt, answer = prompt_and_answer(turns or [])
    rejected = chat.get("rejected")
    if chat.get("undesirable"):  # it is no answer that another one could conflict with
        rejected, answer = (answer["content"] or "") if answer else None, None
    asked = repr([(turn["role"], turn["content"]) for turn in prompt])
    if chat and (chat["tools"] or rejected is None):  # a pair without tools has the prompt of a row of texts
        asked += tools_hash(chat["tools"])
    return (
        _hash(asked) if prompt and (answer or rejected is not None) else None,
        _hash(answer["content"] or "") if answer else None,
        None if rejected is None else _hash(rejected),
    )


def _hash(text: str) -> int:
    """64 bits: two of a million different texts are equal once in forty million sets."""
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little", signed=True
    )


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    # spawn: a fork would copy the threads' locks that Prefect holds.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process with the one that started it, also where that was killed: it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def rows_at(file: Path, positions: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows at these positions of a row table, with their positions, in order; a batch at a time."""
    wanted = deque(sorted(set(positions)))
    start = 0
    for batch in row_batches(file, ["file", "line", "byte", "row_id", "messages", "chat"]):
        while wanted and wanted[0] < start + len(batch):
            position = wanted.popleft()
            yield position, batch.slice(position - start, 1).to_pylist()[0]
        if not wanted:
            return
        start += len(batch)
