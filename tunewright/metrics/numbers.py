r"""The number that an answer ends in: "#### 42", "so it is $1,234.50.", "1 1/2", "½", "\frac{1}{2}", "12 %", "3e8"."""

import re
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

MARK = "####"  # what comes before the final number in GSM8K and its like
BETWEEN = ".,'\u2019\u00a0\u202f"  # the digits of one number
NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]%])[-\u2212](?=[$€£¥]?\.?\d))?[$€£¥]?"
    r"(?:(?:(?P<whole>\d{1,3}) )?(?<![\d/])(?P<over>\d+)/(?P<under>\d+)|"
    rf"(?P<digits>\d+(?:[{BETWEEN}]\d+)*|\.\d+)(?:[eE](?P<power>[+-]?\d{{1,3}})(?!\d))?)"
    r"(?P<percent>\s?%)?"
)
LONGEST = 400  # characters of a number; nobody means a longer one, and Python refuses to read the longest
FRAC = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
SIGNS = {
    "\u00bc": " 1/4", "\u00bd": " 1/2", "\u00be": " 3/4", "\u2150": " 1/7", "\u2151": " 1/9", "\u2152": " 1/10",
    "\u2153": " 1/3", "\u2154": " 2/3", "\u2155": " 1/5", "\u2156": " 2/5", "\u2157": " 3/5", "\u2158": " 4/5",
    "\u2159": " 1/6", "\u215a": " 5/6", "\u215b": " 1/8", "\u215c": " 3/8", "\u215d": " 5/8", "\u215e": " 7/8",
}  # fmt: skip


class Number(NamedTuple):
    """An exact value, and whether a percent sign stands behind it."""

    value: Fraction
    is_percent: bool

    def is_same(self, other: "Number") -> bool:
        """Whether both mean the same; beside a number without the sign, 50 % is 50 or 0.5."""
        if self.is_percent == other.is_percent:
            return self.value == other.value
        percent, number = (self, other) if self.is_percent else (other, self)
        return number.value in (percent.value, percent.value / 100)


def numeric(answer: str, reference: str) -> float:
    """1.0 where the last number of the answer is that of the reference, in value; 0.0 where either has none.

    Behind the last "####" the first one counts. Values are exact: 1/3 is not 0.333.
    """
    said, wanted = last_number(answer), last_number(reference)
    return float(said is not None and wanted is not None and said.is_same(wanted))


def last_number(text: str) -> Number | None:
    """The last number of a text, or the first behind its last "####" with one behind it; None where there is none."""
    before, mark, behind = text.rpartition(MARK)
    numbers = [number for found in NUMBER.finditer(_spelled(behind)) if (number := _read(found))]
    if mark and not numbers:
        return last_number(before)
    return (numbers[0] if mark else numbers[-1]) if numbers else None


def is_number(text: str) -> bool:
    """Whether the last line of a text is a number and nothing else, perhaps behind "####"."""
    line = text.strip().rpartition("\n")[2].rpartition(MARK)[2]
    found = NUMBER.fullmatch(_spelled(line).strip().rstrip("."))
    return found is not None and _read(found) is not None


def _spelled(text: str) -> str:
    """With fractions as 1/2."""
    return FRAC.sub(r" \1/\2", text).translate(str.maketrans(SIGNS))


def _read(found: re.Match[str]) -> Number | None:
    """The number of a match; None where it is too long, or over zero."""
    if len(found[0]) > LONGEST or (found["under"] and not int(found["under"])):
        return None
    if found["over"]:
        value = Fraction(int(found["over"]), int(found["under"]))
        value += int(found["whole"] or 0) if value < 1 else 0
    else:
        value = _decimal(found["digits"]) * Fraction(10) ** int(found["power"] or 0)
    return Number(-value if found["minus"] else value, bool(found["percent"]))


def _decimal(written: str) -> Fraction:
    """The value of digits with signs between them: 1,234.5 and 1.234,5 and 1'234.5; 12,5 and 1.234; 1,234 as English.

    Of what is no number, such as a date or a version, the last part.
    """
    *whole, last = parts = re.split(f"[{BETWEEN}]", written)
    between = re.findall(f"[{BETWEEN}]", written)
    if not between:
        return Fraction(int(written))
    sign, before = between[-1], between[:-1]
    is_group = sign not in ".," or (sign == "," and not before and len(last) == 3 and whole[0] != "0")
    if not is_group and sign not in before and _are_groups(whole, before):
        return Fraction(int("".join(whole) or 0)) + Fraction(int(last), 10 ** len(last))
    return Fraction(int("".join(parts) if _are_groups(parts, between) else last))


def _are_groups(parts: list[str], between: list[str]) -> bool:
    """Whether the parts are groups of three digits, all apart by the same sign."""
    return (
        len(parts[0]) <= (3 if between else LONGEST)
        and all(len(part) == 3 for part in parts[1:])
        and all(one == other for one, other in pairwise(between))
    )
