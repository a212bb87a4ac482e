"""Preference pairs: a prompt, the answer to it that was chosen, and one that was rejected.

A record gives its prompt in fields of its own, or both answers as whole conversations, as lists of messages or as texts
in the form of Anthropic's HH-RLHF. OpenAI's fine-tuning files have a form of their own, in which the prompt lies in an
object. Or a record has several answers, ranked or with scores, of which the best and the worst are taken. A record of
any other layout may have a rejected answer or a correction beside its own, or say by its label whether its answer is
one that people want (KTO).
"""

import re
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from tunewright.config import Layout
from tunewright.tasks.ingest.calls import DEFINITIONS, EMPTY
from tunewright.tasks.ingest.naming import Renamed, own_name, own_place
from tunewright.tasks.ingest.parsing import Record, RefusedRecord, kind, quoted
from tunewright.tasks.ingest.turns import (
    encodable,
    form_of,
    instruction,
    side,
    text_of_field,
    turn,
    turns,
    value_of,
)
from tunewright.tools.conversation import Conversation, Message

PAIR = ("chosen", "rejected")
PROMPTS = ("prompt", "instruction", "conversations", "messages")  # fields that can hold the prompt of a pair
OUTPUTS = {"chosen": "preferred_output", "rejected": "non_preferred_output"}  # of a pair in OpenAI's form
OF_OPENAI = ("input", *OUTPUTS.values())
SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")  # opens a turn of HH-RLHF
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_Prompts = list[tuple[str, list[Message]]]  # fields that have the prompt, with its messages
# pandas writes a column of 1, 0 and gaps as 1.0 and 0.0.
NO_ANSWER: Message = {"role": "assistant", "content": ""}
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def from_openai(record: Record, columns: Mapping[str, str]) -> Renamed | None:
    """A pair in OpenAI's form with its fields under our names; None for any other record, or if `columns` name prompts.

    Raises RefusedRecord where it has no prompt in it, or has one of our fields as well and something else there.
    """
    there = [theirs for theirs in OUTPUTS.values() if theirs in record]
    has_all = len(there) == len(OUTPUTS) and record.keys().isdisjoint(PROMPTS)
    is_meant = has_all or (there and isinstance(record.get("input"), dict))
    if not is_meant or not columns.keys().isdisjoint(PROMPTS):
        return None
    asked = value_of(record, "input")
    if not isinstance(asked, dict):
        raise RefusedRecord("wrong_type", f"input is {kind(asked)}, not an object with messages")
    found = {field: asked[field] for field in ("messages", *DEFINITIONS) if field in asked}
    places = {field: f"input.{field}" for field in ("messages", *DEFINITIONS)} | OUTPUTS
    found |= {ours: record[theirs] for ours, theirs in OUTPUTS.items() if theirs in record}
    for ours, value in found.items():
        if record.get(ours, value) not in (*EMPTY, value):
            said = f"it has {places[ours]} and {ours}, which differ; accepted: one of them"
            raise RefusedRecord("two_layouts", said)
    rest = {field: value for field, value in record.items() if field not in OF_OPENAI}
    named = {ours: theirs for ours, theirs in columns.items() if ours not in found}
    pair = Renamed(rest | found, named, places, record)
    if value_of(pair, "messages") == []:
        raise RefusedRecord("missing_field", "input.messages is empty")
    return pair


def is_of_openai(record: Record) -> bool:
    """Whether a record is a pair that was in OpenAI's form."""
    return isinstance(record, Renamed) and "chosen" in record.places


def preference(record: Record) -> Conversation:
    """The conversation that ends with the chosen answer, and the rejected one. Raises RefusedRecord."""
    prompts = _prompts(record)
    return _against_rejected(record, _conversation(record, "chosen", prompts), prompts, own_place(record, "chosen"))


def ranked(record: Record) -> Conversation:
    """The conversation that ends with the best of several answers, and the worst of them. Raises RefusedRecord."""
    asked, answers = prompt(record), value_of(record, "answers")
    if not isinstance(answers, list):
        raise RefusedRecord("wrong_type", f"answers is {kind(answers)}, not an array")
    for at, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise RefusedRecord("wrong_type", f"answers[{at}] is {kind(answer)}, not a string")
        encodable(answer, f"answers[{at}]")
    if len(answers) < len(PAIR):
        raise RefusedRecord("too_few_answers", f"answers has {len(answers)}; accepted: two or more, the best first")
    best, worst = _best_and_worst(record.get("scores"), len(answers))
    return _pair([*asked, {"role": "assistant", "content": answers[best]}], answers[worst])


def prompt(record: Record) -> list[Message]:
    """The prompt of a record that has it in a field of its own. Raises RefusedRecord."""
    prompts = _prompts(record)
    return prompts[0][1] if prompts else side(record, "prompt", "user")


def has_both(record: Record, layout: Layout) -> bool:
    """Whether a record in one of the two layouts has a better and a worse answer."""
    answers = record.get("answers")
    if layout == "ranked":
        return isinstance(answers, list) and len(answers) > 1
    return all(record.get(field) not in EMPTY for field in PAIR)


def is_undesirable(record: Record, layout: Layout) -> bool:
    """Whether the label of a record says that nobody wants its answer. Raises RefusedRecord.

    A label that is no truth value says something else, unless the columns of the source name it.
    """
    given = record.get("label")
    is_mapped = isinstance(record, Renamed) and "label" in record.columns
    if given in EMPTY or not (is_mapped or str(given).lower() in ("true", "false")):
        return False
    label = LABELS.get(str(given).lower())
    named = own_name(record, "label")
    if label is None:
        raise RefusedRecord("bad_label", f"{named} is {quoted(given)}; accepted: true, false, 1, 0")
    if not label and (layout in ("preference", "ranked") or _has_rejected(record)):
        said = f"{named} is {quoted(given)} and the record has several answers; accepted: a label beside one answer"
        raise RefusedRecord("bad_label", said)
    return not label


def paired(record: Record, layout: Layout, messages: list[Message]) -> list[Message]:
    """The messages, whose last answer is chosen over a `rejected` one beside it, or rejected for a `correction` of it.

    Raises RefusedRecord.
    """
    given, has_several = record.get("correction"), layout in ("preference", "ranked")
    is_corrected = given not in EMPTY and not (isinstance(given, str) and not given.strip())
    if is_corrected and (has_several or _has_rejected(record)):
        said = f"it has {own_name(record, 'correction')} and several answers; accepted: one of the two"
        raise RefusedRecord("two_layouts", said)
    if has_several or messages[-1]["role"] != "assistant" or messages[-1] == NO_ANSWER:
        return messages
    if _has_rejected(record):
        is_undesirable(record, layout)  # a label that says so is refused
        return _against_rejected(record, messages, [("its prompt", messages[:-1])], "the record")
    if not is_corrected or messages[-1]["content"].split() == (better := text_of_field(record, "correction")).split():
        return messages
    tools = messages.tools if isinstance(messages, Conversation) else []
    rejected = _only_text(messages[-1], "the answer that is corrected")
    return Conversation([*messages[:-1], {"role": "assistant", "content": better}], tools, rejected)


def _has_rejected(record: Record) -> bool:
    """Whether `rejected` has an answer; true or a number says something else."""
    given = record.get("rejected")
    return given not in EMPTY and isinstance(given, str | list | dict)


def _against_rejected(record: Record, chosen: list[Message], prompts: _Prompts, place: str) -> Conversation:
    """The pair of a conversation, found at a place, and the rejected answer. Raises RefusedRecord."""
    rejected = _conversation(record, "rejected", prompts)
    if chosen[:-1] != rejected[:-1]:
        pairs = enumerate(zip(chosen, rejected, strict=False))
        first = next((at for at, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
        raise RefusedRecord(
            "prompts_differ",
            f"{place} has {len(chosen)} messages and {own_place(record, 'rejected')} {len(rejected)}, and message "
            f"{first + 1} is not the same; accepted: conversations that differ in the last answer alone",
        )
    return _pair(chosen, _only_text(rejected[-1], own_name(record, "rejected")))


def _prompts(record: Record) -> _Prompts:
    """(field, messages) of each field that has the prompt; messages that end with an answer are none.

    Raises RefusedRecord where there are two different ones.
    """
    found: _Prompts = []
    for field in PROMPTS:
        if record.get(field) not in EMPTY:
            asked = _asked(record, field)
            if field in ("prompt", "instruction") or asked[-1]["role"] != "assistant":
                found.append((own_place(record, field), asked))
            elif is_of_openai(record) and field == "messages":
                said = "input.messages ends with a message of assistant; accepted: one of a user or a tool"
                raise RefusedRecord("missing_prompt", said)
    for field, asked in found[1:]:
        if asked != found[0][1]:
            said = f"it has {found[0][0]} and {field}, which are different prompts; accepted: one of them"
            raise RefusedRecord("two_layouts", said)
    return found


def _asked(record: Record, field: str) -> list[Message]:
    if field == "instruction":
        return instruction(record)
    return side(record, field, "user") if field == "prompt" else turns(record, field, form_of(record[field]))


def _conversation(record: Record, field: str, prompts: _Prompts) -> list[Message]:
    """The conversation that ends with the answer in a field: the field has all of it, or the answer to the prompt."""
    named, said = own_name(record, field), _said(record, field, has_prompt=bool(prompts))
    if (role := said[-1]["role"]) != "assistant":
        raise RefusedRecord("last_not_assistant", f"{named} ends with a message of {role}; accepted: the assistant's")
    if len(said) == 1 and not prompts:
        raise RefusedRecord(
            "missing_prompt",
            f"{named} is an answer and the record has no prompt; accepted: a field {' or '.join(PROMPTS)}, or whole "
            "conversations: lists of messages, or texts with turns of Human: and Assistant: behind blank lines",
        )
    if len(said) == 1:
        return [*prompts[0][1], *said]
    for name, asked in prompts:
        if not any(said[at : at + len(asked)] == asked for at in range(len(said) - len(asked))):
            raise RefusedRecord(
                "prompts_differ",
                f"{named} has {len(said)} messages, and {name} is not among them; accepted: the answer alone, or the "
                "prompt and the answer",
            )
    return said


def _said(record: Record, field: str, *, has_prompt: bool) -> list[Message]:
    """The messages in a field, one where it is an answer alone; without a prompt a text may be a whole conversation."""
    given = value_of(record, field)
    if isinstance(given, str):
        text = text_of_field(record, field)
        if has_prompt or not SPEAKER.match(text):
            return [{"role": "assistant", "content": text}]
        _, *parts = SPEAKER.split(text)
        spoken = zip(parts[::2], parts[1::2], strict=True)
        return [{"role": SPEAKERS[speaker], "content": content} for speaker, content in spoken]
    if isinstance(given, dict):
        return [turn(given, f"{own_place(record, field)}.", form_of(given))[0]]
    if isinstance(given, list):
        return turns(record, field, form_of(given))
    accepted = "a text, a message, or a list of messages"
    raise RefusedRecord("wrong_type", f"{own_name(record, field)} is {kind(given)}; accepted: {accepted}")


def _only_text(answer: Message, named: str) -> str:
    """The text of a rejected answer, which may say no more. Raises RefusedRecord."""
    if more := next((name for name in answer if name not in ("role", "content")), None):
        said = f"{named} has {more}; accepted: a text alone, as that is all a row holds of a rejected answer"
        raise RefusedRecord("unsupported_field", said)
    return answer["content"]


def _pair(messages: Sequence[Message], rejected: str) -> Conversation:
    if messages[-1].get("weight") == 0:
        raise RefusedRecord("nothing_trained", "the chosen answer has weight 0; accepted: 1")
    return Conversation(messages, messages.tools if isinstance(messages, Conversation) else [], rejected)


def _best_and_worst(scores: Any, number: int) -> tuple[int, int]:
    """The places of the answers with the highest and the lowest score; without scores the first and the last."""
    if scores in EMPTY:
        return 0, number - 1
    if not isinstance(scores, list):
        raise RefusedRecord("bad_scores", f"scores is {kind(scores)}; accepted: a list of numbers, one for each answer")
    for at, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not -inf < score < inf:
            raise RefusedRecord("bad_scores", f"scores[{at}] is {quoted(score)}; accepted: a finite number")
    if len(scores) != number:
        said = f"scores has {len(scores)} numbers for {number} answers; accepted: one for each answer"
        raise RefusedRecord("bad_scores", said)
    if min(scores) == max(scores):
        said = f"all scores are {quoted(scores[0])}, so no answer is better; accepted: two different scores or more"
        raise RefusedRecord("bad_scores", said)
    return scores.index(max(scores)), scores.index(min(scores))
