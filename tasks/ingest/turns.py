"""Fields and turns of a record: a text is taken as it stands, and what a row cannot hold is refused with its place."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tunewright.tasks.ingest.calls import CALLING, EMPTY, RESULTS, read_turn, says_more
from tunewright.tasks.ingest.naming import found_fields, own_name, own_place
from tunewright.tasks.ingest.parsing import Record, RefusedRecord, kind, quoted
from tunewright.tools.conversation import Conversation, Message

MAPPED = "columns of the source can map them"
UNSUPPORTED_OF_TURN = ("refusal", "audio")
ROLES = {"system": "system", "developer": "developer", "user": "user", "assistant": "assistant"}


class TurnForm(NamedTuple):
    """The names that messages have for who speaks and for what is said, and the roles that they know."""

    role: str
    content: str
    roles: dict[str, str]
    others: Sequence[str]


OPENAI = TurnForm("role", "content", ROLES, RESULTS)
SHAREGPT = TurnForm("from", "value", ROLES | {"human": "user", "gpt": "assistant"}, (*RESULTS, CALLING))


def value_of(record: Record, field: str, where: str = "") -> Any:
    """The value of a field, of a turn if `where` is its place. Raises RefusedRecord if it is missing or null."""
    named = own_name(record, field)
    if field not in record:
        instead = "" if where else f"; {found_fields(record)}{f'; {MAPPED}' if named == field else ''}"
        raise RefusedRecord("missing_field", f"there is no {where}{named}{instead}")
    if record[field] is None:
        raise RefusedRecord("null_field", f"{where}{named} is null")
    return record[field]


def text_of_field(record: Record, field: str, where: str = "") -> str:
    """The text of a field. Raises RefusedRecord."""
    value, named = value_of(record, field, where), own_name(record, field)
    if not isinstance(value, str):
        raise RefusedRecord("wrong_type", f"{where}{named} is {kind(value)}, not a string")
    return encodable(value, f"{where}{named}")


def optional_text(record: Record, field: str) -> str:
    """The text of a field that may be absent or null: then it is empty."""
    return text_of_field(record, field) if record.get(field) is not None else ""


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


def turns(record: Record, field: str, form: TurnForm) -> list[Message]:
    """The messages of a field; a Conversation where one says more than role and content. Raises RefusedRecord."""
    given, place = value_of(record, field), own_place(record, field)
    if not isinstance(given, list):
        raise RefusedRecord("wrong_type", f"{place} is {kind(given)}, not an array")
    if not given:
        raise RefusedRecord("missing_field", f"{place} is empty")
    messages: list[Message] = []
    has_more = False
    for position, each in enumerate(given):
        message, more = turn(each, f"{place}[{position}].", form)
        messages.append(message)
        has_more |= more
    return Conversation(messages) if has_more else messages


def turn(given: Any, where: str, form: TurnForm) -> tuple[Message, bool]:
    """One message, and whether it says more than role and content; `where` is its place. Raises RefusedRecord."""
    if not isinstance(given, dict):
        raise RefusedRecord("wrong_type", f"{where[:-1]} is {kind(given)}, not an object")
    if len(given) > 2:
        _loses_nothing(given, where)
    role = text_of_field(given, form.role, where)
    if role not in form.roles and role not in form.others:
        accepted = ", ".join((*form.roles, *form.others))
        raise RefusedRecord("unknown_role", f"{where}{form.role} is {quoted(role)}; accepted: {accepted}")
    if role in form.roles and ((len(given) == 2 and form.content in given) or not says_more(given, role)):
        return {"role": form.roles[role], "content": _content(given, form.content, where)}, False
    has_calls = any(given.get(each) not in EMPTY for each in ("tool_calls", "function_call"))
    content = "" if has_calls and given.get(form.content) is None else _content(given, form.content, where)
    return read_turn(given, form.roles.get(role, role), content, where), True


def form_of(given: Any) -> TurnForm:
    """The form of a message, or of the first of several."""
    first = given[0] if isinstance(given, list) and given else given
    return SHAREGPT if isinstance(first, dict) and first.get("from") is not None else OPENAI


def side(record: Record, field: str, role: str) -> list[Message]:
    """One side of prompt and completion: a text, or a list of messages as TRL has it."""
    if isinstance(record.get(field), list):
        return turns(record, field, form_of(record[field]))
    return [{"role": role, "content": text_of_field(record, field)}]


def instruction(record: Record) -> list[Message]:
    """The question of an alpaca record, behind its earlier turns."""
    asked, given = text_of_field(record, "instruction"), optional_text(record, "input")
    return [*_history(record), {"role": "user", "content": f"{asked}\n\n{given}" if given else asked}]


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
        return text_of_field(turn, field, where)
    texts = []
    for position, part in enumerate(parts):
        at = f"{where}{field}[{position}]"
        if not isinstance(part, dict):
            raise RefusedRecord("wrong_type", f"{at} is {kind(part)}, not an object")
        if part.get("type") != "text":
            said = f"{at} is of type {quoted(part.get('type'))}; accepted: text"
            raise RefusedRecord("unsupported_field", f"{said}; images, audio and files are not trained")
        texts.append(text_of_field(part, "text", f"{at}."))
    return "".join(texts)
