"""The answers of a model behind an API: test rows are sent to it as messages, and each reply is kept for later runs.

Replies lie in <home>/api_replies, by the request that they answer, so none is paid for twice; a deleted file is asked
for again.
"""

import hashlib
import json
import logging
import statistics
from typing import Any

import pyarrow as pa

from tunewright import config
from tunewright.artifacts import ApiUse, Contender
from tunewright.config import Evaluation
from tunewright.errors import ApiRefused, ConfigError
from tunewright.json_api import ChatApi, KeptReplies, Reply
from tunewright.reports.progress import Countdown
from tunewright.tasks.evaluate.answers import ANSWER_SCHEMA
from tunewright.tasks.evaluate.blocks import AnsweredBlock
from tunewright.tools.conversation import Message, call_text

log = logging.getLogger("tunewright")

ROOM = 256  # tokens at least that an answer may have: another tokenizer may write the same text in more of them
SETTING = "evaluation.api_models"
Requests = dict[str, dict[str, Any]]  # by their digest
OF_A_MESSAGE = ("role", "content", "name", "tool_call_id")


class ApiAnswers:
    """The answers of one model behind an API, and their cost."""

    def __init__(self, contender: Contender, evaluation: Evaluation) -> None:
        assert contender.api
        assert contender.prompts
        self.model, self.budget, self.name = contender.api, evaluation.api_budget, contender.name
        key = config.api_key(self.model.url)
        self.api = ChatApi(self.model.url, self.model.model, key, setting=SETTING, who=self.name)
        fields = {"temperature": 0, "max_tokens": max(ROOM, evaluation.limit)} | self.model.parameters
        self.fields = {name: value for name, value in fields.items() if value is not None}
        lines = contender.prompts.read_text(encoding="utf-8").splitlines()
        self.asked = {row["row_id"]: row for row in map(json.loads, lines)}
        of_model = hashlib.sha256(f"{self.model.url} {self.model.model}".encode()).hexdigest()[:20]
        file = config.home() / "api_replies" / f"{of_model}.jsonl"
        self.kept = KeptReplies(file, lambda fields: Reply(**fields))
        self.used: list[Reply] = []  # of all rows that were answered
        self.spent = 0.0  # by this run

    def answer(self, rows: pa.Table) -> AnsweredBlock | None:
        """Answer some test rows (row_id, cluster, reference, tools); None where the budget does not pay for them.

        Raises ApiError where the API does not answer, ApiRefused where it refuses or the first rows cost too much.
        """
        requests = {row_id: self._request(row_id) for row_id in rows["row_id"].to_pylist()}
        digests = {row_id: _digest(request) for row_id, request in requests.items()}
        asked = {digests[row_id]: request for row_id, request in requests.items()}
        if not self._can_pay(asked):
            return None
        self._ask(asked)
        replies = {row_id: self.kept.replies[digest] for row_id, digest in digests.items()}
        self.used += replies.values()
        written = [
            {
                **{name: row[name] for name in ("row_id", "cluster", "reference", "tools")},
                "prompt": "\n\n".join(_shown(turn) for turn in self.asked[row["row_id"]]["messages"]),
                "answer": answer_of(replies[row["row_id"]].message),
                "stopped": replies[row["row_id"]].stopped,
                "num_tokens": replies[row["row_id"]].output_tokens,
            }
            for row in rows.to_pylist()
        ]
        return AnsweredBlock(pa.Table.from_pylist(written, ANSWER_SCHEMA))

    @property
    def use(self) -> ApiUse:
        """The tokens, time and price of all answers so far."""
        read, written = sum(each.input_tokens for each in self.used), sum(each.output_tokens for each in self.used)
        price = self.model.price(read, written) if read + written else None
        return ApiUse(
            model=self.model.model,
            url=self.model.url,
            input_tokens=read,
            output_tokens=written,
            seconds=round(statistics.median(each.seconds for each in self.used), 3),
            price=None if price is None else 1000 * price / len(self.used),
        )

    def _request(self, row_id: str) -> dict[str, Any]:
        row = self.asked[row_id]
        tools = {"tools": row["tools"]} if row["tools"] else {}
        return {"messages": [_as_sent(turn) for turn in row["messages"]]} | tools | self.fields

    def _can_pay(self, requests: Requests) -> bool:
        if self.budget is None or not self.kept.new(requests):
            return True
        if not self.used:  # the first reply tells what a row costs
            self._ask(dict([next(iter(requests.items()))]))
        replies = self.used or [self.kept.replies[digest] for digest in requests if digest in self.kept.replies]
        prices = [self.model.price(each.input_tokens, each.output_tokens) or 0.0 for each in replies]
        if not any(each.input_tokens for each in replies):
            raise ApiRefused(
                f"evaluation.api_budget={self.budget:g}: {self.name} does not count tokens; accepted: none"
            )
        needed = len(self.kept.new(requests)) * statistics.fmean(prices)
        if self.spent + needed <= self.budget:
            return True
        if not self.used:
            raise ApiRefused(
                f"evaluation.api_budget={self.budget:g}: the first {len(requests)} test rows cost about "
                f"{self.spent + needed:.3g} at {self.name}; accepted: at least that, or a cheaper model"
            )
        log.info("  evaluation.api_budget=%g is spent after %d test rows", self.budget, len(self.used))
        return False

    def _ask(self, requests: Requests) -> None:
        new = self.kept.new(requests)
        self.kept.ask(new, self._reply, Countdown(len(new), "answers", "evaluation-progress", self.name).tell)
        replies = [self.kept.replies[digest] for digest in new]
        self.spent += sum(self.model.price(each.input_tokens, each.output_tokens) or 0.0 for each in replies)

    def _reply(self, request: dict[str, Any]) -> Reply:
        try:
            return self.api.ask(**request)
        except ConfigError as error:  # the verdict does not depend on it, and there is one without it
            raise ApiRefused(str(error)) from error


def answer_of(message: dict[str, Any]) -> str:
    """The answer in a reply's message, with its calls as rows have them; what cannot be read is left out."""
    content = message.get("content")
    texts = [content.strip()] if isinstance(content, str) and content.strip() else []
    for call in message.get("tool_calls") or ():
        try:
            texts.append(call_text(call["function"]["name"], json.loads(call["function"]["arguments"])))
        except (LookupError, TypeError, ValueError):
            log.debug("a call of a reply cannot be read: %s", call)
    return "\n".join(texts)


def _as_sent(turn: Message) -> dict[str, Any]:
    """A message as the API takes it: the arguments of calls are text there."""
    sent = {name: turn[name] for name in OF_A_MESSAGE if turn.get(name) is not None}
    if calls := turn.get("tool_calls"):
        sent["tool_calls"] = [
            {
                "id": call.get("id") or f"call_{number}",
                "type": "function",
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                },
            }
            for number, call in enumerate(calls)
        ]
    return sent


def _shown(turn: Message) -> str:
    return f"{turn['role']}: {turn.get('content') or ''}"


def _digest(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
