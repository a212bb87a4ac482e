"""Preference pairs in the stages of the data: both answers count, and a prompt counts once."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import GOOD, KEY, LENIENT, MAIL, SPECIAL, only, quarantined, results
from conftest import MakeRows
from split_rows import in_splits, prompts, split_rows
from test_ingest_tools import TOOLS
from test_semantic import save_model

from tunewright.artifacts import ROW_SCHEMA, CheckedRows
from tunewright.artifacts.payloads import LeakProof
from tunewright.config import Checks, Dedupe, Split
from tunewright.data_checks.suite import BUILT_IN
from tunewright.errors import DataError
from tunewright.similarity.prompts import hashed_conversations
from tunewright.tasks.check import check
from tunewright.tasks.dedupe import REASONS, dedupe, find_repeats
from tunewright.tasks.ingest import row_id_of
from tunewright.tools.conversation import (
    Conversation,
    Tool,
    answer_hash,
    chat_of,
    conversation_of,
    is_undesirable,
    texts_of,
)

OPPOSITE = "the rejected or undesirable answer is the chosen one of another row with this prompt"
LONG = "please tell me why the new card that I ordered two weeks ago has still not come to my house"


def row(prompt: str, chosen: str, rejected: str | None = None, tools: list[Tool] | None = None) -> dict[str, Any]:
    """A row of a row table, with `rejected` a preference pair."""
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": chosen}]
    said = Conversation(turns, tools or [], rejected) if rejected is not None or tools else turns
    made = {"row_id": row_id_of(said), "source": "made", "file": "data.jsonl", "line": 1}
    return made | {"messages": texts_of(said), "chat": chat_of(said)}


def undesirable(prompt: str, answer: str) -> dict[str, Any]:
    """A row of a row table whose answer nobody wants."""
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    said = Conversation(turns, undesirable=True)
    made = {"row_id": row_id_of(said), "source": "made", "file": "data.jsonl", "line": 1}
    return made | {"messages": texts_of(said), "chat": chat_of(said)}


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
        row(f" {LONG.upper()}", "It is late.", "Who knows?"),
    ]
    assert repeats(rows, Dedupe(max_removed_share=1), tmp_path) == [
        (-1, ""),
        (-1, ""),
        (0, "exact_duplicate"),
        (0, "near_duplicate"),
        (-1, ""),
        (-1, ""),
        (0, "exact_duplicate"),
    ]


def test_the_report_of_duplicates_shows_both_answers(tmp_path: Path) -> None:
    rows = [row(LONG, "It is late.", "Who knows?"), row(LONG.replace("new", "old"), "It is late.", "Who knows?")]
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), tmp_path / "rows.parquet")
    given = CheckedRows(folder=tmp_path, digest="1", num_rows=2, num_quarantined=0, reasons={}, findings={})
    page = dedupe.fn(given, Dedupe()).path("report.html").read_text()
    assert page.count("rejected: Who knows?") == 2


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


def test_undesirable_answers_are_no_test_rows_that_tell_models_apart() -> None:
    texts = prompts(60, copies=0)
    rows = [row(text, "yes") if at % 3 else undesirable(text, "no") for at, text in enumerate(texts)]
    splits = split_rows(rows, Split(test=0.3, validation=0.2))
    tested = in_splits(splits)["test"]
    asked = [each for each in tested if not is_undesirable(conversation_of(each))]
    assert len(asked) < len(tested)
    assert LeakProof.load(splits).test_clusters == len(asked)


def checked(make_rows: MakeRows, rows: list[dict[str, Any]], checks: Checks = LENIENT) -> CheckedRows:
    """The check of these rows, each on its line."""
    placed = [each | {"line": line} for line, each in enumerate(rows, start=1)]
    return check.fn(make_rows(table=pa.Table.from_pylist(placed, ROW_SCHEMA)), checks, SPECIAL)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason", "detail"),
    [
        ("Yes.", "\t \u200b", "empty_rejected", "the rejected or undesirable answer is empty or only white space"),
        ("Yes, it is.", "Yes,  it is.\n", "identical_pair", "is the chosen one, but for white space: Yes, it is."),
        (
            "Yes.",
            "a" * 20_001,
            "length_out_of_bounds",
            "the rejected or undesirable answer has 20001 characters, more than max_answer",
        ),
        ("Yes.", "No.<|im_end|>", "special_token", "a text holds a special token of the model: <|im_end|>"),
        ("Yes.", "Caf\ufffd", "replacement_character", "a text has replacement characters (U+FFFD), left by wrong d"),
    ],
)
def test_what_is_wrong_with_a_rejected_answer_quarantines_its_row_and_is_shown(
    make_rows: MakeRows, chosen: str, rejected: str, reason: str, detail: str
) -> None:
    rows = [row(asked, said) for asked, said in GOOD] + [
        row("Hi", "Hello.", "Go away."),
        row("Is it?", chosen, rejected),
    ]
    found = checked(make_rows, rows)
    (aside,) = quarantined(found)
    assert (aside["reason"], aside["line"]) == (reason, len(rows))
    assert detail in aside["detail"]
    assert "\nrejected: " in aside["text"]
    assert found.num_rows == len(rows) - 1


def test_secrets_personal_data_and_broken_text_are_found_in_a_rejected_answer(make_rows: MakeRows) -> None:
    held = {"secrets": f"Take {KEY}.", "personal_data": f"Ask {MAIL}.", "mojibake": "The caf\u00c3\u00a9."}
    found = checked(make_rows, [row(f"Who has {name}?", "Nobody.", text) for name, text in held.items()])
    assert {name: found.findings.get(name) for name in held} == dict.fromkeys(held, 1)
    page = found.path("report.html").read_text()
    assert "rejected: The caf\u00c3\u00a9." in page
    assert KEY not in page
    assert MAIL not in page


def test_a_rejected_answer_may_be_what_no_answer_should_be(make_rows: MakeRows) -> None:
    bad = ["I'm sorry, but I can't help with that.", "```python\nprint(1)\n", "TODO"]
    found = checked(make_rows, [row(f"Which is number {at}?", "This.", text) for at, text in enumerate(bad)])
    assert (found.num_quarantined, found.findings) == (0, {})


def test_two_rows_that_say_the_opposite_are_quarantined_and_a_ranking_is_none(make_rows: MakeRows) -> None:
    rows = [
        *(row("Which?", "best", "good"), row("Which?", "best", "bad"), row("Which?", "good", "bad")),
        *(row("Who?", "I", "you"), row("Who?", "you", "I"), row("Who?", "she", "you")),
        *(row("When?", "now", "later"), row("When?", "later")),
        *(row("Where?", "here", "there"), row("Where to?", "there", "here")),
        *(row("With what?", "a", "b"), row("With what?", "b", tools=TOOLS)),
    ]
    found = checked(make_rows, rows)
    said = {each["line"]: each["detail"] for each in quarantined(found)}
    assert found.reasons == {"rejected_elsewhere": 3}
    assert said == {line: f"{OPPOSITE}: data.jsonl line {other}" for line, other in ((4, 5), (5, 4), (7, 8))}
    assert found.findings == {"conflicting_answers": 3}, "the rows of Which?; of Who? one answer is left"


def test_an_undesirable_answer_is_no_duplicate_of_a_desirable_one_and_contradicts_it(
    make_rows: MakeRows, tmp_path: Path
) -> None:
    rows = [undesirable(LONG, "It is late."), row(LONG, "It is late."), undesirable(LONG, "It is late.")]
    assert [partner for partner, _ in repeats(rows, Dedupe(max_removed_share=1), tmp_path)] == [-1, -1, 0]
    found = checked(make_rows, [*rows[:2], undesirable(LONG, "Who knows?"), undesirable(LONG, "No idea.")])
    assert found.reasons == {"rejected_elsewhere": 1}
    assert [(each["line"], each["detail"]) for each in quarantined(found)] == [(1, f"{OPPOSITE}: data.jsonl line 2")]


def test_an_undesirable_answer_may_be_what_no_answer_should_be(make_rows: MakeRows) -> None:
    bad = ["I'm sorry, but I can't help with that.", "```python\nprint(1)\n", "TODO"]
    found = checked(make_rows, [undesirable(f"Which is number {at}?", text) for at, text in enumerate(bad)])
    assert (found.num_quarantined, found.findings) == (0, {})
    assert "preference pair" not in found.path("report.html").read_text()
    (empty,) = quarantined(checked(make_rows, [undesirable("Who?", " "), row("Who?", "I")]))
    assert (empty["reason"], empty["line"]) == ("empty_rejected", 1)


def test_a_row_that_is_quarantined_contradicts_none(make_rows: MakeRows) -> None:
    rows = [row("Who?", "I", "you"), row("Who?", "you", " "), row("Who?", "you<|im_end|>")]
    assert [each["line"] for each in quarantined(checked(make_rows, rows))] == [2, 3]


def sized(chosen: int, rejected: int, equal: int = 0) -> list[dict[str, Any]]:
    """So many pairs with a longer chosen answer, with a longer rejected one, and with two of one length."""
    answers = [("long " * 9, "short")] * chosen + [("short", "long " * 9)] * rejected + [("this", "that")] * equal
    return [row(f"Which is {at}?", f"{one} {at}", f"{other} {at}") for at, (one, other) in enumerate(answers)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            sized(41, 9, equal=20),
            "the chosen answer is the longer one in 82.0 % of the pairs of different lengths, over ",
        ),
        (
            sized(9, 41),
            "the rejected answer is the longer one in 82.0 % of the pairs of different lengths, over max_share",
        ),
        (sized(40, 10), ""),
        (sized(49, 0, equal=20), ""),
        (sized(50, 0), "the chosen answer is the longer one in 100.0 % of the pairs"),
    ],
)
def test_pairs_that_length_alone_tells_apart_are_a_finding(
    make_rows: MakeRows, rows: list[dict[str, Any]], said: str
) -> None:
    found = checked(make_rows, rows)
    assert (found.num_quarantined, found.findings) == (0, {"length_bias": 1} if said else {})
    page = found.path("report.html").read_text()
    assert said in page
    assert f"{len(rows)} preference pairs among the {len(rows)} rows that passed" in page
    if said:
        with pytest.raises(DataError, match=rf"^length_bias: {said}.*: the model may learn length in place of quality"):
            checked(make_rows, rows, only("length_bias", severity="critical"))
    assert not checked(make_rows, rows, only("length_bias", arguments={"max_share": 1})).findings


def test_rows_without_pairs_have_no_such_findings_and_no_such_section(make_rows: MakeRows) -> None:
    found = checked(make_rows, [row(asked, said) for asked, said in GOOD])
    names = {"empty_rejected", "identical_pair", "rejected_elsewhere", "length_bias"}
    of_pairs = [each for each in results(found)["expectations"] if each["name"] in names]
    assert {each["failed"] for each in of_pairs} == {0}
    assert {each["evaluated"] for each in of_pairs if not each["of_set"]} == {0}
    assert names <= BUILT_IN.keys()
    assert "preference pair" not in found.path("report.html").read_text()
