"""All that the page speaks of, read from what the stages handed on."""

import statistics
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import Artifact, RunArtifacts
from tunewright.artifacts.payloads import Comparison, VerdictDetails
from tunewright.metrics import describe
from tunewright.metrics.catalogue import CONSTANT, baseline
from tunewright.metrics.intervals import Floats, scores
from tunewright.metrics.labels import MAX_LABELS, closed_set, training_answers
from tunewright.reports import curves
from tunewright.reports.account import Account, reasons
from tunewright.reports.curves import TrainingWarning
from tunewright.serving import ExamplePrompt, example_prompt

CANDIDATE, BASE = "candidate", "base"
TITLES = {"few_shot": "few-shot prompt", "retrieval": "retrieval prompt", "documents": "base with documents"}


def title(contender: str, metric: str = "") -> str:
    """The name of a contender; of the constant one it depends on the metric."""
    return baseline(metric) if contender == CONSTANT else TITLES.get(contender, contender)


class Case(RunArtifacts, frozen=True):
    """A candidate that was decided on, with the artifacts of its run and what the page reads in them."""

    @classmethod
    def of(cls, run: RunArtifacts) -> Self:
        """The case of a run; its verdict has what was counted after the stage."""
        return cls.model_validate(dict(run) | {"verdict": run.counted_verdict})

    @cached_property
    def prompt(self) -> ExamplePrompt | None:
        """The prompt of a candidate for which nothing was trained."""
        return example_prompt(self.adapter.path("model"))

    @property
    def asks_person(self) -> bool:
        """Whether a person decides on the alias of this candidate."""
        return self.approval and self.verdict.decision == "promote"

    @cached_property
    def decided(self) -> VerdictDetails:
        """All that led to the decision."""
        return VerdictDetails.load(self.verdict)

    @cached_property
    def all_curves(self) -> dict[str, curves.Curves]:
        """The curves of each training, by its stage."""
        return {each.stage: curves.read(each.folder) for each in self.trainings}

    @cached_property
    def curves(self) -> curves.Curves:
        """The curves of the training on answers, or of the only training; empty where nothing was trained."""
        return next(iter(self.all_curves.values()), curves.Curves(steps=[], evaluations=[], best_step=0))

    @cached_property
    def training_warnings(self) -> list[TrainingWarning]:
        """The warnings about the curves of all trainings."""
        return [found for each in self.all_curves.values() for found in curves.warnings(each)]

    @cached_property
    def account(self) -> Account:
        """The account of the rows."""
        return Account.of(self.all_rows, self.checked, self.unique, self.splits, self.tokens)

    @cached_property
    def reasons(self) -> dict[str, int]:
        """Why rows did not stay."""
        return reasons(self.all_rows, self.checked, self.unique, self.splits, self.tokens)

    @cached_property
    def tables(self) -> dict[str, pa.Table]:
        """The answers of each contender, each row once, in the order of their ids; null in rows without an answer."""
        tables, rows = {}, set[str]()
        for each in self.answers:  # the base first, which answers all
            table = pq.read_table(each.path("answers.parquet"))
            places = {row_id: at for at, row_id in enumerate(table["row_id"].to_pylist())}
            rows = rows if each.in_part else places.keys()
            tables[each.contender] = table.take(pa.array([places.get(row_id) for row_id in sorted(rows)], pa.int64()))
        return tables

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The candidate beside each opponent: what decided first, then by how far the mean is above what it needs."""
        ranked = sorted(self.decided.comparisons, key=lambda each: each.difference[1] - each.threshold)
        return sorted(ranked, key=lambda each: each != self.decided.closest)

    @cached_property
    def differences(self) -> dict[str, Floats]:
        """By opponent, the difference of each row [rows] in the metric that decides, positive for the candidate.

        Empty where nothing could be compared; the best constant answer, which nobody gave, is not among them.
        """
        gain, found = describe(self.verdict.metric).gain, self.scores
        beside = [each.opponent for each in (*self.comparisons, *self.decided.beside) if each.opponent in found]
        return {opponent: gain(found[CANDIDATE], found[opponent]) for opponent in beside}

    @cached_property
    def scores(self) -> dict[str, Floats]:
        """By contender, the score of each row [rows] in the metric that decides, of perplexity in nats per token.

        NaN in rows that it did not answer.
        """
        return {name: scores(table, self.verdict.metric) for name, table in self.tables.items()}

    def column(self, contender: str, name: str) -> np.ndarray:
        """A column of a contender's answers [rows that it answered]."""
        return self.tables[contender][name].drop_null().to_numpy()

    def in_part(self, contender: str) -> str:
        """The rows that a contender answered, where these are not all; otherwise empty."""
        return next(each.in_part for each in self.answers if each.contender == contender)

    @cached_property
    def said(self) -> list[tuple[str, str]]:
        """The reference and the candidate's answer of each test row."""
        table = self.tables[CANDIDATE]
        return list(zip(table["reference"].to_pylist(), table["answer"].to_pylist(), strict=True))

    @cached_property
    def same_as_base(self) -> float:
        """The share of the candidate's answers that equal the base's."""
        pairs = zip(*(self.tables[name]["answer"].to_pylist() for name in (CANDIDATE, BASE)), strict=True)
        return statistics.fmean(mine == theirs for mine, theirs in pairs)

    @cached_property
    def trained(self) -> Counter[str]:
        """Count each answer in the training rows; empty where there are too many different ones."""
        counts: Counter[str] = Counter()
        for answer in training_answers(self.tokens):
            counts[answer] += 1
            if len(counts) > MAX_LABELS:
                return Counter()
        return counts

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The closed set that the answers are of; empty where they are of none."""
        return closed_set(self.trained.elements(), [reference for reference, _ in self.said]) if self.trained else ()

    def steps(self) -> Iterator[tuple[str, Artifact]]:
        """The stages and what they handed on, in their order."""
        read = (self.rows, self.base, self.rehearsed, self.checked, self.unique, self.splits, self.tokens)
        for record in filter(None, (*read, *self.before, self.adapter)):
            yield record.stage, record
        if self.prompts:
            yield self.prompts.stage, self.prompts
        for record in (*self.answers, *self.general):
            yield f"{record.stage} {title(record.contender)}", record
        if self.divergence:
            yield self.divergence.stage, self.divergence
        yield self.verdict.stage, self.verdict
        if self.judged:
            yield self.judged.stage, self.judged
