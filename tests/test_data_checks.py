"""What an answer is worth, what a suite says of its rows, and a report that loads nothing."""

import re
from typing import Any, get_args

import pandas as pd
import pytest

from data_checks.columns import derive
from data_checks.expectations import row_expectations, table_expectations
from data_checks.findings import conflicting_answers
from data_checks.report import render
from data_checks.suite import Outcome, run
from tasks.artifacts import ROW_SCHEMA
from tasks.config import Expectation

BOUNDS = {"max_prompt_chars": 100, "min_answer_chars": 1, "max_answer_chars": 50}


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


def test_every_code_that_can_be_configured_has_an_expectation_in_the_given_order() -> None:
    codes = get_args(Expectation)[::-1]
    found = [str((expectation.meta or {})["code"]) for expectation in row_expectations(codes, **BOUNDS)]
    assert list(dict.fromkeys(found)) == list(codes)


def outcomes_of(conversations: list[Any], codes: tuple[str, ...] = get_args(Expectation)) -> list[Outcome]:
    return run(derive(conversations, ("<|im_end|>",)), row_expectations(codes, **BOUNDS))


def test_all_failing_rows_are_named_past_the_twenty_at_which_lists_are_cut() -> None:
    outcome = outcomes_of([said("a", "b"), *[said("a", " ")] * 300], ("empty_answer",))[0]
    assert (outcome.evaluated, outcome.failed, outcome.share) == (301, 300, 300 / 301)
    assert outcome.rows.tolist() == list(range(1, 301))


def test_lengths_at_the_bounds_pass_and_one_beyond_fails() -> None:
    rows = [said("p" * 100, "a" * 50), said("p", "a"), said("p" * 101, "a"), said("p", ""), said("p", "a" * 51)]
    assert [outcome.rows.tolist() for outcome in outcomes_of(rows, ("length_out_of_bounds",))] == [[2], [3], [4]]


def test_a_missing_column_is_an_error_of_its_own_and_no_ordinary_failure() -> None:
    outcomes = run(pd.DataFrame({"row_id": ["a"]}), table_expectations(ROW_SCHEMA))
    by_fault = {outcome.fault: outcome for outcome in outcomes}
    assert by_fault["column row_id is missing"].failed == 0
    assert by_fault["column messages is missing"].failed == 1
    assert "does not exist" in by_fault["messages is null"].error


def test_prompts_with_several_answers_are_found_once_and_repeated_rows_are_not() -> None:
    rows = [said("a", "1"), said("b", "1"), said("a", "2"), said("a", "1"), said("b", "1"), said("a", "3")]
    assert conflicting_answers(rows) == [[0, 2, 5]]
    assert conflicting_answers([said("", "1")[1:], said("", "2")[1:]]) == []


def page(conversations: list[Any], **records: Any) -> str:
    frame = derive(conversations, ()).assign(source="s")
    outcomes = outcomes_of(conversations)
    given: dict[str, Any] = {"refused": [], "quarantined": [], "conflicts": [], "bounds": ("up to 9", "1 to 9")}
    return render(frame, [True] * len(frame), outcomes, **given | records)


def test_what_stands_in_the_data_is_escaped_in_the_report() -> None:
    attack = "<script>alert('x')</script>"
    record = {"file": f"{attack}.jsonl", "line": 1, "reason": attack, "detail": attack, "text": attack}
    html = page([said("a", "b")], refused=[record], quarantined=[record], conflicts=[(attack, [record])])
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 8


def test_the_report_loads_nothing_and_forbids_it() -> None:
    html = page([said("see http://example.org/a.png", "b")])
    assert not re.search(r"(src|href)\s*=|url\(|@import|<link|<script", html)
    assert "default-src 'none'" in html


def test_the_report_shows_at_most_five_examples_of_a_reason_and_clips_them() -> None:
    records = [
        {"file": "a.jsonl", "line": line, "reason": "bad_json", "detail": f"detail {line}", "text": "t" * 5_000}
        for line in range(1, 8)
    ]
    html = page([said("a", "b")], refused=records)
    assert "detail 5" in html
    assert "detail 6" not in html
    assert "t" * 401 not in html


def test_the_report_of_rows_without_an_answer_has_no_answer_lengths() -> None:
    html = page([said("a", "b")[:1]])
    assert html.count("<svg") == 1


def test_the_report_adds_up_many_small_sources_in_one_line() -> None:
    frame = derive([said("a", "b")] * 30, ()).assign(source=[f"source-{n:02}" for n in range(30)])
    html = render(frame, [n > 2 for n in range(30)], [], refused=[], quarantined=[], conflicts=[], bounds=("", ""))
    assert "15 more" in html
    assert "source-14" in html
    assert "source-15" not in html
