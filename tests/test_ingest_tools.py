"""Records with tools become rows that hold every call, and one whose calls do not go together is refused by name."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import GOOD, read, texts

from tunewright.config import Data, Dedupe, Source
from tunewright.data_checks.batches import Ask, look_at
from tunewright.tasks.dedupe import find_repeats
from tunewright.tasks.ingest import row_id_of, source_files
from tunewright.tasks.ingest.questions import Question, questions
from tunewright.tasks.ingest.tables import Tally
from tunewright.tasks.prompt.shots import conversation, pool_of
from tunewright.tools.conversation import Conversation, call_text, conversation_of, tools_of

WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "pattern": "^(a+)+$"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": WEATHER}]
ASKED = {"role": "user", "content": "Weather in Bonn?"}
PARIS = {"role": "user", "content": "And in Paris?"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(arguments: Any, name: str = "get_weather", **more: Any) -> dict[str, Any]:
    """An answer that calls one tool."""
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
    one = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [one], **more}


def row(messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The row of one record, or its refusal."""
    record = {"messages": messages, "tools": TOOLS, **more}
    kept, refused = read(GOOD + b"\n" + json.dumps(record).encode())
    return (kept[1:] + refused)[0]


CALLED = [
    ASKED,
    call({"city": "Bonn"}),
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    {"role": "assistant", "content": "Rain."},
]


def test_a_call_and_its_result_are_kept_as_a_template_takes_them_and_as_text() -> None:
    found = row(CALLED, parallel_tool_calls=False)
    conversation: Any = conversation_of(found)
    assert conversation.tools == TOOLS
    assert conversation[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Bonn"}}
    assert conversation[2] == {"role": "tool", "content": "rain", "tool_call_id": "call00000", "name": "get_weather"}
    said = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
    assert texts(found) == ["Weather in Bonn?", said, "rain", "Rain."]
    assert found["row_id"] == row_id_of(conversation)


def test_the_forms_of_other_tools_become_the_same_row() -> None:
    older = [
        ASKED,
        {"role": "assistant", "function_call": {"name": "get_weather", "arguments": '{"city": "Bonn"}'}},
        {"role": "function", "name": "get_weather", "content": "rain"},
        {"role": "assistant", "content": "Rain."},
    ]
    sharegpt = [
        {"from": "human", "value": "Weather in Bonn?"},
        {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Bonn"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "Rain."},
    ]
    records = [
        {"messages": CALLED, "tools": TOOLS},
        {"messages": older, "functions": [WEATHER]},
        {"conversations": sharegpt, "tools": json.dumps([WEATHER])},
        {"prompt": CALLED[:3], "completion": CALLED[3:], "tools": TOOLS},
    ]
    kept, refused = read("\n".join(map(json.dumps, records)).encode())
    assert not refused
    assert len({found["row_id"] for found in kept}) == 1


def test_tools_calls_weights_and_reasoning_are_part_of_a_rows_identity_and_texts_are_not() -> None:
    plain = {"messages": [ASKED, {"role": "assistant", "content": "Rain."}]}
    records = [
        plain,
        plain | {"tools": TOOLS},
        plain | {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [ASKED, {"role": "assistant", "content": "Rain.", "reasoning_content": "It is autumn."}]},
        {"messages": [ASKED, {"role": "assistant", "content": "Rain.", "reasoning": "It is spring."}]},
    ]
    kept, _ = read("\n".join(map(json.dumps, records)).encode())
    assert len({found["row_id"] for found in kept}) == len(records)
    assert [found["chat"] is None for found in kept] == [True, False, False, False, False]
    assert kept[0]["row_id"] == row_id_of(kept[0]["messages"])
    assert len({tuple(texts(found)) for found in kept}) == 1


def test_an_answer_of_weight_0_is_marked_and_nothing_is_kept_behind_the_last_trained_one() -> None:
    first = {"role": "assistant", "content": "Sun.", "weight": 0}
    found = row([ASKED, first, PARIS, {"role": "assistant", "content": "Rain.", "weight": 1}, ASKED, first])
    conversation = conversation_of(found)
    assert [message.get("weight") for message in conversation] == [None, 0, None, None]


def test_a_call_of_sharegpt_has_a_weight_as_all_answers_have() -> None:
    turns: list[dict[str, Any]] = [
        {"from": "human", "value": "Is it raining?"},
        {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Bonn"}}', "weight": 0},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "Yes."},
    ]
    heavy, unknown = [*turns], [*turns]
    heavy[1] = turns[1] | {"weight": 2}
    unknown[0] = {"from": "robot", "value": "a"}
    records = [{"conversations": each, "tools": TOOLS} for each in (turns, heavy, unknown)]
    kept, refused = read("\n".join(map(json.dumps, records)).encode())
    assert [message.get("weight") for message in conversation_of(kept[0])] == [None, 0, None, None]
    accepted = "system, developer, user, assistant, human, gpt, tool, function, observation, function_call"
    assert [row["detail"] for row in refused] == [
        "conversations[1].weight is 2; accepted: 0, 1",
        f"conversations[0].from is 'robot'; accepted: {accepted}",
    ]


@pytest.mark.parametrize(
    ("messages", "more", "reason", "detail"),
    [
        ([ASKED, call({"city": 5})], {}, "bad_arguments", "of 'get_weather': city is not of type string"),
        ([ASKED, call({})], {}, "bad_arguments", "messages[1].tool_calls[0].arguments of 'get_weather': city is miss"),
        ([ASKED, call({"city": "a", "x": 1})], {}, "bad_arguments", "x is not among its parameters"),
        ([ASKED, call("{city")], {}, "bad_arguments", "messages[1].tool_calls[0].arguments is not JSON: '{city'"),
        ([ASKED, call("[1]")], {}, "bad_arguments", "arguments is an array; accepted: an object"),
        ([ASKED, call({}, "f")], {}, "unknown_tool", "messages[1].tool_calls[0] calls 'f'; accepted: get_weather"),
        ([ASKED, call({}, "f")], {"tools": None}, "unknown_tool", "accepted: none, as the record has no tools"),
        (
            [ASKED, CALLED[1], {"role": "tool", "tool_call_id": "c2", "content": "rain"}, CALLED[3]],
            {},
            "unmatched_call",
            "messages[2].tool_call_id is 'c2'; accepted: c1",
        ),
        ([ASKED, CALLED[1], PARIS, CALLED[3]], {}, "unanswered_call", "messages[2] follows a call of 'get_weather'"),
        ([ASKED, CALLED[3]], {"tools": [{"type": "retrieval"}]}, "bad_tools", "tools[0] is of type 'retrieval'"),
        ([ASKED, CALLED[3]], {"tools": [*TOOLS, *TOOLS]}, "bad_tools", "two functions 'get_weather'"),
        (
            [ASKED, CALLED[3]],
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "http://x/y"}}}]},
            "bad_tools",
            "tools[0].parameters refers to http://x/y, which is not in the file",
        ),
        ([ASKED, {"role": "assistant", "content": "a", "weight": 0}], {}, "nothing_trained", "has weight 0"),
        ([ASKED, {"role": "assistant", "content": "a", "weight": 2}], {}, "unsupported_field", "weight is 2; accepted"),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_place(
    messages: list[dict[str, Any]], more: dict[str, Any], reason: str, detail: str
) -> None:
    found = row(messages, **more)
    assert found.get("reason") == reason
    assert detail in found["detail"]


def test_rows_that_differ_in_their_tools_alone_are_no_duplicates() -> None:
    answer = {"role": "assistant", "content": "I cannot tell."}
    long = {"role": "user", "content": "What will the weather be in the old town of Bonn on the second day of May?"}
    other = [{"type": "function", "function": {"name": "f"}}]
    records = [{"messages": [long, answer], "tools": tools} for tools in (TOOLS, other, TOOLS)]
    kept, _ = read("\n".join(map(json.dumps, [*records, {"messages": [long, answer]}])).encode())
    table = pa.Table.from_pylist(kept)
    pq.write_table(table, "rows.parquet")
    repeats, _ = find_repeats(Path("rows.parquet"), Dedupe())
    assert repeats.partner.tolist() == [-1, -1, 0, -1]


def test_checks_see_what_reasoning_and_arguments_hold() -> None:
    mail = "ann.lee@gmail.com"
    records = [
        {"messages": [ASKED, call({"city": mail})], "tools": TOOLS},
        {"messages": [ASKED, {"role": "assistant", "content": "Rain.", "reasoning": f"{mail} asks."}]},
        {"messages": CALLED, "tools": TOOLS},
    ]
    kept, _ = read("\n".join(map(json.dumps, records)).encode())
    (batch,) = pa.Table.from_pylist(kept).to_batches()
    looked = look_at(batch, Ask(frozenset({"personal", "roles", "num_turns"}), ())).columns
    assert [bool(each) for each in looked["personal"].to_pylist()] == [True, True, False]
    assert looked["roles"].to_pylist()[2] == "user assistant tool assistant"
    assert "chat" not in looked.column_names


def test_a_question_may_end_with_a_result_and_has_its_tools_and_its_own_answer() -> None:
    records = [
        {"messages": CALLED[:3], "tools": TOOLS},
        {"messages": CALLED[:2], "tools": TOOLS},
        {"messages": [ASKED, call({"city": 5}), CALLED[2]], "tools": TOOLS},  # a model may have made that call
    ]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (file,) = source_files(Data(sources=(Source(path="a.jsonl"),)))
    after, before_call, wrong = questions(file, Tally())
    assert isinstance(after, Question)
    assert isinstance(before_call, Question)
    assert isinstance(wrong, Question)
    assert (tools_of(after.messages), after.messages[-1]["role"], after.reference) == (TOOLS, "tool", None)
    assert (tools_of(before_call.messages), len(before_call.messages)) == (TOOLS, 1)
    assert before_call.reference == call_text("get_weather", {"city": "Bonn"})
    assert before_call.answered == [*before_call.messages, (before_call.answered or [])[-1]]


def test_shots_keep_their_calls_and_the_tools_are_those_of_the_question() -> None:
    records = [{"messages": CALLED[:2], "tools": TOOLS}, {"messages": [PARIS, CALLED[3]]}]
    kept, _ = read("\n".join(map(json.dumps, records)).encode())
    pool = pool_of(pa.Table.from_pylist(kept))
    other = Conversation([ASKED, CALLED[3]], [{"type": "function", "function": {"name": "f"}}])
    behind = conversation(pool, [0, 1], other)
    assert tools_of(behind) == other.tools
    assert [bool(message.get("tool_calls")) for message in behind] == [False, True, False, False, False, False]
    assert type(conversation(pool, [1], [PARIS, CALLED[3]])) is list
    by_way_of_a_tool, _ = read(json.dumps({"messages": CALLED, "tools": TOOLS}).encode())
    assert len(pool_of(pa.Table.from_pylist(by_way_of_a_tool)).rows) == 1
