"""Conversations to token ids and labels by the model's own chat template, and the proof that they mean what they say.

An answer is what the model has to say after a prompt that a server sends: all that the template puts between that
prompt's end and the stop token, which is trained too. So a label never depends on how a template marks its turns.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from tunewright.artifacts import IGNORED
from tunewright.errors import ConfigError, DataError
from tunewright.machine import bounded
from tunewright.machine.bounded import Unreadable
from tunewright.modeling import chat_templates
from tunewright.tools import parsing
from tunewright.tools.conversation import Conversation, Message, before, is_trained, text_of, tools_of

DATE = "26 Jul 2024"  # what a template that writes today's date gets, so that rows do not change overnight
FIXED_DATE = f"{{% macro strftime_now(format) %}}{DATE}{{% endmacro +%}}"

BATCH = 1_000  # conversations
BATCH_CHARACTERS = 4_000_000
SECONDS_EACH = 0.02  # of a conversation, a hundred times what the template of a usual model takes
MOST_WRITTEN = 64_000_000  # characters for one batch

Reasoning = Literal["trained", "masked", "dropped"]
PROBE_TOOL = {"name": "probe_tool", "description": "A probe.", "parameters": {"type": "object", "properties": {}}}
PROBE_CALL = {"id": "call00000", "type": "function", "function": {"name": "probe_tool", "arguments": {"probe": "1"}}}
Written = tuple[str, str | None]  # a conversation as text, and what the template refuses in it
At = TypeVar("At")


@dataclass(frozen=True)
class Tokenized:
    """One conversation. Labels are as long as the ids; `prompt_length` and `reference` are of the last answer."""

    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    reference: str
    tools: str | None = None  # JSON of the definitions of its tools


@dataclass(frozen=True)
class Untrainable:
    """Why a conversation cannot be trained: a reason code for the account, and a sentence for a person."""

    reason: str
    detail: str


class Turn(NamedTuple):
    """An answer's position in its conversation, and the prompt that asks for it, as text and ids."""

    number: int
    prompt: str
    prompt_ids: list[int]


def write_conversations(
    template: str,
    conversations: list[list[Message]],
    special: dict[str, Any],
    ask: bool,
    tools: list[list[dict[str, Any]]] | None = None,
) -> list[Written]:
    """Each conversation as a chat template writes it, as `apply_chat_template` does: for a bounded process.

    `tools` are those of each conversation.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    written: list[Written] = []
    left = MOST_WRITTEN
    for at, messages in enumerate(conversations):
        options: dict[str, Any] = special | ({"tools": tools[at] or None} if tools else {})
        try:
            (text,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=ask, **options)
            text.encode()  # no tokenizer takes half of a surrogate pair
            written.append((text, None))
            left -= len(text)
        except TemplateError as error:  # its words are the template's own
            written.append(("", _in_a_line(str(error))))
        except MemoryError:
            raise
        except Exception as error:  # of Python, where it takes a text for something else
            written.append(("", _in_a_line(f"{type(error).__name__}: {error}")))
        if left < 0:
            raise ValueError(f"writes more than {MOST_WRITTEN:,} characters for {len(conversations)} conversations")
    return written


def shown(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages as a template sees them: whether an answer is trained is not for it to know."""
    if not isinstance(messages, Conversation):
        return messages
    return [{name: message[name] for name in message if name != "weight"} for message in messages]


def _in_a_line(text: str) -> str:
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()


def _batches(conversations: Sequence[Sequence[Message]]) -> Iterator[Sequence[Sequence[Message]]]:
    """Conversations that are rendered at once: so many, with about so many characters."""
    start = size = 0
    for end, messages in enumerate(conversations):
        size += sum(len(message["content"]) for message in messages)
        size += len(json.dumps([messages.tools, messages])) if isinstance(messages, Conversation) else 0
        if end - start == BATCH or (size > BATCH_CHARACTERS and end > start):
            yield conversations[start:end]
            start, size = end, 0
    if start < len(conversations):
        yield conversations[start:]


class ChatFormat:
    """A tokenizer, a chat template that knows one day alone, and the tokens at which an answer ends."""

    def __init__(self, tokenizer: Any, dated_template: str, stops: Mapping[str, int]) -> None:
        self.tokenizer = tokenizer
        self.dated_template = dated_template
        self.stops = dict(stops)
        self.stop = _any_of(set(self.stops))
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.control_tokens = added | set(tokenizer.all_special_tokens) | set(self.stops)
        self.control = _any_of(self.control_tokens)

    def texts(self, conversations: Sequence[Sequence[Message]], *, ask: bool = False) -> list[str]:
        """The conversations as the template writes them; `ask` adds what makes the model answer.

        Raises Unreadable where the template refuses one, or takes too much time or memory.
        """
        written = self.written(conversations, ask=ask)
        if refused := next((error for _, error in written if error is not None), None):
            raise Unreadable(refused)
        return [text for text, _ in written]

    def written(self, conversations: Sequence[Sequence[Message]], *, ask: bool = False) -> list[Written]:
        """The text of each conversation, or why the template refuses it. Raises Unreadable where it met a limit."""
        special = self.tokenizer.special_tokens_map
        written: list[Written] = []
        for batch in _batches(conversations):
            seconds = bounded.SECONDS + len(batch) * SECONDS_EACH
            tools = [tools_of(each) for each in batch]
            more = [tools] if any(tools) else []
            seen = [*map(shown, batch)]
            written += bounded.call(
                write_conversations, self.dated_template, seen, special, ask, *more, seconds=seconds
            )
        return written

    def tools_left_out(self) -> str:
        """Say what the template leaves out of tools, calls and their results; empty where it writes all of them."""
        tools = [{"type": "function", "function": PROBE_TOOL}]
        asked = {"role": "user", "content": "Question"}
        called = {"role": "assistant", "content": "", "tool_calls": [PROBE_CALL]}
        result = {"role": "tool", "content": "Result", "tool_call_id": "call00000", "name": "probe_tool"}
        try:
            bare, whole = self.texts([Conversation([asked], tools), Conversation([asked, called, result], tools)])
        except Unreadable as error:
            return f"refuses a tool's call or result ({error})"
        if "probe_tool" not in bare:
            return "leaves out the definitions of tools"
        if whole.count("probe_tool") <= bare.count("probe_tool"):
            return "leaves out the calls of tools"
        return "" if "Result" in whole else "leaves out the results of tools"

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts, to which the tokenizer must not add any: the template wrote the special ones."""
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


class Chat(ChatFormat):
    """A base's tokenizer and chat template, found fit for training: after an answer the template says stop.

    Raises ConfigError where it is not.
    """

    def __init__(self, tokenizer: Any, weights: Path) -> None:
        try:
            self.template: str = tokenizer.get_chat_template()
        except ValueError as error:
            fitting = ", ".join(chat_templates.fitting(tokenizer))
            built_in = f"a built-in template that fits this tokenizer ({fitting}) or to " if fitting else ""
            raise ConfigError(
                f"model.base={weights}: it has no chat template; set model.chat_template to {built_in}a Jinja file"
            ) from error
        dated = FIXED_DATE + self.template if "strftime_now" in self.template else self.template
        super().__init__(tokenizer, dated, _stops(tokenizer, weights))
        self.stop_token, self.generation_prompt = self._probe(weights)

    def _probe(self, weights: Path) -> tuple[str, str]:
        """The stop token that the template puts after an answer, and what it adds to a prompt to get one."""
        question, answer = {"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}
        try:
            whole, bare = self.texts([[question, answer], [question]])
            (prompt,) = self.texts([[question]], ask=True)
        except Unreadable as error:
            raise ConfigError(
                f"model.base={weights}: its chat template cannot write a plain answer: {error}"
            ) from error
        stop = self.stop.match(whole.rpartition("Answer")[2].lstrip())
        if not stop:
            raise ConfigError(
                f"model.base={weights}: its chat template writes no stop token after an answer, so the tuned model "
                f"would never stop; what ends a generation is {', '.join(self.stops) or 'not set'} "
                "(eos_token of the tokenizer, eos_token_id of generation_config.json and config.json)"
            )
        return stop.group(), prompt.removeprefix(bare)

    def require_tools(self) -> None:
        """Raises ConfigError where the template leaves out tools, calls or the results of tools."""
        if why := self.tools_left_out():
            fitting = [name for name in chat_templates.fitting(self.tokenizer) if name in chat_templates.WITH_TOOLS]
            named = f"to {', '.join(fitting)} or " if fitting else ""
            raise ConfigError(
                f"rows have tools, and the chat template of model.base {why}; set model.chat_template {named}"
                "to a Jinja file that writes them"
            )


def _stops(tokenizer: Any, weights: Path) -> dict[str, int]:
    """Every token at which a server would end the answer, with its id. Raises ConfigError where one is no number."""
    ids = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        if (weights / name).is_file():
            eos = json.loads((weights / name).read_text(encoding="utf-8")).get("eos_token_id")
            named = eos if isinstance(eos, list) else [eos]
            if wrong := [id_ for id_ in named if not isinstance(id_, int | None)]:
                raise ConfigError(
                    f"model.base={weights}: {name} has eos_token_id={wrong[0]!r:.80}; accepted: the number of a "
                    "token, or a list of such numbers"
                )
            ids.update(named)
    known = [id_ for id_ in sorted(ids - {None}) if 0 <= id_ < len(tokenizer)]
    return {tokenizer.convert_ids_to_tokens(id_): id_ for id_ in known}


def _any_of(texts: set[str]) -> re.Pattern[str]:
    longest_first = sorted(texts - {""}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # of nothing, nothing matches


def tokenize(
    chat: ChatFormat,
    conversations: Sequence[Sequence[Message]],
    *,
    last_only: bool,
    reasoning: Reasoning = "trained",
) -> list[Tokenized | Untrainable]:
    """Return each conversation as tokens, or why it cannot be trained; the others do not suffer from one that cannot.

    `last_only` trains the last answer alone, else every answer is trained but those of weight 0. Of an answer that is
    trained alone the reasoning is too, where it is not dropped: a model has to say it before its answer.
    """
    if reasoning == "dropped":
        conversations = [*map(without_reasoning, conversations)]
    made: dict[int, Tokenized | Untrainable] = {
        row: found for row, messages in enumerate(conversations) if (found := _control_token(chat, messages))
    }
    wholes = _texts(chat, {row: messages for row, messages in enumerate(conversations) if row not in made})
    made |= {row: text for row, text in wholes.items() if isinstance(text, Untrainable)}
    first = -1 if last_only else 0
    asked = {
        (row, turn): before(conversations[row], turn)
        for row in wholes
        if row not in made
        for turn in [at for at, said in enumerate(conversations[row]) if is_trained(said)][first:]
    }
    prompts = _texts(chat, asked, ask=True)
    made |= {row: text for (row, _), text in prompts.items() if isinstance(text, Untrainable)}

    whole = {row: text for row, text in wholes.items() if row not in made and isinstance(text, str)}
    prompt = {at: text for at, text in prompts.items() if at[0] not in made and isinstance(text, str)}
    ids = dict(zip(whole, chat.ids([*whole.values()]), strict=True))
    turns: dict[int, list[Turn]] = {row: [] for row in whole}
    for ((row, turn), text), prompt_ids in zip(prompt.items(), chat.ids([*prompt.values()]), strict=True):
        turns[row].append(Turn(turn, text, prompt_ids))
    masks = reasoning == "masked" and not last_only
    made |= {row: _label(chat, conversations[row], turns[row], whole[row], ids[row], masks) for row in whole}
    return [made[row] for row in range(len(conversations))]


def ask(chat: ChatFormat, conversations: Sequence[Sequence[Message]]) -> list[list[int] | Untrainable]:
    """Return each conversation's prompt as the tokens that a server sends, or why the model cannot be asked it."""
    made: dict[int, list[int] | Untrainable] = {
        row: found for row, messages in enumerate(conversations) if (found := _control_token(chat, messages))
    }
    asked = {row: messages for row, messages in enumerate(conversations) if row not in made}
    prompts = _texts(chat, asked, ask=True)
    made |= {row: text for row, text in prompts.items() if isinstance(text, Untrainable)}
    texts = {row: text for row, text in prompts.items() if isinstance(text, str)}
    made |= dict(zip(texts, chat.ids([*texts.values()]), strict=True))
    return [made[row] for row in range(len(conversations))]


def _control_token(chat: ChatFormat, messages: Sequence[Message]) -> Untrainable | None:
    for message in messages:
        if found := chat.control.search(message["content"]):
            return Untrainable(
                "control_token",
                f"the text of {message['role']} has {found.group()!r}, a control token of this model; remove it "
                "from the text",
            )
    if isinstance(messages, Conversation):
        more = [[messages.tools], *([m.get("tool_calls"), m.get("reasoning_content")] for m in messages)]
        if found := chat.control.search(json.dumps(more, ensure_ascii=False)):
            said = f"a tool, a call or reasoning has {found.group()!r}, a control token of this model; remove it"
            return Untrainable("control_token", said)
    return None


def without_reasoning(messages: Sequence[Message]) -> Sequence[Message]:
    """The conversation without the reasoning of its answers."""
    if not isinstance(messages, Conversation):
        return messages
    kept = ({name: message[name] for name in message if name != "reasoning_content"} for message in messages)
    return Conversation(kept, messages.tools)


def _texts(
    chat: ChatFormat, conversations: Mapping[At, Sequence[Message]], *, ask: bool = False
) -> dict[At, str | Untrainable]:
    """Each conversation as the template writes it, or why the template refuses it."""
    try:
        written = chat.written([*conversations.values()], ask=ask)
    except Unreadable as error:  # a limit of all of them, which each of them could meet alone
        raise DataError(f"the chat template of model.base for {len(conversations):,} conversations {error}") from error
    refused = "the chat template of model.base refuses the conversation: "
    return {
        at: text if error is None else Untrainable("refused_by_template", f"{refused}{error}")
        for at, (text, error) in zip(conversations, written, strict=True)
    }


def _label(
    chat: ChatFormat, messages: Sequence[Message], turns: Sequence[Turn], whole: str, ids: list[int], masks: bool
) -> Tokenized | Untrainable:
    """The labels of one conversation, whose answers are asked for by `turns`; `masks` leaves out their reasoning."""
    if wrong := _wrong_bos(chat, whole, ids) or _tools_left_out(messages, whole):
        return wrong
    stops = set(chat.stops.values())
    labels = [IGNORED] * len(ids)
    start, reference = len(ids), ""
    for turn in turns:
        if not whole.startswith(turn.prompt):
            return Untrainable("other_prompt", _other_prompt(turn, whole))
        if ids[: len(turn.prompt_ids)] != turn.prompt_ids:
            return Untrainable("joined_tokens", _joined(turn, messages[turn.number]["content"]))
        message, rest = messages[turn.number], whole[len(turn.prompt) :]
        reasoning = message.get("reasoning_content")
        if reasoning and reasoning.strip() not in rest[: _end(chat, rest)]:
            if turn is not turns[-1]:  # as templates do that drop the reasoning of earlier turns
                continue
            said = f"the chat template of model.base leaves out the reasoning of message {turn.number + 1}"
            return Untrainable("reasoning_left_out", f"{said}; set model.reasoning to dropped to train without it")
        begin = len(turn.prompt_ids)
        end = next((at for at in range(begin, len(ids)) if ids[at] in stops), None)
        answer = (
            _called(chat, turn.number, message, rest, ids[begin:end])
            if message.get("tool_calls")
            else _answer(chat, turn.number, rest, message["content"])
        )
        if isinstance(answer, Untrainable):
            return answer
        reference, start = answer, begin
        if end is None:
            said = f"the stop token after message {turn.number + 1} is text to the tokenizer, not a token"
            return Untrainable("no_stop_token", said)
        if masks and reasoning:
            begin += _num_reasoning(chat, turn, rest, reasoning, ids)
        labels[begin : end + 1] = ids[begin : end + 1]
    tools = tools_of(messages)
    return Tokenized(ids, labels, start, reference, json.dumps(tools, ensure_ascii=False) if tools else None)


def _end(chat: ChatFormat, rest: str) -> int:
    """Where the answer that `rest` begins with ends."""
    stop = chat.stop.search(rest)
    return stop.start() if stop else len(rest)


def _tools_left_out(messages: Sequence[Message], whole: str) -> Untrainable | None:
    names = [tool["function"]["name"] for tool in tools_of(messages)]
    if missing := [name for name in names if name not in whole]:
        return Untrainable("tools_left_out", f"the chat template of model.base leaves out the tool {missing[0]!r}")
    return None


def _num_reasoning(chat: ChatFormat, turn: Turn, rest: str, reasoning: str, ids: list[int]) -> int:
    """The tokens of an answer that are its reasoning and what the template puts before it, and no other character."""
    said = reasoning.strip()
    (read,) = chat.ids([turn.prompt + rest[: rest.index(said) + len(said)]])
    same = next((at for at, (a, b) in enumerate(zip(read, ids, strict=False)) if a != b), len(read))
    return max(0, same - len(turn.prompt_ids))


def _called(chat: ChatFormat, turn: int, message: Message, rest: str, ids: list[int]) -> str | Untrainable:
    """Return an answer with calls as a model says it: as the template writes it, where its calls can be read back.

    Of a template of another form they cannot: then it is as Hermes writes it, and an answer counts as this one only
    where it is the same token for token.
    """
    said = rest[: _end(chat, rest)]
    calls = [parsing.Call(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
    text = parsing.spoken(chat.tokenizer.decode(ids, skip_special_tokens=True))
    read = parsing.parse(text)
    same = [call.canonical for call in read.calls] == [call.canonical for call in calls]
    if same and read.content == message["content"].strip():
        return text
    written = [call.name in said and all(_is_in(value, said) for value in call.arguments.values()) for call in calls]
    if not all(written) or message["content"].strip() not in said:
        return Untrainable(
            "changed_answer", f"the chat template changes the calls of message {turn + 1}, which became {_short(said)}"
        )
    return text_of(message)


def _is_in(value: Any, text: str) -> bool:
    """Whether a text has an argument, as it stands or as JSON; what is within an argument is not looked at."""
    if isinstance(value, dict | list):
        return True
    return str(value) in text or any(json.dumps(value, ensure_ascii=way) in text for way in (True, False))


def _answer(chat: ChatFormat, turn: int, rest: str, content: str) -> str | Untrainable:
    """Return the answer as the template renders it; `rest` is the conversation after its prompt, the answer first."""
    stop = chat.stop.search(rest)
    said = rest[: stop.start()] if stop else rest
    for answer in (content, content.strip()):
        if stop and said.rstrip().endswith(answer.rstrip()) and answer in said:
            return answer
    return Untrainable(
        "changed_answer",
        f"message {turn + 1} is not followed by a stop token, or the chat template changes it: the answer "
        f"{_short(content)} became {_short(said)}",
    )


def _wrong_bos(chat: ChatFormat, whole: str, ids: list[int]) -> Untrainable | None:
    bos, bos_id = chat.tokenizer.bos_token, chat.tokenizer.bos_token_id
    if bos_id is None or ids.count(bos_id) == whole.count(bos):
        return None
    return Untrainable(
        "wrong_bos",
        f"{ids.count(bos_id)} tokens {bos} where the chat template writes {whole.count(bos)}: the tokenizer of "
        "model.base adds or loses some",
    )


def _other_prompt(turn: Turn, whole: str) -> str:
    """Find where the template writes the text before an answer in another way once the answer is there."""
    pairs = enumerate(zip(turn.prompt + "\0", whole + "\1", strict=False))
    same = next(at for at, (a, b) in pairs if a != b)
    return (
        f"a server would prompt for message {turn.number + 1} with another prompt than in training: "
        f"{_short(turn.prompt[same : same + 40])} where the row has {_short(whole[same : same + 40])}; the chat "
        "template of model.base treats a message differently when another follows it"
    )


def _joined(turn: Turn, answer: str) -> str:
    """Explain that no server's prompt ends where this answer begins, since one token would belong to both."""
    blank = answer[: len(answer) - len(answer.lstrip())]
    begins = f"begins with the blanks {_short(blank)}" if blank else f"begins with {_short(answer[:20])}"
    return (
        f"message {turn.number + 1} {begins}, which the tokenizer joins with the end of the prompt, "
        f"{_short(turn.prompt[-20:])}, into other tokens than a server sends"
        + ("; remove them from the answer" if blank else "")
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:30]}...{text[-10:]}")
