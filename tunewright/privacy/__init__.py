"""Secrets and personal data in texts: found, and kept out of what is shown."""

from typing import NamedTuple


class Masked(NamedTuple):
    """A secret, or something that leads to a person, of which only the kind and a few characters are told."""

    kind: str  # of a secret as detect-secrets calls it: "AWS Access Key"
    masked: str

    def __str__(self) -> str:
        return f"{self.kind} {self.masked}"
