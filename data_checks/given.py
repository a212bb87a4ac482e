"""Rows of a validation or a test side that their source gives: what is set aside of them makes that side smaller."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd


class Given(NamedTuple):
    """What became of the rows that are given to a side."""

    side: str
    rows: int
    reasons: dict[str, int]  # why rows are set aside -> how many, the most frequent first
    first: str  # of them: "golden.jsonl line 3"

    @property
    def set_aside(self) -> int:
        """How many of the rows are."""
        return sum(self.reasons.values())

    @property
    def name(self) -> str:
        """What the finding is called."""
        return f"given_{self.side}_rows_set_aside"

    def says(self) -> str:
        """The finding in words."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
        left = "none is left" if self.set_aside == self.rows else f"{self.rows - self.set_aside:,} left"
        which = f"{self.set_aside:,} of the {self.rows:,} rows of the given {self.side} side"
        return f"{which} were set aside by check, {left}: {reasons}; first: {self.first}"


def given_sides(frame: pd.DataFrame, failing: npt.NDArray[np.bool_], names: Sequence[str]) -> list[Given]:
    """Of each given side that loses rows of `frame`: how many, and by which of the expectations `names` they fail.

    `failing` has a line for each expectation and a column for each row, which counts for the first that it fails.
    """
    aside = np.flatnonzero(failing.any(axis=0))
    by = failing[:, aside].argmax(axis=0) if len(aside) else aside
    sides = frame["side"].iloc[aside].fillna("").to_numpy()
    found = []
    for side in ("validation", "test"):
        lost = np.flatnonzero(sides == side)
        if len(lost):
            reasons: Counter[str] = Counter(names[int(number)] for number in by[lost])
            first = frame.iloc[int(aside[lost[0]])]
            place = f"{first['file']} line {first['line']}"
            rows = int(frame["side"].eq(side).sum())
            found.append(Given(side, rows, dict(reasons.most_common()), place))
    return found
