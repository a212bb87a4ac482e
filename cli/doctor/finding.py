"""The result of one of doctor's checks."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """`failure` stops a run, `warning` can make one slow, unsafe or wrong later; both say how to mend it."""

    state: Literal["ok", "warning", "failure"]
    what: str
    found: str
    mend: str = ""
