"""Figures as sentences and pages write them."""

from collections.abc import Sequence

SMALL = 0.005  # a figure under which two digits would say nothing


def number(value: float, digits: int = 2) -> str:
    """.84, -.05, 1.00, 12.5, 4,321"""
    if abs(value) >= 10:
        return f"{value:,.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
    rounded = f"{round(value, digits) + 0.0:.{digits}f}"
    return rounded.replace("0.", ".", 1) if abs(float(rounded)) < 1 else rounded


def interval(found: Sequence[float], *, signed: bool) -> str:
    """A mean between its bounds: +.02 [-.04, .08]"""
    digits = 3 if any(0 < abs(value) < SMALL for value in found) else 2
    low, mean, high = (number(value, digits) for value in found)
    return f"{'+' if signed and found[1] >= 0 else ''}{mean} [{low}, {high}]"


def rounded_up(rows: int) -> int:
    """A number of rows to two digits, since it is no more than an estimate."""
    unit = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // unit) * unit


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 4,321 rows"""
    return f"{number:,} {noun}{'s'[: number != 1]}"
