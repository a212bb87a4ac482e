"""Which split.seed the test rows are drawn with: with gate.rotate another once they were looked at gate.looks times.

The seeds follow each other from split.seed on, each with sides and a history of its own (data_versions.py), so that a
number that was set by hand gives the same rows. It is known before the first stage, from the ledger and from what makes
a candidate alone: what was looked at once keeps the seed of then. So a run of unchanged settings draws as before, and
nothing runs anew, until there is something new to look at.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tunewright.config import Settings
from tunewright.store import test_set_uses
from tunewright.store.test_set_uses import TestSetUse, next_number


class Draw(NamedTuple):
    """The parameters that draw the test rows of a run."""

    recipe: str  # the hash of all settings and contents that a candidate is made of
    asked: int  # split.seed as it is set
    seed: int  # as it is used
    most: int  # looks at one test set

    @property
    def said(self) -> str:
        """The reason for a redraw of the test rows, or "" if there was none."""
        if self.seed == self.asked:
            return ""
        last = f" to {self.seed - 1}" if self.seed - 1 > self.asked else ""
        return (
            f"gate.rotate: the test rows of split.seed={self.asked}{last} were used gate.looks={self.most} times or "
            f"more, so split.seed={self.seed} draws other test rows; do not compare with earlier scores"
        )

    def settings(self, settings: Settings) -> Settings:
        """The settings with the seed that is used."""
        split = settings.split.model_copy(update={"seed": self.seed})
        return settings.model_copy(update={"split": split})


def draw(settings: Settings, recipe: str) -> Draw:
    """Return the parameters of the draw by the ledger. Raises ConfigError for an invalid line of it."""
    asked, gate = settings.split.seed, settings.gate
    seed = asked
    if gate.rotate:
        seed = seed_of(test_set_uses.read(test_set_uses.file_of(settings.registry.name)), asked, gate.looks, recipe)
    return Draw(recipe, asked, seed, gate.looks)


def seed_of(looks: Sequence[TestSetUse], asked: int, most: int, recipe: str) -> int:
    """The seed that this recipe was last looked at with, or the first from `asked` on with looks left."""
    before = next((look.seed for look in reversed(looks) if look.recipe == recipe and look.seed is not None), None)
    if before is not None:
        return before
    seed = asked
    while next_number(looks, seed) > most:
        seed += 1
    return seed
