"""The decision in one sentence, with the figures that support it.

A mean is followed by its interval: .84 is +.82 [.75, .87] above the base; each bound of an interval is one-sided at
gate.confidence. Where lower is better a difference has no sign, and says more or less: 3.68 [3.34, 4.02]
more. Two scores and their difference have as many digits as they need to agree with each other.

Of the tests passed, the sentence names the closest: the one whose mean exceeds its threshold by least.
"""

from collections.abc import Sequence

from tunewright.artifacts import WAITING, ApiUse
from tunewright.artifacts.payloads import Comparison
from tunewright.metrics import describe
from tunewright.metrics.catalogue import AT_LEAST, CONSTANT, baseline
from tunewright.reports.pages import SHOW_NONE, counted, exactly, interval, number, rounded_up
from tunewright.tasks.decide.comparison import SMALLEST_EFFECT, needs_most

TOO_LOW = (
    "the candidate is wrong more often than right, and gate.at_least is not set; set gate.at_least to the lowest "
    "acceptable score, train more, or add training rows"
)
FEW = 10  # test rows, under which the sentence of a promotion warns
WHO = {
    "few_shot": "the few-shot prompt",
    "retrieval": "the retrieval prompt",
    "documents": "the base with your documents",
    AT_LEAST: AT_LEAST,
}


def of(
    decision: str,
    because: str,
    closest: Comparison,
    to_beat: Sequence[Comparison],
    to_match: Sequence[Comparison],
    held: Sequence[Comparison] = (),
    *,
    asks_person: bool = False,
    is_poor: bool = False,
) -> str:
    """The sentence of a decision; `closest` is the comparison that it fails on, or that it passes by the least.

    What a person still has to approve (`asks_person`) has passed the gate, waits, and is not promoted.

    Other guardrails in `held` that are broken, or may be, are named too: whoever fixes the first thing should know of
    the second. So is the best prompt that is shown to be better than the candidate.
    """
    if decision == "promote":
        poor = "; it is wrong more often than right" if is_poor else ""
        return f"{WAITING if asks_person else 'Promoted'}: {_better(to_beat, to_match, closest)}{poor}."
    others = [each for each in held if each.difference[1] < each.threshold and each is not closest]
    longest = needs_most((*to_beat, *to_match, *held)) or closest
    failed = _failed(decision, because, closest, longest, is_prompt=closest in to_match)
    failed = failed.removesuffix(".") + _better_prompt(to_match, closest)
    return f"{failed}.{''.join(map(_also, others))}"


def gain(closest: Comparison) -> str:
    """Such as "+.82 [.75, .88] exact match against the base", or "less loss: .10 [.08, .12] against the base"."""
    in_words, against = describe(closest.metric).in_words, f"against {_named(closest)}{_in_part(closest)}"
    if describe(closest.metric).higher_is_better:
        return f"{_gain(closest)} {in_words} {against}"
    change, more = _gain(closest).rsplit(" ", 1)
    return f"{more} {in_words}: {change} {against}"


def beside(comparison: Comparison, use: ApiUse) -> str:
    """How the candidate compares with a model behind an API, and what that model's answers cost."""
    name, theirs = comparison.opponent, number(comparison.opponent_mean, comparison.digits)
    found = f"{_what(comparison)} against {theirs}, {_on(comparison)}"
    if comparison.finding == "above":
        said = f"The candidate is as good as {name}, within {exactly(-comparison.threshold)}: {found}"
    elif comparison.difference[2] < 0:
        said = f"{name} is better than the candidate: {found}"
    else:
        most = exactly(-comparison.threshold)
        said = f"These rows do not show that the candidate is as good as {name}, within {most}: {found}"
    price = f"an answer of {name}" if use.price is None else f"1,000 answers of {name} cost {use.price:.3g}, and one"
    return f"{said}; {price} takes {use.seconds:.2g} s (not used in the decision)"


def _failed(decision: str, because: str, decisive: Comparison, longest: Comparison, *, is_prompt: bool) -> str:
    if because in ("worse", "too low") and decisive.difference[2] < 0 and decisive.opponent != AT_LEAST:
        return f"Not promoted: {_what(decisive)} is worse than {_theirs(decisive)}: {_on(decisive)}."
    theirs = _theirs(decisive) + (f" by more than {exactly(abs(decisive.threshold))}" if decisive.threshold else "")
    if because in ("worse", "too low"):
        return f"Not promoted: {_what(decisive)} is not {_than(decisive)} {theirs}: {_on(decisive)}."
    if because == "regression":
        return f"Not promoted: a regression: {_what(decisive)} is worse than {theirs}: {_on(decisive)}."
    if because == "prompting is enough":
        return _prompting(decisive)
    needed = _needed(decisive, longest)
    if is_prompt:
        return f"Inconclusive: better than the base, but {_unmatched(decisive)}{needed}."
    if decisive.threshold < 0:  # a guardrail
        return (
            f"Inconclusive: better, but a regression is not ruled out: {_what(decisive)} may be worse than {theirs}: "
            f"{_on(decisive)}{needed}."
        )
    if decisive.is_behind:
        said = f"{_what(decisive)} is not {_than(decisive)} {theirs}, and not shown to be worse"
    else:
        said = f"not enough evidence that {_what(decisive)} is {_than(decisive)} {theirs}"
    return f"Inconclusive: {said}: {_on(decisive)}{_detectable(decisive)}{needed}."


def _detectable(decisive: Comparison) -> str:
    """The gain over a model that these test rows show; nothing of a required score."""
    if decisive.smallest_visible is None:
        return f"; {SHOW_NONE}"
    if decisive.opponent == AT_LEAST:
        return ""
    return f"; the smallest detectable gain is {number(decisive.smallest_visible)} (80 % power)"


def _also(guardrail: Comparison) -> str:
    """Name a guardrail besides: as broken only where that is shown."""
    bounds = (guardrail.difference[1],) * 3  # it is named without its interval
    named = guardrail.model_copy(update={"difference": bounds})
    what, theirs, most = _what(named), _theirs(named), exactly(-guardrail.threshold)
    if guardrail.finding == "below":
        return f" Also, {what} is worse than {theirs} by more than the allowed {most}."
    among = " among several guardrails" if guardrail.is_beyond else ""
    return f" Also, {what} may be worse than {theirs} by more than {most} (not enough evidence{among})."


def _better_prompt(to_match: Sequence[Comparison], closest: Comparison) -> str:
    """Name the best prompt that is shown to be better, unless the sentence is about a prompt anyway."""
    better = [each for each in to_match if each.finding == "below"]
    if not better or closest in to_match:
        return ""
    best = min(better, key=lambda each: each.difference[1])
    return f"; {who(best.opponent, best.metric)} is better by {number(-best.difference[1])}{_in_part(best)}"


def _better(to_beat: Sequence[Comparison], to_match: Sequence[Comparison], closest: Comparison) -> str:
    than = _than(to_beat[0])
    said = [each for each in to_beat if each.opponent != CONSTANT or each is closest]
    of_several = closest if len([*said, *to_match]) > 1 else None
    beaten = " and ".join(
        f"{_ahead(each)} {than} {_named(each)}{' (the closest)' if each is of_several else ''}" for each in said
    )
    matched = " and ".join(
        f"{who(each.opponent, each.metric)} "
        f"({_gain(each)}{_in_part(each)}{', the closest' if each is of_several else ''})"
        for each in to_match
    )
    as_good = f", and at least as good as {matched}," if matched else ""
    return f"{_what(to_beat[0])} is {beaten}{as_good} on {_rows(to_beat[0].num_rows)}"


def _rows(number: int) -> str:
    """The test rows of a promotion, which five can bring about where the candidate wins each by far."""
    rows = counted(number, "test row")
    return rows if number >= FEW else f"only {rows}, too few to stand for other prompts"


def _prompting(decisive: Comparison) -> str:
    if decisive.difference[2] < 0:
        worse = f"{_what(decisive)} is worse than {_theirs(decisive)}"
        return f"Not promoted: prompting the base does better: {worse}: {_on(decisive)}."
    return f"Not promoted: prompting the base may do as well: {_unmatched(decisive)}{_needed(decisive, decisive)}."


def _unmatched(prompt: Comparison) -> str:
    most = exactly(-prompt.threshold)
    return f"{_what(prompt)} may still be worse than {_theirs(prompt)} by more than {most}: {_on(prompt)}"


def _needed(decisive: Comparison, longest: Comparison) -> str:
    """State how many rows would show which gain; none would where the candidate is behind."""
    against = "" if longest is decisive else f" against {who(longest.opponent, longest.metric)}"
    if longest.is_behind and describe(longest.metric).more_help:
        return _no_gain(longest, against)
    if not longest.rows_needed:
        return ""
    mean, rows = longest.difference[1], describe(longest.metric).rows
    gain = max(mean, longest.threshold + SMALLEST_EFFECT)
    signed = f"{'+' if gain >= 0 else ''}{number(gain, longest.digits) if gain == mean else exactly(gain)}"
    return f"; confirming {signed}{against} needs about {rounded_up(longest.rows_needed):,} {rows} in all (80 % power)"


def _no_gain(comparison: Comparison, against: str) -> str:
    """Why more rows are no help to a candidate that is not ahead."""
    mean, threshold = comparison.difference[1], comparison.threshold
    if comparison.smallest_visible is None:
        return "; add test rows"
    if threshold > 0:
        return f"; the gain{against} is not above {exactly(threshold)}, so more test rows would probably not help"
    if threshold < 0:
        measured = number(-mean, comparison.digits)
        behind = f"behind {who(comparison.opponent, comparison.metric)}" if against else "behind"
        return f"; measured, it is {measured} {behind}, so more test rows would probably not help"
    if round(mean, 2) == 0:  # as number writes it
        return f"; the gain{against} is about zero, so more test rows would probably not help"
    return f"; the gain{against} is negative, so more test rows would probably not help"


def who(opponent: str, metric: str) -> str:
    """An opponent in words, compared by a metric."""
    if opponent == CONSTANT:
        return f"the {baseline(metric)}"
    return WHO.get(opponent, f"the {opponent}")


def _what(comparison: Comparison) -> str:
    return f"{describe(comparison.metric).in_words} {number(comparison.candidate_mean, comparison.digits)}"


def _than(comparison: Comparison) -> str:
    return "above" if describe(comparison.metric).higher_is_better else "better than"


def _named(comparison: Comparison) -> str:
    score = f"={exactly(comparison.opponent_mean)}" if comparison.opponent == AT_LEAST else ""
    return f"{who(comparison.opponent, comparison.metric)}{score}"


def _theirs(comparison: Comparison) -> str:
    if comparison.opponent == AT_LEAST:
        return _named(comparison)
    return f"{who(comparison.opponent, comparison.metric)}'s {number(comparison.opponent_mean, comparison.digits)}"


def _on(comparison: Comparison) -> str:
    number_of = comparison.in_part or f"{comparison.num_rows:,}"
    return f"{_gain(comparison)} on {number_of} {describe(comparison.metric).rows}"


def _in_part(comparison: Comparison) -> str:
    """The number of test rows, where the opponent did not answer all."""
    return f" on {comparison.in_part} test rows" if comparison.in_part else ""


def _gain(comparison: Comparison) -> str:
    """The difference: +.02 [-.04, .08]; or, where lower is better, .02 [-.08, .04] more."""
    digits = comparison.digits
    if describe(comparison.metric).higher_is_better:
        return interval(comparison.difference, signed=True, digits=digits)
    low, mean, high = comparison.difference
    more, change = ("more", (-high, -mean, -low)) if mean < 0 else ("less", comparison.difference)
    return f"{interval(change, signed=False, digits=digits)} {more}"


def _ahead(comparison: Comparison) -> str:
    """The difference to an opponent that is beaten, before the word that says that it is."""
    signed = describe(comparison.metric).higher_is_better
    return interval(comparison.difference, signed=signed, digits=comparison.digits)
