"""Variants of one training, compared on the validation rows; the test rows are not used.

Those that are behind end early, ranking.py says which is the best and which are not told apart from it. What came
of them is an HTML page that loads nothing, and Markdown.

Optuna's median rule prunes: a training ends if its best score so far is worse than the median of those that finished,
at the same share of the planned steps (Golovin et al. 2017, "Google Vizier", 3.2). Never in the first third, in which
the learning rate has hardly begun to fall, and never before two trainings have finished.

No study is stored. The trainings of a comparison come in a fixed order, those that finished are found in the cache and
one that was pruned has its evaluations in its work folder, so that the same comparison prunes the same again.
"""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from tunewright.artifacts import Adapter
from tunewright.artifacts.training_log import Line
from tunewright.comparison.ranking import (
    SMALLER_IS_BETTER,
    Ranked,
    Trial,
    ValidationPoint,
    in_words,
    learning_curve,
    rank,
    sentence,
    twice_the_rows,
)
from tunewright.config import home
from tunewright.errors import Pruned
from tunewright.reports.curves import read
from tunewright.reports.curves.charts import WIDE, Chart, ChartScale, Polyline, number, ticks
from tunewright.reports.pages import template
from tunewright.reports.progress import duration
from tunewright.store.cache_key import hash_of

if TYPE_CHECKING:
    import optuna

FEWEST = 2  # trainings that finished, before any is pruned
WARM_UP = 0.34  # of the planned steps
PARTS = 1_000  # of the planned steps: Optuna counts in whole numbers
LEGEND = "± is the standard deviation over seeds; behind is the mean gap to the best over common seeds"
NOISE = (
    "a gap is within noise where a paired t test over these seeds does not show it (one-sided, 95 %), however far "
    "apart the standard deviations look: more --seeds show smaller gaps"
)
MOST_DECIMALS = 6
PRUNED = "pruned variants are not ranked: they might have caught up"
APART = 12.0  # units of the viewBox between two numbers of lines, so that both can be read
COLUMNS = ("seeds", "best step", "trainable parameters", "time", "memory")


class Study:
    """The trainings that are measured against each other."""

    def __init__(self, measure: str, *, prunes: bool) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.measure = measure
        median = optuna.pruners.MedianPruner(FEWEST, math.ceil(WARM_UP * PARTS), n_min_trials=FEWEST)
        self.study = optuna.create_study(
            direction="minimize" if measure == SMALLER_IS_BETTER else "maximize",
            sampler=optuna.samplers.RandomSampler(),  # asked for nothing: the variants are given
            pruner=median if prunes else optuna.pruners.NopPruner(),
        )

    def begin(self) -> "Course":
        """The course of the next training."""
        return Course(self.measure, self.study, self.study.ask())


class Course:
    """The evaluations of one training, as they come."""

    def __init__(self, measure: str, study: "optuna.Study", trial: "optuna.Trial") -> None:
        self.measure, self.study, self.trial = measure, study, trial
        self.evaluations: list[ValidationPoint] = []
        self.reported: set[int] = set()

    def __call__(self, line: Line) -> None:
        """Takes in an evaluation, a line of metrics.jsonl. Raises Pruned where it is enough."""
        if f"eval_{self.measure}" not in line:
            return  # of the training on answers, which one on pairs follows
        if self.evaluations and line["step"] <= self.evaluations[-1].step:
            return  # seen before: the training went on from a checkpoint
        evaluation = self._take(line)
        if evaluation.step < evaluation.planned and self.trial.should_prune():
            raise Pruned(
                f"pruned at step {evaluation.step} of {evaluation.planned}: validation {in_words(self.measure)} "
                f"{evaluation.value:.4g} is behind the median of the finished variants"
            )

    def finished(self, variant: str, seed: int, adapter: Adapter) -> Trial:
        """It came to its end, now or when it was cached."""
        curves = read(adapter.folder)
        self.evaluations.clear()
        for line in curves.evaluations:
            self._take(line)
        best = next(each.value for each in self.evaluations if each.step == adapter.best_step)
        self.study.tell(self.trial, best)
        return Trial(
            variant=variant,
            seed=seed,
            measure=self.measure,
            state="finished",
            evaluations=tuple(self.evaluations),
            said=f"validation {in_words(self.measure)} {best:.4g} at step {adapter.best_step}",
            value=best,
            best_step=adapter.best_step,
            seconds=adapter.train_seconds,
            learning=curves.status["learning_parameters"],
            peak_bytes=max((int(value) for _, value in curves.series("memory_bytes")), default=None),
            folder=adapter.folder,
        )

    def ended(self, variant: str, seed: int, state: Literal["pruned", "failed"], said: str) -> Trial:
        """It ended before."""
        import optuna

        self.study.tell(self.trial, state=optuna.trial.TrialState.FAIL)
        return Trial(
            variant=variant,
            seed=seed,
            measure=self.measure,
            state=state,
            evaluations=tuple(self.evaluations),
            said=said,
        )

    def _take(self, line: Line) -> ValidationPoint:
        evaluation = ValidationPoint(step=line["step"], planned=line["planned"], value=line[f"eval_{self.measure}"])
        self.evaluations.append(evaluation)
        at = math.ceil(evaluation.share * PARTS)
        if at not in self.reported:
            self.reported.add(at)
            self.trial.report(evaluation.value, at)
        return evaluation


__all__ = ["Course", "Ranked", "Study", "Trial", "VariantComparison", "markdown", "notes", "of", "rows"]


class VariantComparison(BaseModel, frozen=True):
    """Result of a comparison, in `<home>/comparisons/<name>/<key>/`: comparison.json and report.html."""

    key: str  # of its variants, their seeds and what was made of them
    ranked: tuple[Ranked, ...]
    sentence: str
    twice_the_rows: tuple[float, float, float] | None = None  # low, mean and high of a learning curve's forecast
    folder: Path
    link: str = ""  # to MLflow


def of(trials: Sequence[Trial], name: str, shares: Mapping[str, float] | None = None) -> VariantComparison:
    """The comparison of these trials of a pipeline, with its files.

    `shares` are those of the training rows by variant, where the variants differ in nothing else.
    """
    key = hash_of([(trial.variant, trial.seed, trial.folder and trial.folder.name) for trial in trials])[:12]
    ranked = rank(trials)
    said = (learning_curve(ranked, shares) if shares else "") or sentence(ranked)
    found = VariantComparison(
        key=key,
        ranked=ranked,
        sentence=said,
        twice_the_rows=twice_the_rows(ranked, shares) if shares else None,
        folder=home() / "comparisons" / name / key,
    )
    found.folder.mkdir(parents=True, exist_ok=True)
    (found.folder / "comparison.json").write_text(found.model_dump_json(indent=1, exclude={"folder"}), encoding="utf-8")
    write_page(found.folder / "report.html", ranked, found.sentence)
    return found


def write_page(file: Path, ranked: Sequence[Ranked], sentence: str) -> None:
    """Writes the page: the sentence, the variants in their order, and their courses on the validation rows."""
    page = template(Path(__file__).with_name("page.html")).render(
        sentence=sentence,
        rows=[
            {"variant": each.variant, "state": each.state, **row}
            for each, row in zip(ranked, rows(ranked), strict=True)
        ],
        notes=notes(ranked),
        chart=_chart(ranked),
        trials=[trial for each in ranked for trial in each.trials],
    )
    file.write_text(page, encoding="utf-8")


def markdown(ranked: Sequence[Ranked]) -> str:
    """The variants in their order as a table."""
    table = rows(ranked)
    lines = [f"| variant | {' | '.join(table[0])} |", f"|---|{'---:|' * len(table[0])}"]
    lines += [
        f"| {html.escape(each.variant)} | {' | '.join(row.values())} |" for each, row in zip(ranked, table, strict=True)
    ]
    return "\n".join([*lines, "", notes(ranked)])


def notes(ranked: Sequence[Ranked]) -> str:
    """Return the notes to the table, or "" if it needs none."""
    said = [LEGEND] if any(each.deviation is not None for each in ranked) else []
    said += [NOISE] if any(each.beaten is False and not each.ties for each in ranked) else []
    said += [PRUNED] if any(each.state == "pruned" for each in ranked) else []
    return f"{'; '.join(said)}." if said else ""


def rows(ranked: Sequence[Ranked]) -> list[dict[str, str]]:
    """Return the table rows of the variants, by column head."""
    decimals = _decimals([each for each in ranked if each.state == "finished"])
    return [_row(each, decimals) for each in ranked]


def _decimals(finished: Sequence[Ranked]) -> int:
    """The decimals that show four digits of each mean, two of its deviation, and different means apart, up to six."""
    shown = [(3, each.mean) for each in finished] + [(1, each.deviation) for each in finished if each.deviation]
    wanted = max((digits - math.floor(math.log10(abs(value))) for digits, value in shown if value), default=0)
    means = {round(each.mean, MOST_DECIMALS) for each in finished}
    apart = next(d for d in range(MOST_DECIMALS + 1) if len({round(mean, d) for mean in means}) == len(means))
    return min(MOST_DECIMALS, max(wanted, apart))


def _row(ranked: Ranked, decimals: int) -> dict[str, str]:
    first, measure = ranked.trials[0], in_words(ranked.trials[0].measure)
    if ranked.state != "finished":
        last = first.evaluations[-1] if first.evaluations else None
        seen = f"{number(last.value)} at step {last.step} of {last.planned}" if last else ""
        return {f"validation {measure}": seen, "behind": ranked.state, **dict.fromkeys(COLUMNS, "")}
    spread = "" if ranked.deviation is None else f" ± {ranked.deviation:.{decimals}f}"
    told = f", within noise (up to {ranked.noise:.2g})" if ranked.beaten is False else ""
    return {
        f"validation {measure}": f"{ranked.mean:.{decimals}f}{spread}",
        "behind": "tie" if ranked.ties else f"{ranked.behind:.2g}{told}" if ranked.behind else "best",
        "seeds": str(len(ranked.values)),
        "best step": ", ".join(str(trial.best_step) for trial in ranked.trials),
        "trainable parameters": f"{ranked.learning:,}" if ranked.learning else "",
        "time": duration(ranked.seconds),
        "memory": f"{first.peak_bytes / 1e9:.2f} GB" if first.peak_bytes else "",
    }


def _chart(ranked: Sequence[Ranked]) -> Chart | None:
    """The courses on the validation rows, by percent of the planned steps: the best variant's above all others."""
    courses = [
        (place, each, trial) for place, each in enumerate(ranked, 1) for trial in each.trials if trial.evaluations
    ]
    values = [evaluation.value for _, _, trial in courses for evaluation in trial.evaluations]
    if not values:
        return None
    scale = ChartScale(WIDE, (0, 100), (min(values), max(values)))
    lines: list[Polyline] = []
    for place, each, trial in courses:
        style = "best" if each is ranked[0] and each.state == "finished" else each.state
        series = [(100 * evaluation.share, evaluation.value) for evaluation in trial.evaluations]
        dots = [
            (
                scale.x(x),
                scale.y(value),
                f"{trial.variant}, seed {trial.seed}, step {evaluation.step:,}: {number(value)}",
            )
            for (x, value), evaluation in zip(series, trial.evaluations, strict=True)
        ]
        end_x, end_y, _ = dots[-1]
        named = [line.dots[-1] for line in lines if line.name]
        is_taken = any(abs(x - end_x) < APART and abs(y - end_y) < APART for x, y, _ in named)
        lines.append(Polyline(style, scale.points(series), dots, "" if is_taken else str(place)))
    return Chart(
        title=f"Validation {in_words(ranked[0].trials[0].measure)}",
        unit="",
        width=WIDE,
        lines=lines[::-1],
        x_ticks=[(scale.x(tick), f"{tick}%") for tick in range(0, 101, 20)],
        y_ticks=[(scale.y(tick), number(tick)) for tick in ticks(scale.low, scale.high, 6)],
        hovers=[],
        marks=[],
    )
