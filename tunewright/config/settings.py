"""All sections together, what they must agree on, the stages that read them, and what starts runs of a deployment."""

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from tunewright.config.data import Checks, Data, Dedupe, Split
from tunewright.config.evaluation import WITH_EACH_ANSWER, Evaluation, Judge, LmEval, cannot_decide
from tunewright.config.gate import Gate, Registry
from tunewright.config.grpo import Grpo
from tunewright.config.preference import Preference
from tunewright.config.section import Section
from tunewright.config.training import Compute, Method, Model, Training

HIGHEST_PRIORITY = 100
FEWEST_LABELLED = 2  # answers of a step, of which KTO can estimate the KL divergence
Told = Literal["failure", "rejection", "approval", "promotion"]


class Operation(Section):
    """Triggers and notifications; tunewright deploy sets them up. No effect on a run's result."""

    watch: int | None = Field(
        default=None,
        ge=20,
        le=86_400,
        description="Poll interval in seconds, 20 to 86400: start a run if data.sources or data.held_out "
        "changed, or if the last run crashed; empty does not poll",
    )
    start_on: Literal["changed", "drift"] = Field(
        default="changed",
        description="What a change starts: changed starts a run; drift starts the data stages, and the rest only if a "
        "drift expectation fails or there is no version yet",
    )
    notify: tuple[str, ...] = Field(
        default=(),
        description="Notification blocks of the Prefect server, each as type/name: slack-webhook/ops",
    )
    notify_on: tuple[Told, ...] = Field(
        default=("failure", "rejection", "approval"),
        description="Events to notify of: failure (failed, crashed), rejection (not promoted, inconclusive, invalid), "
        "approval (a person must approve), promotion",
    )
    keep_versions: int = Field(
        default=30,
        ge=2,
        description="Number of newest data versions whose split assignments are kept, at least 2; older "
        "versions keep one line in the history",
    )

    prices: dict[Annotated[str, Field(pattern=r"\S")], Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="Price of an hour of each device, above 0, in a currency of yours: {cpu: 0.4, h100: 2.5}. A key is "
        "cpu or a part of a GPU's name. With it, plan, run and verdict say what they cost",
    )
    budget: float | None = Field(
        default=None,
        gt=0,
        description="Maximum cost of a run up to the end of its training, above 0, in the currency of prices: a run "
        "with a higher estimate asks for approval before it trains; empty never asks",
    )
    priority: int = Field(
        default=0,
        ge=-HIGHEST_PRIORITY,
        le=HIGHEST_PRIORITY,
        description="Where runs wait for a GPU or the CPU, -100 to 100: one with a higher priority gets it first, then "
        "the one that waits longest",
    )

    @field_validator("notify")
    @classmethod
    def _names_blocks(cls, notify: tuple[str, ...]) -> tuple[str, ...]:
        for each in notify:
            if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", each):
                raise ValueError(
                    f"{each[:60]!a} is not a Prefect block; accepted: type/name, such as slack-webhook/ops"
                )
        return notify

    @model_validator(mode="after")
    def _each_does_something(self) -> Self:
        if self.start_on == "drift" and self.watch is None:
            raise ValueError(
                "start_on=drift has no effect without watch; set operation.watch to a poll interval in seconds"
            )
        if self.notify_on != type(self).model_fields["notify_on"].default and not self.notify:
            raise ValueError("notify_on has no effect without notify; set operation.notify to notification blocks")
        if self.budget is not None and not self.prices:
            raise ValueError("budget has no effect without prices; set operation.prices to {cpu: 0.4}, for instance")
        if self.notify and not self.notify_on:
            raise ValueError("notify has no effect with an empty notify_on; set one, such as failure")
        return self


Stage = Literal[
    "ingest",
    "base",
    "rehearse",
    "check",
    "dedupe",
    "split",
    "render",
    "scan",
    "label_errors",
    "train",
    "prefer",
    "reinforce",
    "examples",
    "prompt",
    "prepend",
    "evaluate",
    "forgetting",
    "lm_eval",
    "divergence",
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
    preference: Preference = Preference()
    grpo: Grpo = Grpo()
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
        if share != Split().replay and not self.has_general:
            raise ValueError(
                f"split.replay={share:g} has no effect: no source in data.sources has use_as: replay, and "
                "training.keep_general is off"
            )
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
    def _anchor_has_rows(self) -> Self:
        weight = self.training.anchor
        if weight and not self.has_general:
            raise ValueError(
                f"training.kl_to_base={weight:g} needs general rows: no source in data.sources has use_as: replay, and "
                "training.keep_general is off"
            )
        keeps = self.training.keep_general == "auto" and self.trains
        if (weight or keeps) and not self.trains_on_answers:
            name = f"kl_to_base={weight:g}" if weight else "keep_general=auto"
            raise ValueError(f"training.{name} has no effect, as there is no SFT; leave it out")
        return self

    @model_validator(mode="after")
    def _rewards_can_be_given(self) -> Self:
        if "schema_valid" in self.grpo.rewards and not self.evaluation.json_schema:
            raise ValueError("grpo.rewards: schema_valid needs evaluation.json_schema, the file with the schema")
        if not self.grpo.after_sft and self.preference.method != "none":
            raise ValueError(
                f"grpo.after_sft=false has no effect with preference.method={self.preference.method}, after which "
                "training on rewards comes; leave it out, or set preference.after_sft"
            )
        return self

    @model_validator(mode="after")
    def _vllm_can_draw(self) -> Self:
        if not self.compute.vllm:
            return self
        wrong = {
            "grpo.rewards: a training on rewards, for which alone answers are drawn": not self.grpo.rewards,
            "method.kind=lora": self.method.kind != "lora",
            "method.dora=false": self.method.dora,
            "method.init=default": self.method.init in ("pissa", "olora"),
            "grpo.temperature=1": self.grpo.temperature != 1,
            "compute.devices=1": self.compute.devices > 1,
            "compute.nodes=1": self.compute.nodes > 1,
        }
        if lacking := next((accepted for accepted, is_wrong in wrong.items() if is_wrong), ""):
            raise ValueError(f"compute.vllm cannot draw answers with these settings; accepted: {lacking}")
        return self

    @model_validator(mode="after")
    def _champion_can_go_on(self) -> Self:
        """Refuse losses whose reference would be another champion each night, and rows that one has learned before."""
        if self.model.start == "base":
            return self
        wrong = {
            "preference.method=none": self.preference.method != "none",
            "no grpo.rewards": bool(self.grpo.rewards),
            "training.kl_to_base=0": self.training.anchor > 0,
            "training.share=1": self.training.share < 1,
        }
        if lacking := next((accepted for accepted, is_wrong in wrong.items() if is_wrong), ""):
            raise ValueError(f"model.start=champion cannot go on with these settings; accepted with it: {lacking}")
        return self

    @model_validator(mode="after")
    def _kl_can_be_estimated(self) -> Self:
        if self.preference.learns_labels and self.training.batch < FEWEST_LABELLED:
            raise ValueError(
                f"training.batch={self.training.batch}: preference.method=kto estimates the KL divergence from the "
                f"answers of a step; accepted: {FEWEST_LABELLED} or more"
            )
        return self

    @model_validator(mode="after")
    def _a_prompt_trains_nothing(self) -> Self:
        if self.trains:
            shots = self.evaluation.shots
            if shots != Evaluation().shots and not self.evaluation.has_examples:
                accepted = "evaluation.contenders or method.kind of few_shot or retrieval"
                raise ValueError(f"evaluation.shots={shots} has no effect; accepted with {accepted}")
            return self
        idle = {
            f"preference.method={self.preference.method}": self.preference.method != "none",
            "grpo.rewards": bool(self.grpo.rewards),
            "checks.label_error_folds": self.checks.label_error_folds is not None,
            "model.start=champion": self.model.start == "champion",
            "training.keep_general=auto": self.training.keep_general == "auto",
            "lm_eval.tasks": bool(self.lm_eval.tasks),
        }
        if named := [name for name, is_set in idle.items() if is_set]:
            raise ValueError(
                f"{named[0]} has no effect with method.kind={self.method.kind}, which trains nothing; leave it out"
            )
        return self

    @property
    def trains(self) -> bool:
        """Whether weights are trained; otherwise the candidate is the base with a prompt."""
        return self.method.prompt is None

    @property
    def prompted(self) -> tuple[str, ...]:
        """The contenders that are the base with a prompt, without the one that is the candidate itself."""
        kinds = (*self.evaluation.contenders, *(["documents"] if self.evaluation.documents else []))
        return tuple(kind for kind in dict.fromkeys(kinds) if kind != self.method.kind)

    @property
    def trains_on_answers(self) -> bool:
        """Whether the references are trained first (SFT)."""
        if not self.trains:
            return False
        if self.preference.method == "none":
            return self.grpo.after_sft
        return self.preference.begins_with_sft

    @model_validator(mode="after")
    def _rotation_can_draw(self) -> Self:
        if not self.gate.rotate:
            return self
        if given := [source.path for source in self.data.sources if source.use_as == "test"]:
            raise ValueError(
                f"gate.rotate=true cannot draw other test rows: {given[0]} in data.sources has use_as: test; "
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
        most, longest = self.evaluation.max_new_tokens, self.model.max_length
        if most != "auto" and most > longest:
            raise ValueError(
                f"evaluation.max_new_tokens={most} is more than model.max_length={longest}, the longest row there can "
                f"be; accepted: 1 to {longest}, or auto"
            )
        return self

    @property
    def gives_general(self) -> bool:
        """Whether a source of the user's has general rows."""
        return any(source.use_as == "replay" for source in self.data.sources)

    @property
    def has_general(self) -> bool:
        """Whether there may be general rows, of a source or the base's own answers."""
        return self.training.keep_general == "auto" or self.gives_general

    @property
    def rehearses(self) -> bool:
        """Whether the base's own answers become general rows, as no source of the user's has any."""
        return self.training.keep_general == "auto" and not self.gives_general

    @property
    def sft(self) -> Training:
        """The training on references, with `kl_to_base: auto` resolved.

        It is 1 for the base's own answers, which alone prevent little or no forgetting (docs/evaluation.md), and 0 for
        rows that people wrote, or where each training goes on from the champion and so has no base to be held to.
        """
        if self.training.kl_to_base != "auto":
            return self.training
        is_held = self.rehearses and self.model.start == "base"
        return self.training.model_copy(update={"kl_to_base": float(is_held)})

    @property
    def measures_forgetting(self) -> bool:
        """Whether base and candidate are measured on general tasks: the same weights have forgotten nothing."""
        return self.evaluation.forgetting and self.trains

    @property
    def measures_divergence(self) -> bool:
        """Whether there is a training that moves the model from a reference, and this is to be measured."""
        return self.evaluation.divergence and (self.preference.method != "none" or bool(self.grpo.rewards))

    @property
    def ranked_by(self) -> str:
        """The measure of the validation rows by which trainings of these settings compare.

        Of pairs it is the share that is ranked right: a loss on pairs depends on the loss and its beta.
        """
        if self.grpo.rewards:
            return "reward"
        return self.training.best_by if self.preference.method == "none" else "reward_accuracy"

    def measured(self) -> Evaluation:
        """Return the evaluation of each contender, with the metrics of the gate if its metrics are automatic.

        Contenders, documents, shots, complete, forgetting, divergence and the settings of APIs stay at their defaults:
        what a contender is asked is in its prompts.
        """
        metrics, gate = self.evaluation.metrics, self.gate
        there = {"auto", *WITH_EACH_ANSWER, *metrics}
        lacking = dict.fromkeys(m for m in (gate.metric, *(each.metric for each in gate.guardrails)) if m not in there)
        asked = ("contenders", "documents", "shots", "api_models", "api_budget")
        alone = self.evaluation.without(*asked, "complete", "forgetting", "divergence")
        return alone.model_copy(update={"metrics": (*metrics, *lacking)})
