"""A record of a preferred and a rejected answer becomes one row that has both, in whatever form it comes."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import GOOD, read, run, tables, texts
from test_ingest_tools import CALLED, TOOLS, call

from tunewright.config import Data, Source
from tunewright.errors import ConfigError
from tunewright.tasks.ingest import row_id_of, source_files
from tunewright.tasks.ingest.questions import Question, RefusedQuestion, questions
from tunewright.tasks.ingest.tables import Tally
from tunewright.tools.conversation import Conversation, conversation_of, is_undesirable, rejected_of, tools_of

ASKED = {"role": "user", "content": "Is it open?"}
HUMAN = {"from": "human", "value": "Is it open?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes, until six.", "No."))
SYSTEM = {"role": "system", "content": "Be brief."}
PAIR = {"prompt": "Is it open?", "chosen": "Yes, until six.", "rejected": "No."}
OPENAI = {
    "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [YES],
    "non_preferred_output": [NO],
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def one(record: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The row of one record, or its refusal."""
    Path("a.jsonl").write_text(json.dumps(record))
    Path("good.jsonl").write_bytes(GOOD)
    kept, refused = tables(run(Source(path="a.jsonl", **options), "good.jsonl"))
    return (kept[:-1] + refused)[0]


def human(*said: str) -> str:
    """A text as HH-RLHF has it."""
    return "".join(f"\n\n{('Human', 'Assistant')[at % 2]}: {text}" for at, text in enumerate(said))


def gpt(message: dict[str, str]) -> dict[str, str]:
    return {"from": "gpt", "value": message["content"]}


@pytest.mark.parametrize(
    "record",
    [
        PAIR,
        {"prompt": [ASKED], "chosen": [YES], "rejected": [NO]},
        {"prompt": "Is it open?", "chosen": YES, "rejected": NO},
        {"prompt": "Is it open?", "chosen": gpt(YES), "rejected": "No."},
        {"chosen": [ASKED, YES], "rejected": [ASKED, NO], "score_chosen": 8.5, "score_rejected": 2.0},
        {"chosen": [HUMAN, gpt(YES)], "rejected": [ASKED, NO]},
        {
            "prompt": "Is it open?",
            "prompt_id": "1",
            "chosen": [ASKED, YES],
            "rejected": [ASKED, NO],
            "messages": [ASKED, YES],
        },
        {"chosen": human("Is it open?", "Yes, until six."), "rejected": human("Is it open?", "No.")},
        {"instruction": "Is it open?", "input": "", "chosen": "Yes, until six.", "rejected": "No."},
        {"conversations": [HUMAN], "chosen": gpt(YES), "rejected": gpt(NO)},
        {"messages": [ASKED], "chosen": YES, "rejected": NO},
        {"messages": [ASKED], "chosen": "Yes, until six.", "rejected": "No."},
        {"prompt": "Is it open?", "answers": ["Yes, until six.", "Perhaps.", "No."]},
        {"prompt": [ASKED], "answers": ["Perhaps.", "No.", "Yes, until six."], "scores": [3, -1, 4.5]},
        OPENAI,
        OPENAI | {"prompt": "Is it open?"},
    ],
)
def test_every_form_becomes_the_same_row(record: dict[str, Any]) -> None:
    found = one(record)
    conversation = conversation_of(found)
    assert texts(found) == ["Is it open?", "Yes, until six."]
    assert rejected_of(conversation) == "No."
    expected = Conversation([ASKED, YES], rejected="No.")
    assert (conversation, found["row_id"]) == (expected, row_id_of(expected))


def test_the_records_of_the_docs_become_the_same_row() -> None:
    page = (Path(__file__).parents[1] / "docs" / "your-data.md").read_text(encoding="utf-8")
    kept, refused = read(page.partition("### Preference pairs")[2].split("```")[1].removeprefix("json\n").encode())
    assert not refused
    assert len(kept) == 10
    assert {found["row_id"] for found in kept} == {row_id_of(Conversation([ASKED, YES], rejected="No."))}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [ASKED, NO, ASKED], "chosen": "Yes, until six.", "rejected": "No.", "system": "Be brief."},
        {"prompt": [SYSTEM, ASKED, NO, ASKED], "chosen": [YES], "rejected": [NO]},
        {"chosen": [SYSTEM, ASKED, NO, ASKED, YES], "rejected": [SYSTEM, ASKED, NO, ASKED, NO]},
        PAIR | {"prompt": "", "instruction": "Is it open?", "history": [["Is it open?", "No."]], "system": "Be brief."},
        {"conversations": [HUMAN, gpt(NO), HUMAN], "system": "Be brief.", "chosen": gpt(YES), "rejected": gpt(NO)},
        {
            "system": "Be brief.",
            "chosen": human("Is it open?", "No.", "Is it open?", "Yes, until six."),
            "rejected": human("Is it open?", "No.", "Is it open?", "No."),
        },
        OPENAI | {"input": {"messages": [SYSTEM | {"role": "developer"}, ASKED, NO, ASKED]}},
    ],
)  # fmt: skip
def test_earlier_turns_and_the_system_message_are_part_of_the_prompt(record: dict[str, Any]) -> None:
    found = one(record)
    assert texts(found) == ["Be brief.", "Is it open?", "No.", "Is it open?", "Yes, until six."]
    assert rejected_of(conversation_of(found)) == "No."


def test_texts_are_taken_verbatim_and_a_text_of_turns_beside_a_prompt_is_an_answer() -> None:
    found = one({"prompt": " a\n", "chosen": "\n\nHuman: b\n\nAssistant: c ", "rejected": ""})
    assert (texts(found), rejected_of(conversation_of(found))) == ([" a\n", "\n\nHuman: b\n\nAssistant: c "], "")
    found = one({"chosen": human("a\n\nb ", " c"), "rejected": human("a\n\nb ", "d\n")})
    assert (texts(found), rejected_of(conversation_of(found))) == (["a\n\nb ", " c"], "d\n")


def test_a_chosen_answer_may_call_tools_and_a_rejected_one_may_not() -> None:
    asked, called = CALLED[0], call({"city": "Bonn"})
    found = one({"messages": [asked], "tools": TOOLS, "chosen": called, "rejected": "Rain."})
    conversation = conversation_of(found)
    assert (tools_of(conversation), rejected_of(conversation)) == (TOOLS, "Rain.")
    assert conversation[-1]["tool_calls"][0]["function"]["arguments"] == {"city": "Bonn"}
    shared = one({"chosen": CALLED, "rejected": [*CALLED[:-1], NO], "tools": TOOLS})
    assert [turn["role"] for turn in shared["messages"]] == ["user", "assistant", "tool", "assistant"]
    refused = one({"messages": [asked], "tools": TOOLS, "chosen": "Rain.", "rejected": called})
    assert (refused["reason"], refused["detail"].partition(";")[0]) == ("unsupported_field", "rejected has tool_calls")
    unknown = one({"messages": [asked], "tools": TOOLS, "chosen": call({}, "f"), "rejected": "Rain."})
    assert unknown["reason"] == "unknown_tool"
    asked_with_tools = {"messages": [asked], "tools": TOOLS}
    outputs = {"preferred_output": [called], "non_preferred_output": [{"role": "assistant", "content": "Rain."}]}
    assert one({"input": asked_with_tools, **outputs})["row_id"] == found["row_id"]
    nameless = one({"input": asked_with_tools | {"tools": [{}]}, **outputs})
    assert nameless["detail"].startswith("input.tools[0] has no name; accepted: a function with name")


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        (
            {"chosen": [ASKED, YES], "rejected": [ASKED, NO, ASKED, NO]},
            "prompts_differ",
            "chosen has 2 messages and rejected 4, and message 2 is not the same; accepted: conversations that differ",
        ),
        ({"chosen": human("a", "b"), "rejected": human("c", "b")}, "prompts_differ", "and message 1 is not the same"),
        ({"chosen": [ASKED, YES], "rejected": [ASKED, YES, ASKED, NO]}, "prompts_differ", "and message 3 is not the"),
        (
            PAIR | {"chosen": [ASKED | {"content": "Why?"}, YES]},
            "prompts_differ",
            "chosen has 2 messages, and prompt is not among them; accepted: the answer alone, or the prompt and the",
        ),
        (PAIR | {"chosen": [YES, ASKED, YES]}, "prompts_differ", "message 1 is not the same"),
        (PAIR | {"rejected": None}, "null_field", "rejected is null"),
        (PAIR | {"chosen": ""} | {"rejected": None}, "null_field", "rejected is null"),
        ({"prompt": "a", "chosen": "b"}, "missing_field", "there is no rejected; the fields are 'prompt', 'chosen'"),
        (PAIR | {"rejected": 3}, "wrong_type", "rejected is a number; accepted: a text, a message, or a list of mess"),
        (PAIR | {"rejected": []}, "missing_field", "rejected is empty"),
        (PAIR | {"rejected": [3]}, "wrong_type", "rejected[0] is a number, not an object"),
        (PAIR | {"rejected": NO | {"content": None}}, "null_field", "rejected.content is null"),
        (PAIR | {"rejected": {"from": "robot", "value": "a"}}, "unknown_role", "rejected.from is 'robot'; accepted: "),
        (PAIR | {"rejected": NO | {"reasoning": "Hm."}}, "unsupported_field", "rejected has reasoning_content; "),
        (PAIR | {"chosen": YES | {"weight": 0}}, "nothing_trained", "the chosen answer has weight 0; accepted: 1"),
        (PAIR | {"chosen": ASKED}, "last_not_assistant", "chosen ends with a message of user; accepted: the assist"),
        (PAIR | {"chosen": "a\0"}, "nul_character", "character 2 of chosen is NUL"),
        ({"chosen": "a", "rejected": "b"}, "missing_prompt", "chosen is an answer and the record has no prompt; acc"),
        ({"chosen": f"So:{human('a', 'b')}", "rejected": "b"}, "missing_prompt", "chosen is an answer and the record "),
        ({"chosen": [YES], "rejected": [NO]}, "missing_prompt", "accepted: a field prompt or instruction or conversat"),
        (PAIR | {"messages": [SYSTEM]}, "two_layouts", "it has prompt and messages, which are different prompts"),
        (PAIR | {"completion": "Perhaps."}, "two_layouts", "it has chosen and rejected and prompt and completion,"),
        ({"prompt": "a", "answers": "b"}, "wrong_type", "answers is a string, not an array"),
        ({"prompt": "a", "answers": ["b", None]}, "wrong_type", "answers[1] is null, not a string"),
        ({"prompt": "a", "answers": ["b"]}, "too_few_answers", "answers has 1; accepted: two or more, the best first"),
        (
            {"prompt": "a", "answers": ["b", "c"], "scores": [1]},
            "bad_scores",
            "scores has 1 numbers for 2 answers; accepted: one for each answer",
        ),
        ({"prompt": "a", "answers": ["b", "c"], "scores": 3}, "bad_scores", "scores is a number; accepted: a list of "),
        ({"prompt": "a", "answers": ["b", "c"], "scores": [1, "2"]}, "bad_scores", "scores[1] is '2'; accepted: a fin"),
        ({"prompt": "a", "answers": ["b", "c"], "scores": [1, True]}, "bad_scores", "scores[1] is True; accepted: a f"),
        ({"prompt": "a", "answers": ["b", "c"], "scores": [2, 2]}, "bad_scores", "all scores are 2, so no answer is "),
        (OPENAI | {"input": "a"}, "wrong_type", "input is a string, not an object with messages"),
        (OPENAI | {"input": None}, "null_field", "input is null"),
        ({"preferred_output": [YES], "non_preferred_output": [NO]}, "missing_field", "there is no input; the fields"),
        (OPENAI | {"input": {}}, "missing_field", "there is no input.messages; the fields are 'input', 'pref"),
        (OPENAI | {"input": {"messages": None}}, "null_field", "input.messages is null"),
        (OPENAI | {"input": {"messages": []}}, "missing_field", "input.messages is empty"),
        (OPENAI | {"input": {"messages": "a"}}, "wrong_type", "input.messages is a string, not an array"),
        (OPENAI | {"input": {"messages": [{"content": "a"}]}}, "missing_field", "there is no input.messages[0].role"),
        (OPENAI | {"input": {"messages": [ASKED, NO]}}, "missing_prompt", "input.messages ends with a message of assi"),
        (OPENAI | {"preferred_output": []}, "missing_field", "preferred_output is empty"),
        (OPENAI | {"preferred_output": None}, "null_field", "preferred_output is null"),
        (OPENAI | {"preferred_output": [ASKED]}, "last_not_assistant", "preferred_output ends with a message of user"),
        (
            OPENAI | {"preferred_output": [YES, YES]},
            "prompts_differ",
            "preferred_output has 2 messages, and input.messages is not among them; accepted: the answer alone",
        ),
        (
            OPENAI | {"preferred_output": [ASKED | {"content": "Why?"}, ASKED, YES]},
            "prompts_differ",
            "preferred_output has 3 messages and non_preferred_output 2, and message 1 is not the same",
        ),
        (OPENAI | {"non_preferred_output": [NO | {"content": 3}]}, "wrong_type", "non_preferred_output[0].content is"),
        (OPENAI | {"non_preferred_output": [call({})]}, "unsupported_field", "non_preferred_output has tool_calls; "),
        ({"input": OPENAI["input"], "preferred_output": [YES]}, "missing_field", "there is no non_preferred_output; "),
        (OPENAI | {"chosen": "No."}, "two_layouts", "it has preferred_output and chosen, which differ; accepted: one"),
        (OPENAI | {"prompt": "Why?"}, "two_layouts", "it has prompt and input.messages, which are different prompts"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_with_its_field_and_what_is_accepted(
    record: dict[str, Any], reason: str, detail: str
) -> None:
    found = one(record)
    assert found.get("reason") == reason, found
    assert detail in found["detail"]


def test_columns_of_any_name_stand_for_the_answers_and_scores() -> None:
    pairs = {"question": "Is it open?", "better": "Yes, until six.", "worse": "No."}
    found = one(pairs, columns={"prompt": "question", "chosen": "better", "rejected": "worse"})
    assert (texts(found)[-1], rejected_of(conversation_of(found))) == ("Yes, until six.", "No.")
    several = {"question": "Is it open?", "replies": ["No.", "Yes, until six."], "stars": [1, 5]}
    columns = {"prompt": "question", "answers": "replies", "scores": "stars"}
    assert texts(one(several, columns=columns))[-1] == "Yes, until six."
    null = one(pairs | {"worse": None}, columns={"prompt": "question", "chosen": "better", "rejected": "worse"})
    assert null["detail"] == "worse (rejected) is null"
    with pytest.raises(ConfigError, match=r"columns: chosen and rejected are both worse, so no answer would be better"):
        one(pairs, columns={"prompt": "question", "chosen": "worse", "rejected": "worse"})


def test_pairs_are_read_from_tables_in_which_other_rows_have_none() -> None:
    Path("a.csv").write_text("prompt,chosen,rejected\nIs it open?,Yes,No\n")
    nothing = {"messages": [ASKED, YES], "chosen": None, "rejected": None}
    pairs = pa.Table.from_pylist([nothing, {"chosen": [ASKED, YES], "rejected": [ASKED, NO]}])
    pq.write_table(pairs, "a.parquet")
    rows = run("a.csv", "a.parquet", max_refused_share=0)
    kept, _ = tables(rows)
    assert [rejected_of(conversation_of(row)) for row in kept] == ["No", None, "No."]
    assert rows.detected == {"a.csv": "csv, preference", "a.parquet": "parquet, messages and preference"}


def test_pairs_of_openai_are_read_from_tables_beside_columns_that_are_mapped() -> None:
    pq.write_table(pa.Table.from_pylist([OPENAI | {"team": "blue", "note": "x"}]), "a.parquet")
    (found,), refused = tables(run(Source(path="a.parquet", columns={"source": "team"})))
    assert (rejected_of(conversation_of(found)), found["source"], refused) == ("No.", "blue", [])
    answers = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
    assert one(OPENAI, columns=answers)["row_id"] == found["row_id"]
    apart = {"input": "Is it open?", "preferred_output": "Yes, until six.", "non_preferred_output": "No."}
    assert one(apart, columns=answers | {"prompt": "input"})["row_id"] == found["row_id"]


def test_an_alpaca_record_with_other_outputs_beside_it_stays_one() -> None:
    record = {"instruction": "a", "input": "b", "output": "c", "preferred_output": "d", "non_preferred_output": "e"}
    assert texts(one(record)) == ["a\n\nb", "c"]


def test_several_right_answers_beside_a_completion_are_no_ranking() -> None:
    found = one({"prompt": "a", "completion": "b", "answers": ["b", "c"]})
    assert (texts(found), found["chat"]) == (["a", "b"], None)
    forced = one({"prompt": "a", "completion": "b", "answers": ["b", "c"]}, layout="ranked")
    assert rejected_of(conversation_of(forced)) == "c"


@pytest.mark.parametrize(
    ("label", "columns", "undesirable"),
    [
        (False, {}, True),
        (True, {}, False),
        ("False", {}, True),
        ("positive", {}, False),
        (0, {}, False),  # the class of a classification
        (0, {"label": "label"}, True),
        ("1", {"label": "label"}, False),
        (0.0, {"label": "label"}, True),
        ("1.0", {"label": "label"}, False),
        (None, {"label": "label"}, False),
    ],
)
def test_a_label_says_whether_people_want_the_answer(label: Any, columns: dict[str, str], undesirable: bool) -> None:
    for asked in ({"prompt": "Is it open?", "completion": "No."}, {"messages": [ASKED, NO]}):
        found = conversation_of(one(asked | {"label": label}, columns=columns))
        assert [each["content"] for each in found] == ["Is it open?", "No."]
        assert is_undesirable(found) == undesirable


@pytest.mark.parametrize(
    ("record", "detail"),
    [
        ({"prompt": "a", "completion": "b", "thumbs": "up"}, "thumbs (label) is 'up'; accepted: true, false, 1, 0"),
        (
            PAIR | {"thumbs": False},
            "thumbs (label) is False and the record has several answers; accepted: a label beside",
        ),
    ],
)
def test_a_label_that_says_nothing_is_refused(record: dict[str, Any], detail: str) -> None:
    found = one(record, columns={"label": "thumbs"})
    assert (found["reason"], detail in found["detail"]) == ("bad_label", True), found


@pytest.mark.parametrize("rejected", ["No.", NO, [ASKED, NO]])
@pytest.mark.parametrize(
    "answered",
    [
        {"prompt": "Is it open?", "completion": "Yes, until six."},
        {"instruction": "Is it open?", "output": "Yes, until six."},
        {"messages": [ASKED, {"role": "assistant", "content": "Yes, until six."}]},
    ],
)
def test_an_answer_is_chosen_over_a_rejected_one_beside_it(answered: dict[str, Any], rejected: Any) -> None:
    assert one(answered | {"rejected": rejected})["row_id"] == one(PAIR)["row_id"]


def test_rejected_beside_an_answer_is_read_only_where_it_is_one() -> None:
    answered = {"prompt": "Is it open?", "completion": "Yes, until six."}
    for no_answer in (None, "", False, True, 0):
        assert one(answered | {"rejected": no_answer})["row_id"] == one(answered)["row_id"]
    refused = {
        "bad_label": {"label": False},
        "two_layouts": {"correction": "Yes."},
        "prompts_differ": {"rejected": [{"role": "user", "content": "Are you there?"}, NO]},
    }
    for reason, more in refused.items():
        assert one(answered | {"rejected": "No."} | more)["reason"] == reason


def test_a_correction_is_chosen_over_the_answer_that_it_corrects() -> None:
    answered = {"prompt": "Is it open?", "completion": "No.", "label": False}
    found = one(answered | {"correction": "Yes, until six."})
    assert found["row_id"] == one(PAIR)["row_id"]
    assert (
        one({"messages": [ASKED, NO], "fix": "Yes, until six."}, columns={"correction": "fix"})["chat"] == found["chat"]
    )
    for nothing_new in ("No. ", "  ", "", None):
        for label in (True, False):
            kept = conversation_of(one(answered | {"label": label, "correction": nothing_new}))
            assert (kept[-1]["content"], rejected_of(kept), is_undesirable(kept)) == ("No.", None, not label)


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        (PAIR | {"correction": "Yes."}, "two_layouts", "it has correction and several answers"),
        ({"prompt": "a", "completion": "b", "correction": ["c"]}, "wrong_type", "correction is an array, not a string"),
        (
            {"messages": [ASKED, NO | {"reasoning_content": "Hm."}], "correction": "Yes."},
            "unsupported_field",
            "the answer that is corrected has reasoning_content; accepted: a text alone",
        ),
    ],
)
def test_a_correction_that_is_none_is_refused(record: dict[str, Any], reason: str, detail: str) -> None:
    found = one(record)
    assert (found["reason"], detail in found["detail"]) == (reason, True), found


def test_the_label_is_part_of_a_rows_identity_and_an_undesirable_answer_no_reference() -> None:
    records = [{"prompt": "Is it open?", "completion": "No.", "label": label} for label in (True, False)]
    kept, _ = read("\n".join(map(json.dumps, records)).encode())
    assert len({row["row_id"] for row in kept}) == 2
    Path("a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (file,) = source_files(Data(sources=(Source(path="a.jsonl"),)))
    asked = [*questions(file, Tally())]
    assert [(each.messages, each.reference) for each in asked if isinstance(each, Question)] == [
        ([ASKED], "No."),
        ([ASKED], None),
    ]


def test_the_rejected_answer_is_part_of_a_rows_identity() -> None:
    records = [PAIR, PAIR | {"rejected": "Never."}, {"messages": [ASKED, YES]}]
    kept, _ = read("\n".join(map(json.dumps, records)).encode())
    assert len({row["row_id"] for row in kept}) == len(records)
    assert [row["chat"] is None for row in kept] == [False, False, True]


def test_the_rejected_answer_is_repaired_as_other_texts_are() -> None:
    Path("a.jsonl").write_text(json.dumps(PAIR | {"rejected": "cafÃ©"}))
    rows = run("a.jsonl", repair=("mojibake",))
    (found,), _ = tables(rows)
    assert (rejected_of(conversation_of(found)), found["repairs"], rows.repaired) == (
        "café",
        "mojibake",
        {"mojibake": 1},
    )


@pytest.mark.parametrize(
    ("record", "reference"),
    [
        (PAIR, "Yes, until six."),
        ({"chosen": human("Is it open?", "Yes."), "rejected": human("Is it open?", "No.")}, "Yes."),
        ({"prompt": "Is it open?", "chosen": "Yes.", "rejected": None}, None),
        ({"prompt": "Is it open?", "chosen": None, "rejected": None}, None),
        ({"prompt": "Is it open?", "answers": ["Yes.", "No."], "scores": [1, 2]}, "No."),
        ({"prompt": "Is it open?", "answers": ["Yes."]}, None),
        ({"prompt": "Is it open?", "answers": {"text": ["Yes."]}}, None),
        (OPENAI, "Yes, until six."),
        (OPENAI | {"non_preferred_output": None}, None),
        ({"input": OPENAI["input"], "preferred_output": None}, None),
    ],
)
def test_the_question_of_a_pair_is_its_prompt_and_its_own_answer_the_chosen_one(
    record: dict[str, Any], reference: str | None
) -> None:
    Path("a.jsonl").write_text(json.dumps(record))
    (file,) = source_files(Data(sources=(Source(path="a.jsonl"),)))
    (question,) = questions(file, Tally())
    assert isinstance(question, Question)
    assert (question.messages, question.reference) == ([ASKED], reference)
    if reference:
        (row,), _ = tables(run("a.jsonl"))
        assert question.row_id == row["row_id"]


def test_a_pair_without_a_question_is_told_as_such() -> None:
    Path("a.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n{"chosen": "a"}')
    (file,) = source_files(Data(sources=(Source(path="a.jsonl"),)))
    reasons = [each.reason for each in questions(file, Tally()) if isinstance(each, RefusedQuestion)]
    assert reasons == ["missing_prompt", "missing_field"]


@pytest.mark.parametrize("layout", ["auto", "preference"])
def test_a_held_out_pair_is_a_question_with_two_answers(layout: Any) -> None:
    Path("train.jsonl").write_text(json.dumps(PAIR))
    Path("a.jsonl").write_text(json.dumps({"id": "x"} | PAIR | {"rejected": "No.\nNever."}))
    rows = run("train.jsonl", held_out=(Source(path="a.jsonl", layout=layout),))
    (entry,) = pq.read_table(rows.path("held_out.parquet")).to_pylist()
    more = ["x"] if layout == "auto" else []
    said = "\n".join(["Is it open?", *more, "Yes, until six.", "No.", "Never."])
    assert (entry["text"], entry["asked"], entry["answered"]) == (said, 1, 3)
    assert rows.detected["a.jsonl"] == "jsonl, held out, preference"


@pytest.mark.parametrize("layout", ["auto", "preference"])
def test_a_held_out_pair_of_openai_is_a_question_with_two_answers(layout: Any) -> None:
    Path("train.jsonl").write_text(json.dumps(PAIR))
    Path("a.jsonl").write_text(json.dumps(OPENAI))
    rows = run("train.jsonl", held_out=(Source(path="a.jsonl", layout=layout),))
    (entry,) = pq.read_table(rows.path("held_out.parquet")).to_pylist()
    assert (entry["text"], entry["asked"], entry["answered"]) == ("Is it open?\nYes, until six.\nNo.", 1, 2)
