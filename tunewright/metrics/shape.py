"""Kinds of answers in a data set, the metrics that fit them, and whether the gate can decide by these."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import pyarrow.parquet as pq

from tunewright.artifacts import Splits
from tunewright.config import CANNOT_DECIDE, Settings
from tunewright.errors import ConfigError
from tunewright.metrics.calls import calls
from tunewright.metrics.labels import LABELS_ARE, find_labels
from tunewright.metrics.numbers import is_number, last_number
from tunewright.metrics.schemas import schema_valid
from tunewright.metrics.texts import json_valid, plain, tokens
from tunewright.tools.conversation import (
    Message,
    conversation_of,
    is_trained,
    is_undesirable,
    rejected_of,
    text_of,
    tools_of,
)

log = logging.getLogger("tunewright")

MOST_VALIDATED = 10_000  # training rows whose answers are held against a schema
SHORT = 12  # median words and signs of the references, at most: names, dates, phrases
MOST = 0.95  # share of the references that are of a kind, from which on the others are faults
CALLS_DECIDE = 0.2  # share of the references that call a tool, from which on calls say most of a model
NOT_JSON, NOT_VALID, WITHOUT_NUMBER = "are not JSON", "do not satisfy evaluation.json_schema", "have no number"

# What is measured of each shape, the first one that can decide being what decides.
FITTING = {
    "tool calls": ("tool_call", "tool_name", "tool_arguments", "needless_call", "tool_schema"),
    "labels": ("exact_match", "macro_f1", "unparseable"),
    "JSON": ("json_field_f1", "json_valid", "exact_match"),
    "numbers": ("numeric", "exact_match"),
    "short texts": ("token_f1", "exact_match", "normalized_match", "chrf"),
    "long texts": ("chrf", "rouge_l", "token_f1"),
}
OF_PAIRS = ("preference_accuracy", "preference_margin")  # which decide where the answers are long texts
ALWAYS = ("perplexity", "stopped", "length_ratio")


@dataclass(frozen=True)
class AnswerShape:
    """The references of a data set and their kinds, of which several may apply, such as labels in JSON."""

    references: Sequence[str]
    labels: tuple[str, ...] = ()  # the closed set that they are of, or empty
    untrained_labels: tuple[str, ...] = ()  # those that no training row has
    schema: str = ""  # the JSON Schema that they should satisfy
    has_tools: bool = False  # whether rows have tools; what looks like a call in others is a text
    num_pairs: int = 0  # rows with a rejected answer

    @cached_property
    def kinds(self) -> list[str]:
        """The keys of FITTING that hold, what says most first."""
        if num_calls := len(self.references) - len(self._texts):
            of_texts = [self._kind_of_texts] if self._texts else []
            is_seldom = num_calls < CALLS_DECIDE * len(self.references)
            return [*of_texts, "tool calls"] if is_seldom else ["tool calls", *of_texts]
        found = ["labels"] if self.labels else []
        if _are_few(self._not_json):
            return [*found, "JSON"]
        if found:
            return found
        if _are_few([not is_number(each) for each in self.references]):
            return ["numbers"]
        return [self._kind_of_texts]

    @cached_property
    def _texts(self) -> Sequence[str]:
        """The references that are no calls."""
        return [each for each in self.references if not calls(each)] if self.has_tools else self.references

    @property
    def _kind_of_texts(self) -> str:
        return "short texts" if self._median <= SHORT else "long texts"

    def says(self) -> str:
        """The kinds in words, with what tells them."""
        said = {
            "tool calls": f"tool calls ({len(self.references) - len(self._texts)} of {len(self.references)})",
            "labels": f"{len(self.labels)} labels{self._tested}",
            "JSON": "JSON",
            "numbers": "numbers",
            "short texts": f"short texts (median {self._median} words and signs)",
            "long texts": f"long texts (median {self._median} words and signs, more than {SHORT})",
        }
        joint = ", else " if "tool calls" in self.kinds else ", all "
        return joint.join(said[kind] for kind in self.kinds)

    @property
    def _tested(self) -> str:
        """How many of the labels the references have, where these are not all."""
        tested = len({*map(plain, self.references)})
        return f", {tested} of them in the test rows" if tested < len(self.labels) else ""

    def untrained(self) -> str:
        """The references with a label that no training row has, in words; empty without any."""
        if not self.untrained_labels or "labels" not in self.kinds:
            return ""
        rows = [plain(reference) in self.untrained_labels for reference in self.references]
        number, has = len(self.untrained_labels), "has" if sum(rows) == 1 else "have"
        label = "a label" if number == 1 else f"one of {number} labels"
        return self._counted(rows, f"{has} {label} that no training row has")

    def faults(self) -> list[str]:
        """The references that are not as nearly all others are, in words: no answer can be right there."""
        of_json = self._counted(self._not_json, NOT_JSON) if "JSON" in self.kinds else ""
        of_number = self._counted(self._without_number, WITHOUT_NUMBER) if "numbers" in self.kinds else ""
        of_schema = self._counted(self._not_valid, NOT_VALID) if self.schema and _are_few(self._not_valid) else ""
        return [*filter(None, (of_json, of_number, of_schema))]

    def fitting(self) -> list[str]:
        """The metrics that fit, the one that should decide first."""
        of_kinds = [name for kind in self.kinds for name in FITTING[kind]]
        schema = ["schema_valid"] if self.schema else []
        unneeded = ["needless_call"] if self.has_tools and self._texts else []
        pairs = OF_PAIRS if self.num_pairs and self.num_pairs == len(self.references) else ()
        of_answers = [*pairs, *of_kinds] if self.kinds == ["long texts"] else [*of_kinds, *pairs]
        fitting = list(dict.fromkeys([*of_answers, *unneeded, *schema, *ALWAYS]))
        return fitting if self._texts or not self.has_tools else [name for name in fitting if name != "needless_call"]

    def misfit(self, name: str) -> str:
        """Why a metric would mean nothing here; empty where it means something."""
        if name in ("accuracy", "macro_f1", "unparseable"):
            return "" if self.labels else f"the answers are not a closed set of labels, {LABELS_ARE}"
        if name in ("json_valid", "json_field_f1"):
            return self._if_many(self._not_json, NOT_JSON)
        if name in FITTING["tool calls"]:
            if not self.has_tools:
                return "no row has tools"
            if name in ("tool_call", "tool_arguments") and len(self._texts) == len(self.references):
                return "no reference calls a tool"
            return "every reference calls a tool" if name == "needless_call" and not self._texts else ""
        if name in OF_PAIRS:
            number, lacking = len(self.references), len(self.references) - self.num_pairs
            return f"{lacking} of {number} rows have no rejected answer" if lacking else ""
        if name == "numeric":
            return self._if_many(self._without_number, WITHOUT_NUMBER)
        if name == "schema_valid":
            return self._if_many(self._not_valid, NOT_VALID)
        return ""

    @cached_property
    def _not_json(self) -> list[bool]:
        return [not json_valid(reference) for reference in self.references]

    @cached_property
    def _without_number(self) -> list[bool]:
        return [last_number(reference) is None for reference in self.references]

    @cached_property
    def _not_valid(self) -> list[bool]:
        return [not valid for valid in schema_valid(self.schema, self.references)]

    def _if_many(self, faults: Sequence[bool], said: str) -> str:
        return "" if _are_few(faults) else self._counted(faults, said)

    def _counted(self, faults: Sequence[bool], said: str) -> str:
        from tunewright.privacy.excerpts import in_a_line

        if not any(faults):
            return ""
        first = in_a_line(self.references[faults.index(True)])
        return f"{sum(faults)} of {len(faults)} references {said}, such as {first!r}"

    @cached_property
    def _median(self) -> int:
        lengths = sorted(len(tokens(reference)) for reference in self._texts)
        return lengths[len(lengths) // 2] if lengths else 0


def _are_few(faults: Sequence[bool]) -> bool:
    return sum(faults) <= (1 - MOST) * len(faults)


@dataclass(frozen=True)
class Choice:
    """The metrics to measure, the one that decides where gate.metric is auto, and why."""

    shape: AnswerShape
    names: tuple[str, ...]
    left_out: dict[str, str]  # a metric that was asked for -> why it would mean nothing
    decides: str  # empty where none can

    def says(self) -> str:
        """One sentence for a log: what is measured, and why."""
        left = "".join(f"; {name} is not measured: {why}" for name, why in self.left_out.items())
        faults = "".join(f"; {said}" for said in self.shape.faults())
        untrained = f"; {said}" if (said := self.shape.untrained()) else ""
        return f"the references are {self.shape.says()}{untrained}{faults}: measured are {', '.join(self.names)}{left}"


def choose(
    asked: Sequence[str],
    references: Sequence[str],
    answers: Iterable[str] = (),
    schema: str = "",
    *,
    has_tools: bool = False,
    num_pairs: int = 0,
) -> Choice:
    """Choose the metrics for `asked` (names, and auto for those that fit) and the references of the test rows.

    `answers` are those of the training rows, from which labels are known, `schema` is the text of a JSON Schema,
    `has_tools` is whether rows have tools, and `num_pairs` how many have a rejected answer. Raises ConfigError if none
    of the metrics can be measured.
    """
    shape = AnswerShape(references, *find_labels(answers, references), schema, has_tools, num_pairs)
    fitting = shape.fitting()
    wanted = dict.fromkeys(name for each in asked for name in (fitting if each == "auto" else [each]))
    misfits = {name: shape.misfit(name) for name in wanted}
    names = tuple(name for name in wanted if not misfits[name])
    if not names:
        raise ConfigError(f"evaluation.metrics={next(iter(misfits))} is not meaningful: {next(iter(misfits.values()))}")
    best = [name for name in (*fitting, *names) if name in names and name not in CANNOT_DECIDE]
    left_out = {name: why for name, why in misfits.items() if why}
    return Choice(shape, names, left_out, best[0] if best else "")


def last_answer(messages: Sequence[Message]) -> str:
    """The text of the last answer of a conversation, which is the reference of a test row; empty without one."""
    return next((text_of(each) for each in reversed(messages) if is_trained(each)), "")


def require_metrics(settings: Settings, splits: Splits, schema: str) -> None:
    """Raises ConfigError where gate.metric or a guardrail cannot be measured on the test rows of the splits.

    `schema` is what evaluation.json_schema holds.
    """
    if schema:
        _warn_of_invalid(splits, schema)
    tested = [*_conversations(splits, "test")]
    trained = map(last_answer, _conversations(splits, "train"))
    has_tools = any(map(tools_of, tested))
    references, num_pairs = [*map(last_answer, tested)], sum(rejected_of(each) is not None for each in tested)
    which = "the test rows"
    if said := misfit(settings, references, trained, schema, which, has_tools=has_tools, num_pairs=num_pairs):
        raise ConfigError(said)


def _warn_of_invalid(splits: Splits, schema: str) -> None:
    """Warns of training answers that do not satisfy the schema: the model learns to give such answers."""
    from tunewright.reports.pages import counted

    rows = [*islice(_rows(splits, "train"), MOST_VALIDATED)]
    valid = schema_valid(schema, [last_answer(conversation) for _, conversation in rows])
    if wrong := [row for (row, _), is_valid in zip(rows, valid, strict=True) if not is_valid]:
        log.warning(
            "%s of %s do not satisfy evaluation.json_schema, first %s line %d: the model learns such answers; correct "
            "them, or the schema",
            f"{len(wrong):,}",
            counted(len(rows), "training answer"),
            wrong[0]["file"],
            wrong[0]["line"],
        )


def misfit(
    settings: Settings,
    references: Sequence[str],
    answers: Iterable[str],
    schema: str,
    which: str,
    *,
    has_tools: bool = False,
    num_pairs: int = 0,
) -> str:
    """The first key of the gate whose metric means nothing beside these references, why, and what to do; or "".

    `answers` are those of the training rows, and `which` says of what the references are.
    """
    try:
        metrics = settings.measured().metrics
        choice = choose(metrics, references, answers, schema, has_tools=has_tools, num_pairs=num_pairs)
    except ConfigError as error:  # nothing that is asked for fits
        return str(error)
    fits = ", ".join(name for name in choice.names if name not in CANNOT_DECIDE)
    if settings.gate.metric == "auto" and not choice.decides:
        left = "; ".join(f"{name}: {why}" for name, why in choice.left_out.items())
        return f"evaluation.metrics has no metric that can decide on {which} ({left}); add auto, or another that fits"
    for key, name in wanted(settings):
        if why := choice.left_out.get(name):
            cure = "set auto or one of these" if key == "gate.metric" else "set one of these, or leave it out"
            return f"{key}={name} cannot be measured on {which}: {why}; {cure}: {fits}; or correct the answers"
    return ""


def wanted(settings: Settings) -> Iterator[tuple[str, str]]:
    """The keys of the gate that name a metric, and the metric."""
    yield "gate.metric", settings.gate.metric
    for at, each in enumerate(settings.gate.guardrails):
        yield f"gate.guardrails[{at}].metric", each.metric


def _conversations(splits: Splits, split: str) -> Iterator[list[Message]]:
    """The conversations of a split, but those whose answer says nothing of the task: for replay, or undesirable."""
    return (conversation for _, conversation in _rows(splits, split))


def _rows(splits: Splits, split: str) -> Iterator[tuple[dict[str, Any], list[Message]]]:
    """The same with the rows that they are of."""
    columns = ["file", "line", "messages", "chat", "use_as"]
    for batch in pq.ParquetFile(splits.path(f"{split}.parquet")).iter_batches(columns=columns):
        found = ((row, conversation_of(row)) for row in batch.to_pylist() if row["use_as"] != "replay")
        yield from (each for each in found if not is_undesirable(each[1]))
