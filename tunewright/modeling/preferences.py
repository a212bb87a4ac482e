"""Losses on preference pairs: a prompt, the answer that was chosen and the one that was rejected.

With a shared prefix a pair is one row that branches behind its prompt, so that the prompt is computed once for both
answers; otherwise it is two rows. The losses are those of TRL's DPOTrainer and ORPOTrainer, and so are their names.

All tensors of log-likelihoods are [pairs, 2], the chosen answer first, in nats.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import logsigmoid

from tunewright.config import Preference
from tunewright.modeling.batches import Batch, Collator
from tunewright.modeling.micro_batching import Row
from tunewright.modeling.pairs import Pair, answers_of, as_row, two_rows

NEARLY_CERTAIN = -1e-6  # of a mean log-likelihood: at 0 the odds are infinite
REFERENCE = ("reference_chosen", "reference_rejected")  # columns of a pair, where the loss needs the reference's


class PairBatch(Batch):
    """A micro-batch of pairs: how many tokens each answer has [pairs, 2], and the reference's log-likelihoods."""

    sizes: torch.Tensor
    reference: torch.Tensor  # [pairs, 2]; zeros where the loss needs none


class PairCollator(Collator):
    """A Collator of pairs: `micro_batch` counts pairs, and the tokens of one are those of both answers."""

    def __call__(self, rows: Sequence[Pair]) -> dict[str, Any]:
        """The step's batch, of pairs as they were drawn."""
        return super().__call__([as_row(pair, branches=self.layout == "shared") for pair in rows])

    def _without_labels(self, rows: Sequence[Row]) -> PairBatch:
        """A micro-batch of which nothing is learned: its pairs have no answers."""
        batch = self.lay(rows[:1])
        batch["sizes"], batch["reference"] = batch["sizes"][:0], batch["reference"][:0]
        return batch

    def lay(self, rows: Sequence[Row]) -> PairBatch:
        """One micro-batch of the pairs."""
        pairs = [row["pair"] for row in rows]
        laid = super().lay(rows if self.layout == "shared" else [each for pair in pairs for each in two_rows(pair)])
        return {
            **laid,
            "sizes": torch.tensor([[*map(len, answers_of(pair))] for pair in pairs]),
            "reference": torch.tensor([[pair.get(name, 0.0) for name in REFERENCE] for pair in pairs]),
        }


class Compared(NamedTuple):
    """The log-likelihoods of pairs that a loss is made of."""

    policy: torch.Tensor  # the log-likelihoods by the model in training
    reference: torch.Tensor
    sizes: torch.Tensor
    settings: Preference

    @property
    def rewards(self) -> torch.Tensor:
        """The implicit rewards [pairs, 2]: beta times the log-ratio of model and reference."""
        return self.settings.beta * (self.policy - self.reference)

    @property
    def margin(self) -> torch.Tensor:
        """(pairs,) the reward of the chosen answer less that of the rejected one."""
        return self.rewards[:, 0] - self.rewards[:, 1]

    @property
    def mean_margin(self) -> torch.Tensor:
        """(pairs,) the same of rewards per token."""
        rewards = self.rewards / self.sizes
        return rewards[:, 0] - rewards[:, 1]


def _ipo(of: Compared) -> torch.Tensor:
    return (of.mean_margin / of.settings.beta - 1 / (2 * of.settings.beta)) ** 2


def _exo_pair(of: Compared) -> torch.Tensor:
    smoothing, margin = of.settings.label_smoothing, of.margin
    kept = torch.sigmoid(margin) * (logsigmoid(margin) - math.log1p(-smoothing))
    return kept + torch.sigmoid(-margin) * (logsigmoid(-margin) - math.log(smoothing))


def _nca_pair(of: Compared) -> torch.Tensor:
    chosen, rejected = of.rewards.unbind(1)
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _robust(of: Compared) -> torch.Tensor:
    smoothing, margin = of.settings.label_smoothing, of.margin
    return (smoothing * logsigmoid(-margin) - (1 - smoothing) * logsigmoid(margin)) / (1 - 2 * smoothing)


def _sppo_hard(of: Compared) -> torch.Tensor:
    chosen, rejected = (of.policy - of.reference).unbind(1)
    return (chosen - 0.5 / of.settings.beta) ** 2 + (rejected + 0.5 / of.settings.beta) ** 2


def _apo_zero(of: Compared) -> torch.Tensor:
    chosen, rejected = of.rewards.unbind(1)
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


# (pairs,) the loss of each pair.
LOSSES: dict[str, Callable[[Compared], torch.Tensor]] = {
    "sigmoid": lambda of: -logsigmoid(of.margin),
    "hinge": lambda of: torch.relu(1 - of.margin),
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": lambda of: -logsigmoid(of.rewards[:, 0]) - logsigmoid(-of.rewards[:, 1]),
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": lambda of: torch.sigmoid(of.rewards[:, 0]) + 1 - torch.sigmoid(of.margin),
    "sigmoid_norm": lambda of: -logsigmoid(of.mean_margin),
}


def odds_ratio(of: Compared) -> torch.Tensor:
    """(pairs,) ORPO's loss on the odds of both answers, by their mean log-likelihood per token (arXiv 2403.07691)."""
    mean = (of.policy / of.sizes).clamp(max=NEARLY_CERTAIN)
    against = torch.log(-torch.expm1(mean))
    odds = (mean - against)[:, 0] - (mean - against)[:, 1]
    return -of.settings.beta * logsigmoid(odds)
