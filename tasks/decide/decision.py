"""The rules of the decision, as a pure function of the scores of each row: plain data in and out.

The candidate has to be better than the base, than the champion where there is one, and than the best answer that is
always the same, by more than gate.margin; no guardrail may be worse than there by more than its own margin; the
candidate has to be at least as good as each contender that is only prompted, but for gate.tolerance; and its own score
has to be above gate.at_least, if that is set. Each of these is a test of its own at gate.confidence, and all have to
hold (an intersection-union test; Berger 1982, Technometrics 24:295), so that a model that misses any of them is
promoted at most one time in twenty, however many there are, and the best prompt need not be chosen on the test rows.
One that was ended before it had answered all rows is compared on its rows, at the share of alpha that this analysis
has (tasks/evaluate/interim.py).

To say that a guardrail is broken accuses the candidate, and of many guardrails one would look broken by luck: their p
values are adjusted by Holm's method. One that is neither shown to hold nor broken leaves the decision open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from tunewright.artifacts.payloads import Because, Comparison, Decision
from tunewright.config import Gate
from tunewright.metrics.catalogue import AT_LEAST, CONSTANT
from tunewright.metrics.intervals import holm
from tunewright.reports.pages import counted
from tunewright.tasks.decide import sentences
from tunewright.tasks.decide.comparison import EFFECT, Paired, compare, is_more_wrong, needs_most

CANDIDATE, BASE = "candidate", "base"
TO_BEAT = (BASE, "champion", CONSTANT)  # all others are only prompted
LARGEST = 1e100  # of a score: variances, which have squares of differences, and the rows needed are numbers up to there


@dataclass(frozen=True)
class Evidence:
    """The score of each contender on each row, by row_id, and the cluster of each row."""

    metric: str
    scores: Mapping[str, Mapping[str, float]]  # contender -> row_id -> score
    clusters: Mapping[str, int]  # row_id -> cluster
    alpha_shares: Mapping[str, float] = field(default_factory=dict)  # contender -> that of its comparison, if below 1

    def fault(self) -> str:
        """Why nothing can be decided from it, or ""."""
        for name in (CANDIDATE, TO_BEAT[0]):
            if not self.scores.get(name):
                return f"there are no scores of the {name}"
        rows = self.scores[CANDIDATE]
        for name, scores in {**self.scores, "clusters": self.clusters}.items():
            missing = set() if name in self.alpha_shares else rows.keys() - scores.keys()  # it may have been ended
            if differing := missing | (scores.keys() - rows.keys()):
                return f"{name} and candidate differ in {counted(len(differing), 'row')}, {min(differing)[:12]} for one"
        for name, scores in self.scores.items():
            if bad := [row for row in sorted(scores) if not abs(scores[row]) <= LARGEST]:  # a NaN is not
                return (
                    f"{self.metric} of {name} is {scores[bad[0]]} on {counted(len(bad), 'row')}, {bad[0][:12]} for one"
                )
        return ""

    def paired(self, opponent: str) -> Paired:
        """The candidate's scores and those of an opponent, row by row, of the rows that it answered."""
        rows = sorted(self.clusters.keys() & self.scores[opponent].keys())
        own, theirs = (np.array([self.scores[name][row] for row in rows], float) for name in (CANDIDATE, opponent))
        return Paired(own, theirs, np.array([self.clusters[row] for row in rows]))


class GuardrailTest(NamedTuple):
    """A metric that must not get worse by more than `margin`; its rows need not be those of the decision."""

    evidence: Evidence
    margin: float


def decide_scores(
    evidence: Evidence, gate: Gate, guardrails: Sequence[GuardrailTest] = (), *, is_prose: bool = False
) -> Decision:
    """The decision on the candidate. Scores that cannot be compared are the decision invalid, with the reason.

    `is_prose` says that answers are long texts, of which no score says that they are more often wrong than right, and
    of which always the same answer need not be beaten: it must not be clearly better.
    """
    faults = [each.fault() for each in (evidence, *(guardrail.evidence for guardrail in guardrails))]
    if fault := next(filter(None, faults), ""):
        said = f"Invalid: {fault}; nothing was decided."
        return _decision(evidence, gate, decision="invalid", because="", sentence=said)
    to_beat, to_reach = compared(evidence, TO_BEAT[:2] if is_prose else TO_BEAT, gate.margin, gate), []
    if is_prose:
        to_beat += [each for each in compared(evidence, [CONSTANT], 0.0, gate) if each.finding == "below"]
    if gate.at_least is not None:  # as if an opponent scored just that on each row
        scores = {**evidence.scores, AT_LEAST: dict.fromkeys(evidence.clusters, gate.at_least)}
        to_reach = compared(replace(evidence, scores=scores), [AT_LEAST], 0.0, gate)
    prompted = [name for name in evidence.scores if name not in (CANDIDATE, *TO_BEAT)]
    to_match = compared(evidence, prompted, -gate.tolerance, gate)
    guarded = [compared(each.evidence, TO_BEAT, -each.margin, gate, effect=0.0) for each in guardrails]
    held = _adjusted([comparison for comparisons in guarded for comparison in comparisons], gate)
    decision, because, decisive = _judged(to_beat, to_reach, to_match, held)
    all_compared = (*to_beat, *to_reach, *to_match)
    hardest = min(all_compared, key=_hardest)
    closest = decisive or hardest
    rows_needed = decisive.rows_needed if decisive else None  # of a prompt that is enough
    if decision == "inconclusive":  # all comparisons have to hold, so the rows that the longest takes
        longest = needs_most((*all_compared, *held))
        rows_needed = longest.rows_needed if longest else None
    is_poor = decision == "promote" and not (to_reach or is_prose) and is_more_wrong(to_beat[0])
    models = [each for each in to_beat if each.opponent != CONSTANT]
    measured = closest if closest in to_beat else min(models, key=_hardest)
    return _decision(
        evidence,
        gate,
        decision=decision,
        because=because,
        sentence=sentences.of(
            decision,
            because,
            closest,
            (*to_beat, *to_reach),
            to_match,
            held,
            asks_person=gate.approval,
            is_poor=is_poor,
        ),
        closest=closest,
        gain=sentences.gain(closest),
        is_poor=is_poor,
        comparisons=all_compared,
        guardrails=tuple(held),
        rows_needed=rows_needed,
        smallest_visible=measured.smallest_visible,
        visible_against=measured.opponent,
    )


def _decision(evidence: Evidence, gate: Gate, **found: object) -> Decision:
    return Decision.model_validate(
        {
            "metric": evidence.metric,
            "margin": gate.margin,
            "tolerance": gate.tolerance,
            "confidence": gate.confidence,
            "num_rows": len(evidence.clusters),
            "num_clusters": len({*evidence.clusters.values()}),
            **found,
        }
    )


def compared(
    evidence: Evidence, opponents: Sequence[str], threshold: float, gate: Gate, *, effect: float = EFFECT
) -> list[Comparison]:
    """The candidate beside each of the opponents that there are scores of; `effect` as in `compare`."""
    return [
        compare(
            evidence.paired(name),
            metric=evidence.metric,
            opponent=name,
            threshold=threshold,
            confidence=gate.spending(evidence.alpha_shares.get(name, 1.0)).confidence,
            num_unanswered=len(evidence.clusters) - len(evidence.scores[name]),
            effect=effect,
        )
        for name in opponents
        if name in evidence.scores
    ]


def _adjusted(guardrails: Sequence[Comparison], gate: Gate) -> list[Comparison]:
    """A guardrail is below its threshold, and so broken, only by its p value among all of them."""
    found = []
    for each, p in zip(guardrails, holm([each.p_below for each in guardrails]), strict=True):
        finding = each.finding if each.finding == "above" else "below" if p <= 1 - gate.confidence else "unclear"
        found.append(each.model_copy(update={"p_below": p, "finding": finding}))
    return found


def _judged(
    to_beat: Sequence[Comparison],
    to_reach: Sequence[Comparison],
    to_match: Sequence[Comparison],
    held: Sequence[Comparison],
) -> tuple[Literal["promote", "keep", "inconclusive"], Because, Comparison | None]:
    """The first rule that any comparison fails, and the one that fails it hardest; known faults come before doubts.

    Where the rows do not tell candidate and prompt apart, the prompt is enough if it scores as high: it costs no
    training. If the candidate scores higher, more rows may show it.
    """
    unmatched = [each for each in to_match if each.finding != "above"]
    rules: tuple[tuple[Literal["keep", "inconclusive"], Because, list[Comparison]], ...] = (
        ("keep", "worse", [each for each in to_beat if each.finding == "below"]),
        ("keep", "too low", [each for each in to_reach if each.finding == "below"]),
        ("keep", "regression", [each for each in held if each.finding == "below"]),
        ("keep", "prompting is enough", [each for each in to_match if each.difference[2] < 0]),
        ("inconclusive", "", [each for each in (*to_beat, *to_reach) if each.finding == "unclear"]),
        ("keep", "prompting is enough", [each for each in unmatched if each.difference[1] <= 0]),
        ("inconclusive", "", unmatched),
        ("inconclusive", "", [each for each in held if each.finding == "unclear"]),
    )
    for decision, because, failed in rules:
        if failed:
            return decision, because, min(failed, key=_hardest if because else lambda each: -each.rows_to_tell)
    return "promote", "", None


def _hardest(comparison: Comparison) -> float:
    return comparison.difference[1] - comparison.threshold
