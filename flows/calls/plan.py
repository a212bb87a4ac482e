"""A plan: each stage is looked up, and why it would run is said; nothing is run."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import Task

from tunewright.artifacts import Answers, Artifact, Base, Registered, Verdict
from tunewright.config import STAGES, Gate, Registry, Settings, Stage
from tunewright.flows.calls.calls import A, Calls, P, Step
from tunewright.store import pipelines, test_set_uses
from tunewright.store.caching import Found
from tunewright.store.data_versions import Before
from tunewright.store.manifest import Whole
from tunewright.store.miss_reasons import causes
from tunewright.store.stage import cached_part
from tunewright.store.test_set_uses import Draw
from tunewright.tasks.train.trainer.checkpoints import newest_sealed

MADE_NOW = "another run is making it now"  # why a stage would run


class Plan(Calls):
    """Looks each stage up instead of calling it, and says why it would run.

    Where a stage would run, the plan goes on with what it made for this pipeline the last time: a later stage is then
    cached only if the stage hands on the same again, which the plan says as a cause and counts as a run.
    """

    def __init__(self, settings: Settings, until: Stage, refresh: Sequence[Stage] = ()) -> None:
        super().__init__(settings, until, refresh)
        self.uncertain: dict[str, str] = {}  # digest of what is still to be made -> the stage that makes it
        self.said: set[str] = set()  # causes that an earlier stage has
        self.after: defaultdict[str, set[str]] = defaultdict(set)  # stage -> all stages that would run before it

    def called(self, task: Task[..., A], of: str, inputs: Mapping[str, Any]) -> A:
        """The record that is there, that of the last time, or one that stands for it."""
        stage, name = cached_part(task), f"{task.name} {of}".strip()
        found = stage.look_up(**inputs)
        keys = pipelines.keys(self.pipeline, name)
        # What it made with these inputs may be there, and yet be lost where it lies elsewhere, as a base does.
        earlier = None if found.record else stage.nearest(found.ingredients, [found.key, *keys])
        # The stages that would make what it reads: until then its key is that of the last time, or nobody's.
        read = json.dumps(found.ingredients)
        waits = {before for digest, before in self.uncertain.items() if digest in read}
        because = list(self._because(task.name, found, earlier, waits, is_known=found.key in keys))
        if because and not waits and not found.is_being_made and (steps := newest_sealed(found.work / "checkpoints")):
            because.append(f"it resumes from its checkpoint at step {steps:,}")
        last = found.record or (earlier.record if earlier else None)
        if isinstance(last, Base) and last.reference != inputs["reference"]:  # nothing tells what that would be
            last = None
        step = Step(
            stage=task.name,
            of=of,
            state="run" if because else "cached",
            because=because,
            record=None if task.name in self.refresh else found.record,
            stopped=found.stopped,
            last=last,
        )
        self.keep(step)
        record = last or _unmade(stage.record_type, task.name, name)
        if because:
            self.uncertain[record.digest] = task.name
        return record

    def optional(self, task: Task[P, A]) -> Callable[P, A | None]:
        """As any other stage."""
        return self(task)

    def _because(
        self, stage: str, found: Found[Any], earlier: Whole[Any] | None, waits: set[str], *, is_known: bool
    ) -> Iterator[str]:
        """Why it would run, if it would; of what an earlier stage has said nothing again."""
        if waits:
            before = set[str]().union(*(self.after[each] - {each} for each in waits))
            self.after[stage] |= waits | before
            *others, last = sorted(waits - before, key=STAGES.index)
            yield f"runs after {', '.join(others)} and {last}" if others else f"runs after {last}"
        if stage in self.refresh:
            yield "requested by refresh"
        elif found.record:
            return
        elif found.is_being_made and not waits:
            yield MADE_NOW
        elif found.fault:
            yield found.fault
        elif found.stopped and not waits:
            yield f"it stopped on the same data, {found.stopped.when}: {found.stopped.message}"
        elif earlier:
            new = causes(stage, earlier.manifest.ingredients, found.ingredients, earlier.record, waits)
            yield from (cause for cause in new if not waits or cause not in self.said)
            self.said.update(new)
        elif not waits:
            gone = f"artifact {found.key} was deleted" if found.was_made else "an earlier run did not finish it"
            yield gone if is_known else "not run yet"

    def digest(self, record: Artifact) -> str:
        """The record's digest, or "" if it is of the last time."""
        return "" if record.digest in self.uncertain else record.digest

    def keep_base(self, _: Base, __: Registry) -> None:
        """Copies nothing."""

    def accept_version(self, *_: Before | Artifact) -> None:
        """Accepts nothing."""

    def approve_cost(self, *_: object) -> None:
        """Asks nobody: the plan says what training costs (cli/plan/)."""

    def begun(self, candidate: Artifact, answers: Answers, drawn: Draw) -> float:
        """As it is looked up."""
        return self.look_up_share(candidate, answers)

    def counted(self, verdict: Verdict, candidate: Artifact, answers: Answers, gate: Gate, drawn: Draw) -> Verdict:
        """The verdict with what was counted when it was made; counts nothing."""
        return test_set_uses.look_up(self.pipeline, verdict, candidate, answers, gate, seed=drawn.seed)

    def request_approval(self, registered: Registered, registry: Registry) -> None:
        """Asks nobody."""


def _unmade(kind: type[A], stage: str, name: str) -> A:
    """Return a placeholder for a record that does not exist yet; its digest enters the cache keys of later stages.

    A base has placeholders for its special tokens too, which check reads instead of the base.
    """
    digest = f"unmade_{name.replace(' ', '_')}"
    if issubclass(kind, Base):
        unknown = {"reference": "", "revision": None, "location": Path(), "weights_digest": ""}
        return kind(stage=stage, digest=digest, special_tokens=(digest,), **unknown)
    return kind.model_construct(stage=stage, digest=digest)
