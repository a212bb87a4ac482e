"""Records with tools: definitions, calls and their results, reasoning, and answers that are not trained.

Each is checked where it stands: a call is of a defined tool, its arguments fit the schema, and its result names it.
"""

import json
from collections.abc import Sequence
from typing import Any

from tunewright.tasks.ingest.naming import own_place
from tunewright.tasks.ingest.parsing import Record, RefusedRecord, kind, quoted
from tunewright.tools.conversation import Conversation, Message, Tool, chat_of, is_trained
from tunewright.tools.schema import functions, misfit

EMPTY = (None, "", "[]", [], {})  # a field that says nothing
DEFINITIONS = ("tools", "functions")  # the second is OpenAI's older form, of bare functions
OF_CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "reasoning")
OF_RECORD = (*DEFINITIONS, "parallel_tool_calls")
RESULTS = ("tool", "function", "observation")  # roles of a tool's result; the others are the older forms
CALLING = "function_call"  # the role of a ShareGPT turn that is a call


def says_more(turn: Record, role: Any) -> bool:
    """Whether a turn says something that role and content do not."""
    return (
        role in RESULTS
        or role == CALLING
        or turn.get("weight") not in (None, 1)
        or any(turn.get(field) not in EMPTY for field in (*OF_CALLS, *REASONING))
    )


def definitions(record: Record) -> list[Tool]:
    """The tools of a record in OpenAI's newer form. Raises RefusedRecord."""
    field = next((field for field in DEFINITIONS if record.get(field) not in EMPTY), None)
    if field is None:
        return []
    name, value = own_place(record, field), record[field]
    if isinstance(value, str):  # as in a column of a table
        value = _parsed(value, name, "bad_tools")
    if not isinstance(value, list):
        raise RefusedRecord("bad_tools", f"{name} is {kind(value)}; accepted: a list of function definitions")
    tools = [_definition(each, f"{name}[{at}]") for at, each in enumerate(value)]
    named = [tool["function"]["name"] for tool in tools]
    if twice := next((each for at, each in enumerate(named) if each in named[:at]), None):
        raise RefusedRecord("bad_tools", f"{name} has two functions {quoted(twice)}; accepted: each name once")
    return tools


def _definition(given: Any, where: str) -> Tool:
    function = given.get("function") if isinstance(given, dict) and "function" in given else given
    said = given.get("type", "function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or said != "function":
        found = f"of type {quoted(said)}" if isinstance(function, dict) else kind(given)
        raise RefusedRecord("bad_tools", f"{where} is {found}; accepted: a function with name and parameters")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise RefusedRecord("bad_tools", f"{where} has no name; accepted: a function with name and parameters")
    try:
        misfit(function, {})
    except ValueError as error:
        raise RefusedRecord("bad_tools", f"{where}.parameters {error}") from None
    if not isinstance(function.get("parameters", {}), dict):
        raise RefusedRecord("bad_tools", f"{where}.parameters is {kind(function['parameters'])}, not an object")
    return {"type": "function", "function": function}


def read_turn(turn: Record, role: str, content: str, where: str) -> Message:
    """A turn with all that it says, its content as a text. Raises RefusedRecord."""
    if role in RESULTS:
        given = {field: turn[field] for field in ("tool_call_id", "name") if turn.get(field) not in EMPTY}
        for field, value in given.items():
            if not isinstance(value, str):
                raise RefusedRecord("wrong_type", f"{where}{field} is {kind(value)}, not a string")
        return {"role": "tool", "content": content} | given
    if role == CALLING:
        calls = _parsed(content, f"{where}value", "bad_arguments")
        given = calls if isinstance(calls, list) else [calls]
        message: Message = {"role": "assistant", "content": "", "tool_calls": _calls(given, where, "value")}
        return message | _weight(turn, where)
    message = {"role": role, "content": content}
    calls, older = turn.get("tool_calls"), turn.get("function_call")
    if calls not in EMPTY or older not in EMPTY:
        if role != "assistant":
            raise RefusedRecord("unsupported_field", f"{where}tool_calls: only the assistant calls tools")
        if calls not in EMPTY and not isinstance(calls, list):
            raise RefusedRecord("wrong_type", f"{where}tool_calls is {kind(calls)}, not an array")
        message["tool_calls"] = (
            _calls([older], where, "function_call") if calls in EMPTY else _calls(calls or [], where, "tool_calls")
        )
    for field in REASONING:
        if (reasoning := turn.get(field)) not in EMPTY:
            if not isinstance(reasoning, str):
                raise RefusedRecord("wrong_type", f"{where}{field} is {kind(reasoning)}, not a string")
            if role == "assistant":
                message["reasoning_content"] = reasoning
                break
    weight = _weight(turn, where)
    return message | weight if role == "assistant" else message


def _weight(turn: Record, where: str) -> Message:
    """The weight of an answer that is not to be trained, {} of any other. Raises RefusedRecord."""
    if (weight := turn.get("weight")) in (None, 1):
        return {}
    if isinstance(weight, bool) or weight != 0:
        raise RefusedRecord("unsupported_field", f"{where}weight is {quoted(weight)}; accepted: 0, 1")
    return {"weight": 0}


def _calls(given: Sequence[Any], where: str, field: str) -> list[dict[str, Any]]:
    calls = []
    for at, each in enumerate(given):
        place = f"{where}{field}" if field == "function_call" else f"{where}{field}[{at}]"
        function = each.get("function", each) if isinstance(each, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RefusedRecord("bad_arguments", f"{place} has no name; accepted: a function with name and arguments")
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            arguments = _parsed(arguments or "{}", f"{place}.arguments", "bad_arguments")
        arguments = {} if arguments is None else arguments
        if not isinstance(arguments, dict):
            raise RefusedRecord("bad_arguments", f"{place}.arguments is {kind(arguments)}; accepted: an object")
        call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        calls.append({"id": each.get("id")} | call)
    return calls


def _parsed(text: str, where: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RefusedRecord(reason, f"{where} is not JSON: {quoted(text)}") from None


def checked(messages: Sequence[Message], tools: list[Tool], field: str, *, is_question: bool = False) -> Conversation:
    """The conversation with its tools, each call matched with its definition and its result; answers of weight 0 after
    the last trained one are left out with what follows it, since nothing that is trained reads them. Earlier calls of a
    question, which a model may have made, need not fit.

    `field` is that of the messages, for positions, or empty. Raises RefusedRecord.
    """
    known = functions(tools)
    waiting: dict[str, tuple[str, str]] = {}  # the id of each call without a result -> its new id and function
    number = 0
    done: list[Message] = []
    for at, message in enumerate(messages):
        where = f"{field}[{at}]" if field else f"message {at + 1}"
        if message["role"] == "tool":
            done.append(_matched(message, waiting, where))
            continue
        if waiting:
            name = next(iter(waiting.values()))[1]
            raise RefusedRecord("unanswered_call", f"{where} follows a call of {quoted(name)} that has no result")
        calls = []
        for position, call in enumerate(message.get("tool_calls") or ()):
            place = f"{where}.tool_calls[{position}]"
            if not is_question:
                _fits(call["function"], known, place)
            given, ours = call["id"] or f"#{number}", f"call{number:05d}"  # nine letters and digits, as Mistral asks
            if given in waiting:
                raise RefusedRecord("unmatched_call", f"{place}.id is {quoted(given)} twice; accepted: each id once")
            waiting[given], number = (ours, call["function"]["name"]), number + 1
            calls.append(call | {"id": ours})
        done.append(message | ({"tool_calls": calls} if calls else {}))
    if not is_question:
        last = max((at for at, message in enumerate(done) if is_trained(message)), default=None)
        if last is None:
            if any(message["role"] == "assistant" for message in done):
                raise RefusedRecord("nothing_trained", "every answer has weight 0; accepted: one or more with weight 1")
        elif any(message.get("weight") == 0 for message in done[last + 1 :]):
            done = done[: last + 1]
    return _encodable(Conversation(done, tools))


def _matched(message: Message, waiting: dict[str, tuple[str, str]], where: str) -> Message:
    """A result under the id of its call; one without an id is that of the first call that waits."""
    given = message.get("tool_call_id")
    if given is None:
        given = next((id_ for id_, (_, name) in waiting.items() if message.get("name") in (None, name)), None)
    if given is None or given not in waiting:
        ids = ", ".join(waiting) or "none, as no call waits for a result"
        said = "tool_call_id is missing" if given is None else f"tool_call_id is {quoted(given)}"
        raise RefusedRecord("unmatched_call", f"{where}.{said}; accepted: {ids}")
    ours, name = waiting.pop(given)
    return {"role": "tool", "content": message["content"], "tool_call_id": ours, "name": name}


def _fits(call: dict[str, Any], known: dict[str, Any], where: str) -> None:
    if call["name"] not in known:
        names = ", ".join(known) or "none, as the record has no tools"
        raise RefusedRecord("unknown_tool", f"{where} calls {quoted(call['name'])}; accepted: {names}")
    if said := misfit(known[call["name"]], call["arguments"]):
        raise RefusedRecord("bad_arguments", f"{where}.arguments of {quoted(call['name'])}: {said}")


def _encodable(conversation: Conversation) -> Conversation:
    """The conversation, if UTF-8 and Parquet can hold it. Raises RefusedRecord."""
    text = chat_of(conversation) or ""
    if "\\u0000" in text:
        raise RefusedRecord("nul_character", "a tool or a call has NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedRecord("lone_surrogate", "a tool or a call has half of a pair") from None
    return conversation
