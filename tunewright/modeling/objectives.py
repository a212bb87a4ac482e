"""The losses that training lowers: on answers, on preference pairs or labels, or on answers that were rewarded.

A loss is a sum of terms, each of them over what it is the mean of: labels or pairs of a whole optimizer step, however
that is cut into micro-batches and shared out to devices.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from tunewright.artifacts import IGNORED
from tunewright.config import Grpo, Preference
from tunewright.errors import ConfigError
from tunewright.modeling import anchor, groups, preferences, unpaired
from tunewright.modeling.batches import (
    Batch,
    answer_likelihoods,
    answer_loss,
    cross_entropy,
    num_labels,
    scored,
    token_likelihoods,
)

REWARDS = ("reward_chosen", "reward_rejected", "reward_accuracy")  # that are measured of pairs and labels
MARGIN = "reward_margin"  # the mean reward of chosen answers less that of rejected ones


class Objective(Protocol):
    """A loss."""

    def sizes(self, batch: Any) -> Sequence[float]:
        """The number of items of a micro-batch that each term is the mean of."""
        ...

    def terms(self, model: Any, batch: Any, totals: Sequence[float]) -> Sequence[torch.Tensor]:
        """Each term's sum over a micro-batch, divided by the number of its items in `totals`: scalars."""
        ...

    def figures(self) -> Mapping[str, tuple[float, float]]:
        """The figures measured beside the loss since the last call: name -> (sum, number)."""
        ...


class AnswerObjective:
    """The cross-entropy of the labelled tokens, in nats per token."""

    def sizes(self, batch: Batch) -> tuple[float]:
        """The number of labels."""
        return (num_labels(batch),)

    def terms(self, model: Any, batch: Batch, totals: Sequence[float]) -> tuple[torch.Tensor]:
        """The one term."""
        return (answer_loss(model, batch, totals[0]),)

    def figures(self) -> dict[str, tuple[float, float]]:
        """Nothing besides the loss."""
        return {}


class AnchoredObjective:
    """The same, and on the answers of general rows the KL divergence from the base, with a weight (anchor.py)."""

    def __init__(self, weight: float) -> None:
        self.weight, self.measured = weight, (0.0, 0.0)

    def sizes(self, batch: anchor.AnchoredBatch) -> tuple[float, float]:
        """The number of labels, and of those of general rows."""
        return num_labels(batch), len(batch["places"])

    def terms(self, model: Any, batch: anchor.AnchoredBatch, totals: Sequence[float]) -> tuple[torch.Tensor, ...]:
        """The loss on all answers, and the divergence with its weight."""
        logits, labels = scored(model, batch)
        divergence = anchor.divergence(logits, batch)
        self.measured = self.measured[0] + divergence.item(), self.measured[1] + len(batch["places"])
        return cross_entropy(logits, labels, totals[0]), self.weight / max(1, totals[1]) * divergence

    def figures(self) -> dict[str, tuple[float, float]]:
        """The KL divergence per token."""
        found, self.measured = self.measured, (0.0, 0.0)
        return {"kl": found}


class PairObjective:
    """The loss on preference pairs, and beside it the loss on the chosen answers where the settings add it."""

    def __init__(self, settings: Preference) -> None:
        self.settings = settings
        self.measured = dict.fromkeys(REWARDS, 0.0)
        self.num_pairs = 0

    def sizes(self, batch: preferences.PairBatch) -> tuple[float, float]:
        """The number of pairs, and of the tokens of chosen answers."""
        return len(batch["sizes"]), int(batch["sizes"][:, 0].sum())

    def terms(self, model: Any, batch: preferences.PairBatch, totals: Sequence[float]) -> tuple[torch.Tensor, ...]:
        """The loss on pairs, and that on the chosen answers with its weight, which may be 0."""
        number = len(batch["sizes"])
        found = answer_likelihoods(model, batch, 2 * max(1, number)).view(-1, 2)
        if not number:  # of another rank's idle micro-batch: no gradient, of the same parameters
            return found[:, 0].sum() * 0, found[:, 1].sum() * 0
        of = preferences.Compared(found, batch["reference"], batch["sizes"], self.settings)
        self._measure(of)
        of_pairs = preferences.LOSSES[self.settings.loss] if self.settings.method == "dpo" else preferences.odds_ratio
        weight = self.settings.sft_weight if self.settings.method == "dpo" else 1.0
        return of_pairs(of).sum() / totals[0], -weight * found[:, 0].sum() / totals[1]

    @torch.no_grad()
    def _measure(self, of: preferences.Compared) -> None:
        """Adds the rewards of pairs; without a reference the reward is the mean log-likelihood per token."""
        rewards = of.rewards if self.settings.needs_reference else of.settings.beta * of.policy / of.sizes
        chosen, rejected = rewards.unbind(1)
        self.num_pairs += len(rewards)
        for name, each in zip(REWARDS, (chosen, rejected, (chosen > rejected).float()), strict=True):
            self.measured[name] += each.sum().item()

    def figures(self) -> Mapping[str, tuple[float, float]]:
        """The mean rewards of both answers, and the share of pairs in which the chosen one has more."""
        found = {name: (total, self.num_pairs) for name, total in self.measured.items()}
        self.measured, self.num_pairs = dict.fromkeys(REWARDS, 0.0), 0
        return found


class LabelObjective:
    """KTO's loss on desirable and undesirable answers. The KL divergence is estimated once for all of a step."""

    def __init__(self, settings: Preference) -> None:
        self.settings = settings
        self.kl = 0.0
        self.measured: dict[str, tuple[float, float]] = dict.fromkeys((*REWARDS, "kl"), (0.0, 0.0))

    def sizes(self, batch: unpaired.LabelledBatch) -> tuple[float]:
        """The number of answers."""
        return (len(batch["desirable"]),)

    def divergence(self, model: Any, batch: unpaired.LabelledBatch) -> tuple[float, int]:
        """The sum of the mismatched answers' log-ratios of model and reference, and their number."""
        number = len(batch["desirable"])
        found = answer_likelihoods(model, batch["mismatched"], max(1, number))[:number]
        return (found - batch["reference"][:, 1]).sum().item(), number

    def terms(self, model: Any, batch: unpaired.LabelledBatch, totals: Sequence[float]) -> tuple[torch.Tensor]:
        """The one term."""
        number, desirable = len(batch["desirable"]), batch["desirable"]
        found = answer_likelihoods(model, batch, max(1, number))
        if not number:  # of another rank's idle micro-batch: no gradient, of the same parameters
            return (found.sum() * 0,)
        log_ratios = found - batch["reference"][:, 0]
        self._measure(log_ratios.detach(), desirable)
        return (unpaired.kto(log_ratios, desirable, self.kl, self.settings).sum() / totals[0],)

    def _measure(self, log_ratios: torch.Tensor, desirable: torch.Tensor) -> None:
        is_right = torch.where(desirable, log_ratios > self.kl, log_ratios < self.kl)
        rewards, number = self.settings.beta * log_ratios, len(desirable)
        new: dict[str, tuple[float, float]] = {
            "reward_chosen": (rewards[desirable].sum().item(), int(desirable.sum())),
            "reward_rejected": (rewards[~desirable].sum().item(), int((~desirable).sum())),
            "reward_accuracy": (is_right.float().sum().item(), number),
            "kl": (self.kl * number, number),
        }
        self.measured = {name: (total + new[name][0], n + new[name][1]) for name, (total, n) in self.measured.items()}

    def figures(self) -> Mapping[str, tuple[float, float]]:
        """The mean rewards of desirable and of undesirable answers, the share on their side of the KL, and the KL."""
        found = self.measured
        self.measured = dict.fromkeys(found, (0.0, 0.0))
        return found


# Of a token whose likelihood the server gave too low; TRL cuts it there too (truncated importance sampling).
MOST_CORRECTION = 2.0
MOST_GAP = 0.5  # nats per token, which no rounding comes to


class RewardObjective:
    """The loss on answers that were drawn and rewarded, as TRL's GRPOTrainer has it."""

    def __init__(self, settings: Grpo, *, is_served: bool = False) -> None:
        """With `is_served` a vLLM server drew the answers, for whose other rounding the loss is corrected."""
        self.settings, self.is_served = settings, is_served
        self.measured: dict[str, tuple[float, float]] = dict.fromkeys(groups.FIGURES, (0.0, 0.0))

    def sizes(self, batch: groups.DrawnBatch) -> tuple[float]:
        """The number of answers; each has its share of the loss already, since all of a step are drawn together."""
        return (len(batch["advantages"]),)

    def terms(self, model: Any, batch: groups.DrawnBatch, totals: Sequence[float]) -> tuple[torch.Tensor]:
        """The one term."""
        found, answers = token_likelihoods(model, batch, self.settings.temperature), batch["answers"].flatten()
        is_scored = batch["labels"].flatten() != IGNORED
        before = found.detach() if self.settings.iterations == 1 else batch["drawn"]
        ratio = (found - before).exp()
        advantages = batch["advantages"][answers]
        high = self.settings.clip if self.settings.clip_high is None else self.settings.clip_high
        clipped = ratio.clamp(1 - self.settings.clip, 1 + high)
        loss = -torch.minimum(ratio * advantages, clipped * advantages)
        with torch.no_grad():
            is_clipped = (ratio * advantages > clipped * advantages) & is_scored
            self._measure("clipped_share", is_clipped, is_scored)
        if self.is_served:
            apart = before - batch["served"]
            loss = loss * apart.exp().clamp(max=MOST_CORRECTION)
            distance = apart.abs() * is_scored
            self._measure("vllm_gap", distance, is_scored)
            if (mean := distance.sum() / is_scored.sum().clamp(min=1)) > MOST_GAP:
                raise ConfigError(
                    f"compute.vllm: the server's log-likelihoods of its answers are {mean:.2g} nats per token from the "
                    "model's: it serves another model; accepted: a vLLM server of model.base"
                )
        if self.settings.beta:
            gap = batch["reference"] - found
            divergence = gap.exp() - gap - 1
            # Weighted by the ratio, its gradient is that of the reverse KL without bias (arXiv 2512.02556).
            loss = loss + self.settings.beta * ratio * divergence
            self._measure("kl", divergence.detach() * is_scored, is_scored)
        return ((loss * is_scored * batch["weights"][answers]).sum(),)

    def _measure(self, name: str, values: torch.Tensor, is_scored: torch.Tensor) -> None:
        total, number = self.measured[name]
        self.measured[name] = total + values.sum().item(), number + is_scored.sum().item()

    def figures(self) -> Mapping[str, tuple[float, float]]:
        """The KL divergence from the reference and the share of clipped tokens, where the settings have them."""
        has = {"kl": self.settings.beta > 0, "clipped_share": self.settings.iterations > 1}
        has["vllm_gap"] = self.is_served
        found = {name: value for name, value in self.measured.items() if has[name]}
        self.measured = dict.fromkeys(groups.FIGURES, (0.0, 0.0))
        return found
