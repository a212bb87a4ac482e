"""Judgements by people of pairs of answers: a file for each person in the run of the decision, and what it comes to.

As with a judge's model, the decision does not depend on it.
"""

import hashlib
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from tunewright.metrics.win_rate import mean_of_pairs
from tunewright.registry import files
from tunewright.reports.pages import counted, number, percent

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "reviews"  # among the artifacts of the run
SCORES = {"candidate": 1.0, "tie": 0.5, "opponent": 0.0}

Better = Literal["candidate", "opponent", "tie"]


class Judgement(BaseModel, frozen=True):
    """The judgement of one pair by one person."""

    row_id: str
    opponent: str
    better: Better
    by: str
    comment: str = ""
    at: str  # time in ISO 8601

    @property
    def place(self) -> tuple[str, str]:
        """Which pair it is of."""
        return self.row_id, self.opponent


@dataclass(frozen=True, kw_only=True)
class HumanPreference:
    """The judgements on the candidate beside one opponent, summed up."""

    opponent: str
    preferred: tuple[float, float, float]  # low, mean and high of the candidate's share of the pairs; ties count half
    num_pairs: int
    num_people: int
    num_shared: int  # pairs that several people judged
    agreement: float | None  # the share of two judgements of a pair that are equal; None where no pair has two
    alpha: float | None  # Krippendorff's, for nominal data; None where it is not defined
    num_with_judge: int  # pairs of which the judge's model and people each prefer an answer
    judge_agrees: tuple[float, float, float] | None  # low, mean and high of the share in which they prefer the same one
    lost: tuple[Judgement, ...]  # those that prefer the opponent

    def says(self, judge: str = "") -> str:
        """Describe it in a sentence or two."""
        low, mean, high = map(percent, self.preferred)
        said = (
            f"People prefer the candidate to the {self.opponent} in {mean} [{low}, {high}] of "
            f"{counted(self.num_pairs, 'pair')} with different answers, ties count half"
        )
        if self.agreement is not None:
            alpha = "" if self.alpha is None else f" (Krippendorff's alpha {number(self.alpha)})"
            said += (
                f"; two people agree in {percent(self.agreement)} of the {self.num_shared:,} that both judged{alpha}"
            )
        if self.judge_agrees is not None:
            low, mean, high = map(percent, self.judge_agrees)
            said += (
                f". The judge {judge} prefers the same answer as they do in {mean} [{low}, {high}] of the "
                f"{self.num_with_judge:,} in which both prefer an answer"
            )
        return said


def summed_up(
    judgements: Sequence[Judgement], clusters: Mapping[str, int], judged: Mapping[tuple[str, str], float]
) -> list[HumanPreference]:
    """Sum up what people say of the candidate beside each opponent that they compared it with.

    `clusters` are those of the rows by row_id; `judged` is the candidate's score by a judge's model, by (row_id,
    opponent), from 0 to 1, as far as it was asked.
    """
    found = []
    for opponent in dict.fromkeys(each.opponent for each in judgements):
        of_rows: dict[str, list[Judgement]] = {}
        for each in judgements:
            if each.opponent == opponent:
                of_rows.setdefault(each.row_id, []).append(each)
        scores = {row: fmean(SCORES[each.better] for each in said) for row, said in of_rows.items()}
        several = [[each.better for each in said] for said in of_rows.values() if len(said) > 1]
        sided = {
            row: (scores[row] > 0.5) == (judged[row, opponent] > 0.5)
            for row in of_rows
            if scores[row] != 0.5 and judged.get((row, opponent), 0.5) != 0.5
        }
        every = [each for said in of_rows.values() for each in said]
        found.append(
            HumanPreference(
                opponent=opponent,
                preferred=mean_of_pairs([*scores.values()], [clusters[row] for row in scores]),
                num_pairs=len(scores),
                num_people=len({each.by for each in every}),
                num_shared=len(several),
                agreement=fmean(a == b for said in several for a, b in combinations(said, 2)) if several else None,
                alpha=krippendorff(several),
                num_with_judge=len(sided),
                judge_agrees=mean_of_pairs([*sided.values()], [clusters[row] for row in sided]) if sided else None,
                lost=tuple(each for each in every if each.better == "opponent"),
            )
        )
    return found


def krippendorff(judged: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha of nominal judgements, at least two of each unit; None where all of them are the same.

    1 is full agreement, 0 what chance would give. Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability"
    (2011), section D.
    """
    totals = Counter(each for said in judged for each in said)
    number_of = totals.total()
    expected = number_of**2 - sum(count**2 for count in totals.values())
    if not expected:
        return None
    observed = sum(
        (len(said) ** 2 - sum(count**2 for count in Counter(said).values())) / (len(said) - 1) for said in judged
    )
    return 1 - (number_of - 1) * observed / expected


def keep(client: "MlflowClient", run_id: str, judgements: Sequence[Judgement]) -> list[Judgement]:
    """Keeps what one person said in a run beside what others did, and returns all of it.

    Of a pair that the person judged before, the new judgement takes the place of the old one.
    """
    by = judgements[0].by
    there = {each.place: each for each in kept(client, run_id) if each.by == by}
    own = there | {each.place: each for each in judgements}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, _file_of(by))
        file.write_text("".join(each.model_dump_json() + "\n" for each in own.values()), encoding="utf-8")
        client.log_artifact(run_id, str(file), FOLDER)
    return kept(client, run_id)


def _file_of(by: str) -> str:
    """The name of a person's file; the digest tells apart names whose letters are the same."""
    letters = re.sub(r"[^a-z0-9]+", "-", by.casefold()).strip("-")[:40]
    return f"{letters or 'reviewer'}-{hashlib.sha256(by.encode()).hexdigest()[:8]}.jsonl"


def kept(client: "MlflowClient", run_id: str) -> list[Judgement]:
    """All judgements in a run."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for each in client.list_artifacts(run_id, FOLDER):
            file = files.download(f"runs:/{run_id}/{each.path}", Path(folder))
            lines = file.read_text(encoding="utf-8").splitlines()
            found += [Judgement.model_validate(json.loads(line)) for line in lines]
    return found


def log(client: "MlflowClient", run_id: str, found: Sequence[HumanPreference], num_judgements: int) -> None:
    """Logs what people say to a run, as figures whose step is the number of judgements."""
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    figures = [(f"people/{each.opponent}/{what}", value) for each in found for what, value in _figures(each)]
    metrics = [Metric(name, value, now, num_judgements) for name, value in figures if value is not None]
    client.log_batch(run_id, metrics=metrics)


def _figures(found: HumanPreference) -> Iterator[tuple[str, float | None]]:
    yield from zip(("preferred_low", "preferred", "preferred_high"), found.preferred, strict=True)
    yield "num_pairs", found.num_pairs
    yield "agreement", found.agreement
    if found.judge_agrees is not None:
        yield from zip(("judge_agrees_low", "judge_agrees", "judge_agrees_high"), found.judge_agrees, strict=True)
