"""An answer with calls is scored as calls, one without as rightly or wrongly none, and auto chooses so by the rows."""

import itertools
import json
import math
from collections.abc import Mapping

import pyarrow as pa
import pytest
from test_ingest_tools import TOOLS

from tunewright import metrics
from tunewright.config import Settings
from tunewright.metrics.calls import tool_schema
from tunewright.metrics.catalogue import CATALOGUE, PER_ROW
from tunewright.metrics.shape import last_answer, misfit
from tunewright.tools.conversation import Conversation, call_text

BONN, LATER = {"city": "Bonn"}, {"city": "Bonn", "days": 2}


def said(*calls: tuple[str, Mapping[str, object]]) -> str:
    """An answer with these calls."""
    return "\n".join(call_text(*call) for call in calls)


WEATHER, TIME = said(("get_weather", LATER)), said(("get_time", {}))


@pytest.mark.parametrize(
    ("answer", "reference", "scores"),  # tool_call, tool_name, tool_arguments, needless_call
    [
        (WEATHER, WEATHER, (1, 1, 1, 0)),
        ('{"name": "get_weather", "parameters": {"days": 2.0, "city": "Bonn"}}', WEATHER, (1, 1, 1, 0)),
        (said(("get_weather", BONN)), WEATHER, (0, 1, 0.5, 0)),
        (said(("get_weather", {**LATER, "x": 1, "y": 1})), WEATHER, (0, 1, 0.5, 0)),
        (said(("get_weather", {"city": "Bonn", "days": "2"})), WEATHER, (0, 1, 0.5, 0)),
        (TIME, WEATHER, (0, 0, 0, 0)),
        ("It rains.", WEATHER, (0, 0, 0, 0)),
        (f"{TIME}\n{WEATHER}", f"{WEATHER}\n{TIME}", (1, 1, 1, 0)),
        (WEATHER, f"{WEATHER}\n{WEATHER}", (0, 0, 0.5, 0)),
        ("<think>\nHm.\n</think>\n\n" + TIME, TIME, (1, 1, 1, 0)),
        ("I do not know.", "No idea.", (1, 1, 1, 0)),
        (TIME, "No idea.", (0, 0, 0, 1)),
        ('<tool_call>\n{"name": "get_ti', "No idea.", (0, 0, 0, 1)),
        ('<tool_call>\n{"name": "get_ti', TIME, (0, 0, 0, 0)),
    ],
)
def test_calls_are_compared_as_sets_of_names_and_arguments(
    answer: str, reference: str, scores: tuple[float, ...]
) -> None:
    names = ("tool_call", "tool_name", "tool_arguments", "needless_call")
    assert tuple(PER_ROW[name](answer, reference) for name in names) == scores


def test_arguments_fit_the_schema_of_their_tool_or_not() -> None:
    answers = [WEATHER, said(("get_weather", {})), said(("get_time", {})), "Text.", said(("get_weather", {"city": 1}))]
    table = pa.table({"answer": answers, "reference": [""] * 5, "tools": [json.dumps(TOOLS)] * 5})
    assert metrics.measure("tool_schema", table) == (0.4, [1.0, 0.0, 0.0, 1.0, 0.0])
    assert tool_schema(WEATHER, None) == 0.0


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_rows_with_and_without_tools_are_scored_in_any_order(order: tuple[int, ...]) -> None:
    rows = [(WEATHER, json.dumps(TOOLS), 1.0), ("It rains.", None, 1.0), (TIME, None, 0.0)]  # a call of no tool it has
    answers, tools, expected = zip(*(rows[at] for at in order), strict=True)
    columns = {"answer": answers, "reference": ["It rains."] * 3, "tools": pa.array(tools, pa.string())}
    likelihoods = {"nll": [1.0] * 3, "margin": [0.5] * 3, "num_reference_tokens": [1] * 3}
    table = pa.table({**columns, **likelihoods, "stopped": [True] * 3})
    score, scores = metrics.measure("tool_schema", table)
    assert (score, scores) == (pytest.approx(2 / 3), list(expected))
    shape = metrics.AnswerShape(["It rains."] * 3, ("It rains.",), schema="{}", has_tools=True)
    for name in CATALOGUE:
        assert math.isfinite(metrics.measure(name, table, shape)[0]), name


def test_no_row_needs_tools() -> None:
    table = pa.table({"answer": ["Text.", TIME], "reference": [""] * 2, "tools": pa.array([None] * 2, pa.string())})
    assert metrics.measure("tool_schema", table) == (0.5, [1.0, 0.0])


def test_auto_chooses_by_the_rows_tools_and_the_references() -> None:
    both = metrics.choose(["auto"], [WEATHER, TIME, "It rains."], has_tools=True)
    assert both.decides == "tool_call"
    assert {"tool_name", "tool_arguments", "needless_call", "tool_schema", "token_f1"} <= {*both.names}
    assert both.says().startswith("the references are tool calls (2 of 3), else short texts")
    few = metrics.choose(["auto"], [WEATHER, *["It rains."] * 5], has_tools=True)
    assert (few.decides, "tool_call" in few.names) == ("token_f1", True)
    assert few.says().startswith("the references are short texts (median 3 words and signs), else tool calls (1 of 6)")
    calls = metrics.choose(["auto", "needless_call"], [WEATHER, TIME], has_tools=True)
    assert calls.left_out == {"needless_call": "every reference calls a tool"}
    assert calls.says().startswith("the references are tool calls (2 of 2): measured are tool_call, ")
    texts = metrics.choose(["auto", "tool_call"], ["It rains.", "The sun shines."], has_tools=True)
    assert (texts.decides, "needless_call" in texts.names) == ("token_f1", True)
    assert texts.left_out == {"tool_call": "no reference calls a tool"}
    plain = metrics.choose(["auto", "tool_name"], [WEATHER, TIME])
    assert (plain.decides, plain.left_out) == ("chrf", {"tool_name": "no row has tools"})


def test_a_gate_by_calls_needs_rows_that_call() -> None:
    settings = Settings.model_validate(
        {"data": {"sources": [{"path": "a"}]}, "model": {"base": "b"}, "gate": {"metric": "tool_call"}}
    )
    answered = Conversation([{"role": "assistant", "content": "It rains."}], TOOLS)
    said = misfit(settings, [last_answer(answered)], [], "", "the test rows", has_tools=True)
    assert said.startswith("gate.metric=tool_call cannot be measured on the test rows: no reference calls a tool; ")
    assert misfit(settings, [WEATHER], [], "", "the test rows", has_tools=True) == ""


def test_reasoning_is_no_part_of_an_answer_unless_the_references_have_it() -> None:
    thought = "<think>\na\n</think>\n\nyes"
    table = pa.table({"answer": [thought, thought], "reference": ["yes", thought]})
    assert metrics.measure("exact_match", table) == (1.0, [1.0, 1.0])
