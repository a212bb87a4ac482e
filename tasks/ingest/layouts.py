"""Records as messages: the layouts that instruction data come in, and what makes a record unfit.

Text is taken as it stands, down to its spaces: whether it is any good is for the check stage to say. What says
something that a row cannot hold, such as an image, makes a record unfit: it is not dropped.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from tunewright.config import Layout
from tunewright.errors import DataError
from tunewright.tasks.ingest.calls import CALLING, EMPTY, OF_RECORD, RESULTS, checked, definitions, read_turn, says_more
from tunewright.tasks.ingest.parsing import Record, RefusedRecord, kind, quoted
from tunewright.tools.conversation import Conversation, Message

REQUIRED: dict[Layout, tuple[str, ...]] = {  # in the order in which auto tries them
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
}
CONVERSATION_FIELD: dict[Layout, str] = {"messages": "messages", "sharegpt": "conversations"}  # for positions
MAPPABLE = tuple(
    sorted({"input", "history", "system", "tools", "source", "group", "time"}.union(*REQUIRED.values()))
)  # by source.columns
MAPPED = "columns of the source can map them"
FIELDS = frozenset(MAPPABLE + OF_RECORD)  # all that is read of a record

UNSUPPORTED_OF_TURN = ("refusal", "audio")

OPENING = ("system", "developer")  # developer is what OpenAI's newer layout calls it
ROLES = {"system": "system", "developer": "developer", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = ROLES | {"human": "user", "gpt": "assistant"}


def known_columns(path: str, there: Sequence[str], columns: frozenset[str] | None) -> list[str]:
    """The columns of a table that are asked for, None for all. Raises DataError for none of them, or a name twice."""
    if twice := [name for at, name in enumerate(there) if name in there[:at]]:
        raise DataError(f"{path}: there are two columns {quoted(twice[0])}; accepted: each name once")
    known = [name for name in there if columns is None or name in columns]
    if not known:
        accepted = ", ".join(sorted(columns or ()))
        raise DataError(f"{path}: no known column in {there[:8]}; accepted: {accepted}")
    return known


class Renamed(Record):
    """A record with its fields under our names; `columns` are ours -> theirs, and of ours only they count then.

    Messages about it name its own fields.
    """

    def __init__(self, record: Record, columns: dict[str, str]) -> None:
        taken = columns.keys() | set(columns.values())
        super().__init__({field: value for field, value in record.items() if field not in taken})
        self.update({ours: record[theirs] for ours, theirs in columns.items() if theirs in record})
        self.own_fields, self.columns = [*record], columns


def layout_of(record: Record) -> Layout:
    """The first layout whose fields all say something, otherwise the first of which one is there."""
    present = {field for field, value in record.items() if value}
    for layout, fields in REQUIRED.items():
        if present.issuperset(fields):
            return layout
    for layout, fields in REQUIRED.items():
        if not record.keys().isdisjoint(fields):
            return layout
    known = "; ".join(" and ".join(fields) for fields in REQUIRED.values())
    raise RefusedRecord("unknown_layout", f"{found_fields(record)}; accepted: {known}; {MAPPED}")


def found_fields(record: Record) -> str:
    """Say which fields a record has."""
    fields = record.own_fields if isinstance(record, Renamed) else list(record)
    return f"the fields are {', '.join(map(quoted, fields[:8]))}" if fields else "it has no field"


def _own_name(record: Record, field: str) -> str:
    """A field as the record names it, with our name where columns of the source map it: question (instruction)."""
    theirs = record.columns.get(field, field) if isinstance(record, Renamed) else field
    return field if theirs == field else f"{theirs} ({field})"


def refuse_another(record: Record, layout: Layout, messages: list[Message]) -> None:
    """Raises Refused where the record is whole in another layout as well, and is another conversation there."""
    for other, fields in REQUIRED.items():
        if other == layout or not all(record.get(field) for field in fields):  # an empty one says nothing
            continue
        if to_messages(record, other) != messages:
            both = " and ".join((*REQUIRED[layout], *fields))
            raise RefusedRecord("two_layouts", f"it has {both}, which conflict; data.sources[].layout chooses one")


def to_messages(record: Record, layout: Layout) -> list[Message]:
    """The conversation of a record in a layout other than auto; its `system`, if it has one, comes first."""
    return _to_messages(record, layout, is_question=False)


def to_question(record: Record, layout: Layout) -> list[Message]:
    """The conversation of a record whose answer may be missing or null: then it is empty."""
    answer = REQUIRED[layout][-1]
    has_no_answer = answer not in CONVERSATION_FIELD.values() and record.get(answer) is None
    return _to_messages(record | {answer: ""} if has_no_answer else record, layout, is_question=True)


def _to_messages(record: Record, layout: Layout, *, is_question: bool) -> list[Message]:
    tools = definitions(record)
    system = optional_text(record, "system")
    opening = [{"role": "system", "content": system}] if system else []
    messages = _CONVERSATIONS[layout](record)
    if tools or isinstance(messages, Conversation):
        messages = checked(messages, tools, CONVERSATION_FIELD.get(layout, ""), is_question=is_question)
        return Conversation(_with_one_system(opening + messages), tools)
    return _with_one_system(opening + messages)


def _with_one_system(messages: list[Message]) -> list[Message]:
    """The messages with `developer` as system; what opens a conversation beside it is joined to one, in its order.

    Chat templates know no developer, and take one system message; elsewhere it is for check to refuse.
    """
    if all(message["role"] != "developer" for message in messages):
        return messages
    opening = list(takewhile(lambda message: message["role"] in OPENING, messages))
    rest = [m | {"role": "system"} if m["role"] == "developer" else m for m in messages[len(opening) :]]
    if not any(message["role"] == "developer" for message in opening):
        return opening + rest
    return [{"role": "system", "content": "\n\n".join(message["content"] for message in opening)}, *rest]


def optional_text(record: Record, field: str) -> str:
    """The text of a field that may be absent or null: then it is empty."""
    return _text(record, field) if record.get(field) is not None else ""


def _alpaca(record: Record) -> list[Message]:
    instruction, given = _text(record, "instruction"), optional_text(record, "input")
    asked = f"{instruction}\n\n{given}" if given else instruction
    last = [{"role": "user", "content": asked}, {"role": "assistant", "content": _text(record, "output")}]
    return _history(record) + last


def _history(record: Record) -> list[Message]:
    """The earlier turns of a record, as LLaMA-Factory has them: [[question, answer], ...]. A text is something else."""
    history: Any = record.get("history")
    messages: list[Message] = []
    for position, pair in enumerate(history if isinstance(history, list) else []):
        where = f"history[{position}]"
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RefusedRecord("wrong_type", f"{where} is not an array of two strings, a question and its answer")
        for at, role in enumerate(("user", "assistant")):
            messages.append({"role": role, "content": encodable(pair[at], f"{where}[{at}]")})
    return messages


def _side(record: Record, field: str, role: str) -> list[Message]:
    """One side of prompt and completion: a text, or a list of messages as TRL has it."""
    if isinstance(record.get(field), list):
        return _turns(record, field, "role", "content", ROLES)
    return [{"role": role, "content": _text(record, field)}]


def _turns(record: Record, field: str, role_field: str, content_field: str, roles: dict[str, str]) -> list[Message]:
    turns = _value(record, field)
    if not isinstance(turns, list):
        raise RefusedRecord("wrong_type", f"{field} is {kind(turns)}, not an array")
    if not turns:
        raise RefusedRecord("missing_field", f"{field} is empty")
    messages = []
    for position, turn in enumerate(turns):
        where = f"{field}[{position}]."
        if not isinstance(turn, dict):
            raise RefusedRecord("wrong_type", f"{where[:-1]} is {kind(turn)}, not an object")
        if len(turn) > 2:
            _loses_nothing(turn, where)
        role = _text(turn, role_field, where)
        others = (*RESULTS, *([CALLING] if roles is SHAREGPT_ROLES else []))
        if role not in roles and role not in others:
            accepted = ", ".join((*roles, *others))
            raise RefusedRecord("unknown_role", f"{where}{role_field} is {quoted(role)}; accepted: {accepted}")
        if role in roles and ((len(turn) == 2 and content_field in turn) or not says_more(turn, role)):
            messages.append({"role": roles[role], "content": _content(turn, content_field, where)})
            continue
        has_calls = any(turn.get(each) not in EMPTY for each in ("tool_calls", "function_call"))
        content = "" if has_calls and turn.get(content_field) is None else _content(turn, content_field, where)
        messages = Conversation([*messages, read_turn(turn, roles.get(role, role), content, where)])
    return messages


def _loses_nothing(turn: Record, where: str) -> None:
    for field in UNSUPPORTED_OF_TURN:
        if turn.get(field) not in EMPTY:
            raise RefusedRecord("unsupported_field", f"{where}{field}: a row cannot hold it")
    if turn.get("train") not in (None, True):
        raise RefusedRecord("unsupported_field", f"{where}train is {quoted(turn['train'])}; set weight to 0 instead")


def _content(turn: Record, field: str, where: str) -> str:
    """A text, or the texts of OpenAI's content parts joined as chat templates join them: with nothing between."""
    parts = turn.get(field)
    if not isinstance(parts, list):
        return _text(turn, field, where)
    texts = []
    for position, part in enumerate(parts):
        at = f"{where}{field}[{position}]"
        if not isinstance(part, dict):
            raise RefusedRecord("wrong_type", f"{at} is {kind(part)}, not an object")
        if part.get("type") != "text":
            said = f"{at} is of type {quoted(part.get('type'))}; accepted: text"
            raise RefusedRecord("unsupported_field", f"{said}; images, audio and files are not trained")
        texts.append(_text(part, "text", f"{at}."))
    return "".join(texts)


def _value(record: Record, field: str, where: str = "") -> Any:
    named = _own_name(record, field)
    if field not in record:
        instead = "" if where else f"; {found_fields(record)}{f'; {MAPPED}' if named == field else ''}"
        raise RefusedRecord("missing_field", f"there is no {where}{named}{instead}")
    if record[field] is None:
        raise RefusedRecord("null_field", f"{where}{named} is null")
    return record[field]


def _text(record: Record, field: str, where: str = "") -> str:
    value, named = _value(record, field, where), _own_name(record, field)
    if not isinstance(value, str):
        raise RefusedRecord("wrong_type", f"{where}{named} is {kind(value)}, not a string")
    return encodable(value, f"{where}{named}")


def encodable(text: str, where: str) -> str:
    """The text, if UTF-8 and Parquet can hold it. Raises Refused."""
    if "\0" in text:
        raise RefusedRecord("nul_character", f"character {text.index(chr(0)) + 1} of {where} is NUL")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RefusedRecord("lone_surrogate", f"character {error.start + 1} of {where} is half of a pair") from None
    return text


_CONVERSATIONS: dict[Layout, Callable[[Record], list[Message]]] = {
    "messages": partial(_turns, field="messages", role_field="role", content_field="content", roles=ROLES),
    "sharegpt": partial(_turns, field="conversations", role_field="from", content_field="value", roles=SHAREGPT_ROLES),
    "alpaca": _alpaca,
    "prompt_completion": lambda record: _side(record, "prompt", "user") + _side(record, "completion", "assistant"),
}
