"""Placeholder answers, outcomes of a suite on its rows, and a report that loads nothing."""

import re
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from make_payloads import EXPECTATION, make_check_results

from tunewright.artifacts import ROW_SCHEMA
from tunewright.artifacts.payloads import CheckResults
from tunewright.data_checks.batches import Ask, look_at
from tunewright.data_checks.columns import Columns, Turn, derive
from tunewright.data_checks.expectations import row_expectations
from tunewright.data_checks.profile import profile
from tunewright.data_checks.report import render, summary
from tunewright.data_checks.rules import answers_by_prompt, num_answers
from tunewright.data_checks.suite import Arguments, Entry, LengthArguments
from tunewright.data_checks.table import table_expectations
from tunewright.data_checks.validation import ExpectationOutcome, run
from tunewright.privacy.excerpts import TEXT_CHARS, excerpt, in_a_line


def said(prompt: str, answer: str) -> list[dict[str, str | None]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def placeholder(answer: str, prompt: str = "How do I reset my password?") -> str | None:
    return derive([said(prompt, answer)], ())["placeholder"][0]


@pytest.mark.parametrize(
    "answer",
    [
        *["TODO", " tbd\n", "N/A", "na", "NULL", "None", "-", "--", "...", "\u2026", "xxx", "XXXX", "???", "___"],
        *["lorem ipsum", "Lorem ipsum dolor\nsit amet", "<answer>", "<your answer here>", "[insert answer]"],
        *["[Your name]", "your answer here", "Answer here", "placeholder", "\u200bTODO\ufeff"],
        *[
            "Por definir",
            "por completar",
            "à compléter",
            "da definire",
            "noch auszufüllen",
            "(rellenar)",
            "[ausfüllen]",
        ],
        *["Tu respuesta aquí", "Votre réponse ici", "la tua risposta qui", "Ihre Antwort hier", "sua resposta aqui"],
    ],
)
def test_a_whole_answer_that_stands_for_another_is_a_placeholder(answer: str) -> None:
    assert placeholder(answer)


@pytest.mark.parametrize(
    "answer",
    [
        *[
            "no",
            "No.",
            "0",
            "yes",
            "x",
            "xx",
            ".",
            "?",
            "*",
            "{}",
            "[]",
            "[1, 2]",
            "<b>answer</b>",
            "Nana",
            "Nulla",
            "C",
        ],
        *[
            "TODO lists help.",
            "The answer is lorem ipsum.",
            "[add(1, 2)]",
            "Placeholder text is filler.",
            "none of them",
            *("todo", "Todo", "pendiente", "Pendiente", "completar", "rellenar"),
        ],
    ],
)
def test_a_short_answer_that_says_something_is_none(answer: str) -> None:
    assert placeholder(answer) is None


def test_a_word_that_the_prompt_offers_is_an_honest_answer() -> None:
    assert placeholder("none", "Which city is named? Answer with the city or none.") is None
    assert placeholder("N/A", "Reply 'n/a' where nothing fits.") is None
    assert placeholder("none", "Nonetheless, which city?") == "none"
    assert placeholder("<answer>", "Reply as <answer>.") == "<answer>"


def test_the_columns_of_a_row_without_turns_are_empty() -> None:
    columns = derive([[], None], ("<|im_end|>",))
    assert columns["num_turns"].tolist() == [0, 0]
    assert columns[["shortest_answer", "placeholder", "special_token"]].isna().all(axis=None)


def test_special_tokens_are_found_as_they_are_written_and_none_where_there_are_none() -> None:
    texts = [said("a|b", "[INST] (x)"), said("a", "a.b")]
    assert derive(texts, ("[INST]", "", "a.b"))["special_token"].tolist() == ["[INST]", "a.b"]
    assert derive(texts, ())["special_token"].isna().all()


EMPTY_ANSWER = Entry("empty_answer", "warning", Arguments())


def outcomes_of(conversations: list[Any], *entries: Entry) -> list[ExpectationOutcome]:
    frame = derive(conversations, ("<|im_end|>",))
    return run(frame, row_expectations(entries, frame))


def test_all_failing_rows_are_named_past_the_twenty_at_which_lists_are_cut() -> None:
    (outcome,) = outcomes_of([said("a", "b"), *[said("a", " ")] * 300], EMPTY_ANSWER)
    assert (outcome.evaluated, outcome.failed) == (301, 300)
    assert outcome.rows.tolist() == list(range(1, 301))


def test_lengths_at_the_bounds_pass_and_one_beyond_fails() -> None:
    bounds = LengthArguments(max_prompt_chars=100, min_answer_chars=1, max_answer_chars=50)
    rows = [said("p" * 100, "a" * 50), said("p", "a"), said("p" * 101, "a"), said("p", ""), said("p", "a" * 51)]
    outcomes = outcomes_of(rows, Entry("length_out_of_bounds", "warning", bounds))
    assert [outcome.rows.tolist() for outcome in outcomes] == [[2], [3], [4], []]


def test_a_missing_column_is_an_error_of_its_own_and_no_ordinary_failure() -> None:
    outcomes = run(pd.DataFrame({"row_id": ["a"], "num_turns": [2]}), table_expectations(ROW_SCHEMA))
    by_fault = {outcome.fault: outcome for outcome in outcomes}
    assert by_fault["row_id is null"].failed == 0
    assert by_fault["row_id is null"].error == ""
    assert "does not exist" in by_fault["line is null"].error


def batch_of(conversations: list[Any]) -> pd.DataFrame:
    rows = [{"row_id": str(n), "source": "s", "messages": given} for n, given in enumerate(conversations)]
    (batch,) = pa.Table.from_pylist(rows, ROW_SCHEMA).to_batches()
    return look_at(batch, Ask(frozenset(Columns._fields), ())).columns.to_pandas(types_mapper=pd.ArrowDtype)


def test_prompts_with_several_answers_are_found_once_and_repeated_rows_are_not() -> None:
    rows = [said("a", "1"), said("b", "1"), said("a", "2"), said("a", "1"), said("b", "1"), said("a", "3")]
    frame = batch_of(rows)
    assert num_answers(frame).tolist() == [3, 1, 3, 3, 1, 3]
    assert answers_by_prompt(frame[num_answers(frame) > 1], 5) == [[0, 2, 5]]


def test_a_row_without_a_prompt_or_without_an_answer_conflicts_with_none() -> None:
    frame = batch_of([said("", "1")[1:], said("", "2")[1:], said("a", "")[:1], [], None])
    assert num_answers(frame).isna().all()


def test_a_prompt_is_another_where_its_roles_are() -> None:
    asked = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    other = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    answers = [[*asked, *said("", "1")[1:]], [*other, *said("", "2")[1:]]]
    assert num_answers(batch_of(answers)).tolist() == [1, 1]


def test_a_row_without_messages_has_no_number_of_turns_and_one_without_turns_has_none() -> None:
    assert batch_of([None, []])["num_turns"].fillna(-1).tolist() == [-1, 0]


def test_an_excerpt_of_many_turns_is_short_and_hides_what_a_turn_holds() -> None:
    key = "AKIA" + "Q7RT2MWZ9XKB4VN6"
    turn: Turn = {"role": "user", "content": f"{'x' * 999} {key}"}
    text = excerpt([turn] * 40)
    assert len(text) <= TEXT_CHARS
    assert "xx" not in text
    assert key not in in_a_line(f"a\nb {key}")
    assert in_a_line("a\n b") == "a b"


def test_a_long_turn_of_an_excerpt_has_the_room_that_short_ones_leave() -> None:
    asked, answered = "where is it? " * 33, "lost"
    text = excerpt([{"role": "user", "content": asked}, {"role": "assistant", "content": answered}])
    assert text == f"user: {asked}\nassistant: {answered}"
    shown = excerpt([{"role": "user", "content": asked * 2}, {"role": "assistant", "content": answered * 2}])
    assert shown.endswith("\nassistant: lostlost") and "…" in shown and TEXT_CHARS - 20 < len(shown) <= TEXT_CHARS


EXAMPLE = {"file": "a.jsonl", "line": 1, "reason": "bad_json", "detail": "no JSON", "text": "{"}


def page(conversations: list[Any], labels: dict[str, int] | None = None, **given: Any) -> str:
    results = make_check_results(**{name: given.pop(name) for name in list(given) if name in CheckResults.model_fields})
    described = batch_of(conversations)
    counted = profile(described, labels, described["source"])
    return render(results, counted, None, **{"examples": {}, "found": {}, "conflicts": []} | given)


def test_what_stands_in_the_data_is_escaped_in_the_report() -> None:
    attack = "<script>alert('x')</script>"
    attacked = {"name": attack, "kept": 1, "quarantined": 1}
    record = {"file": f"{attack}.jsonl", "line": 1, "reason": attack, "detail": attack, "text": attack}
    conflict = {"prompt": attack, "num_answers": 2, "answers": [record]}
    fact = EXPECTATION | {"name": "conflicting_answers"}
    html = page(
        [said("a", "b")],
        {attack: 1, "b": 1},
        reasons={"ingest": {attack: 1}, "check": {}},
        files=[attacked | {"sources": [attacked]}],
        expectations=[EXPECTATION, fact],
        examples={attack: [record]},
        found={"secrets secret": [record]},
        conflicts=[conflict],
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 14


def test_the_report_loads_nothing_and_forbids_it() -> None:
    html = page([said("see http://example.org/a.png", "b")])
    assert not re.search(r"(src|href)\s*=|url\(|@import|<link|<script", html)
    assert "default-src 'none'" in html


def test_the_report_clips_what_it_shows() -> None:
    html = page([said("a", "b")], examples={"bad_json": [EXAMPLE | {"text": "t" * 5_000}]})
    assert "t" * 399 in html
    assert "t" * 401 not in html


def test_the_report_of_rows_without_an_answer_has_no_answer_lengths() -> None:
    assert page([said("a", "b")[:1]]).count("<svg") == 1


def test_the_report_says_that_nothing_was_found_and_nothing_quarantined() -> None:
    html = page([said("a", "b")], expectations=[EXPECTATION | {"failed": 0}], reasons={"ingest": {}, "check": {}})
    assert "No row was quarantined." in html
    assert "No findings.</div>" in html


def test_the_summary_accounts_for_all_records_and_escapes_what_it_names() -> None:
    fact = EXPECTATION | {"fault": "<b>|*x*"}
    since = {"version": "k", "before": 9, "added": 2, "removed": 1, "drift": {}}
    text = summary(make_check_results(expectations=[fact], since=since))
    assert text.startswith("3 records read = 1 passed + 1 quarantined by ingest + 1 quarantined by check\n")
    assert "| bad_json | ingest | 1 |" in text
    assert "- **secrets**: &lt;b&gt;&#124;&#42;x&#42;, 1 row\n" in text
    assert "Since the last accepted version of 9 rows: 2 added, 1 removed." in text
