"""Counts of quarantined and repeated rows of user-provided splits, which make those splits smaller."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from tunewright.reports.pages import located, unit

REPEATED = 5  # rows whose places are told


class RefusedCounts(NamedTuple):
    """Counts of the records that ingest refused in the files of one split."""

    reasons: Counter[str]
    first: str  # of the records: "golden.jsonl line 3"


class Given(NamedTuple):
    """Account of the records assigned to one split."""

    split: str
    records: int
    reasons: dict[str, int]  # why records are refused or quarantined -> how many, the most frequent first
    first: str  # of them
    again: list[str]  # the rows that say the same as an earlier one: "golden.jsonl line 7 (as line 3)"

    @property
    def quarantined(self) -> int:
        """The number of quarantined records."""
        return sum(self.reasons.values())

    @property
    def findings(self) -> dict[str, int]:
        """Rows by what the finding is called."""
        found = {"quarantined": self.quarantined, "repeated": len(self.again)}
        return {f"given_{self.split}_rows_{what}": count for what, count in found.items() if count}

    def says(self) -> Iterator[str]:
        """The findings in words."""
        whole = f"of the {self.records:,} records of the user-provided {self.split} set"
        if self.quarantined:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
            left = self.records - self.quarantined
            said = f"{left:,} left" if left else "none left"
            yield f"{self.quarantined:,} {whole} were quarantined, {said}: {reasons}; first: {self.first}"
        if self.again:
            once = " (the decision counts each once)" if self.split == "test" else ""
            more = f" and {len(self.again) - REPEATED:,} more" if len(self.again) > REPEATED else ""
            yield f"{len(self.again):,} {whole} repeat an earlier one{once}: {', '.join(self.again[:REPEATED])}{more}"


def user_provided_splits(
    frame: pd.DataFrame, failing: npt.NDArray[np.bool_], names: Sequence[str], refused: Mapping[str, RefusedCounts]
) -> list[Given]:
    """Return the account of each assigned split that loses records or repeats rows; its reasons are among `names`.

    `failing` has a line for each expectation and a column for each row of `frame`; a row counts for the first that it
    fails. `refused` is by split.
    """
    aside = np.flatnonzero(failing.any(axis=0))
    found = []
    for split in ("validation", "test"):
        rows = np.flatnonzero(frame["use_as"].eq(split).fillna(False).to_numpy(dtype=np.bool_))
        if not len(rows):  # of a limited run: another split is drawn
            continue
        of_ingest = refused.get(split, RefusedCounts(Counter(), ""))
        lost = np.intersect1d(rows, aside)
        by = failing[:, lost].argmax(axis=0) if len(lost) else lost
        reasons = of_ingest.reasons + Counter(names[int(number)] for number in by)
        first = of_ingest.first or (_place(frame, int(lost[0])) if len(lost) else "")
        num_records = len(rows) + of_ingest.reasons.total()
        given = Given(
            split, num_records, dict(reasons.most_common()), first, list(_again(frame, np.setdiff1d(rows, aside)))
        )
        found += [given] if given.findings else []
    return found


def _again(frame: pd.DataFrame, rows: npt.NDArray[np.int64]) -> Iterator[str]:
    """The place of each of the rows that equals an earlier one of them, and of that one."""
    ids = frame["row_id"].iloc[rows].to_numpy()
    firsts: dict[str, int] = {}
    for row, row_id in zip(rows.tolist(), ids, strict=True):
        first = firsts.setdefault(row_id, row)
        if first != row:
            same_file = frame["file"].iloc[first] == frame["file"].iloc[row]
            as_first = (
                f"{unit(frame['file'].iloc[row])} {frame['line'].iloc[first]}" if same_file else _place(frame, first)
            )
            yield f"{_place(frame, row)} (as {as_first})"


def _place(frame: pd.DataFrame, row: int) -> str:
    return located(frame["file"].iloc[row], frame["line"].iloc[row])
