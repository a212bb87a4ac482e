"""Records as messages: the layouts that instruction data come in, and what makes a record unfit.

Text is taken as it stands, down to its spaces: whether it is any good is for the check stage to say. What says
something that a row cannot hold, such as an image, makes a record unfit: it is not dropped.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from itertools import takewhile

from tunewright.config import Layout
from tunewright.errors import DataError
from tunewright.tasks.ingest import preferences
from tunewright.tasks.ingest.calls import OF_RECORD, checked, definitions
from tunewright.tasks.ingest.naming import found_fields
from tunewright.tasks.ingest.parsing import Record, RefusedRecord, quoted
from tunewright.tasks.ingest.turns import (
    MAPPED,
    OPENAI,
    SHAREGPT,
    instruction,
    optional_text,
    side,
    text_of_field,
    turns,
)
from tunewright.tools.conversation import Conversation, Message, before, rejected_of

REQUIRED: dict[Layout, tuple[str, ...]] = {  # in the order in which auto tries them
    "preference": preferences.PAIR,
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "ranked": ("prompt", "answers"),
}
MORE: dict[Layout, tuple[str, ...]] = {  # fields with texts that a layout reads besides
    "preference": (*preferences.PROMPTS, "input", "history"),
    "alpaca": ("input",),
}
CONVERSATION_FIELD: dict[Layout, str] = {"messages": "messages", "sharegpt": "conversations"}  # for positions
BESIDES = {"input", "history", "system", "tools", "scores", "label", "correction", "source", "group", "time"}
MAPPABLE = tuple(sorted(BESIDES.union(*REQUIRED.values())))  # by source.columns
OF_ANSWERS = {"label", "correction"}  # which say nothing alone
FIELDS = frozenset((*MAPPABLE, *OF_RECORD, *preferences.OF_OPENAI))  # all that is read of a record

OPENING = ("system", "developer")  # developer is what OpenAI's newer layout calls it


def known_columns(path: str, there: Sequence[str], columns: frozenset[str] | None) -> list[str]:
    """The columns of a table that are asked for, None for all. Raises DataError for none of them, or a name twice."""
    if twice := [name for at, name in enumerate(there) if name in there[:at]]:
        raise DataError(f"{path}: there are two columns {quoted(twice[0])}; accepted: each name once")
    known = [name for name in there if columns is None or name in columns]
    if not {*known} - OF_ANSWERS:
        accepted = ", ".join(sorted(columns or ()))
        raise DataError(f"{path}: no known column in {there[:8]}; accepted: {accepted}")
    return known


def layout_of(record: Record) -> Layout:
    """The first layout whose fields all say something, otherwise the first of which one is there.

    A pair of which one answer says nothing is a pair too: what else is there must not become a row without it.
    """
    has_both = all(field in record for field in preferences.PAIR) or preferences.is_of_openai(record)
    if has_both and any(record.get(field) for field in preferences.PAIR):
        return "preference"
    present = {field for field, value in record.items() if value}
    for layout, fields in REQUIRED.items():
        if present.issuperset(fields):
            return layout
    for layout, fields in REQUIRED.items():
        if layout != "ranked" and not record.keys().isdisjoint(fields):  # many data sets have a field answers
            return layout
    known = "; ".join(" and ".join(fields) for fields in REQUIRED.values())
    raise RefusedRecord("unknown_layout", f"{found_fields(record)}; accepted: {known}; {MAPPED}")


def refuse_another(record: Record, layout: Layout, messages: list[Message]) -> None:
    """Raises Refused where the record is whole in another layout as well, and is another conversation there.

    The prompt of a pair may be one in another layout. Several right answers beside a completion are no ranking.
    """
    same = (messages, messages[:-1]) if layout == "preference" else (messages,)
    for other, fields in REQUIRED.items():
        if other in (layout, "ranked") or not all(record.get(field) for field in fields):  # an empty one says nothing
            continue
        if to_messages(record, other) not in same:
            both = " and ".join((*REQUIRED[layout], *fields))
            raise RefusedRecord("two_layouts", f"it has {both}, which conflict; data.sources[].layout chooses one")


def to_messages(record: Record, layout: Layout) -> list[Message]:
    """The conversation of a record in a layout other than auto; its `system`, if it has one, comes first."""
    return _to_messages(record, layout, _CONVERSATIONS[layout], is_question=False)


def to_question(record: Record, layout: Layout) -> list[Message]:
    """The conversation of a record whose answer may be missing or null: then it is empty, of a pair left out.

    An undesirable answer is left out as well: it is no reference.
    """
    answer, read = REQUIRED[layout][-1], _CONVERSATIONS[layout]
    if layout in ("preference", "ranked"):
        read = read if preferences.has_both(record, layout) else preferences.prompt
    elif answer not in CONVERSATION_FIELD.values() and record.get(answer) is None:
        record = copy(record)
        record[answer] = ""
    messages = _to_messages(record, layout, read, is_question=True)
    if preferences.is_undesirable(record, layout) and messages[-1]["role"] == "assistant":
        return [*before(messages, -1)]
    return messages


def _to_messages(
    record: Record, layout: Layout, read: Callable[[Record], list[Message]], *, is_question: bool
) -> list[Message]:
    tools = definitions(record)
    system = optional_text(record, "system")
    opening = [{"role": "system", "content": system}] if system else []
    answered = read(record)
    messages = preferences.paired(record, layout, answered)
    undesirable = messages is answered and not is_question and preferences.is_undesirable(record, layout)
    if tools or undesirable or isinstance(messages, Conversation):
        rejected = rejected_of(messages)
        messages = checked(messages, tools, CONVERSATION_FIELD.get(layout, ""), is_question=is_question)
        return Conversation(_with_one_system(opening + messages), tools, rejected, undesirable=undesirable)
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


def _alpaca(record: Record) -> list[Message]:
    return [*instruction(record), {"role": "assistant", "content": text_of_field(record, "output")}]


_CONVERSATIONS: dict[Layout, Callable[[Record], list[Message]]] = {
    "preference": preferences.preference,
    "messages": partial(turns, field="messages", form=OPENAI),
    "sharegpt": partial(turns, field="conversations", form=SHAREGPT),
    "alpaca": _alpaca,
    "prompt_completion": lambda record: side(record, "prompt", "user") + side(record, "completion", "assistant"),
    "ranked": preferences.ranked,
}
