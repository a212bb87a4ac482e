"""Suggestions from the candidate's answers: one rule for each kind of fault.

A rule needs a count that is unlikely to be chance: several rows, and at least a set share of their group.
"""

import math
from collections.abc import Iterator
from statistics import NormalDist, fmean
from typing import Literal, NamedTuple

from tunewright.artifacts.payloads import OTHER_ROWS, Comparison
from tunewright.metrics import describe
from tunewright.metrics.catalogue import CONSTANT
from tunewright.metrics.intervals import RAISE_LIMIT, cut_off, cut_off_in_words, scores
from tunewright.reports import curves
from tunewright.reports.pages import number, percent
from tunewright.tasks.verdict_page.case import BASE, CANDIDATE, Case
from tunewright.tasks.verdict_page.wins import MISSING, Mistakes

FEW_STEPS = 30  # of a training, under which it is obviously short where nothing was learned
FEW = 3  # rows, under which a mistake is none of a kind
SHARE = 0.1  # of the wrong answers, from which on they are of a kind
FEWEST = 10  # test rows of a part that anything is said of
RARE = 10  # training rows of an answer, under which it is rare
UNSTOPPED = 0.02
LENGTHS = (0.7, 1.4)  # of answers beside their references, beyond which they are too short or too long
SLICED_BY = {"length": "prompt length"}  # in words, where the name of a kind of slices is not enough
UNTOLD = "unknown"  # the language of what is too short to tell
SAME = 0.8  # share of answers that equal the base's, from which on training changed little
GENERAL = frozenset(("general_loss", "general_tasks"))  # the guardrails against forgetting
TOO_MUCH = {"divergence", "overfitting", "plateau"}  # kinds of warnings that more training would not fix
RARE_ANSWERS = "Add training rows for rare answers"


class Suggestion(NamedTuple):
    """A suggested action, the figures that support it, and the part of the page with more."""

    advice: str
    because: str
    see: str


Found = Iterator[Suggestion]


def learned_nothing(case: Case) -> bool:
    """Whether the candidate is not shown to beat the majority-class baseline, or answers as the base does."""
    if case.verdict.decision == "promote" or not case.differences:
        return False
    is_beaten = any(each.opponent == CONSTANT and each.finding != "above" for each in case.comparisons)
    return is_beaten or case.same_as_base >= SAME


def direction(case: Case) -> Literal["longer", "gentler", ""]:
    """Which way the length of training should go: no page advises both to train longer and more gently.

    Longer where learning had not finished; gentler where the curves ask for it, where the candidate forgot what the
    base knew, or where it broke a guardrail that the base kept: one that only a champion keeps better may be broken by
    too short a training.
    """
    kinds = {each.kind for each in case.training_warnings}
    if kinds & TOO_MUCH or forgotten(case):
        return "gentler"
    if _still_learned(case) or kinds & {"no learning", "still falling at the end"}:
        return "longer"
    broken = {each.metric for each in spoilt(case)}
    if learned_nothing(case):
        return "gentler" if broken - {"stopped"} else "longer"
    return "gentler" if broken else ""


def spoilt(case: Case) -> list[Comparison]:
    """The guardrails in which training made the base worse; of general texts and tasks also those that seem so.

    Few of these are measured, so that a loss that is larger than allowed often cannot be shown to be, and one that is
    smaller keeps the decision open.
    """
    of_base = [each for each in case.decided.guardrails if each.opponent == BASE]
    is_open = case.verdict.decision == "inconclusive"
    return [
        each
        for each in of_base
        if each.finding == "below"
        or (each.metric in GENERAL and (each.is_behind or (is_open and each == case.decided.closest)))
    ]


def forgotten(case: Case) -> list[Comparison]:
    """Those of them that say what the base knew before, and that it did know."""
    says_nothing = {"general_loss"} if any(each.knows_nothing for each in case.general) else set[str]()
    return [each for each in spoilt(case) if each.metric in GENERAL - says_nothing]


def is_too_short(case: Case) -> bool:
    """Whether training was obviously too short: its loss still fell, it had few steps, or many answers do not stop."""
    if direction(case) == "gentler":
        return False
    return _still_learned(case) or len(case.curves.steps) < FEW_STEPS or _is_unstopped(case)


def _still_learned(case: Case) -> bool:
    """Whether the training ended while it still learned, by its loss or as max_steps ended it at its best step."""
    return curves.is_falling(case.curves) or curves.is_cut_short(case.curves)


def mistakes(case: Case, found: Mistakes) -> Found:
    """Yield suggestions for patterns that many wrong answers share."""
    num_wrong = len(found.wrong)
    if num_wrong < FEW:
        return
    yield from _unreadable(case)
    if _is_much(found.near, num_wrong):
        yield Suggestion(
            "Write the references in one form, or decide by gate.metric=normalized_match",
            f"{found.near:,} of {num_wrong:,} wrong answers differ from the reference only in case, spaces and "
            "punctuation",
            "mistakes",
        )
    if len(found.fields) > 1 and found.fields[0][1] >= max(FEW, 2 * found.fields[1][1]):
        (worst, wrong), (second, less) = found.fields[:2]
        yield Suggestion(
            f"Add training rows for the field {worst}",
            f"of {num_wrong:,} wrong answers, {worst} is wrong in {wrong:,}, {second} in {less:,}",
            "mistakes",
        )
    top = next(
        (each for each in found.confusions if MISSING not in (each.said, each.right) and not each.is_no_label), None
    )
    if top and _is_much(top.times, num_wrong):
        where = f" in {top.field}" if top.field else ""
        counts = f"; these have {top.trained[1]:,} and {top.trained[0]:,} training rows" if top.trained else ""
        yield Suggestion(
            "Check that the training rows of confused answers are distinct and numerous enough",
            f"{top.times:,} of {num_wrong:,} wrong answers are “{top.said}” instead of “{top.right}”{where}{counts}",
            "mistakes",
        )
    yield from _rare(case, num_wrong)


def _unreadable(case: Case) -> Found:
    """Answers that are not even of the form, though not cut off: of those that are, the cut is the cause."""
    table, stopped = case.tables[CANDIDATE], case.column(CANDIDATE, "stopped")
    of, ended = len(table), int(stopped.sum())
    cut = f" ({of - ended:,} of {of:,} ran to the limit)" if ended < of else ""
    answers = f"{ended:,} answers that ended by themselves" if cut else f"candidate's {ended:,} answers"
    for metric, form, forms in (
        ("unparseable", "a valid label", "valid labels"),
        ("json_valid", "JSON alone, with each key once", "JSON alone, with each key once"),
    ):
        if metric not in table.column_names:
            continue
        bad = int(((scores(table, metric) == (metric == "unparseable")) & stopped).sum())
        if _is_much(bad, of, UNSTOPPED):
            advice = "State" if direction(case) == "gentler" else "Train longer, or state"
            some = f"{bad:,} of the {answers} are not {forms}{cut}"
            because = f"None of the {answers} is {form}{cut}" if bad == ended else some
            yield Suggestion(f"{advice} the answer format in the prompt", because, "mistakes")


def _rare(case: Case, num_wrong: int) -> Found:
    if not case.labels:
        return
    rare = [case.trained[reference] < RARE for reference, _ in case.said]
    wrong = sum(few and answer != reference for few, (reference, answer) in zip(rare, case.said, strict=True))
    if _is_much(wrong, num_wrong) and wrong / num_wrong > 2 * fmean(rare):
        yield Suggestion(
            RARE_ANSWERS,
            f"in {wrong:,} of {num_wrong:,} wrong answers the reference has fewer than {RARE} training rows, as do "
            f"{percent(fmean(rare))} of the test rows",
            "mistakes",
        )


def too_short_a_limit(case: Case) -> Found:
    """Answers that were cut off before their references end."""
    if _is_much(_num_cut(case), len(case.said), UNSTOPPED):
        because = cut_off_in_words(case.tables[CANDIDATE])
        yield Suggestion(f"{RAISE_LIMIT[0].upper()}{RAISE_LIMIT[1:]}", because, "contenders")


def unstopped(case: Case) -> Found:
    """Answers that went on beyond their references until they were cut off."""
    if direction(case) == "gentler":
        return
    if _is_unstopped(case):
        yield Suggestion(
            "Train longer so that the model learns to stop",
            f"{_num_unstopped(case):,} of {len(case.said):,} answers went on beyond their references up to the limit",
            "contenders",
        )


def _is_unstopped(case: Case) -> bool:
    return _is_much(_num_unstopped(case), len(case.said), UNSTOPPED)


def _num_unstopped(case: Case) -> int:
    return int((~case.column(CANDIDATE, "stopped")).sum()) - _num_cut(case)


def _num_cut(case: Case) -> int:
    return int(cut_off(case.tables[CANDIDATE]).sum())


def lengths(case: Case) -> Found:
    """Answers that are much shorter or longer than they should be."""
    scores = next(each.scores for each in case.answers if each.contender == CANDIDATE)
    ratio = scores.get("length_ratio", 1.0)
    if ratio < 1 and _is_much(_num_cut(case), len(case.said), UNSTOPPED):
        return  # that is why
    if not LENGTHS[0] <= ratio <= LENGTHS[1]:
        yield Suggestion(
            "Check what the answers leave out" if ratio < 1 else "Check what the answers add",
            f"the candidate's answers have {number(ratio)} times as many characters as the references",
            "contenders",
        )


def parts(case: Case) -> Found:
    """The part of the test rows that is worst, where luck among so many parts does not explain it."""
    found = case.decided.slices
    if not found:
        return
    z = NormalDist().inv_cdf(1 - (1 - case.decided.confidence) / len(found))
    metric, scores = describe(case.verdict.metric), case.scores[CANDIDATE]
    deviation, mean = float(scores.std()), float(scores.mean())
    behind = [
        (metric.gain(mean, each.candidate) * math.sqrt(each.num_rows) / deviation, each)
        for each in found
        if deviation and each.num_rows >= FEWEST and each.name not in (UNTOLD, OTHER_ROWS)
    ]
    worst, each = max(behind, key=lambda pair: pair[0], default=(0.0, None))
    if each and worst > z:
        yield Suggestion(
            f"Add training rows of this kind: {SLICED_BY.get(each.by, each.by)} {each.name}",
            f"{metric.in_words} is {number(each.candidate)} on its {each.num_rows:,} test rows and "
            f"{number(mean)} on all",
            "parts",
        )


def _is_much(count: int, of: int, share: float = SHARE) -> bool:
    return count >= FEW and count >= share * of
