"""Variants of one pipeline's training, each a flow run of its own, ranked on the validation rows.

They share every stage that they do not change, and read the files that are there when the first begins. The test rows
are not looked at: the winner is then run as any other candidate, and its training is found in the cache.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed

from tunewright import comparison, config
from tunewright.comparison import Course, Study, Trial, VariantComparison
from tunewright.config import Settings, Stage
from tunewright.errors import Pruned, TrainingError
from tunewright.flows import finished
from tunewright.flows.calls import TRAININGS, stages
from tunewright.flows.finetune import run
from tunewright.flows.inputs import reading
from tunewright.flows.outcome import Outcome
from tunewright.flows.run_name import cancel_stopped, comparison_name, terminal_run, variant_name
from tunewright.registry.runs import log_comparison
from tunewright.registry.versions import require_answer
from tunewright.reports.progress import only_steps, watched
from tunewright.store import in_use, test_set_uses
from tunewright.store.naming import naming_machine
from tunewright.tasks.ingest import source_files
from tunewright.tasks.train import rendezvous

SHOWN = 80  # characters of a warning that was logged whole before

log = logging.getLogger("tunewright")


class WarningsOnce(logging.Filter):
    """Drops each warning that an earlier training has logged, and knows which variants it holds for."""

    def __init__(self) -> None:
        super().__init__()
        self.variants: dict[str, list[str]] = {}  # warning -> those that it holds for
        self.variant = ""
        self.earlier: frozenset[str] = frozenset()

    def begin(self, variant: str) -> None:
        """Have the warnings from now on be those of a training of this variant."""
        self.variant, self.earlier = variant, frozenset(self.variants)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        if record.levelno < logging.WARNING:
            return True
        said = record.getMessage()
        holds_for = self.variants.setdefault(said, [])
        if self.variant not in holds_for:
            holds_for.append(self.variant)
        return said not in self.earlier

    def says(self, num_variants: int) -> Iterator[str]:
        """Yield for each warning of several variants which these are."""
        for said, variants in self.variants.items():
            if len(variants) > 1:
                every = "both variants" if num_variants == 2 else f"all {num_variants} variants"
                whom = every if len(variants) == num_variants else "; ".join(variants)
                yield f"{_beginning(said)}: holds for {whom}"


def _beginning(said: str) -> str:
    """A warning, or its first words with no bracket left open."""
    if len(said) <= SHOWN:
        return said
    words = said[: SHOWN - 1].rpartition(" ")[0]
    if words.count("(") > words.count(")"):
        words = words[: words.rindex("(")].rstrip()
    return f"{words} …"


@contextmanager
def warnings_once() -> Iterator[WarningsOnce]:
    """Log each warning of the trainings within once."""
    once = WarningsOnce()
    log.addFilter(once)
    try:
        yield once
    finally:
        log.removeFilter(once)


@flow(name="variant", flow_run_name=variant_name, on_crashed=[cancel_stopped])
def variant(name: str, settings: Settings) -> State[Any]:
    """Trains one variant. Its final state is named after what came of it."""
    try:
        last: Stage = next(stage for stage in reversed(stages(settings)) if stage in TRAININGS)
        steps = run(settings, last, (), is_variant=True)
    except Pruned as error:
        return Completed(name="Pruned", message=str(error))
    except TrainingError as error:
        return Completed(name="Failed", message=str(error))
    return Completed(name="Trained", data=Outcome.of(steps).adapter)


def _shares(variants: dict[str, Settings]) -> dict[str, float]:
    """The share of the training rows of each variant, where they differ in nothing else; otherwise none."""
    whole = [
        each.model_copy(update={"training": each.training.model_copy(update={"share": 1.0})})
        for each in variants.values()
    ]
    is_same = all(each == whole[0] for each in whole)
    return {name: each.training.share for name, each in variants.items()} if is_same else {}


@flow(name="compare", flow_run_name=comparison_name, on_crashed=[cancel_stopped])
def compare(
    settings: Settings, variants: dict[str, Settings], seeds: int = 1, prune: bool = True
) -> State[VariantComparison]:
    """Trains each variant, from more seeds those that finish, and ranks them on the validation rows.

    Args:
        settings: The pipeline that they are variants of
        variants: The settings of each, by what tells it from the others
        seeds: Trainings of each variant, from training.seed on
        prune: Whether a variant that is behind is ended before its planned end
    """
    with naming_machine():
        return _compared(settings, variants, seeds, prune)


def _compared(settings: Settings, variants: dict[str, Settings], seeds: int, prune: bool) -> State[VariantComparison]:
    """The comparison."""
    config.prepare_environment(settings)
    require_answer(settings.registry)
    drawn = test_set_uses.draw(settings, recipe="")  # rows that a new candidate gets, whichever were looked at before
    variants = {
        name: drawn.settings(each).model_copy(update={"gate": each.gate.model_copy(update={"rotate": False})})
        for name, each in variants.items()
    }
    first = settings.training.seed
    (measure,) = {each.ranked_by for each in variants.values()}  # cli/compare.py lets no two be
    trials: list[Trial] = []
    left = list(variants)
    shares = _shares(variants)
    files = source_files(settings.data)
    met = rendezvous.served(max(each.compute.nodes for each in variants.values()))
    with in_use.of_terminal(terminal_run()), warnings_once() as once, reading(files), met:
        for seed in range(first, first + seeds):
            # Of one seed: a mean of the seeds that look good would be no mean.
            study = Study(measure, prunes=prune and seed == first and not shares)
            for number, name in enumerate(left, 1):
                log.info("variant %d of %d, seed %d: %s", number, len(left), seed, name)
                once.begin(name)
                with only_steps() if trials else nullcontext():  # the first says what all share
                    trials.append(_train(study.begin(), name, seed, variants[name]))
                log.info("  %s", trials[-1].said)
            left = [trial.variant for trial in trials if trial.state == "finished" and trial.seed == seed]
    for said in once.says(len(variants)):
        log.warning("%s", said)
    found = comparison.of(trials, settings.registry.name, shares)
    found = found.model_copy(update={"link": log_comparison(settings, variants, found)})
    finished.keep(found)
    create_markdown_artifact(comparison.markdown(found.ranked), key="comparison", description=found.sentence)
    return Completed(message=found.sentence, data=found)


def _train(course: Course, name: str, seed: int, settings: Settings) -> Trial:
    """One training to its end, or to where it is pruned or fails."""
    seeded = settings.model_copy(update={"training": settings.training.model_copy(update={"seed": seed})})
    with watched(course):
        state = variant(name, seeded, return_state=True)
    adapter: Any = state.result(raise_on_failure=False)
    if isinstance(adapter, BaseException):
        raise adapter
    if state.name == "Trained":
        return course.finished(name, seed, adapter)
    return course.ended(name, seed, "pruned" if state.name == "Pruned" else "failed", state.message or "")
