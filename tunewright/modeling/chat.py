"""Conversations to token ids and labels by the model's own chat template.

labels.py has the labels, and the proof that they mean what they say.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from tunewright.errors import ConfigError, DataError
from tunewright.machine import bounded
from tunewright.machine.bounded import Unreadable
from tunewright.modeling import chat_templates
from tunewright.modeling.labels import Tokenized, Turn, Untrainable, label
from tunewright.serving import behind
from tunewright.tools.conversation import (
    Conversation,
    Message,
    before,
    is_trained,
    rejected_of,
    tools_of,
    with_rejected,
)

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


def with_examples(
    examples: Sequence[Sequence[Message]], opening: str, messages: Sequence[Message]
) -> Sequence[Message]:
    """The messages behind examples, as `serving.behind` puts them; the tools are those of the messages."""
    whole = behind(examples, opening, messages)
    has_more = any(len(turn) > 2 for turn in whole) or isinstance(messages, Conversation)
    return Conversation(whole, tools_of(messages)) if has_more else whole


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

    def require_tools(self, given: str | None = None) -> None:
        """Raises ConfigError where the template, `given` as model.chat_template or the base's own, leaves tools out.

        Tools are their definitions, calls and results.
        """
        if why := self.tools_left_out():
            fitting = [name for name in chat_templates.fitting(self.tokenizer) if name in chat_templates.WITH_TOOLS]
            named = f"to {', '.join(fitting)} or " if fitting else ""
            where, bare = ("model.base", "") if given is None else (f"model.chat_template={given}", "leave it out, or ")
            raise ConfigError(
                f"rows have tools, and the chat template of {where} {why}; {bare}set model.chat_template {named}"
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
    made |= {row: label(chat, conversations[row], turns[row], whole[row], ids[row], masks) for row in whole}
    return [made[row] for row in range(len(conversations))]


def tokenize_rejected(
    chat: ChatFormat, conversations: Sequence[Sequence[Message]], reasoning: Reasoning = "trained"
) -> dict[int, Tokenized | Untrainable]:
    """Those of the conversations that are preference pairs, by their places, as they end with their rejected answer."""
    pairs = {at: each for at, each in enumerate(conversations) if rejected_of(each) is not None}
    ends = [with_rejected(each) for each in pairs.values() if isinstance(each, Conversation)]
    return dict(zip(pairs, tokenize(chat, ends, last_only=True, reasoning=reasoning), strict=True))


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
    return Conversation(kept, messages.tools, messages.rejected, undesirable=messages.undesirable)


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
