"""What the candidate's answers say of what to try: a rule for each kind of fault.

A rule asks for a count that is no accident: of several rows, and of a share of what it is a part of.
"""

import math
import statistics
from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

from tunewright.metrics import describe
from tunewright.metrics.rows import RAISE_LIMIT, cut_off, scores
from tunewright.reports.figures import number
from tunewright.tasks.verdict_page.case import CANDIDATE, Case
from tunewright.tasks.verdict_page.direction import direction
from tunewright.tasks.verdict_page.mistakes import MISSING, NONE, Mistakes

FEW = 3  # rows, under which a mistake is none of a kind
SHARE = 0.1  # of the wrong answers, from which on they are of a kind
FEWEST = 10  # test rows of a part that anything is said of
RARE = 10  # training rows of an answer, under which it is rare
UNSTOPPED = 0.02
LENGTHS = (0.7, 1.4)  # of answers beside their references, beyond which they are too short or too long
UNTOLD = "unknown"  # the language of what is too short to tell
RARE_ANSWERS = "Add training rows for rare answers"


class Suggestion(NamedTuple):
    """What to try, the figures that it stands on, and the part of the page that has more."""

    advice: str
    because: str
    see: str


Found = Iterator[Suggestion]


def mistakes(case: Case, found: Mistakes) -> Found:
    """What many wrong answers have in common."""
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
    top = next((each for each in found.confusions if each.said not in (NONE, MISSING)), None)
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
    table = case.tables[CANDIDATE]
    stopped = case.column(CANDIDATE, "stopped")
    for metric, kind in (("unparseable", "label"), ("json_valid", "JSON")):
        if metric not in table.column_names:
            continue
        bad = scores(table, metric) == (metric == "unparseable")
        number_bad = int((bad & stopped).sum())
        if _is_much(number_bad, len(table), UNSTOPPED):
            longer = "" if direction(case) == "gentler" else "Train longer, or state"
            yield Suggestion(
                f"{longer or 'State'} the answer format in the prompt",
                _of_no_form(number_bad, int(stopped.sum()), len(table), kind),
                "mistakes",
            )


def _of_no_form(bad: int, ended: int, of: int, kind: str) -> str:
    """How many answers are of no valid form, of those that were not cut off."""
    cut = f" ({of - ended:,} of {of:,} were cut off)" if ended < of else ""
    answers = f"{ended:,} answers that ended by themselves" if cut else f"candidate's {ended:,} answers"
    if bad == ended:
        return f"None of the {answers} is {'a valid label' if kind == 'label' else 'valid JSON'}{cut}"
    of_form = "not valid labels" if kind == "label" else "not valid JSON"
    return f"{bad:,} of the {answers} are {of_form}{cut}"


def _rare(case: Case, num_wrong: int) -> Found:
    """Answers that training hardly saw."""
    if not case.labels:
        return
    rare = [case.trained[reference] < RARE for reference, _ in case.said]
    wrong = sum(few and answer != reference for few, (reference, answer) in zip(rare, case.said, strict=True))
    if _is_much(wrong, num_wrong) and wrong / num_wrong > 2 * statistics.fmean(rare):
        yield Suggestion(
            RARE_ANSWERS,
            f"in {wrong:,} of {num_wrong:,} wrong answers the reference has fewer than {RARE} training rows, as do "
            f"{statistics.fmean(rare):.0%} of the test rows",
            "mistakes",
        )


def too_short_a_limit(case: Case) -> Found:
    """Answers that were cut off before their references end."""
    cut, num_rows = _num_cut(case), len(case.said)
    if _is_much(cut, num_rows, UNSTOPPED):
        longest = int(case.column(CANDIDATE, "num_tokens").max())
        yield Suggestion(
            f"{RAISE_LIMIT[0].upper()}{RAISE_LIMIT[1:]}",
            f"{cut:,} of {num_rows:,} answers were cut off at {longest:,} tokens, before their references end",
            "contenders",
        )


def unstopped(case: Case) -> Found:
    """Answers that went on beyond their references until they were cut off."""
    if direction(case) == "gentler":
        return
    cut, num_rows = int((~case.column(CANDIDATE, "stopped")).sum()) - _num_cut(case), len(case.said)
    if _is_much(cut, num_rows, UNSTOPPED):
        yield Suggestion(
            "Train longer so that the model learns to stop",
            f"{cut:,} of {num_rows:,} answers ran past their references to the token limit",
            "contenders",
        )


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
        if deviation and each.num_rows >= FEWEST and each.name != UNTOLD
    ]
    worst, each = max(behind, key=lambda pair: pair[0], default=(0.0, None))
    if each and worst > z:
        yield Suggestion(
            f"Add training rows like those of {each.by} {each.name}",
            f"{metric.in_words} is {number(each.candidate)} on its {each.num_rows:,} test rows and "
            f"{number(mean)} on all",
            "parts",
        )


def _is_much(count: int, of: int, share: float = SHARE) -> bool:
    return count >= FEW and count >= share * of
