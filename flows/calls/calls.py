"""The base of a run and a plan: the stages to call, the steps so far, and the last stage."""

import errno
import logging
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, ParamSpec, TypeVar

from httpx import TransportError
from prefect import Task
from prefect.exceptions import PrefectException

from tunewright.artifacts import Answers, Artifact, Base, Contender, Scan, Splits, Tokens, Verdict
from tunewright.config import STAGES, Gate, Registry, Settings, Stage
from tunewright.errors import LASTING, ConfigError, StageFailed, TunewrightError, one_line
from tunewright.evidence.start import GIVEN, Start, expected, start
from tunewright.flows.inputs import Inputs, draw
from tunewright.metrics.shape import require_metrics
from tunewright.registry.versions import champion, trained_on_test
from tunewright.store import test_set_uses
from tunewright.store.refusals import StoppedStage
from tunewright.store.test_set_uses import Draw
from tunewright.tasks.base import base as load_base
from tunewright.tasks.ingest import SourceFile
from tunewright.tasks.prefer import require_rows


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of a stage: what came of it, or would."""

    stage: str
    of: str = ""  # what tells calls of one stage apart: the contender that is evaluated
    state: Literal["ran", "cached", "run", "failed"]
    seconds: float = 0.0  # that this run took for it, without those that it waited for a device
    saved: float = 0.0  # seconds that it took when it was made, without those that this run waited for it
    is_news: bool = False  # another run made it since this one began
    because: Sequence[str] = ()
    message: str = ""
    note: str = ""  # on what it was given, where that is not what the settings say; or why it failed
    record: Artifact | None = None
    stopped: StoppedStage | None = None  # what it left where it refused its inputs; behind a run, those of last time
    last: Artifact | None = None  # what it made for this pipeline the last time, of a plan's stage that would run

    @property
    def name(self) -> str:
        """The stage, and of what."""
        return f"{self.stage} {self.of}".strip()


def as_json(step: Step) -> dict[str, Any]:
    """A step as `--json` shows it."""
    optional = {name: text for name, text in (("of", step.of), ("note", step.note)) if text}
    shown: dict[str, Any] = {"stage": step.stage} | optional | {"state": step.state}
    if step.state == "run" or step.because:
        return shown | {"because": list(step.because)}
    return shown | {"seconds": round(step.seconds, 3), "artifact": str(step.record.folder) if step.record else None}


log = logging.getLogger("tunewright")

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)

TRAININGS: tuple[Stage, ...] = ("train", "prefer", "reinforce")
ASKED = ("render", "prompt", "prepend")  # stages that make what is asked, and warn of what it lacks
ONLY_WITH = {
    "rehearse": "training.keep_general=auto, and no source with use_as: replay,",
    "scan": "method.kind=spectrum",
    "label_errors": "checks.label_error_folds",
    "train": "preference.after_sft or grpo.after_sft",
    "examples": "method.kind=few_shot or retrieval",
    "prefer": "preference.method",
    "reinforce": "grpo.rewards",
    "prompt": "evaluation.contenders, evaluation.documents or evaluation.api_models",
    "forgetting": "evaluation.forgetting",
    "lm_eval": "lm_eval.tasks",
    "divergence": "evaluation.divergence, and preference.method or grpo.rewards,",
    "judge": "judge.url",
}


def training_inputs(
    s: Settings, read: Inputs, tokens: Tokens, base: Base, scan: Scan | None, begins_as: Artifact | None
) -> dict[str, dict[str, Any]]:
    """The inputs of the stages that train, but for the training that `prefer` and `reinforce` begin as.

    `begins_as` is the version that `train` begins as.
    """
    shared = {"tokens": tokens, "base": base, "method": s.method, "compute": s.compute, "scan": scan}
    kept = {"checkpoint_minutes": s.training.checkpoint_minutes}
    on_pairs = {"preference": s.preference.of_loss(), "training": s.preference.schedule(s.training).used()}
    on_rewards = {"grpo": s.grpo.of_answers(), "training": s.grpo.schedule(s.training).used(), "own": read.rewards}
    on_rewards["schema"] = read.schema if "schema_valid" in s.grpo.rewards else ""
    return {
        "label_errors": {**shared, "training": s.sft.used().without("share")},
        "train": {**shared, **kept, "training": s.sft.used(), "begins_as": begins_as},
        "prefer": {**shared, **kept, **on_pairs},
        "reinforce": {**shared, **kept, **on_rewards},
    }


class Reached(Exception):
    """The last stage that was asked for is done."""


def stages(settings: Settings, until: Stage = "register", refresh: Sequence[Stage] = ()) -> tuple[Stage, ...]:
    """The stages of a run up to `until`, in their order: of those in ONLY_WITH the ones that are set.

    Raises ConfigError where a stage that is asked for is none of them, or comes after the last.
    """
    left_out = {
        "rehearse": not settings.rehearses,
        "scan": settings.method.kind != "spectrum",
        "label_errors": settings.checks.label_error_folds is None,
        "train": not settings.trains_on_answers,
        "prefer": settings.preference.method == "none",
        "reinforce": not settings.grpo.rewards,
        "examples": settings.trains,
        "prompt": not (settings.prompted or settings.evaluation.api_models),
        "forgetting": not settings.measures_forgetting,
        "lm_eval": not settings.lm_eval.tasks,
        "divergence": not settings.measures_divergence,
        "judge": settings.judge.url is None,
    }
    used: tuple[Stage, ...] = tuple(stage for stage in STAGES if not left_out.get(stage))
    if absent := [stage for stage in (until, *refresh) if stage not in used]:
        accepted = ", ".join(used)
        needs = ONLY_WITH[absent[0]]
        if not settings.trains and absent[0] in (*TRAININGS, "forgetting"):
            needs = "a method.kind that trains"
        said = f"{absent[0]} is a stage with {needs} only, which is not set"
        raise ConfigError(f"{said}; accepted: {accepted}")
    wanted = used[: used.index(until) + 1]
    if beyond := [stage for stage in refresh if stage not in wanted]:
        raise ConfigError(
            f"refresh={beyond[0]}: it comes after until={until}, so it would not run; accepted: {', '.join(wanted)}"
        )
    return wanted


@contextmanager
def naming(stage: str) -> Iterator[None]:
    """Raises StageFailed in place of an error in the block whose message can be of any length and hold texts of rows.

    Others stay as they are: those of ours, of Prefect and its server, and of a disk, which the command says in words.
    """
    try:
        yield
    except (TunewrightError, TransportError, PrefectException, sqlite3.OperationalError):
        raise
    except Exception as error:  # what a library can raise is anything
        if isinstance(error, OSError) and error.errno in {*LASTING, errno.ENOTDIR}:
            raise
        log.debug("%s failed", stage, exc_info=error)  # --verbose prints it
        raise StageFailed(f"{stage} failed: {one_line(error)}; --verbose shows its traceback") from error


class Calls(ABC):
    """The steps so far, in order."""

    def __init__(self, settings: Settings, until: Stage, refresh: Sequence[Stage] = ()) -> None:
        self.stages = stages(settings, until, refresh)
        self.pipeline = settings.registry.name
        self.keep_versions = settings.operation.keep_versions
        self.until = until
        self.refresh = refresh
        self.steps: list[Step] = []
        self.drawn: Draw | None = None
        self.started: Start | None = None  # what train begins as, where model.start is not the base
        self.files: tuple[SourceFile, ...] = ()

    @property
    def trainings(self) -> tuple[Stage, ...]:
        """The stages of this run that train, in their order."""
        return tuple(stage for stage in self.stages if stage in TRAININGS)

    def draw(self, settings: Settings, read: Inputs) -> Settings:
        """The settings with the split.seed that this run's test rows are drawn with (store/test_set_uses.py)."""
        self.files = read.files
        self.drawn = draw(settings, read)
        if self.drawn.said:
            log.info("%s", self.drawn.said)
        return self.drawn.settings(settings)

    def __call__(self, task: Task[P, A]) -> Callable[P, A]:
        """The stage, to be called with its arguments for its record. Raises Reached, and what the call raises."""

        def call(*args: P.args, **inputs: P.kwargs) -> A:
            assert not args, "by their names, as the causes of a plan say them"
            self.begin(task.name)
            return self.called(task, getattr(inputs.get("contender"), "name", ""), inputs)

        return call

    @abstractmethod
    def called(self, task: Task[..., A], of: str, inputs: Mapping[str, Any]) -> A:
        """The record of a call of a stage, `of` the contender that is evaluated, if any; its step is kept."""

    def begin(self, stage: str) -> None:
        """Raises Reached before the first call of a stage that comes after the last one asked for."""
        if stage not in self.stages:
            assert STAGES.index(stage) > STAGES.index(self.until), f"{stage} is left out by the settings, but called"
            raise Reached

    def keep(self, step: Step) -> None:
        """Adds a step."""
        notes = {"split": self.drawn and self.drawn.said, "train": self.started and self.started.said}
        self.steps.append(replace(step, note=notes.get(step.stage) or step.note))

    def start(
        self, settings: Settings, base: Base, splits: Splits, tokens: Tokens, scan: Scan | None
    ) -> Artifact | None:
        """The version that train begins as (evidence/start.py), None for the base; the same each time it is asked.

        So a run that begins again, as the alias moved while the candidate was measured, trains nothing anew.
        """
        if settings.model.start == "base" or not self.trainings:
            return None
        if not all(map(self.digest, (base, splits, tokens))):
            self.started = expected(settings.registry)
        elif self.started is None:
            self.started = GIVEN.get() or start(settings.registry, settings.method, base, splits, tokens, scan)
            log.info("train %s", self.started.said)
        return self.started.weights

    def champion(self, registry: Registry, adapter: Artifact, base: Base, splits: Splits) -> Contender | None:
        """The version that the candidate is evaluated beside. Raises Reached where nothing is to be evaluated."""
        self.begin("evaluate")
        return champion(registry, self.digest(adapter), base, load_base.fn, splits_digest=self.digest(splits))

    @abstractmethod
    def approve_cost(self, settings: Settings, inputs_of: Mapping[str, Mapping[str, Any]], /) -> None:
        """Has a person approve a training that would cost more than operation.budget (flows/budget.py)."""

    def require_metrics(self, settings: Settings, splits: Splits, schema: str) -> None:
        """Raises ConfigError where the gate's metrics do not fit these test rows, before anything is made of them."""
        if {*TRAININGS, "examples"} & {*self.stages} and self.digest(splits):
            require_metrics(settings, splits, schema)

    def require_learnable(self, settings: Settings, tokens: Tokens) -> None:
        """Raises ConfigError where no row has what preference.method or training.kl_to_base learns from."""
        if not self.digest(tokens):
            return
        weight = settings.training.anchor
        if weight and "train" in self.stages and not tokens.num_replay:
            raise ConfigError(
                f"training.kl_to_base={weight:g} has no effect: no general row (use_as: replay) is left to train"
            )
        if "prefer" in self.stages:
            require_rows(tokens, settings.preference)

    def begin_test_use(self, candidate: Artifact, answers: Answers) -> float:
        """The share of alpha that the decision on this candidate may spend (store/test_set_uses.py), 0 to 1.

        A run that ends before the decision is no use.
        """
        assert self.drawn
        if "decide" in self.stages:
            return self.begun(candidate, answers, self.drawn)
        return self.look_up_share(candidate, answers)

    def look_up_share(self, candidate: Artifact, answers: Answers) -> float:
        """The share that the use spent or would spend, of answers that are there; enters nothing."""
        is_made = self.digest(candidate) and self.digest(answers)
        return test_set_uses.alpha_share(self.pipeline, candidate, answers) if is_made else 1.0

    @abstractmethod
    def begun(self, candidate: Artifact, answers: Answers, drawn: Draw) -> float:
        """The share of alpha of a test-set use."""

    def count_test_use(
        self,
        verdict: Verdict,
        candidate: Artifact,
        answers: Answers,
        splits: Splits,
        opponent: Contender | None,
        settings: Settings,
        /,
    ) -> Verdict:
        """The verdict with its test-set use, and the warnings about what was asked: of render, prompt and prepend.

        Another warning is there if the champion was trained on some of the test rows.
        """
        if not self.digest(verdict):
            return verdict
        assert self.drawn
        verdict = self.counted(verdict, candidate, answers, settings.gate, self.drawn)
        warning = trained_on_test(settings.registry, opponent, splits, settings.split) if opponent else ""
        asked = (each for step in self.steps if step.stage in ASKED and step.record for each in step.record.warned)
        warnings = (*verdict.warnings, *asked, *([warning] if warning else []))
        return verdict.model_copy(update={"warnings": warnings})

    @abstractmethod
    def counted(self, verdict: Verdict, candidate: Artifact, answers: Answers, gate: Gate, drawn: Draw) -> Verdict:
        """The verdict with the number of its test-set use."""

    def digest(self, record: Artifact) -> str:
        """The record's digest, or "" if it is still to be made."""
        return record.digest
