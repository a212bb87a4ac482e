"""Estimate the time of training: its arithmetic, divided by a measured rate or by a card's peak."""

from collections.abc import Sequence
from typing import NamedTuple

from tunewright.config import Method
from tunewright.cost_model.learning import learning
from tunewright.cost_model.memory import Load
from tunewright.cost_model.shapes import ModelShape
from tunewright.modeling.compute import Chosen
from tunewright.reports.pages import percent

# Of a card's peak that training reaches, from what is published of single-GPU fine-tuning: low where a model is small
# or its rows are short, high where both are large.
UTILISATION = (0.15, 0.5)
SCALING = (0.6, 1.0)  # of so many times a card's rate, that several reach together: low over PCIe, high over NVLink
FORWARD_SHARE = {"full": 1 / 3, "spectrum": 0.4, "osf": 0.4, "lora": 0.5, "qlora": 0.5}  # of a step, for an evaluation


LAUNCHING = (0.001, 0.004)  # seconds a layer: some 250 kernels of forward and backward at 4 to 16 microseconds each


class Rate(NamedTuple):
    """Operations a second, from so much to so much, where that is from, and seconds a layer beside them."""

    low: float
    high: float
    source: str
    launching: tuple[float, float] = (0.0, 0.0)


def flops(shape: ModelShape, method: Method, chosen: Chosen, loads: Sequence[Load]) -> float:
    """Multiplications and additions of training on these micro-batches.

    Forward takes two a weight and token. Backward takes as many for the activations' gradients, and as many again for
    those of the weights that learn; checkpointing goes forward twice. Attention takes four a number of the queries and
    a token that is seen; the head counts at labelled positions.
    """
    what = learning(shape, method)
    layers = shape.num_layers
    learning_share = 0.0 if what.is_adapter else sum(m.size for m in what.matrices) / shape.num_linear
    passed_back = 1 - what.first_layer / layers
    passes = 1 + passed_back + learning_share + (1 if chosen.checkpointing else 0)
    wide = shape.heads * shape.head_size
    total = 0.0
    for load in loads:
        linear = 2 * load.tokens * (shape.num_linear + shape.expert_share * shape.num_expert)
        seen = 4 * (load.seen + load.prefix**2) * wide / 2 * layers
        # osf multiplies by its directions as they are and as they began.
        adapter = (12 if method.kind == "osf" else 6) * load.tokens * what.num_learning if what.is_adapter else 0
        head = 2 * load.scored * shape.num_embedding * (3 if method.kind == "full" else 2)
        total += (linear + seen) * passes + adapter + head
    return total


def seconds(work: float, num_layers: float, rate: Rate) -> tuple[float, float]:
    """The fewest and the most seconds for so many operations in so many passes through a layer."""
    fewest, most = rate.launching
    return work / rate.high + num_layers * fewest, work / rate.low + num_layers * most


def rate_of(teraflops: float, devices: int = 1) -> Rate | None:
    """Estimate the throughput of so many cards with this peak, or return None if the peak is unknown."""
    if not teraflops:
        return None
    low, high = (share * scaled for share, scaled in zip(UTILISATION, SCALING if devices > 1 else (1, 1), strict=True))
    return Rate(
        low * teraflops * devices * 1e12,
        high * teraflops * devices * 1e12,
        f"an estimated {percent(low)} to {percent(high)} of each card's peak of {teraflops:g} TFLOP/s and "
        f"{1e3 * LAUNCHING[0]:g} to {1e3 * LAUNCHING[1]:g} ms per layer and step",
        LAUNCHING,
    )
