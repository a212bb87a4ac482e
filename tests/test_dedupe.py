"""A row goes only if a row that stays says the same, and the removal proves it."""

import html
import json
import random
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from similarity_reference import shingles

from tunewright.artifacts import REMOVED_SCHEMA, ROW_SCHEMA, CheckedRows, UniqueRows
from tunewright.config import Dedupe
from tunewright.errors import DataError
from tunewright.similarity.prompts import FEWEST_WORDS
from tunewright.tasks.dedupe import REASONS, dedupe, find_repeats

LONG = "please tell me why the new card that I ordered two weeks ago has still not come to my house"
VOCABULARY = [
    "card",
    "order",
    "money",
    "back",
    "please",
    "where",
    "when",
    "lost",
    "help",
    "late",
    "twice",
    "app",
    "fee",
]
KEEP_ALL = Dedupe(max_removed_share=1)


class Repeat(NamedTuple):
    partner: int
    reason: str
    similarity: float


def chat(prompt: str, answer: str = "card_arrival") -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def repeats_of(conversations: list[list[dict[str, str]]], settings: Dedupe = KEEP_ALL) -> dict[int, Repeat]:
    rows = [{"messages": conversation} for conversation in conversations]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), file)
        found, _ = find_repeats(file, settings)
    columns = (found.partner.tolist(), [REASONS[reason] for reason in found.reason], found.similarity.tolist())
    return {row: Repeat(*repeat) for row, repeat in enumerate(zip(*columns, strict=True)) if repeat[1]}


def removed_rows(conversations: list[list[dict[str, str]]], settings: Dedupe = KEEP_ALL) -> dict[int, tuple[int, str]]:
    return {row: repeat[:2] for row, repeat in repeats_of(conversations, settings).items()}


@pytest.fixture
def checked(tmp_path: Path, write_rows: Any) -> Any:
    def make(conversations: list[list[dict[str, str]]]) -> CheckedRows:
        write_rows(tmp_path / "checked" / "rows.parquet", conversations)
        digest = str(hash(json.dumps(conversations)))
        return CheckedRows(
            folder=tmp_path / "checked",
            digest=digest,
            num_rows=len(conversations),
            num_quarantined=0,
            reasons={},
            findings={},
        )

    return make


def messy(seed: int, num_rows: int = 200) -> list[list[dict[str, str]]]:
    """Prompts of 1 to 30 words, half of them edited copies of an earlier row, some with another answer."""
    rng = random.Random(seed)
    rows: list[list[dict[str, str]]] = []
    for _ in range(num_rows):
        if rows and rng.random() < 0.5:
            said = rng.choice(rows)[0]["content"].split()
            if rng.random() < 0.7:
                said[rng.randrange(len(said))] = rng.choice(VOCABULARY)
        else:
            said = [rng.choice(VOCABULARY) for _ in range(rng.randint(1, 30))]
        rows.append(chat(" ".join(said), rng.choice(["a", "b"])))
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_every_removal_names_a_kept_earlier_row_and_its_true_similarity(seed: int) -> None:
    rows = messy(seed)
    repeats = repeats_of(rows)
    assert {repeat.reason for repeat in repeats.values()} == {"exact_duplicate", "near_duplicate"}
    for row, repeat in repeats.items():
        assert repeat.partner < row
        assert repeat.partner not in repeats
        one, other = (shingles(rows[i][0]["content"]) for i in (row, repeat.partner))
        assert repeat.similarity == len(one & other) / len(one | other) >= KEEP_ALL.threshold
        assert rows[row][-1] == rows[repeat.partner][-1]


@pytest.mark.parametrize("seed", range(5))
def test_no_long_kept_row_is_close_to_an_earlier_kept_row_with_its_answer(seed: int) -> None:
    rows = messy(seed)
    repeats = repeats_of(rows)
    kept = [
        row for row in range(len(rows)) if row not in repeats and len(rows[row][0]["content"].split()) >= FEWEST_WORDS
    ]
    for position, row in enumerate(kept):
        for earlier in kept[:position]:
            one, other = shingles(rows[row][0]["content"]), shingles(rows[earlier][0]["content"])
            assert len(one & other) / len(one | other) < KEEP_ALL.threshold or rows[row][-1] != rows[earlier][-1]


@given(st.lists(st.tuples(st.lists(st.sampled_from(VOCABULARY[:3]), max_size=12), st.sampled_from("ab")), max_size=20))
@settings(max_examples=50, deadline=None)
def test_removing_twice_removes_nothing_more(given_rows: list[tuple[list[str], str]]) -> None:
    rows = [chat(" ".join(said), answer) for said, answer in given_rows]
    removed = removed_rows(rows)
    kept = [conversation for row, conversation in enumerate(rows) if row not in removed]
    assert removed_rows(kept) == {}


def test_case_and_white_space_are_an_exact_duplicate_and_a_changed_word_a_near_one() -> None:
    rows = [chat(LONG), chat(f" {LONG.upper()}\n", "card_arrival \n"), chat(LONG.replace("house", "flat"))]
    assert removed_rows(rows) == {1: (0, "exact_duplicate"), 2: (0, "near_duplicate")}
    assert removed_rows(rows, Dedupe(near=False)) == {1: (0, "exact_duplicate")}
    assert removed_rows(rows, Dedupe(threshold=1)) == {1: (0, "exact_duplicate")}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("for x in y:\n    f(x)\n    return x", "for x in y:\n    f(x)\nreturn x"),
        ("    return x", "return x"),
        ("SELECT 'Open'", "SELECT 'open'"),
        ("Größe", "größe"),
        ("a  b", "a b"),
        ("a\tb", "a b"),
        ("1", "\uff11"),
    ],
)
def test_answers_that_differ_in_case_or_indentation_are_different(one: str, other: str) -> None:
    assert removed_rows([chat(LONG, one), chat(LONG, other), chat(LONG.replace("house", "flat"), other)]) == {
        2: (1, "near_duplicate")
    }
    assert removed_rows([chat(LONG, one), chat(LONG.upper(), f"{one} \n")]) == {1: (0, "exact_duplicate")}


def test_the_kind_of_line_break_makes_no_other_answer() -> None:
    assert removed_rows([chat(LONG, "a\nb\r"), chat(LONG, "a\r\nb")]) == {1: (0, "exact_duplicate")}
    assert removed_rows([chat(LONG, "a\nb"), chat(LONG, "a\rb")]) == {}


def test_a_duplicate_of_a_removed_row_repeats_the_row_that_stays() -> None:
    changed = LONG.replace("house", "flat")
    rows = [chat(LONG), chat(changed), chat(changed), chat(f"{changed}!")]
    assert removed_rows(rows) == dict.fromkeys((1, 2, 3), (0, "near_duplicate"))


def test_a_chain_of_small_changes_does_not_remove_what_is_far_from_all_kept_rows() -> None:
    chain = [LONG.split()]
    for position in range(1, 19, 3):
        chain.append([*chain[-1][:position], f"new{'x' * position}", *chain[-1][position + 1 :]])
    removed = removed_rows([chat(" ".join(said)) for said in chain])
    assert removed
    assert len(removed) < len(chain) - 1


def test_rows_that_differ_in_a_number_stay() -> None:
    tale = "Anna has {} apples and gives {} of them to her friend who lives {} streets away, how many are left"
    rows = [chat(tale.format(5, 2, 9), "3"), chat(tale.format(6, 3, 9), "3"), chat(tale.format(9, 5, 2), "3")]
    assert removed_rows(rows) == {}
    sums = [f"Please work out for me on paper what the sum 2 {sign} 2 is now" for sign in "+*"]
    assert removed_rows([chat(text, "4") for text in sums]) == {}


def test_rows_that_differ_in_their_answer_stay() -> None:
    assert removed_rows([chat(LONG, "card_arrival"), chat(LONG, "card_lost")]) == {}


def test_only_the_last_answer_and_what_stands_before_it_are_compared() -> None:
    earlier = chat("Hello, I have a question about something", "Of course, what would you like to know?")
    rows = [[*earlier, *chat(LONG)], [*earlier, *chat(LONG.replace("house", "flat"))], chat(LONG)]
    assert removed_rows(rows) == {1: (0, "near_duplicate")}


def test_in_a_short_prompt_every_word_counts() -> None:
    rows = [chat("how do I get a new card"), chat("why do I get a new card"), chat("How do I get a new card?")]
    assert removed_rows(rows) == {2: (0, "near_duplicate")}


def test_a_sentence_that_was_boilerplate_stays_so_where_unrelated_rows_come(checked: Any) -> None:
    greeting = "Good morning, I hope that you can help me with my order of last week."
    pairs = [f"{one} {other}" for one in VOCABULARY for other in VOCABULARY if one != other]
    old = [chat(f"{greeting}\n{text}") for text in pairs[:12]]
    new = [chat(text) for text in pairs[12:]]
    settings = Dedupe(boilerplate_share=0.1)
    first = dedupe.fn(checked(old), settings)
    assert (first.num_removed, first.boilerplate) == (0, (greeting.casefold(),))
    grown = checked([*old, *new])
    assert dedupe.fn(grown, settings).boilerplate == ()
    kept = dedupe.fn(grown, settings, earlier=first)
    assert kept.boilerplate == first.boilerplate
    assert dedupe.fn(grown, Dedupe(boilerplate_share=0.2), earlier=first).boilerplate == (), "by the new setting"
    assert dedupe.fn(checked(new), settings, earlier=kept).boilerplate == (), "no row has it"


def test_an_instruction_that_all_rows_share_removes_nothing(checked: Any) -> None:
    instruction = (
        "Classify the customer message below into exactly one of the intents that the bank has defined. "
        "Answer with the label of the intent only."
    )
    own = [f"{one} {other}" for one in VOCABULARY for other in VOCABULARY if one != other]
    rows = checked([chat(f"{instruction}\n\n{text}") for text in own])
    unique = dedupe.fn(rows, Dedupe())
    assert unique.num_removed == 0
    assert unique.boilerplate == (
        "answer with the label of the intent only.",
        "classify the customer message below into exactly one of the intents that the bank has defined.",
    )
    with pytest.raises(DataError, match=r"dedupe\.max_removed_share=0\.5"):
        dedupe.fn(rows, Dedupe(boilerplate_share=1))


def test_reported_boilerplate_is_short_and_what_split_reads_is_whole(checked: Any) -> None:
    lines = [f"{'long ' * 60}line {'x' * i}" for i in range(30)]
    rows = [chat("\n".join([*lines, f"own{'y' * i} text"])) for i in range(12)]
    unique = dedupe.fn(checked(rows), Dedupe())
    assert len(unique.boilerplate) == 20
    assert max(len(line) for line in unique.boilerplate) == 200
    assert len(json.loads(unique.path("boilerplate.json").read_text())["sentences"]) == 30


def test_rows_add_up_keep_their_order_and_have_their_schema(checked: Any) -> None:
    unique: UniqueRows = dedupe.fn(checked(messy(7)), KEEP_ALL)
    kept, removed = pq.read_table(unique.path("rows.parquet")), pq.read_table(unique.path("removed.parquet"))
    assert kept.schema == ROW_SCHEMA
    assert removed.schema == REMOVED_SCHEMA
    assert kept.num_rows == unique.num_rows
    assert removed.num_rows == unique.num_removed == sum(unique.reasons.values())
    assert sorted(kept["line"].to_pylist() + removed["line"].to_pylist()) == list(range(1, 201))
    assert kept["line"].to_pylist() == sorted(kept["line"].to_pylist())
    line_of = dict(zip(kept["row_id"].to_pylist(), kept["line"].to_pylist(), strict=True))
    for row in removed.to_pylist():
        assert line_of[row["partner_row_id"]] == row["partner_line"] < row["line"]


def test_too_many_removals_stop_with_the_count_the_first_and_the_setting(checked: Any) -> None:
    with pytest.raises(DataError) as stopped:
        dedupe.fn(checked([chat(LONG)] * 4), Dedupe(max_removed_share=0.5))
    said, _, place = str(stopped.value).partition("; see ")
    assert said == (
        "3 of 4 rows repeat an earlier one, more than dedupe.max_removed_share=0.5 accepts; "
        "the first is data.jsonl:2, which repeats data.jsonl:1 (similarity 1.00)"
    )
    assert "3 of 4 rows repeat an earlier one" in Path(place).read_text()
    assert pq.read_table(Path(place).with_name("removed.parquet"))["line"].to_pylist() == [2, 3, 4]


def similar_rows(number: int) -> list[Any]:
    """So many pairs of rows with sixty words, of which the last, from one to `number`, differ."""
    rows = []
    for pair in range(1, number + 1):
        words = [f"{'ab'[pair % 2]}{one}{'x' * pair}{other}" for one in VOCABULARY[:6] for other in VOCABULARY[:10]]
        changed = [*words[:-pair], *(f"{word}y" for word in words[-pair:])]
        rows += [chat(" ".join(words)), chat(" ".join(changed))]
    return rows


def test_the_page_shows_the_pairs_nearest_to_the_threshold_with_both_rows(checked: Any) -> None:
    unique = dedupe.fn(checked(similar_rows(14)), KEEP_ALL)
    near = sorted(pq.read_table(unique.path("removed.parquet")).to_pylist(), key=lambda row: row["similarity"])
    assert [row["reason"] for row in near] == ["near_duplicate"] * 14
    page = html.unescape(unique.path("report.html").read_text())
    assert [float(found) for found in re.findall(r"similarity (\d\.\d+)</p>", page)] == [
        pytest.approx(row["similarity"], abs=5e-4) for row in near[:10]
    ]
    for row in near[:10]:
        assert f"<b>Removed</b> <code>{row['file']}</code> line {row['line']}</p><pre>user: " in page
        assert f"<b>Kept</b> <code>{row['partner_file']}</code> line {row['partner_line']}</p><pre>user: " in page
    table = re.findall(r"<tr><td>(\d\.\d\d) to \d\.\d\d</td><td class=\"number\">(\d+)</td>", page)
    assert sum(int(number) for _, number in table) == len(near)
    assert float(table[0][0]) == 0.6, "from the threshold up"
    assert "raise <code>dedupe.threshold</code> (0.6)" in page


def test_the_page_of_duplicates_runs_steers_and_tells_nothing(checked: Any) -> None:
    rows = [chat(f"<script>alert(1)</script> \x1b]52;c\x07 \u202e {LONG} {last}") for last in ("now", "soon")]
    rows += [chat(f"write to jane.doe@gmail.com {LONG} {last}") for last in ("now", "soon")]
    unique = dedupe.fn(checked(rows), KEEP_ALL)
    page = unique.path("report.html").read_text()
    assert page.count("similarity 0.") == 2
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("\u241b]52;c\u2407 \ufffd") == 2
    assert not {*"\x1b\x07\u202e"} & {*page}
    assert "jane.doe" not in page
    assert page.count("(not shown, it holds: ") == 2


def test_the_page_shows_the_first_exact_duplicates_last(checked: Any) -> None:
    rows = [chat(f"{LONG} now"), *[chat(f"What is {name}?") for name in "abcdefghijkl" for _ in range(2)]]
    unique = dedupe.fn(checked([*rows, chat(f"{LONG} soon")]), KEEP_ALL)
    page = unique.path("report.html").read_text()
    near, exact = page.split("<h2>Exact duplicates</h2>")
    assert (near.count("<b>Removed</b>"), exact.count("<b>Removed</b>")) == (1, 10)
    assert "The first 10 pairs." in exact
    assert "<pre>user: What is a?" in exact
    assert "similarity" not in exact


def test_no_rows_are_no_error(checked: Any) -> None:
    assert dedupe.fn(checked([]), Dedupe()).num_rows == 0


def test_what_is_written_about_rows_holds_no_secret(checked: Any) -> None:
    secret = "AKIA" + "QYLPMN5HHHFPZAM2"
    own = [f"{one} {other}" for one in VOCABULARY for other in VOCABULARY if one != other]
    rows = [chat(f"The key of our store is {secret}.\n{text}", "a") for text in [*own, own[0]]]
    unique = dedupe.fn(checked(rows), KEEP_ALL)
    assert unique.num_removed
    assert unique.boilerplate
    written = [path for path in unique.folder.iterdir() if path.name != "rows.parquet"]
    removed = pq.read_table(unique.path("removed.parquet")).to_pylist()
    assert (
        secret.lower() not in (str(removed) + "".join(p.read_text() for p in written if p.suffix != ".parquet")).lower()
    )


def test_a_row_that_is_given_to_an_evaluation_split_stays_wherever_its_source_stands(tmp_path: Path) -> None:
    near = LONG.replace("house", "flat")
    rows = [
        {"messages": chat(text), "use_as": use_as} for text, use_as in ((LONG, None), (LONG, "test"), (near, "test"))
    ]
    pq.write_table(pa.Table.from_pylist([*rows, {"messages": chat(near)}], ROW_SCHEMA), tmp_path / "rows.parquet")
    found, _ = find_repeats(tmp_path / "rows.parquet", KEEP_ALL)
    assert found.stays.tolist() == [True, True, True, False]
