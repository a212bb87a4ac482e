"""All sections together, what they must agree on, and the stages that read them."""

from typing import Literal, Self, get_args

from pydantic import model_validator

from tunewright.config.data import Checks, Data, Dedupe, Split
from tunewright.config.evaluation import Evaluation, Judge, LmEval
from tunewright.config.gate import Gate, Registry
from tunewright.config.metrics import WITH_EACH_ANSWER, cannot_decide
from tunewright.config.operation import Operation
from tunewright.config.section import Section
from tunewright.config.training import Compute, Method, Model, Training

Stage = Literal[
    "ingest",
    "base",
    "check",
    "dedupe",
    "split",
    "render",
    "scan",
    "train",
    "prompt",
    "evaluate",
    "forgetting",
    "lm_eval",
    "decide",
    "judge",
    "verdict_page",
    "register",
]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Settings(Section):
    """All sections together: the parameters of one run."""

    data: Data
    model: Model
    checks: Checks = Checks()
    dedupe: Dedupe = Dedupe()
    split: Split = Split()
    method: Method = Method()
    training: Training = Training()
    compute: Compute = Compute()
    evaluation: Evaluation = Evaluation()
    lm_eval: LmEval = LmEval()
    judge: Judge = Judge()
    gate: Gate = Gate()
    registry: Registry = Registry()
    operation: Operation = Operation()

    @model_validator(mode="after")
    def _replay_is_there_and_gate_is_measured(self) -> Self:
        share = self.split.replay
        if share != Split().replay and all(source.side != "replay" for source in self.data.sources):
            raise ValueError(f"split.replay={share:g} has no effect: no source in data.sources has side: replay")
        measured, metric = self.evaluation.metrics, self.gate.metric
        if "auto" not in measured and metric not in (*measured, "auto"):
            has = ", ".join(measured)
            raise ValueError(f"gate.metric={metric} is not in evaluation.metrics, which has {has}; add it there")
        if metric == "auto" and all(map(cannot_decide, measured)):
            raise ValueError(f"evaluation.metrics has no metric that can decide: {cannot_decide(measured[0])}")
        if "schema_valid" in self.measured().metrics and not self.evaluation.json_schema:
            key = "evaluation.metrics" if "schema_valid" in measured else "gate.metric"
            raise ValueError(f"{key}: schema_valid needs evaluation.json_schema, the file with the schema")
        return self

    @model_validator(mode="after")
    def _rotation_can_draw(self) -> Self:
        if not self.gate.rotate:
            return self
        if given := [source.path for source in self.data.sources if source.side == "test"]:
            raise ValueError(
                f"gate.rotate=true cannot draw other test rows: {given[0]} in data.sources has side: test; "
                "accepted: only without a user-provided test set"
            )
        if self.split.by == "time":
            raise ValueError(
                "gate.rotate=true cannot draw other test rows: with split.by=time the newest rows are the test split; "
                "accepted: split.by=cluster"
            )
        return self

    @model_validator(mode="after")
    def _guardrails_are_measured_and_answers_fit(self) -> Self:
        measured = {*self.evaluation.metrics, *WITH_EACH_ANSWER}
        if lacking := [each.metric for each in self.gate.guardrails if not {"auto", each.metric} & measured]:
            has = ", ".join(self.evaluation.metrics)
            raise ValueError(
                f"gate.guardrails: {lacking[0]} is not in evaluation.metrics, which has {has}; add it there"
            )
        if self.evaluation.max_new_tokens > self.model.max_length:
            raise ValueError(
                f"evaluation.max_new_tokens={self.evaluation.max_new_tokens} is more than "
                f"model.max_length={self.model.max_length}, the longest row there can be"
            )
        return self

    def measured(self) -> Evaluation:
        """Return the evaluation of each contender, with the metrics of the gate if its metrics are automatic.

        Contenders, shots and forgetting stay at their defaults, since no answer depends on them.
        """
        metrics, gate = self.evaluation.metrics, self.gate
        there = {"auto", *WITH_EACH_ANSWER, *metrics}
        lacking = dict.fromkeys(m for m in (gate.metric, *(each.metric for each in gate.guardrails)) if m not in there)
        alone = {name: Evaluation.model_fields[name].default for name in ("contenders", "shots", "forgetting")}
        return self.evaluation.model_copy(update={"metrics": (*metrics, *lacking)} | alone)
