"""Suggestions for the next step, each with the figures that support it; none where no rule applies."""

from collections.abc import Callable

from tunewright.artifacts.payloads import CheckResults, Comparison
from tunewright.metrics import describe
from tunewright.metrics.catalogue import AT_LEAST, CONSTANT
from tunewright.reports import curves
from tunewright.reports.account import reasons
from tunewright.reports.pages import SHOW_NONE, counted, exactly, interval, number, percent, rounded_up
from tunewright.tasks.verdict_page.case import Case, title
from tunewright.tasks.verdict_page.drawing import words
from tunewright.tasks.verdict_page.findings import (
    FEW_STEPS,
    GENERAL,
    RARE_ANSWERS,
    SAME,
    Found,
    Suggestion,
    direction,
    forgotten,
    is_too_short,
    learned_nothing,
    lengths,
    mistakes,
    parts,
    spoilt,
    too_short_a_limit,
    unstopped,
)
from tunewright.tasks.verdict_page.wins import Mistakes

MOST = 8
GENTLER = "Train more gently"
HOW_TO_SERVE = {  # a prompt that does better
    "few_shot": "method.kind=few_shot registers it",
    "retrieval": "method.kind=retrieval registers it, with the training rows that it searches",
    "documents": "your application has to find the passages, as Tunewright registers no documents",
}
QUARANTINED = 0.05  # of the records read, from which on it is much
OF_SET = {  # expectation on the whole data set -> advice, where it is not about a change
    "label_balance": RARE_ANSWERS,
    "length_bias": "Add pairs whose chosen and rejected answers are about as long",
}


def suggestions(case: Case, made: Mistakes) -> list[Suggestion]:
    """Return the suggestions, the most decisive first; `made` are the candidate's mistakes."""
    of_prompt = (too_short_a_limit, undecided, untrained, lengths, data, test_set_uses)
    of_training: tuple[Callable[[Case], Found], ...] = (
        too_short_a_limit,
        failed_training,
        not_finished,
        lambda case: unstopped(case) if learned_nothing(case) else iter(()),
        nothing_learned,
        broken_guardrails,
        undecided,
        prompting_is_enough,
        training,
        lambda case: mistakes(case, made),
        unstopped,
        lengths,
        parts,
        data,
        test_set_uses,
    )
    found: dict[str, Suggestion] = {}
    for rule in of_training if case.trainings else of_prompt:
        for each in rule(case):
            found.setdefault(each.advice, each)
    return [*found.values()][:MOST]


def undecided(case: Case) -> Found:
    """More rows, or a larger gain, where the test rows do not tell."""
    num_rows = case.decided.num_rows
    open_ones = [each for each in case.comparisons if each.rows_to_tell]
    if case.verdict.decision == "inconclusive" and any(each.smallest_visible is None for each in case.comparisons):
        because = f"with {counted(num_rows, 'test row')}, {SHOW_NONE}"
        yield Suggestion("Add test rows: split.test, or a source with use_as: test", because, "intervals")
        return
    if case.verdict.decision != "inconclusive" or not open_ones:
        return
    hardest = max(open_ones, key=lambda each: each.rows_to_tell)
    if hardest.is_behind:  # more rows would rather show that it is worse
        return
    needed = hardest.rows_needed or 0
    gain = interval(hardest.difference, signed=True, digits=hardest.digits)
    smallest = hardest.smallest_visible
    is_of_verdict = smallest == case.verdict.smallest_visible  # else the page would have two smallest detectable gains
    detectable = (
        f"smallest detectable gain with {counted(num_rows, 'test row')}: {number(smallest)} (80 % power); "
        if is_of_verdict and smallest is not None
        else ""
    )
    because = (
        f"against the {_opponent(hardest)}: {gain}; {detectable}about {rounded_up(needed):,} test rows needed in all"
    )
    if needed > 5 * num_rows:
        yield Suggestion("Aim for a larger gain rather than more test rows", because, "intervals")
    else:
        yield Suggestion("Add test rows: split.test, or a source with use_as: test", because, "intervals")


def broken_guardrails(case: Case) -> Found:
    """A gentler training, where a guardrail is broken, unless longer training is what it needs.

    None for the loss on general texts of a base that knows nothing: the verdict has a warning with its own advice.
    """
    if direction(case) == "longer":
        return
    shorter, smaller = f"fewer {case.curves.planned_by}", case.curves.sized_by
    ways = f", {shorter} or a lower {smaller}" if smaller else f" or {shorter}"
    forgot = forgotten(case)
    if forgot and case.tokens.num_replay:
        ways += "; or more general rows, by a larger split.replay, or a larger training.kl_to_base"
    elif forgot:
        ways += "; or add general rows, in a source with use_as: replay, or by training.keep_general=auto"
    for each in spoilt(case):
        if each in forgot or each.metric not in {*GENERAL, *(("stopped",) if learned_nothing(case) else ())}:
            seen = interval(each.difference, signed=True, digits=each.digits)
            yield Suggestion(
                f"{GENTLER}: a lower training.learning_rate{ways}",
                f"{words(each.metric)} against the {_opponent(each)}: {seen}, allowed: at most "
                f"{exactly(-each.threshold)} worse",
                "intervals",
            )


def prompting_is_enough(case: Case) -> Found:
    """The prompt itself, where it is better, or as good and not shown to be worse."""
    if case.verdict.because == "prompting is enough":
        failed = [each for each in case.comparisons if each.threshold < 0 and each.finding != "above"]
        best = min(failed, key=lambda each: each.difference[1])
        how = HOW_TO_SERVE[best.opponent]
        yield Suggestion(
            f"Serve the base with the {_opponent(best)}: {how}",
            f"its {words(best.metric)} is {number(best.opponent_mean, best.digits)}, the candidate's "
            f"{number(best.candidate_mean, best.digits)} ({interval(best.difference, signed=True, digits=best.digits)})"
            f"{f' on {best.in_part} test rows' if best.in_part else ''}",
            "contenders",
        )


def untrained(case: Case) -> Found:
    """A training on the rows, where a prompt is not promoted."""
    if case.prompt and case.verdict.decision in ("keep", "inconclusive"):
        yield Suggestion(
            "Train on the rows: method.kind=lora",
            f"the {case.prompt.name} has {counted(case.prompt.num_chosen, 'example')} of "
            f"{counted(case.tokens.num_train, 'training row')}{' before each question' if case.prompt.nearest else ''}",
            "training",
        )


def _is_always_right(case: Case) -> bool:
    """Whether no candidate could have a better score in the metric that decides."""
    metric = case.verdict.metric
    means = {each.candidate_mean for each in case.comparisons if each.metric == metric}
    return bool(metric) and describe(metric).high in means


def not_finished(case: Case) -> Found:
    """A longer training first, where max_steps cut it short, or where the candidate learned nothing and still might.

    Of a promoted candidate only where max_steps cut it short before it had read all training rows once.
    """
    if direction(case) != "longer" or _is_always_right(case):
        return
    if case.verdict.decision == "promote" and (case.curves.epochs or 1) >= 1:
        return
    if curves.is_cut_short(case.curves):
        end = "the last" if case.curves.best_step == case.curves.planned else f"{case.curves.best_step}, near the end"
        seen = f"training ended after {case.curves.in_epochs}, and the best step is {end}"
        yield Suggestion(f"Train longer: more {case.curves.ended_by}", seen, "training")
    elif not learned_nothing(case):
        return
    elif curves.is_falling(case.curves):
        (_, before), (_, last) = case.curves.course("eval_loss")[-2:]
        yield Suggestion(
            f"Train longer: more {case.curves.ended_by}",
            f"the validation loss was {number(before)} one evaluation before the end and {number(last)} at the end",
            "training",
        )
    elif len(case.curves.steps) < FEW_STEPS:
        seen = f"training had only {counted(len(case.curves.steps), 'step')}"
        yield Suggestion(f"Train longer: more {case.curves.ended_by}", seen, "training")


def nothing_learned(case: Case) -> Found:
    """Answers that no model can learn, or a training that changed nothing; only where the candidate did not win."""
    if not learned_nothing(case):
        return
    wants = direction(case)
    for each in case.comparisons:
        if each.opponent == CONSTANT and each.finding != "above":
            if each.opponent_mean == describe(each.metric).high:
                yield Suggestion("Add rows with other answers", "one answer is right for every test row", "rows")
                return
            if advice := _of_constant(case, each):
                yield Suggestion(
                    advice,
                    f"{words(each.metric)}: {number(each.candidate_mean)}, and {number(each.opponent_mean)} by the "
                    f"{_opponent(each)}",
                    "rows",
                )
    same = case.same_as_base
    if same >= SAME and wants != "gentler":
        longer = "" if any(not_finished(case)) else f" or more {case.curves.ended_by}"
        yield Suggestion(
            f"Train more: a higher training.learning_rate{longer}",
            f"{percent(same)} of the candidate's answers are identical to the base's",
            "training",
        )


def _of_constant(case: Case, constant: Comparison) -> str:
    """Advise on a candidate that is no better than one constant answer; empty where other rules advise enough."""
    check = "check that your reference answers match their prompts"
    is_longer = direction(case) != "gentler" and constant.difference[1] > 0 and not curves.is_level(case.curves)
    if _is_answered(case, constant):
        return "Train longer" if is_longer and not is_too_short(case) else ""
    if is_too_short(case):
        return f"Then {check}"
    if is_longer:
        return f"Train longer, and {check}"
    return f"First {check}; if they do, try another training.learning_rate"


def _is_answered(case: Case, constant: Comparison) -> bool:
    """Whether another contender is shown to be better than the candidate and is better than the constant answer."""
    gain = describe(constant.metric).gain
    return any(
        each.metric == constant.metric
        and each.difference[2] < 0 < gain(each.opponent_mean, constant.opponent_mean)
        and each.opponent not in (CONSTANT, AT_LEAST)
        for each in case.comparisons
    )


def failed_training(case: Case) -> Found:
    """Yield the warning that the training diverged or learned nothing, from which all else that is wrong may follow."""
    for each in case.training_warnings:
        if each.kind in ("divergence", "no learning"):
            yield _of_curves(each)


def training(case: Case) -> Found:
    """Yield the warnings about the training curves as suggestions."""
    for each in case.training_warnings:
        is_said = learned_nothing(case) or any(not_finished(case))
        if each.kind == "still falling at the end" and (is_said or direction(case) == "gentler"):
            continue  # or more of it would do harm
        yield _of_curves(each)


def _of_curves(warning: curves.TrainingWarning) -> Suggestion:
    return Suggestion(_upper(warning.advice), f"{warning.short}: {warning.seen}", "training")


def data(case: Case) -> Found:
    """Yield suggestions from the checks of the data."""
    checks, account = CheckResults.load(case.checked), case.account
    if prompts := checks.conflicting_prompts:
        rows = case.checked.findings.get("conflicting_answers", 0)
        yield Suggestion(
            "Resolve conflicting answers: checks.expectations, conflicting_answers",
            f"{prompts:,} {'prompt has' if prompts == 1 else 'prompts have'} more than one answer, in {rows:,} rows",
            "data",
        )
    if account.quarantined > QUARANTINED * account.read:
        reason, count = next(iter(reasons(case.rows, case.checked, case.splits, case.tokens).items()))
        yield Suggestion(
            "Review the quarantined records",
            f"{account.quarantined:,} of {account.read:,} records are quarantined, {count:,} of them for {reason}",
            "data",
        )
    for each in checks.expectations:
        if each.of_set and each.failed:
            advice, because = OF_SET.get(each.name, "Check that the data changed as intended"), each.fault
            if each.name == "label_balance" and (misspelt := case.checked.findings.get("label_spelling")):
                advice = "Correct the spelling of labels; then add training rows for rare answers"
                because += f"; check label_spelling: {counted(misspelt, 'row')} with a label in another spelling"
            yield Suggestion(advice, f"check {each.name}: {because}", "data")


def test_set_uses(case: Case) -> Found:
    """Another test set, where this one was looked at too often."""
    for warning in case.verdict.warnings:
        seen, advice = with_advice(warning)
        if advice:
            yield Suggestion(_upper(advice), seen, "contenders")


def with_advice(warning: str) -> tuple[str, str]:
    """A warning and the advice behind its last semicolon, as it may show a text that has one; empty without one."""
    seen, mark, advice = warning.rpartition("; ")
    return (seen, advice) if mark else (advice, "")


def _opponent(comparison: Comparison) -> str:
    return title(comparison.opponent, comparison.metric)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
