"""Requests of the OpenAI API: read, validated and refused by name where this endpoint cannot do what they ask.

Nothing that would change an answer is ignored: a field that is not supported is accepted with its neutral value alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from tunewright.accepted import accepted, meant, shown
from tunewright.serving import ROLES
from tunewright.tasks.ingest.calls import checked, definitions, read_turn
from tunewright.tasks.ingest.parsing import RefusedRecord
from tunewright.tools.conversation import Conversation, Message

LONGEST_STOP, MOST_STOPS = 1_000, 4  # characters; OpenAI takes four
ACCEPTED_ROLES = tuple(role for role in ROLES if role != "tool")
OF_SEVERAL_TYPES = {
    "stop": f"a text, or up to {MOST_STOPS} texts, of 1 to {LONGEST_STOP:,} characters",
    "prompt": "a text, or a list of token ids",
}
WITH_TOOLS = "accepted only in a request with tools; send the tools again with each turn"
OF_TOOLS = {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}  # fields of messages, with tools
UNUSED = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # they change no answer
NEUTRAL: dict[str, tuple[Any, ...]] = {  # fields that are not supported -> the values that ask for nothing
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "echo": (False,),
    "suffix": ("",),
}


class RequestError(Exception):
    """An error of OpenAI's shape: a status, one sentence, the field and a code."""

    def __init__(
        self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, *, param: str | None = None, code: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that OpenAI's clients read."""
        kind = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code or None}}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that was understood; `prompt` is of completions, `messages` of chat completions."""

    model: str
    messages: list[Message] | None = None  # a Conversation where the request has tools
    prompt: str | list[int] = ""
    most: int | None = None  # tokens of the answer; None for as many as were measured
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    is_streamed: bool = False
    with_usage: bool = False  # in a last part of a stream
    with_tokens: bool = False
    most_calls: int | None = None  # of tools, in one answer; None for as many as it has


class _StreamOptions(BaseModel, strict=True, extra="forbid"):
    include_usage: bool = False


class _Fields(BaseModel, strict=True, extra="forbid"):
    """Fields of both kinds of requests."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    return_token_ids: bool | None = None  # as vLLM has it


class _Chat(_Fields):
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    max_completion_tokens: int | None = Field(None, ge=1)


class _Completion(_Fields):
    prompt: str | list[str] | list[Annotated[int, Field(ge=0)]]


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises RequestError."""
    try:
        given = json.loads(body)
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} is 0x{body[error.start]:02x}"
        raise RequestError(f"the body is not UTF-8: {where}; accepted: a JSON object in UTF-8") from None
    except (ValueError, RecursionError):
        raise RequestError("the body is no JSON; accepted: a JSON object") from None
    if not isinstance(given, dict):
        raise RequestError("the body is no JSON object")
    return given


def read(body: bytes, *, is_chat: bool) -> Asked:
    """The request of a body. Raises RequestError."""
    given = json_object(body)
    kind = _Chat if is_chat else _Completion
    try:
        fields = kind.model_validate(_supported(given, [*kind.model_fields]))
    except ValidationError as error:
        raise refusal(error) from None
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    if len(stops) > MOST_STOPS or not all(0 < len(each) <= LONGEST_STOP for each in stops):
        raise RequestError(f"stop: accepted: {OF_SEVERAL_TYPES['stop']}", param="stop")
    if fields.stream_options and not fields.stream:
        raise RequestError("stream_options: accepted only with stream=true", param="stream_options")
    if fields.return_token_ids and fields.stream:
        raise RequestError("return_token_ids: not supported with stream=true", param="return_token_ids")
    return Asked(
        model=fields.model,
        messages=_conversation(fields, given) if isinstance(fields, _Chat) else None,
        prompt=_prompt(fields.prompt) if isinstance(fields, _Completion) else "",
        most=_most(fields),
        temperature=fields.temperature or 0.0,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        seed=fields.seed,
        stops=tuple(stops),
        is_streamed=bool(fields.stream),
        with_usage=bool(fields.stream_options and fields.stream_options.include_usage),
        with_tokens=bool(fields.return_token_ids),
        most_calls=1 if given.get("parallel_tool_calls") is False else None,
    )


def _supported(given: dict[str, Any], known: list[str]) -> dict[str, Any]:
    """The fields that the endpoint acts on. Raises RequestError for one that asks for what it cannot do."""
    acted_on: dict[str, Any] = {}
    for name, value in given.items():
        if name in known:
            acted_on[name] = value
        elif name in UNUSED or (name in NEUTRAL and (value is None or _is_one_of(value, NEUTRAL[name]))):
            continue
        elif name in NEUTRAL:
            message = f"{name}: not supported by this endpoint; leave it out"
            raise RequestError(message, param=name, code="unsupported_parameter")
        else:
            near = meant(get_close_matches(name, known, 1))
            message = f"{shown(name)}: no such field; {near}leave it out"
            raise RequestError(message, param=name, code="unknown_parameter")
    return acted_on


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    return any(type(value) is type(each) and value == each for each in values)


def place(location: Sequence[str | int]) -> str:
    """A field by its path, such as messages[0].role."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def refusal(error: ValidationError) -> RequestError:
    """The first error of a request's fields, in a sentence."""
    (first, *_) = error.errors(include_url=False)
    name, where = str(first["loc"][0]), place(first["loc"])
    if first["type"] == "missing":
        return RequestError(f"{where}: is missing", param=where)
    if first["type"] == "extra_forbidden":
        return RequestError(f"{where}: no such field; leave it out", param=where, code="unknown_parameter")
    if wanted := OF_SEVERAL_TYPES.get(name):
        return RequestError(f"{name}: accepted: {wanted}", param=name)
    return RequestError(f"{where} {shown(first['input'])}: accepted: {accepted(first)}", param=where)


def _most(fields: _Fields) -> int | None:
    newer = fields.max_completion_tokens if isinstance(fields, _Chat) else None
    if newer is not None and fields.max_tokens not in (None, newer):
        raise RequestError("max_tokens and max_completion_tokens differ; accepted: one of them", param="max_tokens")
    return fields.max_tokens if newer is None else newer


def _prompt(given: Any) -> str | list[int]:
    if isinstance(given, list) and given and isinstance(given[0], str):
        if len(given) > 1:
            raise RequestError(f"prompt: {len(given)} prompts; accepted: one in a request", param="prompt")
        given = given[0]
    if not given:
        raise RequestError(f"prompt: is empty; accepted: {OF_SEVERAL_TYPES['prompt']}", param="prompt")
    return given


def _conversation(fields: _Chat, given: dict[str, Any]) -> list[Message]:
    """The messages, with the tools that the model may call. Raises RequestError."""
    if not fields.tools:
        return _messages(fields.messages, has_tools=False)
    try:
        tools = definitions({"tools": fields.tools})
        messages = checked(_messages(fields.messages, has_tools=True), tools, "messages", is_question=True)
    except RefusedRecord as refused:
        param = "tools" if refused.reason == "bad_tools" else "messages"
        raise RequestError(refused.detail, param=param, code=refused.reason) from None
    return Conversation(messages, [] if fields.tool_choice == "none" else tools)


def _messages(given: list[dict[str, Any]], *, has_tools: bool) -> list[Message]:
    messages = [_message(each, f"messages[{at}]", has_tools=has_tools) for at, each in enumerate(given)]
    if messages[-1]["role"] == "assistant":
        raise RequestError(
            "messages: the last is the assistant's; accepted: one that it can answer, as a user's", param="messages"
        )
    return messages


def _message(given: dict[str, Any], where: str, *, has_tools: bool) -> Message:
    """A message as the chat template reads it. Raises RequestError, RefusedRecord."""
    role, content = given.get("role"), given.get("content")
    if role == "tool" and not has_tools:
        raise RequestError(f"{where}: role tool is {WITH_TOOLS}", param=f"{where}.role")
    if role not in (roles := ROLES if has_tools else ACCEPTED_ROLES):
        raise RequestError(f"{where}: role is {shown(role)}; accepted: {', '.join(roles)}", param=f"{where}.role")
    more = OF_TOOLS.get(str(role), ()) if has_tools else ()
    for name, value in given.items():
        if name not in ("role", "content", *more) and value not in (None, [], ""):
            said = WITH_TOOLS if name in OF_TOOLS.get(str(role), ()) else "not supported; leave it out"
            raise RequestError(f"{where}: {shown(name)} is {said}", param=f"{where}.{name}")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise RequestError(
                    f"{where}: content has a part of type {shown(kind)}; accepted: text alone",
                    param=f"{where}.content",
                )
        content = "\n".join(part["text"] for part in content)
    if content is None and given.get("tool_calls") and more:
        content = ""
    if not isinstance(content, str):
        raise RequestError(f"{where}: content is no text; accepted: a text", param=f"{where}.content")
    return read_turn(given, str(role), content, f"{where}.") if more else {"role": role, "content": content}
