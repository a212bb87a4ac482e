"""A sentence for a person on each row that was set aside: the row that it is in conflict with, and where.

What it has in common with an evaluation row is not quoted: the sentence is read while the test set is sealed.
"""

import math

from tunewright.artifacts.placement import NONE, SIDES, Because
from tunewright.tasks.split.columns import RowColumns
from tunewright.tasks.split.contamination import Contamination
from tunewright.tasks.split.passages import first_word
from tunewright.tasks.split.sides import Partner, Sides


class Details:
    """Says why a row was set aside."""

    def __init__(self, columns: RowColumns, sides: Sides, found: Contamination) -> None:
        self.columns, self.sides, self.found = columns, sides, found
        self.passages = found.training_rows()

    def __call__(self, row: int, text: str) -> str:
        """The sentence on a row with this text."""
        if self.sides.because[row] == Because.CONTAMINATED:
            return self._of_passage(*self.passages[row], text)
        if self.sides.because[row] == Because.NOT_DRAWN:
            return "split.replay allows no more replay rows"
        partners = " and ".join(self._of_partner(partner) for partner in self.sides.partners[row])
        is_replay = self.sides.because[row] == Because.REPEATS_OWN_ROW
        return f"It {partners}, {'which takes precedence' if is_replay else 'so no split can take it'}"

    def _of_partner(self, partner: Partner) -> str:
        kind = "row" if partner.side == NONE else f"{SIDES[partner.side]} row"
        other = f"{kind} {self.columns.place(partner.row)}"
        if math.isnan(partner.similarity):
            return f"has the same group as {other}"
        return f"is similar to {other} (similarity {partner.similarity:.2f})"

    def _of_passage(self, text: int, passage: int, whole: str) -> str:
        other = self.place(text)
        if not passage:
            return f"Its whole prompt occurs in {other}"
        word = first_word(whole, passage)
        return f"It shares a passage with {other}" + (f", from its word {word} on" if word else "")

    def place(self, text: int) -> str:
        """Where an evaluation text stands."""
        if text < self.found.num_rows:
            return f"{SIDES[int(self.sides.side[text])]} row {self.columns.place(text)}"
        record = text - self.found.num_rows
        file, line = (self.found.held_out[name][record].as_py() for name in ("file", "line"))
        return f"held-out {file}:{line}"
