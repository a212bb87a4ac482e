"""The calls in the text of a model, in the forms that chat templates write them, special tokens left out or not:

* Hermes, Qwen 2.5 and 3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, once for each call;
* Qwen 3 Coder and 3.5: <tool_call><function=NAME><parameter=KEY>value</parameter></function></tool_call>;
* GLM 4.5: <tool_call>NAME<arg_key>KEY</arg_key><arg_value>value</arg_value></tool_call>;
* Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]NAME[ARGS]{...} for each call;
* Llama 3: {"name": ..., "parameters": {...}}, several of them in lines or parted by semicolons;
* a JSON object or array of calls as it stands.

Another form counts as a call only where an answer equals its reference token for token (modeling/chat.py).
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
KEY_AND_VALUE = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
MARKED = re.compile(r"\[TOOL_CALLS\]|<\|python_tag\|>")
NAMED = re.compile(r"\s*(?:\[TOOL_CALLS\])?([A-Za-z_][\w.-]*)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?(?=\{)")
BETWEEN = re.compile(r"[\s;]*(?:\[TOOL_CALLS\]|<\|python_tag\|>)?\s*")
OF_A_CALL = {"name", "arguments", "parameters", "id", "type"}  # the fields of a call in JSON
REASONING_ENDS = "</think>"
UNREADABLE = ""  # the name of a call that was begun and cannot be read: it equals no other

_JSON = json.JSONDecoder()


class Call(NamedTuple):
    """A tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]

    @property
    def canonical(self) -> str:
        """A text that is equal for equal calls, in whatever order their arguments stand."""
        return json.dumps([self.name, _plain(self.arguments)], sort_keys=True)


class Parsed(NamedTuple):
    """An answer: what is said beside calls, and the calls in their order."""

    content: str
    calls: list[Call]


def parse(text: str) -> Parsed:
    """The calls in an answer, and the text around them; reasoning is neither."""
    said = spoken(text)
    if "<tool_call>" in said:
        return Parsed(TAGGED.sub("", said).strip(), [call for each in TAGGED.findall(said) for call in _tagged(each)])
    if mark := MARKED.search(said):
        calls = _all_of(said[mark.start() :])
        return Parsed(said[: mark.start()].strip(), calls or [Call(UNREADABLE, {})])
    calls = _all_of(said)
    return Parsed("" if calls else said, calls)


def spoken(text: str) -> str:
    """An answer without the reasoning that it begins with."""
    return text.rpartition(REASONING_ENDS)[2].lstrip() if REASONING_ENDS in text else text


def said_beside(answer: str, reference: str) -> str:
    """An answer as it is compared with its reference: without reasoning, where the reference has none."""
    return answer if REASONING_ENDS in reference else spoken(answer)


def _tagged(inner: str) -> Iterator[Call]:
    """The calls within one tag: one, or several where they are JSON."""
    if function := FUNCTION.match(inner):
        yield Call(function[1], {key: _value(value) for key, value in PARAMETER.findall(function[2])})
    elif "<arg_key>" in inner or re.fullmatch(r"\s*[\w.-]+\s*", inner):
        name = inner.partition("<arg_key>")[0].strip()
        yield Call(name, {key: _value(value) for key, value in KEY_AND_VALUE.findall(inner)})
    else:
        yield from _all_of(inner) or [Call(UNREADABLE, {})]


def _value(text: str) -> Any:
    """A value that is written as JSON, or a text as it stands."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _all_of(text: str) -> list[Call]:
    """The calls that a text consists of; none where it has something else."""
    calls: list[Call | None] = []
    at, rest = 0, text.rstrip()
    while at < len(rest):
        named = NAMED.match(rest, at)
        begin = named or BETWEEN.match(rest, at)
        try:
            value, at = _JSON.raw_decode(rest, begin.end() if begin else at)
        except (ValueError, RecursionError):
            return []
        found = [{"name": named[1], "arguments": value}] if named else value if isinstance(value, list) else [value]
        calls += map(_call, found)
    return [] if None in calls else [call for call in calls if call]


def _call(given: Any) -> Call | None:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str) or not given.keys() <= OF_A_CALL:
        return None
    if not given.keys() & {"arguments", "parameters"}:
        return None
    arguments = given.get("arguments", given.get("parameters"))
    if isinstance(arguments, str):
        arguments = _value(arguments)
    return Call(given["name"], arguments) if isinstance(arguments, dict) else None


def _plain(value: Any) -> Any:
    """A JSON value in which 1.0 is 1."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
