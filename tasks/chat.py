"""Conversations to token ids and labels by the model's own chat template, and the proof that they mean what they say.

An answer is what the model has to say after a prompt that a server sends: all that the template puts between that
prompt's end and the stop token, which is trained too. So a label never depends on how a template marks its turns.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from tasks.artifacts import IGNORED
from tasks.errors import ConfigError, DataError

DATE = "26 Jul 2024"  # what a template that writes today's date gets, so that rows do not change overnight
FIXED_DATE = f"{{% macro strftime_now(format) %}}{DATE}{{% endmacro +%}}"

Message = dict[str, str]


@dataclass(frozen=True)
class Tokenized:
    """One conversation. Labels are as long as the ids; `prompt_length` and `reference` are of the last answer."""

    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    reference: str


class Chat:
    """A base's tokenizer and chat template, found fit for training: after an answer the template says stop.

    Raises ConfigError where it is not.
    """

    def __init__(self, tokenizer: Any, weights: Path) -> None:
        try:
            self.template: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise ConfigError(
                f"model.base={weights}: it has no chat template, so nothing says how a conversation is written; "
                "use an instruct model, or put a chat_template.jinja beside its tokenizer"
            ) from error
        self.tokenizer = tokenizer
        self.stops = _stops(tokenizer, weights)
        self.stop = _any_of(set(self.stops))
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.control_tokens = added | set(tokenizer.all_special_tokens) | set(self.stops)
        self.control = _any_of(self.control_tokens)
        self.stop_token, self.generation_prompt = self._probe(weights)

    def texts(self, conversations: Sequence[Sequence[Message]], *, ask: bool = False) -> list[str]:
        """The conversations as the template writes them; `ask` adds what makes the model answer."""
        if not conversations:
            return []
        dated = FIXED_DATE + self.template if "strftime_now" in self.template else self.template
        return self.tokenizer.apply_chat_template(
            conversations, chat_template=dated, tokenize=False, add_generation_prompt=ask
        )

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts, to which the tokenizer must not add any: the template wrote the special ones."""
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _probe(self, weights: Path) -> tuple[str, str]:
        """The stop token that the template puts after an answer, and what it adds to a prompt to get one."""
        question, answer = {"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}
        try:
            whole, bare = self.texts([[question, answer], [question]])
            (prompt,) = self.texts([[question]], ask=True)
        except TemplateError as error:
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


def _stops(tokenizer: Any, weights: Path) -> dict[str, int]:
    """Every token at which a server would end the answer, with its id."""
    ids = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        if (weights / name).is_file():
            eos = json.loads((weights / name).read_text(encoding="utf-8")).get("eos_token_id")
            ids.update(eos if isinstance(eos, list) else [eos])
    known = [id_ for id_ in sorted(ids - {None}) if id_ < len(tokenizer)]
    return {tokenizer.convert_ids_to_tokens(id_): id_ for id_ in known}


def _any_of(texts: set[str]) -> re.Pattern[str]:
    longest_first = sorted(texts - {""}, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # of nothing, nothing matches


def tokenize(
    chat: Chat, conversations: Sequence[Sequence[Message]], wheres: Sequence[str], *, last_only: bool
) -> list[Tokenized]:
    """One Tokenized a conversation; `last_only` trains the last answer alone, else every answer is trained.

    `wheres` say where each conversation stands, for the message of the DataError that a broken promise raises.
    """
    answers = [_answers(messages)[-1 if last_only else 0 :] for messages in conversations]
    for messages, where in zip(conversations, wheres, strict=True):
        _refuse_special_tokens(chat, messages, where)
    wholes = _texts(chat, conversations, wheres)
    asked = [(row, turn) for row, turns in enumerate(answers) for turn in turns]
    prompts = _texts(chat, [conversations[row][:turn] for row, turn in asked], [wheres[r] for r, _ in asked], ask=True)
    asked_ids = iter(zip(prompts, chat.ids(prompts), strict=True))
    return [
        _label(chat, messages, turns, where, whole, ids, [next(asked_ids) for _ in turns])
        for messages, turns, where, whole, ids in zip(
            conversations, answers, wheres, wholes, chat.ids(wholes), strict=True
        )
    ]


def _answers(messages: Sequence[Message]) -> list[int]:
    return [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]


def _refuse_special_tokens(chat: Chat, messages: Sequence[Message], where: str) -> None:
    for message in messages:
        if found := chat.control.search(message["content"]):
            raise DataError(
                f"{where}: the text of {message['role']} has {found.group()!r}, which this model reads as a control "
                "token; take it out of the text, or quarantine the row by special_token in checks.expectations"
            )


def _texts(
    chat: Chat, conversations: Sequence[Sequence[Message]], wheres: Sequence[str], *, ask: bool = False
) -> list[str]:
    try:
        return chat.texts(conversations, ask=ask)
    except TemplateError as error:
        if len(conversations) == 1:
            raise DataError(
                f"{wheres[0]}: the chat template of model.base refuses the conversation: {error}"
            ) from error
    # One of many was refused: one at a time it is found, and named.
    return [
        _texts(chat, [messages], [where], ask=ask)[0] for messages, where in zip(conversations, wheres, strict=True)
    ]


def _label(
    chat: Chat,
    messages: Sequence[Message],
    turns: Sequence[int],
    where: str,
    whole: str,
    ids: list[int],
    prompts: Sequence[tuple[str, list[int]]],
) -> Tokenized:
    """The labels of one conversation, whose answers are `turns` and were asked for by `prompts` (text, ids)."""
    _check_bos(chat, where, whole, ids)
    stops = set(chat.stops.values())
    labels = [IGNORED] * len(ids)
    start, reference = len(ids), ""
    for turn, (prompt, prompt_ids) in zip(turns, prompts, strict=True):
        if not whole.startswith(prompt) or ids[: len(prompt_ids)] != prompt_ids:
            raise DataError(f"{where}: {_divergence(chat, turn, prompt, prompt_ids, whole, ids)}")
        reference = _answer(chat, where, turn, whole[len(prompt) :], messages[turn]["content"])
        start = len(prompt_ids)
        end = next((at for at in range(start, len(ids)) if ids[at] in stops), None)
        if end is None:
            raise DataError(f"{where}: the stop token after message {turn + 1} is text to the tokenizer, not a token")
        labels[start : end + 1] = ids[start : end + 1]
    return Tokenized(ids, labels, start, reference)


def _answer(chat: Chat, where: str, turn: int, rest: str, content: str) -> str:
    """What the template made of an answer; `rest` is the conversation after its prompt, the answer first."""
    stop = chat.stop.search(rest)
    said = rest[: stop.start()] if stop else rest
    for answer in (content, content.strip()):
        if stop and said.rstrip().endswith(answer.rstrip()) and answer in said:
            return answer
    raise DataError(
        f"{where}: message {turn + 1} is not followed by a stop token, or the chat template changes it: the answer "
        f"{_short(content)} became {_short(said)}"
    )


def _check_bos(chat: Chat, where: str, whole: str, ids: list[int]) -> None:
    bos, bos_id = chat.tokenizer.bos_token, chat.tokenizer.bos_token_id
    if bos_id is not None and ids.count(bos_id) != whole.count(bos):
        raise DataError(
            f"{where}: {ids.count(bos_id)} tokens {bos} where the chat template writes {whole.count(bos)}: "
            "the tokenizer of model.base adds or loses some"
        )


def _divergence(chat: Chat, turn: int, prompt: str, prompt_ids: list[int], whole: str, ids: list[int]) -> str:
    if not whole.startswith(prompt):
        same = next(at for at, (a, b) in enumerate(zip(prompt + "\0", whole + "\1", strict=False)) if a != b)
        asked, has = prompt[same : same + 40], whole[same : same + 40]
    else:
        same = next(at for at, (a, b) in enumerate(zip([*prompt_ids, -1], [*ids, -2], strict=False)) if a != b)
        asked, has = (chat.tokenizer.decode(some[same : same + 8]) for some in (prompt_ids, ids))
    return (
        f"a server would ask for message {turn + 1} by another prompt than the row is trained on: "
        f"{_short(asked)} where the row has {_short(has)}; the chat template of model.base treats a message "
        "differently when another follows it"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:30]}...{text[-10:]}")
