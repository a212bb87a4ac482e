"""Reports as pages of HTML that load nothing, of one look: frame.html is what they extend."""

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

EXACT = 1e-9  # less is a rounding of the machine's
SHOW_NONE = "so few rows can show no gain, however large"  # in place of a smallest detectable gain
MOST_DIGITS = 4  # of an interval; more would say nothing

NUMBERED = re.compile(r"\.(json|parquet|arrow)(\.(gz|bz2|xz|zst))?$")  # files whose records have no lines


def number(value: float, digits: int = 2) -> str:
    """.84, -.05, 1.00, 12.5, 100.5, 4,321; and .995, .9996, since a share below 1 is none of 1"""
    while abs(value) < 1 - EXACT and abs(_rounded(value, digits)) == 1:
        digits += 1
    rounded = f"{_rounded(value, digits) + 0.0:,.{_places(value, digits)}f}"
    if abs(value) >= 10:
        return rounded.rstrip("0").rstrip(".") if "." in rounded else rounded
    return rounded.replace("0.", ".", 1) if abs(float(rounded)) < 1 else rounded


def exactly(value: float) -> str:
    """A number that a person has set, with as many digits as it has: .02, .005"""
    kept = (digits for digits in range(2, 9) if abs(round(value, _places(value, digits)) - value) < EXACT)
    return number(value, next(kept, 9))


def percent(share: float, digits: int = 0) -> str:
    """A share as a percentage: 80 %, 12.5 %"""
    return f"{100 * share + math.copysign(EXACT, share):.{digits}f} %"


def estimated_power(power: float) -> str:
    """The power of a test as a percentage, as far as an estimate can tell: 80 % power, over 99 % power."""
    if power > 0.99:
        return "over 99 % power"
    return f"{percent(power)} power" if power >= 0.01 else "under 1 % power"


def interval(found: Sequence[float], *, signed: bool, threshold: float = 0.0, digits: int | None = None) -> str:
    """A mean between its bounds: +.02 [-.04, .08]; rounded, each is still on its side of 0 and of `threshold`.

    It has as many `digits` as that takes, unless they are given.
    """
    low, mean, high = [number(value, digits) for value in found] if digits else rounded(found, threshold)
    return f"{'+' if signed and found[1] >= 0 else ''}{mean} [{low}, {high}]"


def signed_interval(found: Sequence[float]) -> tuple[str, ...]:
    """The bounds and the mean of a difference, each for a cell of its own: -.04, +.02, +.08"""
    return tuple(f"{'+' if value >= 0 else ''}{said}" for value, said in zip(found, rounded(found), strict=True))


def rounded(found: Sequence[float], threshold: float = 0.0) -> list[str]:
    """Each number with as few digits, from two to four, as leave it on its side of 0 and of `threshold`."""
    digits = next(_that_keep_sides(found, threshold), MOST_DIGITS)
    return [number(value, digits) for value in found]


def below(value: float, threshold: float) -> str:
    """A value with as few decimals, from two to four, as leave it on its side of the threshold."""
    return f"{value:.{next(_that_keep_sides([value], threshold), MOST_DIGITS)}f}"


def digits_of(own: float, theirs: float, difference: Sequence[float], threshold: float = 0.0) -> int:
    """Return the digits that two scores and the interval of their difference need to agree.

    Rounded, the higher score is still the higher one, and the interval is as `interval` rounds it. The scores differ by
    the rounded mean, where they do unrounded; with three digits or more they may miss it by one unit of the last.
    """
    mean, fitting = abs(difference[1]), list(_that_keep_sides(difference, threshold)) or [MOST_DIGITS]
    is_sum = abs(abs(own - theirs) - mean) < EXACT
    apart = [each for each in fitting if abs(own - theirs) < EXACT or _rounded(own, each) != _rounded(theirs, each)]
    for digits in apart if is_sum else ():
        coarsest = min(_places(value, digits) for value in (own, theirs, mean))
        missed = abs(abs(_rounded(own, digits) - _rounded(theirs, digits)) - _rounded(mean, digits))
        if missed < EXACT + (10**-coarsest if digits > 2 else 0):
            return digits
    return next(iter(apart), MOST_DIGITS)


def _that_keep_sides(found: Sequence[float], threshold: float) -> Iterator[int]:
    return (each for each in range(2, MOST_DIGITS + 1) if _keep_sides(found, threshold, each))


def _rounded(value: float, digits: int) -> float:
    """Half away from zero, also where the machine holds less than the half: .475 to .48."""
    return round(value + math.copysign(EXACT, value), _places(value, digits))


def _keep_sides(values: Sequence[float], threshold: float, digits: int) -> bool:
    pairs = [(value - edge, _rounded(value, digits) - edge) for value in values for edge in (0, threshold)]
    return all((true > EXACT, true < -EXACT) == (said > EXACT, said < -EXACT) for true, said in pairs)


def _places(value: float, digits: int) -> int:
    """Return the digits behind the point of a number that has `digits` there if it is below 10."""
    return digits if abs(value) < 10 else digits - 1 if abs(value) < 1_000 else max(digits - 2, 0)


def rounded_up(rows: int) -> int:
    """A number of rows to two digits, since it is no more than an estimate."""
    unit = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // unit) * unit


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 4,321 rows"""
    return f"{number:,} {noun}{'s'[: number != 1]}"


def unit(file: str) -> str:
    """The word for a record's place in a data file: a line, or a record where lines do not count the records."""
    return "record" if NUMBERED.search(file) else "line"


def located(file: str, line: int) -> str:
    """Where a row or record is: a.jsonl line 3, b.json record 3"""
    return f"{file} {unit(file)} {line}"


def in_part(contender: str, rows: str) -> str:
    """A contender with the rows that its figures are of, where these are not all: retrieval (75 of 300 rows)"""
    return f"{contender} ({rows} rows)" if rows else contender


@cache
def template(file: Path) -> Template:
    """A template, which may extend frame.html, or import what lies beside it, or in a folder beside its own."""
    pages = Environment(
        loader=FileSystemLoader([file.parent, file.parent.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals["unit"] = unit
    return pages.get_template(file.name)
