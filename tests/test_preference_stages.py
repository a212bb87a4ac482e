"""Preference pairs in the stages of the data: both answers count, and a prompt counts once."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from split_rows import in_splits, prompts, split_rows
from test_ingest_tools import TOOLS
from test_semantic import save_model

from tunewright.artifacts import ROW_SCHEMA
from tunewright.config import Dedupe, Split
from tunewright.similarity.prompts import hashed_conversations
from tunewright.tasks.dedupe import REASONS, find_repeats
from tunewright.tasks.ingest import row_id_of
from tunewright.tools.conversation import Conversation, Tool, answer_hash, chat_of, texts_of

LONG = "please tell me why the new card that I ordered two weeks ago has still not come to my house"


def row(prompt: str, chosen: str, rejected: str | None = None, tools: list[Tool] | None = None) -> dict[str, Any]:
    """A row of a row table, with `rejected` a preference pair."""
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": chosen}]
    said = Conversation(turns, tools or [], rejected) if rejected is not None or tools else turns
    return {"row_id": row_id_of(said), "source": "made", "messages": texts_of(said), "chat": chat_of(said)}


def repeats(rows: list[dict[str, Any]], settings: Dedupe, folder: Path) -> list[tuple[int, str]]:
    """For each row which earlier one it repeats, and why."""
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), folder / "rows.parquet")
    found, _ = find_repeats(folder / "rows.parquet", settings)
    return [(partner, REASONS[reason]) for partner, reason in zip(found.partner.tolist(), found.reason, strict=True)]


def test_pairs_are_duplicates_only_if_both_answers_are_the_same(tmp_path: Path) -> None:
    rows = [
        row(LONG, "It is late.", "Who knows?"),
        row(LONG, "It is late.", "No idea."),
        row(LONG, "It is late.", "Who knows?"),
        row(LONG.replace("new", "old"), "It is late.", "Who knows?\n"),
        row(LONG.replace("new", "old"), "It is late.", "who knows?"),
        row(LONG, "It is late."),
    ]
    assert repeats(rows, Dedupe(max_removed_share=1), tmp_path) == [
        (-1, ""),
        (-1, ""),
        (0, "exact_duplicate"),
        (0, "near_duplicate"),
        (-1, ""),
        (-1, ""),
    ]


def test_pairs_that_say_the_same_in_other_words_go_only_with_the_same_rejected_answer(tmp_path: Path) -> None:
    settings = Dedupe(near=False, semantic=0.95, semantic_model=save_model(tmp_path / "model"))
    rows = [row("lost my card", "a", "b"), row("lost my plastic", "a", "c"), row("mislaid my plastic", "a", "b")]
    assert [partner for partner, _ in repeats(rows, settings, tmp_path)] == [-1, -1, 0]


@pytest.mark.parametrize("tools", [[], TOOLS])
def test_a_row_without_a_rejected_answer_has_the_hashes_that_it_had(tools: list[Tool]) -> None:
    held = {"tools": tools, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    expected = sha256("\n".join(json.dumps(tool, sort_keys=True) for tool in tools).encode()).hexdigest()
    assert answer_hash(json.dumps(held)) == expected
    assert answer_hash(json.dumps(held | {"rejected": ""})) != expected


def test_the_hash_of_a_conversation_has_its_rejected_answer() -> None:
    table = pa.Table.from_pylist([row("a", "b", rejected) for rejected in ("c", "d", None, "c")], ROW_SCHEMA)
    hashes = hashed_conversations(table["messages"], table["chat"])[2].tolist()
    assert hashes[0] == hashes[3]
    assert len({tuple(each) for each in hashes}) == 3


def test_pairs_of_one_prompt_are_in_one_split() -> None:
    texts = prompts(120, copies=0)
    rows = [row(text, *answers) for text in texts for answers in (("a", "b"), ("c", "d"))]
    rows += [row(text + " please", "e", "f") for text in texts if len(text.split()) > 20]
    by_split = in_splits(split_rows(rows, Split(test=0.3, validation=0.2)))
    found = {
        split: {each["messages"][0]["content"].removesuffix(" please") for each in rows}
        for split, rows in by_split.items()
    }
    assert all(found.values())
    assert sum(map(len, found.values())) == len(texts)
    assert sum(map(len, by_split.values())) == len(rows)
