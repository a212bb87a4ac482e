"""Warnings on the training curves in plain words, with advice: a pure function, silent if noise is as likely.

Each rule compares means of several steps and needs a difference that is large in itself and relative to their standard
errors, since the loss of single steps varies with their rows.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tunewright.config import Training
from tunewright.reports.curves.reading import Curves, number
from tunewright.reports.pages import percent

Series = Sequence[tuple[int, float]]

FEWEST_STEPS = 10  # with fewer there is nothing to tell
WINDOWS = 12
ERRORS = 4  # standard errors, beyond which a difference is none of chance
RISE = 0.03  # of the validation loss, relative, that is a rise
FALL = 0.05  # of the validation loss from one evaluation to the next, relative, that is worth going on for
BLOWN_UP = 3  # times the loss of the first step: by chance only where steps vary by more than CALM
CALM = 0.35  # relative standard deviation of the loss of single steps
IMPOSSIBLE = 15  # nats per token: one token in 3 million, a guess in any vocabulary
AROUND = 15  # steps before and after one, which its gradient norm is compared with
EPOCHS = Training().epochs
HALF = 0.5  # of the validation pairs, or labelled answers, that chance ranks right
FALLEN = 0.5  # of the margin that the chosen answers' own fall is, from which on it is told
MOST_EQUAL = 0.8  # share of groups with equal rewards, above which it is told
MOST_CUT = 0.2  # share of cut answers, likewise
LEVEL = 0.005  # change of the validation loss, relative, that is none


class TrainingWarning(NamedTuple):
    """One thing that is worth a change: its kind, the step since when, what was seen, and what to try."""

    kind: str
    step: int
    seen: str
    advice: str

    @property
    def short(self) -> str:
        """Such as "overfitting since step 120"."""
        return f"{self.kind} since step {self.step}" if self.step else self.kind

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        return f"{self.short}: {self.seen}; {self.advice}"


class Window(NamedTuple):
    """Some steps that follow each other, and their mean loss."""

    first: int
    last: int
    mean: float
    error: float  # standard error of the mean


def warnings(curves: Curves) -> list[TrainingWarning]:
    """Return the warnings, gravest first; of the rules on the course of the loss only the first that applies."""
    rules: tuple[Callable[[Curves], TrainingWarning | None], ...] = (
        divergence,
        no_gain,
        no_learning,
        overfitting,
        plateau,
        unfinished,
    )
    if curves.is_of_rewards:
        rules = (no_signal, cut, no_gain)
    elif curves.is_of_pairs:
        rules = (unpreferred, unlikelier, overfitting)
    course = next((found for rule in rules if (found := rule(curves))), None)
    return [found for found in (course, gradient_spikes(curves)) if found]


def windows(series: Series, most: int = WINDOWS) -> list[Window]:
    """The series in windows of at least five values, and at most so many windows."""
    size = max(5, math.ceil(len(series) / most))
    found = []
    for start in range(0, len(series), size):
        part = series[start : start + size]
        values = [value for _, value in part]
        if len(part) >= min(size, 5):
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            found.append(Window(part[0][0], part[-1][0], statistics.fmean(values), error))
    return found


def unpreferred(curves: Curves) -> TrainingWarning | None:
    """In the best evaluation the model preferred the chosen answer, more than at its beginning, no oftener than not.

    Of labelled answers, which nothing ranks, desirable ones gained no more than undesirable ones.
    """
    found = [line for line in curves.evaluations if line["step"] == curves.best_step]
    if not found:
        return None
    accuracy, margin = found[0]["eval_reward_accuracy"], found[0]["eval_reward_margin"]
    if curves.is_of_labels:
        is_learnt = margin > 0
        seen = f"desirable validation answers have a reward {number(abs(margin))} lower than undesirable ones"
    else:
        is_learnt = accuracy > HALF
        seen = f"{percent(accuracy)} of the validation pairs are ranked right, which chance does too"
    if is_learnt:
        return None
    advice = "try 3 to 10 times preference.learning_rate, or look at rows on the page of tokens and masks"
    return TrainingWarning("no preference learnt", 0, f"at step {curves.best_step} {seen}", advice)


def unlikelier(curves: Curves) -> TrainingWarning | None:
    """The margin came from rejected answers that fell further, while the chosen ones became less likely as well."""
    found = [line for line in curves.evaluations if line["step"] == curves.best_step]
    if not found or curves.status.get("preference") not in ("dpo", "kto"):
        return None
    chosen, margin = found[0]["eval_reward_chosen"], found[0]["eval_reward_margin"]
    if chosen > -FALLEN * margin:
        return None
    what, cure = "chosen", "add preference.sft_weight=1"
    if curves.is_of_labels:
        what, cure = "desirable", "raise preference.desirable_weight"
    seen = f"at step {curves.best_step} the reward of {what} answers is {number(chosen)}, with a margin of"
    advice = f"{cure}, or raise preference.beta, if answers get worse"
    return TrainingWarning(f"{what} answers became less likely", 0, f"{seen} {number(margin)}", advice)


def no_signal(curves: Curves) -> TrainingWarning | None:
    """In most groups all answers had the same reward, so that nothing could be learned from them."""
    shares = [value for _, value in curves.series("no_signal_share")]
    if not shares or (mean := statistics.fmean(shares)) <= MOST_EQUAL:
        return None
    reward = statistics.fmean(value for _, value in curves.series("reward"))
    seen = f"in {percent(mean)} of the groups all answers had the same reward, {number(reward)} in the mean"
    advice = "try a larger grpo.group, a higher grpo.temperature, or a reward with more steps between right and wrong"
    return TrainingWarning("rewards without differences", 0, seen, advice)


def cut(curves: Curves) -> TrainingWarning | None:
    """Many answers were cut, and rewarded as they were."""
    shares = [value for _, value in curves.series("cut_share")]
    later = shares[len(shares) // 2 :]
    if not later or (mean := statistics.fmean(later)) <= MOST_CUT:
        return None
    seen = f"{percent(mean)} of the answers in the second half of the steps were cut at grpo.max_new_tokens"
    return TrainingWarning("answers were cut", 0, seen, "raise grpo.max_new_tokens, or train on references first")


def no_gain(curves: Curves) -> TrainingWarning | None:
    """The validation rows never gave a better value than before the first step."""
    name = "reward" if curves.is_of_rewards else curves.best_by
    seen = curves.series(f"eval_{name}")
    later = [value for step, value in seen if step > 0]
    if not later or curves.best_step > 0:
        return None
    before, after = number(seen[0][1]), number(min(later) if name == "loss" else max(later))
    kept = "the weights from before are kept"
    said = f"the validation {name} was {before} before the first step and at best {after} later; {kept}"
    advice = "try a lower training.learning_rate, or model.start=base"
    if curves.is_of_rewards:
        advice = "leave out grpo.rewards, or try another grpo.learning_rate, a larger grpo.group or more grpo.max_steps"
    return TrainingWarning(f"no gain in {name}", 0, said, advice)


def divergence(curves: Curves) -> TrainingWarning | None:
    """Return a warning where the training loss ended far above its lowest, or was far above its first at any time."""
    losses = curves.series("loss")
    found, later = windows(losses), windows(losses[1:])
    advice = "try a third of training.learning_rate, or more training.warmup"
    if not later:
        return None
    (begun, first), highest = losses[0], max(later, key=lambda window: window.mean)
    at_end = [value for step, value in losses if step >= later[-1].first]
    is_calm = statistics.stdev(at_end) < CALM * statistics.fmean(at_end)
    has_risen = is_calm and highest.mean > max(BLOWN_UP * first, first + 1)  # 1 nat, where the first is near 0
    if has_risen or highest.mean > IMPOSSIBLE:
        means = f"{number(highest.mean)}, the mean of steps {highest.first} to {highest.last}"
        seen = f"the training loss rose from {number(first)} at step {begun} to {means}"
        return TrainingWarning("divergence", begun, seen, advice)
    if len(found) < 3:
        return None
    lowest, last = min(found, key=lambda window: window.mean), found[-1]
    rise = last.mean - lowest.mean
    if rise <= max(0.3 * abs(lowest.mean), ERRORS * math.hypot(lowest.error, last.error)):
        return None
    # In later epochs the loss of rows that are known by heart may be near 0, where a third more is nothing.
    if rise < 0.1 * found[0].mean:
        return None
    seen = f"the training loss rose from {number(lowest.mean)} to {number(last.mean)}"
    return TrainingWarning("divergence", lowest.last, seen, advice)


def no_learning(curves: Curves) -> TrainingWarning | None:
    """Neither the training loss nor the validation loss fell."""
    losses, evaluations = curves.series("loss"), curves.series("eval_loss")
    found = windows(losses, most=4)
    if len(losses) < FEWEST_STEPS or len(found) < 2:
        return None
    first, last = found[0], found[-1]
    unclear = math.hypot(first.error, last.error) > 0.02 * first.mean
    if last.mean < 0.99 * first.mean or (unclear and len(evaluations) < 3):
        return None
    if len(evaluations) > 1 and min(value for _, value in evaluations[1:]) < (1 - LEVEL) * evaluations[0][1]:
        return None
    seen = f"the training loss was {number(first.mean)} at the start and {number(last.mean)} at the end"
    advice = "try 3 to 10 times training.learning_rate, or check the trained tokens with --until render"
    return TrainingWarning("no learning", 0, seen, advice)


def overfitting(curves: Curves) -> TrainingWarning | None:
    """The validation loss rose in two evaluations after its lowest, while the training loss went on falling."""
    evaluations = curves.course("eval_loss")
    if len(evaluations) < 3 or _still_better(curves):
        return None
    at = min(range(len(evaluations)), key=lambda position: evaluations[position][1])
    (step, lowest), after = evaluations[at], evaluations[at + 1 :]
    if len(after) < 2 or min(value for _, value in after[-2:]) < (1 + RISE) * lowest:
        return None
    before = [value for place, value in curves.series("loss") if place <= step][-_between(evaluations) :]
    later = [value for place, value in curves.series("loss") if place > step][-_between(evaluations) :]
    if not before or not later or statistics.fmean(later) >= statistics.fmean(before):
        return None
    seen = (
        f"the validation loss rose from {number(lowest)} to {number(after[-1][1])} while the training loss fell from "
        f"{number(statistics.fmean(before))} to {number(statistics.fmean(later))}"
    )
    size = f" or {curves.sized_by}" if curves.sized_by else ""
    advice = f"try fewer {curves.planned_by}, a lower {curves.section}.learning_rate{size}, or more rows"
    return TrainingWarning("overfitting", step, seen, advice)


def _still_better(curves: Curves) -> bool:
    """Whether the metric that decides was best in one of the last two evaluations, whatever the loss did."""
    return curves.best_by != "loss" and curves.best_step in [line["step"] for line in curves.evaluations[-2:]]


def _between(evaluations: Series) -> int:
    return max(1, evaluations[1][0] - evaluations[0][0])


def plateau(curves: Curves) -> TrainingWarning | None:
    """In the later half of at least six evaluations the validation loss moved by next to nothing."""
    evaluations = curves.series("eval_loss")
    half = evaluations[len(evaluations) // 2 :]
    if len(evaluations) < 6 or _still_better(curves):
        return None
    values = [value for _, value in half]
    if max(values) - min(values) > LEVEL * min(values):
        return None
    low, high = number(min(values)), number(max(values))
    level = f"at {low}" if low == high else f"between {low} and {high}"
    seen = f"the validation loss stayed {level} up to step {half[-1][0]}"
    size = f"a higher {curves.sized_by} or " if curves.sized_by else ""
    advice = f"fewer {curves.planned_by} give nearly the same loss; for a lower one try {size}more rows"
    return TrainingWarning("plateau", half[0][0], seen, advice)


def is_falling(curves: Curves) -> bool:
    """Whether the validation loss still fell from the last evaluation but one to the last; two evaluations are enough.

    The last has to be at the planned end.
    """
    evaluations = curves.course("eval_loss")
    if len(evaluations) < 2 or curves.stopped_early or evaluations[-1][0] < curves.planned:
        return False
    return evaluations[-1][1] <= (1 - FALL) * evaluations[-2][1]


def is_cut_short(curves: Curves) -> bool:
    """Whether training.max_steps ended the training at its best step, after fewer epochs than are the default."""
    if not curves.planned_by == curves.ended_by == "training.max_steps" or curves.epochs is None:
        return False
    return curves.is_best_at_end and curves.planned > 0 and curves.epochs < EPOCHS and not is_level(curves)


def is_level(curves: Curves) -> bool:
    """Whether neither the validation loss nor another metric that decides moved between the last two evaluations."""
    last = [value for _, value in curves.course("eval_loss")[-2:]]
    return len(last) == 2 and abs(last[1] - last[0]) <= LEVEL * last[0] and not _still_better(curves)


def unfinished(curves: Curves) -> TrainingWarning | None:
    """At the planned end the validation loss was still falling, from each of the last two evaluations to the next."""
    evaluations = curves.course("eval_loss")
    if len(evaluations) < 3 or curves.stopped_early or not curves.steps or evaluations[-1][0] < curves.planned:
        return None
    a, b, c = (value for _, value in evaluations[-3:])
    if b > (1 - FALL) * a or c > (1 - FALL) * b:
        return None
    seen = f"the validation loss was {number(b)} one evaluation before the end and {number(c)} at the end"
    advice = f"try more {curves.ended_by} or a higher training.learning_rate"
    return TrainingWarning("still falling at the end", 0, seen, advice)


def gradient_spikes(curves: Curves) -> TrainingWarning | None:
    """Gradient norms far above the steps around them, measured in logarithms by how all steps spread about theirs.

    A norm that falls by orders of magnitude as the loss does is no spike.
    """
    norms = [(step, value) for step, value in curves.series("grad_norm") if value > 0]
    later = norms[max(FEWEST_STEPS, len(norms) // 10) :]  # the first ones are large by nature
    if len(later) < 20:
        return None
    logs = [math.log(value) for _, value in later]
    above = [value - statistics.median(logs[max(at - AROUND, 0) : at + AROUND + 1]) for at, value in enumerate(logs)]
    deviation = max(1.4826 * statistics.median(map(abs, above)), 0.1)
    limit = max(6 * deviation, math.log(5))
    spikes = [(step, norm, norm / math.exp(by)) for (step, norm), by in zip(later, above, strict=True) if by > limit]
    if not spikes:
        return None
    step, largest, usual = max(spikes, key=lambda spike: spike[1])
    many = "" if len(spikes) == 1 else f"{len(spikes)}, the largest "
    seen = f"{many}{number(largest)} at step {step} (median of the steps around it: {number(usual)})"
    rate = f"{curves.section}.learning_rate"
    advice = f"check the rows of these steps, or try a lower {rate} or more training.warmup"
    return TrainingWarning("gradient spikes", spikes[0][0] if many else 0, seen, advice)
