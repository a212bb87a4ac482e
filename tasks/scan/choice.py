"""Which modules learn: of each type the top share by signal-to-noise ratio (Spectrum, arXiv 2406.06623, section 4.2).

Ranked are the linear modules of the layers. The authors' script ranks norms as well, whose ratio is infinite, and lets
the embeddings and the head learn whatever theirs is, since it adds tokens to the base; here no token is added, and what
has no rank among its like stays as it is.
"""

import math
from collections.abc import Mapping

from tunewright.modeling.methods.modules import type_of

Ranking = dict[str, list[str]]  # module type -> its modules, the highest ratio first


def ranking(snr: Mapping[str, float]) -> Ranking:
    """The modules of each type, by their ratio and then by name."""
    types: Ranking = {}
    for module in sorted(snr, key=lambda module: (-snr[module], module)):
        types.setdefault(type_of(module), []).append(module)
    return {kind: types[kind] for kind in sorted(types)}


def choose(snr: Mapping[str, float], share: float) -> tuple[str, ...]:
    """The modules that learn, in the order of `snr`: of n of a type the first share * n, rounded down, at least one."""
    chosen = {module for modules in ranking(snr).values() for module in modules[: _number(len(modules), share)]}
    return tuple(module for module in snr if module in chosen)


def _number(of: int, share: float) -> int:
    return max(1, math.floor(of * share + 1e-9))  # 0.29 of 100 is 28.999…
