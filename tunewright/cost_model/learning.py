"""The trainable parameters of a model by a method, counted from its shape."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from tunewright.config import Method
from tunewright.cost_model.shapes import CONV1D, Matrix, ModelShape
from tunewright.errors import ConfigError
from tunewright.modeling.methods.modules import ATTENTION, without_adapter


class Learning(NamedTuple):
    """The parameters that learn, and the linear modules that they belong to."""

    num_learning: int
    matrices: frozenset[Matrix]  # that get an adapter, or learn themselves
    is_adapter: bool

    @property
    def first_layer(self) -> int:
        """The first layer that a gradient reaches; nothing is kept of those before it."""
        return min((matrix.layer for matrix in self.matrices), default=0)

    def num_parameters(self, shape: ModelShape) -> int:
        """All parameters of the model that trains: the base's, and those of an adapter beside them."""
        return shape.num_parameters + (self.num_learning if self.is_adapter else 0)


def learning(shape: ModelShape, method: Method) -> Learning:
    """Return the trainable parameters. Raises ConfigError if the base lacks a module that the method names.

    Spectrum's modules are known only after its scan; until then a sample from all layers is used.
    """
    if method.kind == "full":
        return Learning(shape.num_parameters, frozenset(shape.matrices), is_adapter=False)
    if method.kind == "spectrum":
        picked = _picked(shape, method.share)
        return Learning(sum(matrix.size for matrix in picked), frozenset(picked), is_adapter=False)
    adapted = _adapted(shape, method)
    if method.kind == "osf":
        if shape.kind in CONV1D:
            raise ConfigError(
                f"method.kind=osf: PEFT does not decompose the modules of {shape.kind}; accepted: lora, full"
            )
        num_learning = sum(directions(m, method) * (m.inputs + m.outputs + 1) for m in adapted)
        return Learning(num_learning, frozenset(adapted), is_adapter=True)
    num_learning = sum(method.rank * (m.inputs + m.outputs) + method.dora * m.outputs for m in adapted)
    return Learning(num_learning, frozenset(adapted), is_adapter=True)


def directions(matrix: Matrix, method: Method) -> int:
    """Return how many of a matrix's singular directions learn with osf, as PEFT rounds their number."""
    smaller = min(matrix.inputs, matrix.outputs)
    return smaller - int(smaller * (1 - method.share))


def _adapted(shape: ModelShape, method: Method) -> list[Matrix]:
    """The modules that get an adapter: those of tunewright/modeling/methods/modules.py, by their names in the files."""
    num_layers = shape.num_layers
    if method.layers and method.layers > num_layers:
        raise ConfigError(f"method.layers={method.layers}: the base has only {num_layers} layers")
    first = num_layers - (method.layers or num_layers)
    names: Sequence[str] = [name.strip().rpartition(".")[2] for name in method.target.split(",")]
    there = {matrix.name for matrix in shape.matrices} - without_adapter(shape.kind)
    if method.target == "attention":
        names = [name for name in there if name in ATTENTION]
    elif method.target == "all-linear":
        names = list(there)
    if missing := [name for name in names if name not in there]:
        raise ConfigError(
            f"method.target={method.target}: the base has no {missing[0]} in its layers; it has "
            f"{', '.join(sorted(there))}"
        )
    return [matrix for matrix in shape.matrices if matrix.name in names and matrix.layer >= first]


def _picked(shape: ModelShape, share: float) -> list[Matrix]:
    """As many modules of each type as spectrum trains."""
    picked: list[Matrix] = []
    for name in dict.fromkeys(matrix.name for matrix in shape.matrices):
        of_type = [matrix for matrix in shape.matrices if matrix.name == name]
        number = max(1, math.floor(share * len(of_type) + 1e-9))  # as tasks/scan/choice.py has it
        picked += [of_type[at * len(of_type) // number] for at in range(number)]
    return picked
