"""Which variant is the best, and which are not told apart from it: a difference within the noise of seeds is none.

Within noise is what a paired t test over the common seeds does not show, one-sided at 95 %. With two seeds it shows a
mean difference from 4.5 of its standard deviations on, with three from 1.7 on.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from pydantic import BaseModel

from tunewright.reports.progress import duration

State = Literal["finished", "pruned", "failed"]
SMALLER_IS_BETTER = "loss"  # the one measure of training.best_by of which less is better


class ValidationPoint(BaseModel, frozen=True):
    """An evaluation of the validation rows."""

    step: int
    planned: int
    value: float  # of the measure

    @property
    def share(self) -> float:
        """Return the share of the planned steps that was done, 0 to 1."""
        return self.step / self.planned


class Trial(BaseModel, frozen=True):
    """A variant that was trained from one seed."""

    variant: str  # its changes as the command line has them, "method.rank=8 training.learning_rate=1e-4"
    seed: int
    measure: str  # Settings.ranked_by
    state: State
    evaluations: tuple[ValidationPoint, ...]
    said: str  # what came of it: where it is the best, or why it was pruned or failed
    value: float | None = None  # of the measure at the best step; None where it did not finish
    best_step: int | None = None
    seconds: float | None = None
    learning: int | None = None  # parameters
    peak_bytes: int | None = None
    folder: Path | None = None  # of the last training


def in_words(measure: str) -> str:
    """A measure as a sentence has it."""
    return measure.replace("_", " ")


CONFIDENCE = 0.95
TIE = 0.001  # of the best value or, where it is more, of the spread over seeds: a smaller difference is none
QUICKER = 0.5  # of the time of another, to be worth a word: a training may have had a busy machine
STATES: tuple[State, ...] = ("finished", "pruned", "failed")


class Ranked(BaseModel, frozen=True):
    """A variant with its trainings, one a seed."""

    variant: str
    trials: tuple[Trial, ...]
    behind: float | None = None  # of the best, the mean over common seeds; None where it did not finish
    noise: float | None = None  # up to which a mean difference of these seeds may be chance; None as `beaten`
    beaten: bool | None = None  # whether that is more than noise; None where the best has one seed, or it is the best
    ties: bool = False  # with the best: it is behind by next to nothing

    @property
    def state(self) -> State:
        """The worst state of its trainings."""
        return STATES[max(STATES.index(trial.state) for trial in self.trials)]

    @property
    def values(self) -> dict[int, float]:
        """Seed -> value of the measure."""
        return {trial.seed: trial.value for trial in self.trials if trial.value is not None}

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values.values())

    @property
    def learning(self) -> int:
        """Return the number of trainable parameters; 0 where that is not known."""
        return self.trials[0].learning or 0

    @property
    def seconds(self) -> float:
        """The mean time of a training over the seeds."""
        return fmean(trial.seconds or 0.0 for trial in self.trials)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the seeds; None of one seed."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


def rank(trials: Sequence[Trial]) -> tuple[Ranked, ...]:
    """The variants, the best mean first; those that were pruned or failed last, in the order in which they came."""
    by_variant: dict[str, list[Trial]] = {}
    for trial in trials:
        by_variant.setdefault(trial.variant, []).append(trial)
    found = [Ranked(variant=variant, trials=tuple(of)) for variant, of in by_variant.items()]
    sign = 1 if trials[0].measure == SMALLER_IS_BETTER else -1
    finished = sorted((each for each in found if each.state == "finished"), key=lambda each: sign * each.mean)
    rest = sorted((each for each in found if each.state != "finished"), key=lambda each: each.state == "failed")
    return (*(_beside(finished[0], each, sign) for each in finished), *rest)


def _beside(best: Ranked, other: Ranked, sign: int) -> Ranked:
    if other is best:
        return best.model_copy(update={"behind": 0.0})
    seeds = sorted(best.values.keys() & other.values.keys())
    differences = np.array([sign * (other.values[seed] - best.values[seed]) for seed in seeds])
    behind, noise = float(differences.mean()), _noise(differences) if len(seeds) > 1 else None
    beaten = None if noise is None else behind > noise
    ties = not beaten and behind <= TIE * max(abs(best.mean), best.deviation or 0.0)
    return other.model_copy(update={"behind": behind, "noise": noise, "beaten": beaten, "ties": ties})


def _noise(differences: np.ndarray) -> float:
    """The mean above which a paired t test says that it is above 0; of two or three seeds Gaffke's bound never does."""
    from scipy.special import stdtrit

    num_seeds = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(num_seeds)
    return float(stdtrit(num_seeds - 1, CONFIDENCE)) * error


def sentence(ranked: Sequence[Ranked]) -> str:
    """Summarize the ranking in words, for a person who has to choose."""
    finished = [each for each in ranked if each.state == "finished"]
    if not finished:
        return "No variant finished."
    best, *others = finished
    if all(trial.best_step == 0 for each in finished for trial in each.trials):
        measure = in_words(best.trials[0].measure)
        return (
            f"No variant improved the validation {measure}: each keeps the model from before this training "
            f"({best.mean:.4g}). Other rewards, a higher learning rate or more steps may."
        )
    is_at_its_end = all(trial.evaluations and trial.best_step == trial.evaluations[-1].planned for trial in best.trials)
    more = f" {best.variant} was best at its last step: more steps may improve it." if is_at_its_end else ""
    if all(trial.best_step == 0 for trial in best.trials):
        more = f" {best.variant} keeps the model from before this training: no step improved it."
    return _of_the_best(best, others) + more


def _of_the_best(best: Ranked, others: Sequence[Ranked]) -> str:
    measure, tied = in_words(best.trials[0].measure), [each for each in others if each.ties]
    said = f"Best by validation {measure}: {best.variant} ({best.mean:.4g})"
    if not others:
        return f"{said}; no other variant finished."
    if tied:
        names = " and ".join([", ".join([best.variant, *(each.variant for each in tied[:-1])]), tied[-1].variant])
        return f"A tie by validation {measure}: {names} ({best.mean:.4g}){_cheaper(best, tied)}."
    if best.deviation is None:
        return (
            f"{said}, {others[0].behind:.2g} ahead of the next. With one seed each the difference may be chance; "
            "--seeds 3 measures the noise."
        )
    even = [each for each in others if not each.beaten]
    seeds = len(best.values)
    if not even:
        return f"{said}, better than every other variant by more than the noise of {seeds} seeds."
    names = ", or ".join(each.variant for each in even[:3])
    names += f", and {len(even) - 3} more" if len(even) > 3 else ""
    return f"{said}; with {seeds} seeds it is not distinguishable from {names}{_cheaper(best, even)}."


def recommended(ranked: Sequence[Ranked]) -> Ranked:
    """The best variant, or the one of those that tie with it that takes less."""
    best = ranked[0]
    return _cheapest(best, [each for each in ranked if each.ties])[0]


def _cheaper(best: Ranked, even: Sequence[Ranked]) -> str:
    """Which of those that are as good takes less; empty where none does."""
    found, takes = _cheapest(best, even)
    if not takes:
        return ""
    return f", which {takes}" if len(even) == 1 and not found.ties else f", of which {found.variant} {takes}"


def _cheapest(best: Ranked, even: Sequence[Ranked]) -> tuple[Ranked, str]:
    """Which of those that are as good takes less, and what; the best itself and "" where none does."""
    smallest = min(even, key=lambda each: each.learning, default=best)
    quickest = min(even, key=lambda each: each.seconds, default=best)
    if 0 < smallest.learning < best.learning:
        return smallest, f"trains {smallest.learning:,} parameters instead of {best.learning:,}"
    if quickest.seconds < QUICKER * best.seconds:
        return quickest, f"takes {duration(quickest.seconds)} instead of {duration(best.seconds)}"
    return best, ""


def learning_curve(ranked: Sequence[Ranked], shares: Mapping[str, float]) -> str:
    """Say what more training rows brought, of variants that differ in their share alone; empty of fewer than two."""
    points = _points(ranked, shares)
    if len(points) < 2:
        return ""
    measure = in_words(points[0][1].trials[0].measure)
    named = ", ".join(f"{each.mean:.4g} with {_rows(share)}" for share, each in points)
    (fewer, before), (more, after) = points[-2:]
    changes = _changes(before, after)
    said = f"Learning curve: validation {measure} {named}. From {_rows(fewer)} to {_rows(more)}: {changes.mean():+.2g}"
    if len(changes) == 1:
        return f"{said}. With one seed each this may be chance; --seeds 3 gives it an interval."
    noise = _noise(changes)
    low, high = changes.mean() - noise, changes.mean() + noise
    better, worse = (high < 0, low > 0) if measure == SMALLER_IS_BETTER else (low > 0, high < 0)
    steps = np.diff([each.mean for _, each in points])
    rule = "as a rule each doubling by less than the one before"
    if (steps > 0).any() and (steps < 0).any():
        rule = "but the curve goes up and down, so expect less certainty than the interval says"
    found = f"more rows are likely to help, {rule}" if better else ""
    found = found or ("more rows did not help" if worse else "these seeds do not show that more rows help")
    said = f"{said} [{low:+.2g}, {high:+.2g}] over {len(changes)} seeds: {found}."
    if expected := twice_the_rows(ranked, shares):
        low, mean, high = expected
        said += f" Twice the rows, extrapolated from this step: {mean:+.2g} [{low:+.2g}, {high:+.2g}]."
    return said


def twice_the_rows(ranked: Sequence[Ranked], shares: Mapping[str, float]) -> tuple[float, float, float] | None:
    """The change of the measure that twice the training rows would bring: low, mean and high.

    None without all training rows and a part of them, of two seeds at least. It is an extrapolation from the last two
    shares. Scores are about a power of the number of rows away from their limit, with an exponent from 0 to 1 (Hestness
    et al. 2017, arXiv:1712.00409): a doubling brings as much as the one before if the exponent is 0, and half of it if
    it is 1. low and high are the outer bounds of both, the mean is in the middle of both. Earlier shares are left out,
    since a curve that flattens would seem steeper with them.
    """
    points = _points(ranked, shares)
    if len(points) < 2 or points[-1][0] < 1:
        return None
    (fewer, before), (_, after) = points[-2:]
    changes = _changes(before, after)
    if len(changes) < 2:
        return None
    found = [changes / math.log2(1 / fewer), changes / 2 / (1 / fewer - 1)]
    low, high = (pick(each.mean() + sign * _noise(each) for each in found) for pick, sign in ((min, -1), (max, 1)))
    return float(low), float(np.mean(found)), float(high)


def _points(ranked: Sequence[Ranked], shares: Mapping[str, float]) -> list[tuple[float, Ranked]]:
    """The variants that finished, with their shares, the smallest first."""
    return sorted(((shares[each.variant], each) for each in ranked if each.state == "finished"), key=lambda at: at[0])


def _changes(before: Ranked, after: Ranked) -> np.ndarray:
    """How the measure changed, of each common seed."""
    seeds = sorted(before.values.keys() & after.values.keys())
    return np.array([after.values[seed] - before.values[seed] for seed in seeds])


def _rows(share: float) -> str:
    return "all training rows" if share == 1 else f"{100 * share:g} %"
