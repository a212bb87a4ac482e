"""The scores in an answers.parquet: of each row, and of all of them between their bounds.

And of what always the same answer would score: a base that does not know what answers look like scores next to nothing,
and a model that learnt that, and nothing of the questions, is above it.

The difference to the base in parts of the test rows, by source, language, length and label, shows where to look, and is
no part of the decision: of so many intervals some exclude 0 by luck.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import Splits, no_replay
from tunewright.artifacts.payloads import OTHER_ROWS, ROWS_OF_A_SLICE, Interval, Slice
from tunewright.metrics import AnswerShape, describe, row_score
from tunewright.metrics.calls import calls
from tunewright.metrics.catalogue import PER_ROW, baseline
from tunewright.metrics.intervals import RAISE_LIMIT, Floats, by_cluster, cut_off, cut_off_in_words, scores
from tunewright.metrics.labels import closed_set
from tunewright.metrics.paired import by_row
from tunewright.privacy.excerpts import in_a_line
from tunewright.reports.pages import counted
from tunewright.tasks.decide.decision import TO_BEAT, Evidence
from tunewright.tools.conversation import conversation_of, is_undesirable

OF_ALL = {"length_ratio"}  # is that of all characters
MEANINGLESS = {"json_valid", "length_ratio"}  # of an answer that is always the same
TRIED = 400  # training answers, the most frequent, or a sample where none is
COMPARED = 40  # of them, that each is compared with; the best FINALISTS are compared with all that are tried
FINALISTS = 10
CHARACTERS = 60_000  # of those that are tried, beyond which only COMPARED are
FEW, SHARE = 3, 0.02  # rows, and share of them, under which cut off answers change no figure that is shown
FEWEST, ONE_ANSWER, RARER = 10, 0.9, 0.1  # rows; the share with one answer, and how much less often it may be right
SMALL = 30  # rows; an interval of fewer says little
LEAST = 5  # rows of a slice; those of fewer are one slice
LISTED = 20  # of each kind, those with the most rows


def general_rows(general: pa.Table, metric: str) -> dict[str, float]:
    """The score of each general task or text."""
    rows = general.select(["row_id", "metric", "score"]).to_pylist()
    return {row["row_id"]: row["score"] for row in rows if row["metric"] == metric}


def warnings(
    answers: pa.Table, metric: str, constant: Mapping[str, float], max_new_tokens: int | None = None
) -> Iterator[str]:
    """Warn of candidate's answers that make the comparison doubtful.

    Nearly all are one and the same; many were cut off before their references end, or would have been had they been
    right (references of more than `max_new_tokens`); or `constant`, by row_id the score of always the same answer, is
    no worse.
    """
    for said in collapsed(answers):
        yield f"the candidate {said}; read its answers, and if it was trained, see its curves for a divergence"
    number, many = int(cut_off(answers).sum()), max(FEW, SHARE * len(answers))
    longer = 0
    if max_new_tokens is not None:
        longer = int((answers.column("num_reference_tokens").to_numpy() - 1 > max_new_tokens).sum())  # no stop token
    if number >= many:
        yield f"{cut_off_in_words(answers)}; {RAISE_LIMIT}"
    elif longer >= many:
        yield (
            f"{longer:,} of {len(answers):,} references are longer than evaluation.max_new_tokens={max_new_tokens}, so "
            f"no answer equals them; {RAISE_LIMIT}"
        )
    if not constant:
        return
    theirs, own = fmean(constant.values()), fmean(by_row(answers, metric).values())
    if describe(metric).gain(own, theirs) <= 0:
        yield (
            f"the candidate does not beat the {baseline(metric)}: {describe(metric).in_words} {own:.2f}, baseline "
            f"{theirs:.2f}; read its answers, or choose another gate.metric"
        )


def collapsed(answers: pa.Table) -> Iterator[str]:
    """Yield the answer that nearly all rows have, in words, where far fewer references are one and the same."""
    (answer, number), (_, most) = (
        Counter(answers.column(name).to_pylist()).most_common(1)[0] for name in ("answer", "reference")
    )
    if len(answers) >= FEWEST and number >= ONE_ANSWER * len(answers) > 0 and number - most >= RARER * len(answers):
        shown = f"“{in_a_line(answer)}”" if answer.strip() else "an empty or blank one"
        yield (
            f"gives the same answer to {number:,} of {len(answers):,} rows, {shown}, "
            f"while no reference is that of more than {counted(most, 'row')}"
        )


def few_calls(answers: pa.Table, metric: str) -> Iterator[str]:
    """Warn of a metric of calls where few references have one; the others only ask for an answer without a call."""
    called = sum(bool(calls(text)) for text in answers.column("reference").to_pylist())
    if metric != "needless_call" and called < min(SMALL, len(answers)):
        yield (
            f"only {called} of {len(answers):,} references {'has' if called == 1 else 'have'} a tool call, too few for "
            f"{describe(metric).in_words} to say how well tools are called; add test rows with calls"
        )


def own_intervals(answers: pa.Table, metrics: Sequence[str], confidence: float) -> dict[str, Interval]:
    """Each metric of one contender between its bounds; of perplexity over all tokens, as it is scored.

    A metric with scores that are no finite numbers has none, and one that is not the mean of its rows' scores.
    """
    intervals: dict[str, Interval] = {}
    for metric in metrics:
        of_rows = scores(answers, metric)
        if len(of_rows) and np.isfinite(of_rows).all() and metric not in OF_ALL:
            intervals[metric] = _interval(answers, metric, of_rows, confidence)
    if perplexity := intervals.get("perplexity"):
        low, mean, high = map(math.exp, perplexity)
        intervals["perplexity"] = low, mean, high
    return intervals


def _interval(answers: pa.Table, metric: str, of_rows: Floats, confidence: float) -> Interval:
    clusters, described = answers.column("cluster").to_numpy(), describe(metric)
    weights = np.ones(len(of_rows))
    if metric == "perplexity":
        weights = answers.column("num_reference_tokens").to_numpy().astype(float)
    return by_cluster(of_rows, clusters, described.low, described.high, weights).interval(confidence)


class ConstantAnswer(NamedTuple):
    """Always the same answer, and its score on each row by row_id; both are empty where there is none."""

    text: str
    scores: dict[str, float]


def best_constant(answers: pa.Table, splits: Splits, metric: str) -> ConstantAnswer:
    """The constant answer on the rows of the candidate's `answers`.

    It is the training answer that scores best for other training answers, of labels the most frequent one; or the
    answer that the candidate gives to more than half of the rows, where that scores higher: what it gains by answering
    nearly always the same, it did not learn from the questions. There is none where there is no training answer, or the
    metric is not of a text alone.
    """
    none = ConstantAnswer("", {})
    if metric not in {*PER_ROW, "accuracy"} - MEANINGLESS:
        return none
    train = pq.read_table(splits.path("train.parquet"), columns=["messages", "chat"], filters=no_replay()).to_pylist()
    given = Counter(row["messages"][-1]["content"] for row in train if not is_undesirable(conversation_of(row)))
    if not given:
        return none
    rows, references = (answers.column(name).to_pylist() for name in ("row_id", "reference"))
    score = row_score(metric, AnswerShape(references, closed_set(given.elements(), references)))
    tried = sorted(given, key=lambda answer: (-given[answer], hashlib.sha256(answer.encode()).digest()))[:TRIED]
    if sum(map(len, tried)) > CHARACTERS:  # long texts, which no one answer comes near
        tried = tried[:COMPARED]

    def scored_on(others: Sequence[str]) -> Callable[[str], float]:
        return lambda answer: sum(given[other] * score(answer, other) for other in others)

    best = sorted(tried, key=scored_on(tried[:COMPARED]), reverse=True)[:FINALISTS]
    learnt = max(best, key=scored_on(tried))
    own, number = Counter(answers.column("answer").to_pylist()).most_common(1)[0]
    always = [learnt, own] if number > len(rows) / 2 else [learnt]
    of_rows = {answer: [float(score(answer, reference)) for reference in references] for answer in always}
    text = max(of_rows, key=lambda answer: sum(of_rows[answer]))
    return ConstantAnswer(text, dict(zip(rows, of_rows[text], strict=True)))


def slices(evidence: Evidence, kinds: Mapping[str, Mapping[str, str]], confidence: float) -> list[Slice]:
    """The slices of each kind that has more than one; `kinds` are {kind: {row_id: slice}}.

    Those of few rows are one slice together, so that the slices of a kind are all rows.
    """
    found = []
    for by, of_rows in kinds.items():
        counts = Counter(of_rows[row] for row in evidence.clusters)
        listed = sorted(counts, key=lambda name: (-counts[name], name))[:LISTED]
        listed = [name for name in listed if counts[name] >= LEAST]
        if len(counts) == 1 or not listed:
            continue
        others = counts.keys() - listed
        rest = others.pop() if len(others) == 1 else OTHER_ROWS
        named = {row: name if (name := of_rows[row]) in listed else rest for row in evidence.clusters}
        for name in [*listed, rest] if len(listed) < len(counts) else listed:
            rows = {row: cluster for row, cluster in evidence.clusters.items() if named[row] == name}
            paired = Evidence(evidence.metric, evidence.scores, rows).paired(TO_BEAT[0])
            part = Slice(
                by=by,
                name=name,
                num_rows=len(rows),
                candidate=float(paired.candidate.mean()),
                base=float(paired.opponent.mean()),
                difference=paired.interval(evidence.metric, confidence),
                is_small=len(rows) < SMALL,
            )
            found.append(part)
    return found


def kinds(test: pa.Table, references: Mapping[str, str], *, has_calls: bool = False) -> dict[str, dict[str, str]]:
    """{kind: {row_id: slice}} of the test rows (row_id, source, messages) and their references.

    Language and length are those of a prompt's own text, without the sentences that many rows have, such as the
    instruction. Where that text is too short to tell the language, it is that of the user's turns, as in check. With
    `has_calls` a kind is whether the reference calls a tool.

    What a name shows of secrets and personal data is masked, as in other reports.
    """
    from tunewright.data_checks.columns import language_of_prompt
    from tunewright.data_checks.language import language
    from tunewright.similarity.prompts import common_segments
    from tunewright.similarity.semantic import prompt_texts

    test = test.filter(pc.field("row_id").isin([*references]))
    rows = test["row_id"].to_pylist()
    said = [references[row] for row in rows]
    common = common_segments(test["messages"])
    prompts = prompt_texts(test, common)
    conversations = test["messages"].to_pylist()
    asked = [[turn["content"] for turn in turns if turn["role"] == "user"] for turns in conversations]
    found = {
        "source": list(map(in_a_line, test["source"].to_pylist())),
        "language": [
            spoken.code if (spoken := language(own) or language_of_prompt(turns)) else "unknown"
            for own, turns in zip(prompts, asked, strict=True)
        ],
        "length": _lengths(
            list(map(len, prompts)), "characters beside the shared text" if len(common) else "characters"
        ),
    }
    if has_calls:
        found["reference"] = ["with a call" if calls(text) else "without a call" for text in said]
    if len({*said}) * ROWS_OF_A_SLICE <= len(said):
        found["label"] = [in_a_line(text) for text in said]
    return {kind: dict(zip(rows, names, strict=True)) for kind, names in found.items()}


def _lengths(num_characters: Sequence[int], unit: str) -> list[str]:
    """The third that each prompt is in, by the characters of its own text."""
    short, middle = np.quantile(num_characters, [1 / 3, 2 / 3], method="inverted_cdf").tolist()
    names = (f"to {short:,}", f"{short + 1:,} to {middle:,}", f"over {middle:,}")
    return [f"{names[int(length > short) + int(length > middle)]} {unit}" for length in num_characters]
