"""Content of a candidate's registration: its identity, parameters, scores and card. No MLflow here."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from tunewright.artifacts import (
    Answers,
    Artifact,
    Divergence,
    Judged,
    PromptExamples,
    RunArtifacts,
    VerdictPage,
    shown,
    training_log,
)
from tunewright.artifacts.payloads import VerdictDetails
from tunewright.config import Settings, Split
from tunewright.metrics.catalogue import CONSTANT, baseline
from tunewright.registry.alias_state import ASKS
from tunewright.reports.pages import below, counted, in_part

CURVES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "rows_per_second": "train/rows_per_second",
    "memory_bytes": "train/memory_gigabytes",
    "kl": "train/kl_to_base",
    "eval_loss": "validation/loss",
    "eval_exact_match": "validation/exact_match",
    "eval_token_f1": "validation/token_f1",
    "eval_chrf": "validation/chrf",
}
OF_PAIRS = {  # the same of a training on preference pairs
    "loss": "preference/loss",
    "learning_rate": "preference/learning_rate",
    "grad_norm": "preference/grad_norm",
    "reward_chosen": "preference/reward_chosen",
    "reward_rejected": "preference/reward_rejected",
    "reward_margin": "preference/reward_margin",
    "reward_accuracy": "preference/reward_accuracy",
    "kl": "preference/kl",
    "tokens_per_second": "preference/tokens_per_second",
    "rows_per_second": "preference/rows_per_second",
    "memory_bytes": "preference/memory_gigabytes",
    "eval_loss": "preference/validation_loss",
    "eval_reward_margin": "preference/validation_reward_margin",
    "eval_reward_accuracy": "preference/validation_reward_accuracy",
    "eval_kl": "preference/validation_kl",
}
OF_REWARDS = {  # the same of a training on rewards
    "reward": "grpo/reward",
    "reward_std": "grpo/reward_std",
    "no_signal_share": "grpo/no_signal_share",
    "answer_tokens": "grpo/answer_tokens",
    "cut_share": "grpo/cut_share",
    "kl": "grpo/kl",
    "clipped_share": "grpo/clipped_share",
    "vllm_gap": "grpo/vllm_gap",
    "loss": "grpo/loss",
    "learning_rate": "grpo/learning_rate",
    "grad_norm": "grpo/grad_norm",
    "tokens_per_second": "grpo/tokens_per_second",
    "rows_per_second": "grpo/answers_per_second",
    "memory_bytes": "grpo/memory_gigabytes",
    "eval_reward": "grpo/validation_reward",
}
CURVE_NAMES = frozenset({*CURVES.values(), *OF_PAIRS.values(), *OF_REWARDS.values()})
OF_MEASURES = OF_REWARDS | OF_PAIRS | CURVES  # by the measure of a compared training; a loss is that of SFT
EVALUATED = (CURVES["eval_loss"], OF_PAIRS["eval_loss"], OF_REWARDS["eval_reward"])  # one point an evaluation
GIGABYTE = 1e9
SPLIT = "tunewright.split"  # tag: the key of the artifact with the splits
PROGRESS = "progress"  # tag, while a run goes on: its stage, and how far that is
PAGE = "reports/verdict_page/report.html"  # among the artifacts of the run


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    step: int
    time: float = 0.0  # when it was measured, in seconds since 1970; 0 where that is not known


class Candidate(BaseModel, frozen=True):
    """A tuned model with all that led to it and all that was found out about it."""

    run: RunArtifacts
    page: VerdictPage
    lineage: dict[str, str]  # name of a source file -> its sha256
    data_version: int | None  # of its rows, among the accepted ones; None of a sample by data.limit
    challenged: str  # version of the champion that it was compared with; empty where there was none
    settings: Settings

    @property
    def name(self) -> str:
        """The name of the experiment and the registered model."""
        return self.run.name

    @property
    def reports(self) -> tuple[Artifact, ...]:
        """The artifacts with a report.html."""
        return (self.run.checked, self.run.unique, self.run.tokens)

    @property
    def identity(self) -> str:
        """Equal for equal weights measured on equal rows as they will answer: of such there is one version."""
        weights = [self.run.adapter.digest, self.run.base.weights_digest]
        return _hash(self.name, *weights, self.run.splits.digest, self.own_answers.precision, self.max_new_tokens)

    @property
    def occasion(self) -> str:
        """Equal for an equal decision on it under equal settings, wherever MLflow is: of such there is one run."""
        anywhere = self.settings.registry.model_copy(update={"tracking_uri": None})
        settings = self.settings.model_copy(update={"registry": anywhere}).model_dump(mode="json")
        return _hash(self.identity, self.run.verdict.digest, settings, self.lineage)

    @property
    def data(self) -> dict[str, str]:
        """Tags that say which data it was made of, by our own digests: of all rows read, and of the splits."""
        return {
            "data.version": str(self.data_version or "none: a sample by data.limit"),
            "data.rows": self.run.rows.digest,
            "data.splits": self.run.splits.digest,
            "data.drawn": drawn(self.settings.split),
            SPLIT: self.run.splits.key,
        }

    @property
    def own_answers(self) -> Answers:
        """The answers of the candidate itself."""
        return next(answers for answers in self.run.answers if answers.contender == "candidate")

    @property
    def max_new_tokens(self) -> int:
        """The most tokens that an answer could have."""
        most = self.own_answers.max_new_tokens
        assert most is not None, "each evaluation of this version of Tunewright keeps it"
        return most

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of MLflow's runs table."""
        return columns(self.run.verdict.metric)


def columns(metric: str) -> tuple[str, ...]:
    """The columns of MLflow's runs table where this metric decides: the verdicts first."""
    return (
        *("attributes.`Created`", "tags.`verdict`", "tags.`gain`", f"tags.`{PROGRESS}`"),
        *(f"metrics.`test/{metric}`", f"metrics.`test/base/{metric}`", "metrics.`validation/best_loss`"),
        *("params.`method.kind`", "params.`training.learning_rate`", "attributes.`Models`"),
    )


def drawn(split: Split) -> str:
    """Describe the split settings that start a separate history."""
    return f"seed {split.seed}, by {split.by}"


def parameters(settings: Settings) -> dict[str, str]:
    """The settings under flat dotted names: training.learning_rate, data.sources.0.path."""
    return dict(_flat("", settings.model_dump(mode="json", exclude={"operation"})))


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        yield name, _clipped(", ".join(map(str, value)))
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, "none" if value is None else _clipped(str(value))


def _clipped(text: str, most: int = 500) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


class CurveThinning:
    """Chooses the lines of a metrics.jsonl that MLflow gets, one after the other, also while the file grows.

    They are evenly spaced, so many that each curve has at most `most` points with its last, lowest and highest one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen = {"loss": 0, "eval_loss": 0}  # lines of steps, and of evaluations
        self.every = {"loss": 1, "eval_loss": 1}

    def keeps(self, line: Mapping[str, Any]) -> bool:
        """Whether MLflow gets the file's next line."""
        kind = "eval_loss" if "eval_loss" in line else "loss"
        if not self.seen[kind]:  # where the first is of step n, one comes every n steps
            expected = math.ceil(line.get("planned", 0) / max(1, line["step"]))
            self.every[kind] = 1 if expected <= self.most else math.ceil(expected / (self.most - 3))
        self.seen[kind] += 1
        return (self.seen[kind] - 1) % self.every[kind] == 0


def points_of(line: Mapping[str, Any]) -> list[Point]:
    """The points of a line of metrics.jsonl, without what is not finite, as MLflow cannot draw it."""
    names = CURVES
    if {"reward", "eval_reward"} & line.keys():
        names = OF_REWARDS
    elif {"reward_accuracy", "eval_reward_accuracy"} & line.keys():
        names = OF_PAIRS
    return _rounded(
        [
            Point(
                key, line[name] / GIGABYTE if name == "memory_bytes" else line[name], line["step"], line.get("time", 0)
            )
            for name, key in names.items()
            if name in line
        ]
    )


def curves(metrics: Path, most: int) -> list[Point]:
    """The points of the trainer's metrics.jsonl, at most so many of each curve (`CurveThinning`)."""
    thinning = CurveThinning(most)
    points: list[Point] = []
    kept: list[bool] = []
    places: dict[str, list[int]] = {}
    for line in training_log.read(metrics):
        is_kept = thinning.keeps(line)
        for point in points_of(line):
            places.setdefault(point.key, []).append(len(points))
            points.append(point)
            kept.append(is_kept)
    for of_curve in places.values():
        low, high = (best(of_curve, key=lambda place: points[place].value) for best in (min, max))
        for place in (low, high, of_curve[-1]):
            kept[place] = True
    return [point for point, is_kept in zip(points, kept, strict=True) if is_kept]


def scores(answers: Answers, contender: str = "") -> list[Point]:
    """A contender's own scores on the test rows, under the same names for each: test/exact_match.

    Where it answered a part of the rows they are under test_part/, beside the number of these, so that no chart or
    table compares them with scores of all rows. `contender` is named where they are logged with those of others.
    """
    counts = {"num_rows": answers.num_rows, "num_unanswered": answers.num_unanswered} if answers.in_part else {}
    place = "/".join(filter(None, ("test_part" if answers.in_part else "test", contender)))
    return _rounded(
        [Point(f"{place}/{name}", value, 0) for name, value in sorted({**answers.scores, **counts}.items())]
    )


def opinions(judged: Judged) -> list[Point]:
    """Return the judgements on each opponent: judge/base/preferred, the candidate's share of the rows, with bounds.

    agreement and unreadable are shares of the pairs that the judge was prompted with.
    """
    points = []
    for opponent, (low, mean, high) in sorted(judged.preferred.items()):
        said = {"preferred_low": low, "preferred": mean, "preferred_high": high}
        said |= {"agreement": judged.agreement[opponent], "unreadable": judged.unreadable[opponent]}
        points += [Point(f"judge/{opponent}/{what}", value, 0) for what, value in said.items()]
    return _rounded(points)


def divergences(found: Divergence) -> list[Point]:
    """Return the KL divergence from the reference: divergence/per_token with its bounds, divergence/per_answer."""
    low, mean, high = found.per_token
    said = {"per_token_low": low, "per_token": mean, "per_token_high": high, "per_answer": found.per_answer}
    return _rounded([Point(f"divergence/{what}", value, 0) for what, value in said.items()])


def comparisons(candidate: Candidate) -> list[Point]:
    """Scores of the others and what decided: test/base/exact_match, gate/base/low, and how training ended.

    A name without a contender, such as forgetting/general_loss, is the candidate's, as in `scores`.
    """
    others = (answers for answers in candidate.run.answers if answers != candidate.own_answers)
    points = [point for answers in others for point in scores(answers, answers.contender)]
    verdict = candidate.run.verdict
    if (constant := VerdictDetails.score_of(CONSTANT, verdict)) is not None:
        points.append(Point(f"test/{CONSTANT}/{verdict.metric}", constant, 0))
    for opponent, interval in sorted((verdict.differences | verdict.guardrails).items()):
        bounds = zip(("low", "mean", "high"), interval, strict=True)
        points += [Point(f"gate/{opponent}/{bound}", value, 0) for bound, value in bounds]
    own = candidate.own_answers.contender
    points += [
        Point(f"forgetting/{what}" if name == own else f"forgetting/{name}/{what}", value, 0)
        for name, scores in sorted(verdict.general.items())
        for what, value in scores.items()
    ]
    for adapter in candidate.run.trainings:
        is_first = adapter.section == "training"
        place = "validation" if is_first else f"{adapter.section}/validation"
        seconds = "train" if is_first else adapter.section
        if not adapter.rewards:
            points.append(Point(f"{place}/best_loss", adapter.best_validation_loss, adapter.best_step))
        if adapter.best_by != "loss":
            points.append(Point(f"{place}/best_{adapter.best_by}", adapter.best_value, adapter.best_step))
        points.append(Point(f"{seconds}/seconds", adapter.train_seconds, 0))
    return _rounded(points)


def _rounded(points: list[Point]) -> list[Point]:
    """Round to four digits after the point, which the UI has room for; a learning rate to four significant ones."""
    return [
        point._replace(
            value=float(f"{point.value:.4g}") if point.key.endswith("learning_rate") else round(point.value, 4)
        )
        for point in points
        if math.isfinite(point.value)
    ]


def card(candidate: Candidate, experiment_id: str, run_id: str) -> str:
    """The model card, in Markdown; its first line is the verdict in plain words, since lists show no more of it."""
    run = candidate.run
    base, splits, tokens = run.base, run.splits, run.tokens
    metrics = sorted(candidate.own_answers.scores)
    scores = []
    for each in candidate.run.answers:
        cells = (f"{each.scores.get(metric, math.nan):.4g}" for metric in metrics)
        scores.append(f"| {in_part(each.contender, each.in_part)} | {' | '.join(cells)} |")
    metric, constant = candidate.run.verdict.metric, VerdictDetails.score_of(CONSTANT, candidate.run.verdict)
    if constant is not None:
        cells = (f"{constant:.4g}" if name == metric else "" for name in metrics)
        scores.append(f"| {baseline(metric)} | {' | '.join(cells)} |")
    decision = ", ".join(filter(None, (shown(candidate.run.verdict.in_words), candidate.run.verdict.gain)))
    asks = candidate.settings.gate.approval and candidate.run.verdict.decision == "promote"
    number, limit = candidate.data_version, candidate.settings.data.limit
    data = f"version {number} of the data" if number else f"a sample of the data by data.limit={limit}, no version"
    general = f" ({counted(tokens.num_replay, 'general row')} among them)" if tokens.num_replay else ""
    most_similar = below(splits.largest_similarity, candidate.settings.split.threshold)
    lines = [
        candidate.run.verdict.sentence,
        "",
        *((f"{ASKS}tunewright release history {candidate.name}", "") if asks else ()),
        f"[The verdict page](#/experiments/{experiment_id}/runs/{run_id}/artifacts/{PAGE}) shows the answers row by "
        "row and what to try next.",
        "",
        f"- Decision: {decision}",
        *(f"- Warning: {each}" for each in run.warnings),
        f"- {candidate.run.counted_verdict.says_uses()} "
        f"(gate.max_test_set_uses={candidate.settings.gate.max_test_set_uses}: a warning follows beyond that)",
        f"- Base: {code(base.reference)}, revision {base.revision or 'none'}, sha256 {base.weights_digest[:12]}",
        *(
            f"- {each.in_words[:1].upper()}{each.in_words[1:] or f'Method: {each.method}'}, "
            f"{counted(each.steps, 'step')}, best at {each.best_step} "
            f"({each.says_validation}){', stopped early' if each.stopped_early else ''}"
            f"{f', begun as version {each.began_as}' if each.began_as else ''}"
            for each in run.trainings
        ),
        *(
            [f"- Method: {run.adapter.in_words}. {run.adapter.says()}"]
            if isinstance(run.adapter, PromptExamples)
            else []
        ),
        *(f"- In training: {candidate.page.without_opposite(w)}" for each in run.trainings for w in each.warnings),
        f"- Rows: {tokens.num_train} train{general}, {tokens.num_validation} validation, "
        f"{tokens.num_test} test (used only for the decision); "
        f"{data} ({splits.digest[:12]}), from "
        f"{', '.join(code(name) for name in sorted(candidate.lineage))}",
        f"- Highest similarity between rows of two splits: {most_similar}",
        "",
        f"| {counted(candidate.own_answers.num_rows, 'test row')} | {' | '.join(metrics)} |",
        f"|---|{'---|' * len(metrics)}",
        *scores,
    ]
    return _clipped("\n".join(lines), 5_000)


def code(text: str) -> str:
    """A name as code of Markdown, which a backtick in it does not end."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
