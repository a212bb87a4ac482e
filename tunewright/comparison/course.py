"""Pruning of variants by Optuna's median rule, at each evaluation of the validation rows.

A training is pruned if its best score so far is worse than the median of those that finished, at the same share of
the planned steps (Golovin et al. 2017, "Google Vizier", 3.2). Never in the first third, in which the learning rate has
hardly begun to fall, and never before two trainings have finished.

No study is stored. The trainings of a comparison come in a fixed order, those that finished are found in the cache and
one that was pruned has its evaluations in its work folder, so that the same comparison prunes the same again.
"""

import math
from typing import TYPE_CHECKING, Literal

from tunewright.artifacts import Adapter
from tunewright.comparison.trials import SMALLER_IS_BETTER, Trial, ValidationPoint, in_words
from tunewright.errors import Pruned
from tunewright.reports.curves import read
from tunewright.reports.progress import Line

if TYPE_CHECKING:
    import optuna

FEWEST = 2  # trainings that finished, before any is pruned
WARM_UP = 0.34  # of the planned steps
PARTS = 1_000  # of the planned steps: Optuna counts in whole numbers


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
        self.looks: list[ValidationPoint] = []
        self.reported: set[int] = set()

    def __call__(self, line: Line) -> None:
        """Takes in an evaluation, a line of metrics.jsonl. Raises Pruned where it is enough."""
        if self.looks and line["step"] <= self.looks[-1].step:
            return  # seen before: the training went on from a checkpoint
        look = self._take(line)
        if look.step < look.planned and self.trial.should_prune():
            raise Pruned(
                f"pruned at step {look.step} of {look.planned}: validation {in_words(self.measure)} "
                f"{look.value:.4g} is behind the median of the finished variants"
            )

    def finished(self, variant: str, seed: int, adapter: Adapter) -> Trial:
        """It came to its end, now or when it was cached."""
        curves = read(adapter.folder)
        self.looks.clear()
        for line in curves.looks:
            self._take(line)
        self.study.tell(self.trial, adapter.best_value)
        return Trial(
            variant=variant,
            seed=seed,
            measure=self.measure,
            state="finished",
            looks=tuple(self.looks),
            said=f"validation {in_words(self.measure)} {adapter.best_value:.4g} at step {adapter.best_step}",
            value=adapter.best_value,
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
        return Trial(variant=variant, seed=seed, measure=self.measure, state=state, looks=tuple(self.looks), said=said)

    def _take(self, line: Line) -> ValidationPoint:
        look = ValidationPoint(step=line["step"], planned=line["planned"], value=line[f"eval_{self.measure}"])
        self.looks.append(look)
        at = math.ceil(look.share * PARTS)
        if at not in self.reported:
            self.reported.add(at)
            self.trial.report(look.value, at)
        return look
