"""Settings of preference training: its loss, and the steps that it takes."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tunewright.config.section import Section
from tunewright.config.training import Training

SMOOTHED = ("robust", "exo_pair")  # losses that label_smoothing is for


class Preference(Section):
    """Training on pairs of a chosen and a rejected answer, or on labelled answers, after SFT or in its place."""

    method: Literal["none", "dpo", "orpo", "kto"] = Field(
        default="none",
        description="Preference training. dpo: on pairs, the model moves from the rejected to the chosen answers, "
        "measured from where it began; orpo: on pairs, it learns the chosen answers and how far to prefer them in one "
        "training; kto: on single answers that have a label, towards the desirable and away from the undesirable ones; "
        "none: rejected answers are only measured",
    )
    after_sft: bool | None = Field(
        default=None,
        description="Train on the chosen answers first (SFT, by the section training), and on pairs from there; false "
        "starts from the base; empty: true with dpo and kto, false with orpo, whose loss has that of SFT in it",
    )
    loss: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "robust",
        "exo_pair",
        "nca_pair",
        "bco_pair",
        "sppo_hard",
        "apo_zero",
        "apo_down",
        "sigmoid_norm",
    ] = Field(
        default="sigmoid",
        description="Loss of dpo, by TRL's names. sigmoid: DPO; ipo and sigmoid_norm: by mean per token, so that "
        "length counts less; robust and exo_pair: with label_smoothing, if some pairs may be labelled the wrong way",
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        le=100,
        description="dpo and kto: how strongly the model is kept near where it began; orpo: weight of the preference "
        "in the loss; above 0 up to 100",
    )
    desirable_weight: float = Field(
        default=1.0,
        gt=0,
        le=1_000,
        description="kto: weight of a desirable answer in the loss, above 0 up to 1000",
    )
    undesirable_weight: float = Field(
        default=1.0,
        gt=0,
        le=1_000,
        description="kto: weight of an undesirable answer in the loss, above 0 up to 1000; with few of them, raise it "
        "until both kinds weigh about the same in all",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Share of pairs that may be labelled the wrong way, 0 to below 0.5, for the losses robust and "
        "exo_pair",
    )
    sft_weight: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="dpo: weight of the loss on the chosen answers that is added, 0 to 100; above 0 it holds their "
        "likelihood up (RPO)",
    )
    learning_rate: float = Field(
        default=0.00002,
        gt=0,
        le=1,
        description="Peak learning rate of preference training, at most 1: a tenth of SFT's, or less",
    )
    epochs: float = Field(
        default=1.0, gt=0, le=1_000, description="Epochs over the pairs, at most 1000; max_steps overrides it"
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Number of optimizer steps on pairs, at most 100,000,000; empty uses epochs",
    )

    @model_validator(mode="after")
    def _each_setting_does_something(self) -> Self:
        fields = type(self).model_fields
        of_dpo, of_kto = {"loss", "label_smoothing", "sft_weight"}, {"desirable_weight", "undesirable_weight"}
        # With method=none set, the rest may stay, for a comparison with SFT alone.
        of_all = set() if "method" in self.model_fields_set else set(fields) - {"method"}
        idle = {"none": of_all, "orpo": of_dpo | of_kto, "dpo": of_kto, "kto": of_dpo}[self.method]
        if unused := sorted(name for name in idle if getattr(self, name) != fields[name].default):
            accepted = "dpo" if unused[0] in of_dpo else "kto" if unused[0] in of_kto else "dpo, orpo or kto"
            raise ValueError(
                f"{unused[0]}={getattr(self, unused[0])} has no effect with method={self.method}; leave it out, or set "
                f"method to {accepted}"
            )
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(
                f"label_smoothing={self.label_smoothing:g} has no effect with loss={self.loss}; leave it out, or set "
                f"loss to {' or '.join(SMOOTHED)}"
            )
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss=exo_pair needs label_smoothing above 0, such as 0.001")
        return self

    @property
    def begins_with_sft(self) -> bool:
        """Whether the chosen and desirable answers are trained first."""
        return self.after_sft if self.after_sft is not None else self.method != "orpo"

    @property
    def learns_labels(self) -> bool:
        """Whether single answers with a label are trained, and not pairs."""
        return self.method == "kto"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the model with what it was before its first step."""
        return self.method == "dpo" or self.learns_labels

    def of_loss(self) -> Self:
        """The settings of the loss alone: those of the steps at their defaults, since schedule() has them."""
        return self.without("after_sft", "learning_rate", "epochs", "max_steps")

    def schedule(self, training: Training) -> Training:
        """The steps on pairs: as those of `training`, but for their number and learning rate."""
        own = {"learning_rate": self.learning_rate, "epochs": self.epochs, "max_steps": self.max_steps}
        return training.model_copy(update={**own, "best_by": "loss", "kl_to_base": 0.0})
