"""Records as messages: the layouts that instruction data come in, and what makes a record unfit.

Text is taken as it stands, down to its spaces: whether it is any good is for the check stage to say.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from tasks.config import Layout
from tasks.ingest.parsing import Record, Refused, kind

Message = dict[str, str]  # role, content

REQUIRED: dict[Layout, tuple[str, ...]] = {  # in the order in which auto tries them
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
}
FIELDS = frozenset({"input", "system", "source", "group"}.union(*REQUIRED.values()))

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = ROLES | {"human": "user", "gpt": "assistant"}


def layout_of(record: Record) -> Layout:
    """The first layout whose fields are all there, otherwise the first of which one is."""
    present = {field for field, value in record.items() if value is not None}
    for layout, fields in REQUIRED.items():
        if present.issuperset(fields):
            return layout
    for layout, fields in REQUIRED.items():
        if not record.keys().isdisjoint(fields):
            return layout
    known = "; ".join(" and ".join(fields) for fields in REQUIRED.values())
    found = ", ".join(map(ascii, list(record)[:8])) or "no field"
    raise Refused("unknown_layout", f"it has {found}; accepted are {known}")


def to_messages(record: Record, layout: Layout) -> list[Message]:
    """The conversation of a record in a layout other than auto; its `system`, if it has one, comes first."""
    system = optional_text(record, "system")
    opening = [{"role": "system", "content": system}] if system else []
    return opening + _CONVERSATIONS[layout](record)


def optional_text(record: Record, field: str) -> str:
    """The text of a field that may be absent or null: then it is empty."""
    return _text(record, field) if record.get(field) is not None else ""


def _alpaca(record: Record) -> list[Message]:
    instruction, given = _text(record, "instruction"), optional_text(record, "input")
    asked = f"{instruction}\n\n{given}" if given else instruction
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": _text(record, "output")}]


def _side(record: Record, field: str, role: str) -> list[Message]:
    """One side of prompt and completion: a text, or a list of messages as TRL has it."""
    if isinstance(record.get(field), list):
        return _turns(record, field, "role", "content", ROLES)
    return [{"role": role, "content": _text(record, field)}]


def _turns(record: Record, field: str, role_field: str, content_field: str, roles: dict[str, str]) -> list[Message]:
    turns = _value(record, field)
    if not isinstance(turns, list):
        raise Refused("wrong_type", f"{field} is {kind(turns)}, not an array")
    if not turns:
        raise Refused("missing_field", f"{field} is empty")
    messages = []
    for position, turn in enumerate(turns):
        where = f"{field}[{position}]."
        if not isinstance(turn, dict):
            raise Refused("wrong_type", f"{where[:-1]} is {kind(turn)}, not an object")
        role = _text(turn, role_field, where)
        if role not in roles:
            raise Refused("unknown_role", f"{where}{role_field} is {role!a:.60}; accepted are {', '.join(roles)}")
        messages.append({"role": roles[role], "content": _text(turn, content_field, where)})
    return messages


def _value(record: Record, field: str, where: str = "") -> Any:
    if field not in record:
        raise Refused("missing_field", f"there is no {where}{field}")
    if record[field] is None:
        raise Refused("null_field", f"{where}{field} is null")
    return record[field]


def _text(record: Record, field: str, where: str = "") -> str:
    value = _value(record, field, where)
    if not isinstance(value, str):
        raise Refused("wrong_type", f"{where}{field} is {kind(value)}, not a string")
    if "\0" in value:
        raise Refused("nul_character", f"character {value.index(chr(0)) + 1} of {where}{field} is NUL")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refused("lone_surrogate", f"character {error.start + 1} of {where}{field} is half of a pair") from None
    return value


_CONVERSATIONS: dict[Layout, Callable[[Record], list[Message]]] = {
    "messages": partial(_turns, field="messages", role_field="role", content_field="content", roles=ROLES),
    "sharegpt": partial(_turns, field="conversations", role_field="from", content_field="value", roles=SHAREGPT_ROLES),
    "alpaca": _alpaca,
    "prompt_completion": lambda record: _side(record, "prompt", "user") + _side(record, "completion", "assistant"),
}
