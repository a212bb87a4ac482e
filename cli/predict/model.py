"""A registered version as the model that answers: fetched, verified, loaded by this project's own code, and asked."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from tunewright import config, serving
from tunewright.cli.predict import as_typed
from tunewright.cli.predict.unfinished import ANSWER_SCHEMA
from tunewright.config import Registry
from tunewright.errors import ConfigError, TunewrightError
from tunewright.generation import Answer, Greedy
from tunewright.modeling.chat import ChatFormat, Tokenized, Untrainable, ask, tokenize, with_examples
from tunewright.modeling.models import merged
from tunewright.privacy.excerpts import in_a_line
from tunewright.registry import files, rehearsal, release
from tunewright.registry.versions import verified
from tunewright.reports.pages import counted, located
from tunewright.store.caching import digest_of
from tunewright.tasks.ingest.questions import Question, RefusedQuestion
from tunewright.tools.conversation import Message, texts_of

log = logging.getLogger("tunewright")

Record = Question | RefusedQuestion
Written = TypeVar("Written")  # a conversation, tokenized


@dataclass(frozen=True)
class FetchedVersion:
    """A version whose files are here and were verified."""

    number: str
    uri: str
    copy: Path
    digest: str  # of all its files

    @property
    def precision(self) -> str | None:
        """The precision that it was measured in; None of a version that does not say. Raises TunewrightError."""
        base = self.copy / "artifacts" / rehearsal.IN_MODEL["base"]
        try:
            return json.loads(base.read_bytes()).get("precision")
        except (OSError, ValueError, AttributeError) as error:
            raise TunewrightError(f"{self.uri}: {base.name} cannot be read: {error}") from error


def require_version(registry: Registry, number: str | None) -> None:
    """Raise ConfigError where there is no version with this number, or none with the alias."""
    with release.opened(registry) as client:
        release.chosen(client, registry, number)


def fetch(registry: Registry, number: str | None) -> FetchedVersion:
    """Fetch and verify the version with this number, or the one with the alias.

    Raises ConfigError where there is none, TunewrightError where a file is missing, was altered or was added.
    """
    with release.opened(registry) as client:
        version = release.chosen(client, registry, number)
        if not config.home().exists():
            config.make_home()
        if version.tags.get("verdict") == rehearsal.UNCONFIRMED:
            log.warning("%s is %s, as its registration found", files.uri_of(version), rehearsal.UNCONFIRMED)
        copy = verified(client, version)
        listed = copy / serving.DIGESTS
        digest = digest_of(listed) if listed.is_file() else str(version.tags[files.WEIGHTS])
        return FetchedVersion(str(version.version), files.uri_of(version), copy, digest)


class Drafted(NamedTuple):
    """A prompt with a draft of its answer, and the text that the draft stands for."""

    answer: Answer
    reference: str


class Answerer:
    """A loaded version, asked as it was measured and is served."""

    def __init__(self, version: FetchedVersion, max_new_tokens: int, batch: int, *, messages: bool = False) -> None:
        """Load the version; with `messages` each row has the question and its answer as a conversation.

        Raises TunewrightError where its base is not here, ConfigError for too many tokens.
        """
        loaded = rehearsal.load_here(version.uri, version.copy)
        self.uri, self.tokenizer, self.stops = version.uri, loaded.tokenizer, loaded.contract["stop_token_ids"]
        self.model = merged(loaded.model)
        self.example_prompt = loaded.example_prompt
        self.system_message = loaded.contract.get("system_message", "")  # that each training row had
        self.max_new_tokens, self.batch, self.messages = max_new_tokens, batch, messages
        stops = {self.tokenizer.convert_ids_to_tokens(each): each for each in self.stops}
        self.format = ChatFormat(self.tokenizer, loaded.template, stops)
        self.context = serving.context_length(self.model.config.get_text_config().to_dict())
        if self.context and max_new_tokens >= self.context:
            raise ConfigError(
                f"--max-new-tokens {max_new_tokens}: accepted: less than the {self.context:,} tokens that the model "
                "reads at once, its prompt among them"
            )

    @property
    def precision(self) -> str:
        """The precision that it computes in."""
        return str(self.model.dtype).removeprefix("torch.")

    def answer(self, records: Sequence[Record], on_progress: Callable[[int], None]) -> pa.Table:
        """The records with their answers, or why they have none, in their order: a table of the output.

        `on_progress` is called with the number of records that are done. Raises TunewrightError where the model's
        likelihoods are not finite.
        """
        asked = self._prepared([record for record in records if isinstance(record, Question)])
        answers = [each.answer for each in asked if isinstance(each, Drafted)]
        num_refused = len(records) - len(answers)
        on_progress(num_refused)
        if answers:
            greedy = Greedy(self.model, stops=self.stops, max_new_tokens=self.max_new_tokens, batch=self.batch)
            greedy.answer(answers, on_progress=lambda done: on_progress(num_refused + done))
        following = iter(asked)
        rows = [
            self._row(record, next(following)) if isinstance(record, Question) else _refused(record)
            for record in records
        ]
        return pa.Table.from_pylist(rows, ANSWER_SCHEMA)

    def _prepared(self, questions: Sequence[Question]) -> list[Drafted | Untrainable]:
        """Each question as the tokens of its prompt and a draft of its answer, or why it cannot be asked.

        The draft is the reference, or that the answer ends at once. A token of it counts only where the model says it.
        """
        with_reference = {at: question.answered for at, question in enumerate(questions) if question.answered}
        tokens = self._written(
            [*with_reference.values()],
            lambda conversations: tokenize(self.format, conversations, last_only=True),
            lambda each: each.prompt_length if isinstance(each, Tokenized) else 0,
        )
        known = {at: each for at, each in zip(with_reference, tokens, strict=True) if isinstance(each, Tokenized)}
        others = [at for at in range(len(questions)) if at not in known]
        prompts = dict(zip(others, self.ask([questions[at].messages for at in others]), strict=True))
        made: list[Drafted | Untrainable] = []
        for at in range(len(questions)):
            if each := known.get(at):
                answer = Answer.of(each.input_ids, each.labels, each.prompt_length)
                answer.reference = answer.reference[: self.max_new_tokens + 1]
                drafted = Drafted(answer, each.reference)
            elif isinstance(prompt := prompts[at], Untrainable):
                made.append(prompt)
                continue
            else:
                drafted = Drafted(Answer(prompt, [self.stops[0]]), "")
            made.append(self._too_long(len(drafted.answer.prompt)) or drafted)
        return made

    def ask(self, conversations: Sequence[Sequence[Message]], max_new_tokens: int = 0) -> list[list[int] | Untrainable]:
        """Each conversation's prompt, or why the model cannot be asked it; with the version's examples, if it has any.

        These leave room for an answer of `max_new_tokens`, where that is more than was measured.
        """
        return self._written(
            conversations,
            lambda some: ask(self.format, some),
            lambda each: 0 if isinstance(each, Untrainable) else len(each),
            max_new_tokens,
        )

    def _written(
        self,
        conversations: Sequence[Sequence[Message]],
        write: Callable[[Sequence[Sequence[Message]]], list[Written]],
        length: Callable[[Written], int],
        max_new_tokens: int = 0,
    ) -> list[Written]:
        """Conversations as `write` writes them, behind the version's examples; `length` is that of a prompt."""
        self._warn_without_system_message(conversations)
        prompt = self.example_prompt
        if prompt is None:
            return write(conversations)
        most = prompt.most(self.context, max_new_tokens or self.max_new_tokens)
        return prompt.shortened(
            conversations,
            lambda some: write(
                [with_examples(examples, prompt.opening, conversations[at]) for at, examples in some.items()]
            ),
            lambda each: length(each) <= most,
        )

    def _warn_without_system_message(self, conversations: Sequence[Sequence[Message]]) -> None:
        """Warn, once, of conversations without a system message where each training row had the same one."""
        without = sum(not messages or messages[0]["role"] != "system" for messages in conversations)
        if self.system_message and without:
            log.warning(
                "%d of the first %s without the system message that every training row had, so the prompt is not as in "
                "training; the message is: %s",
                without,
                counted(len(conversations), "conversation"),
                in_a_line(self.system_message),
            )
            self.system_message = ""

    def _too_long(self, length: int) -> Untrainable | None:
        most = (self.context or np.inf) - self.max_new_tokens
        if length <= most:
            return None
        said = (
            f"the prompt has {length:,} tokens; accepted: at most {most:,}, the {self.context:,} that the model reads "
            f"at once less --max-new-tokens {self.max_new_tokens}"
        )
        return Untrainable("prompt_too_long", said)

    def _row(self, record: Question, asked: Drafted | Untrainable) -> dict[str, Any]:
        row = {name: getattr(record, name) for name in ("row_id", "file", "line", "reference")}
        if isinstance(asked, Untrainable):
            return row | {"reason": asked.reason, "detail": as_typed(asked.detail)}
        answer = asked.answer
        if not np.isfinite(answer.nll):
            raise TunewrightError(
                f"{self.uri}: {located(record.file, record.line)} gets NaN or infinite likelihoods: its weights are "
                "broken"
            )
        text = answer.text(self.tokenizer, asked.reference, self.stops)
        if self.messages:
            row["messages"] = [*texts_of(record.messages), {"role": "assistant", "content": text}]
        return row | {
            "answer": text,
            "stopped": answer.stopped,
            "num_tokens": len(answer.tokens),
        }


def _refused(record: RefusedQuestion) -> dict[str, Any]:
    return record._asdict() | {"detail": as_typed(record.detail)}
