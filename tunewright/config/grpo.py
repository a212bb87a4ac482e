"""Settings of training on rewards (GRPO): the reward functions, the answers that are drawn, and the steps."""

import math
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tunewright.config.section import Section
from tunewright.config.training import Training

# Metrics that score one answer by its reference, and schema_valid, which needs evaluation.json_schema.
REWARDS = (
    "exact_match",
    "normalized_match",
    "token_f1",
    "chrf",
    "rouge_l",
    "bleu",
    "json_valid",
    "json_field_f1",
    "schema_valid",
    "numeric",
    "tool_call",
    "tool_name",
    "tool_arguments",
    "needless_call",
)


class Grpo(Section):
    """Training on rewards (GRPO): the model answers each prompt several times, and moves to the better answers."""

    rewards: dict[str, float] = Field(
        default={},
        description="Reward functions and their weights: {exact_match: 1, json_valid: 0.2}. A name is a metric of one "
        "answer or module:function of your own; an answer's reward is the weighted sum. Empty: no training on rewards",
    )
    after_sft: bool = Field(
        default=True,
        description="Train on the references first (SFT, by the section training), and on rewards from there; false "
        "starts from the base. With preference.method, training on rewards comes after it",
    )
    group: int = Field(
        default=8, ge=2, le=1_024, description="Answers that are drawn for each prompt and compared, 2 to 1024"
    )
    batch: int = Field(
        default=4,
        ge=1,
        le=1_000_000,
        description="Prompts of an optimizer step, at most 1,000,000; each is answered as often as group says",
    )
    max_new_tokens: int = Field(
        default=256,
        ge=1,
        le=1_000_000,
        description="Longest answer that is drawn, in tokens, at most 1,000,000; longer ones are cut",
    )
    temperature: float = Field(
        default=1.0, gt=0, le=10, description="Temperature that answers are drawn with, above 0 up to 10"
    )
    loss: Literal["dapo", "grpo", "dr_grpo"] = Field(
        default="dapo",
        description="What the loss is the mean of, by TRL's names. dapo: all tokens of a step; grpo: answers, each the "
        "mean of its tokens; dr_grpo: answers, each divided by max_new_tokens",
    )
    scale: Literal["group", "batch", "none"] = Field(
        default="group",
        description="What a reward's distance from its group's mean is divided by: the standard deviation of the "
        "group, of all rewards of the step, or nothing",
    )
    beta: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Weight of the KL divergence from the model before its first step, 0 to 100; above 0 each step "
        "reads its answers once more",
    )
    iterations: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Optimizer steps on the same answers, 1 to 100, before new ones are drawn",
    )
    clip: float = Field(
        default=0.2,
        gt=0,
        le=10,
        description="With several iterations: how far a token's probability may fall below, or rise above, what it "
        "was when the answer was drawn, as a share, before it no longer counts; above 0 up to 10",
    )
    clip_high: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="The same for rising, if it differs, above 0 up to 100; empty: as clip",
    )
    learning_rate: float = Field(
        default=0.00002, gt=0, le=1, description="Peak learning rate of training on rewards, at most 1"
    )
    epochs: float = Field(
        default=1.0, gt=0, le=1_000, description="Epochs over the prompts, at most 1000; max_steps overrides it"
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Number of optimizer steps on rewards, at most 100,000,000; empty uses epochs",
    )

    @field_validator("rewards")
    @classmethod
    def _names_functions(cls, rewards: dict[str, float]) -> dict[str, float]:
        for name, weight in rewards.items():
            if ":" not in name and name not in REWARDS:
                accepted = f"{', '.join(REWARDS)}, or module:function"
                raise ValueError(f"{name[:60]!a} is not a reward function; accepted: {accepted}")
            if not math.isfinite(weight) or weight == 0:
                raise ValueError(f"{name} has the weight {weight:g}; accepted: a finite number other than 0")
        return rewards

    @model_validator(mode="after")
    def _each_setting_does_something(self) -> Self:
        fields = type(self).model_fields
        changed = sorted(name for name in fields if getattr(self, name) != fields[name].default)
        if not self.rewards and changed:
            raise ValueError(
                f"{changed[0]}={getattr(self, changed[0])} has no effect without rewards; set grpo.rewards, such as "
                "{exact_match: 1}"
            )
        if self.iterations == 1 and (idle := [name for name in changed if name.startswith("clip")]):
            raise ValueError(
                f"{idle[0]}={getattr(self, idle[0]):g} has no effect with iterations=1, where each answer is drawn by "
                "the model that learns from it; leave it out, or set iterations above 1"
            )
        return self

    def of_answers(self) -> Self:
        """The settings of answers and loss alone: those of the steps at their defaults, since schedule() has them."""
        return self.without("after_sft", "learning_rate", "epochs", "max_steps")

    def schedule(self, training: Training) -> Training:
        """The steps on rewards: as those of `training`, but for their number, prompts and learning rate."""
        own = {"learning_rate": self.learning_rate, "epochs": self.epochs, "max_steps": self.max_steps}
        own |= {"micro_batch": training.micro_batch if isinstance(training.micro_batch, str) else None}
        return training.model_copy(update={**own, "batch": self.batch, "best_by": "loss", "kl_to_base": 0.0})
