"""Money: the time of a device at the price of its hour, which a team sets in operation.prices."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from tunewright.artifacts import Answers, Artifact
from tunewright.modeling.compute import Device

SPREAD = ("train", "prefer", "reinforce", "label_errors", "evaluate")  # the stages that use all of compute.devices


class Price(NamedTuple):
    """The price of an hour of one device, in the currency of operation.prices."""

    hour: float
    device: str  # its key in operation.prices

    def of(self, seconds: float, devices: int = 1) -> float:
        """The cost of so many seconds on so many devices."""
        return self.hour * seconds * devices / 3600

    @property
    def said(self) -> str:
        """Such as "2.50 an hour of h100"."""
        return f"{money(self.hour)} an hour of {self.device}"


def devices_of(record: Artifact | None, stage: str, number: int) -> int:
    """The devices that a stage computed on, in a run with `number` of them: one where it does not spread its work.

    A model behind an API answers on none of them, and its stage is counted as on one.
    """
    is_asked = isinstance(record, Answers) and record.api is not None
    return number if stage in SPREAD and not is_asked else 1


def price_of(device: Device, prices: Mapping[str, float]) -> Price | None:
    """The price of a device by its name: the longest key that is in it counts. None where no key is.

    Such as the price of h100 for "NVIDIA H100 80GB HBM3".
    """
    flat = device.name.lower().replace(" ", "-")
    keys = [key for key in prices if key.lower().replace(" ", "-") in flat]
    return Price(prices[max(keys, key=len)], max(keys, key=len)) if keys else None


def without_price(device: Device) -> str:
    """The beginning of a sentence about a device that has no price."""
    return f"operation.prices has no price of {device.name}"


def money(amount: float) -> str:
    """An amount with two decimals, or two digits where it is less than .1: "1,250.00", "31.20", "0.0042"."""
    return f"{amount:,.2f}" if amount >= 0.1 or not amount else f"{Decimal(f'{amount:.2g}'):f}"


def rounded(amount: float) -> float:
    """An amount as `money` shows it."""
    return float(money(amount).replace(",", ""))


def rounded_up(amount: float) -> float:
    """An amount above 0, rounded up to the digits that `money` shows."""
    digits = 2 if amount >= 0.1 else 1 - math.floor(math.log10(amount))
    return math.ceil(round(amount * 10**digits, 6)) / 10**digits


def span(low: float, high: float) -> str:
    """An amount from so much to so much; one alone where both read the same."""
    least, most = money(low), money(high)
    return least if least == most else f"{least} to {most}"
