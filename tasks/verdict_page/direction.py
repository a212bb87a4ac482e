"""Which way the length of training should go, so that no page advises both to train longer and more gently."""

from typing import Literal

from tunewright.metrics.baseline import CONSTANT
from tunewright.reports import curves
from tunewright.tasks.verdict_page.case import Case

SAME = 0.8  # share of answers that equal the base's, from which on training changed little
TOO_MUCH = {"divergence", "overfitting", "plateau"}  # kinds of warnings that more training would not fix


def learned_nothing(case: Case) -> bool:
    """Whether the candidate is not shown to beat the majority-class baseline, or answers as the base does."""
    if case.verdict.decision == "promote" or not case.differences:
        return False
    is_beaten = any(each.opponent == CONSTANT and each.finding != "above" for each in case.comparisons)
    return is_beaten or case.same_as_base >= SAME


def direction(case: Case) -> Literal["longer", "gentler", ""]:
    """Longer where learning had not finished, gentler where the curves or a broken guardrail ask for it."""
    kinds = {each.kind for each in case.training_warnings}
    if kinds & TOO_MUCH:
        return "gentler"
    if curves.is_falling(case.curves) or kinds & {"no learning", "still falling at the end"}:
        return "longer"
    broken = {each.metric for each in case.decided.guardrails if each.finding == "below"}
    if learned_nothing(case):
        return "gentler" if broken - {"stopped"} else "longer"
    return "gentler" if broken else ""
