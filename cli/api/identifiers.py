"""Identifiers of files, jobs, events and checkpoints, as random as OpenAI's, and lists of them in pages."""

import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any

from tunewright.accepted import shown
from tunewright.cli.serve.asking import RequestError

LETTERS = string.ascii_letters + string.digits
LENGTH = 24


def new_id(kind: str) -> str:
    """A random identifier, such as file-4kX...: letters and digits alone, so that it can be a file's name."""
    return f"{kind}-{''.join(secrets.choice(LETTERS) for _ in range(LENGTH))}"


def page(found: Sequence[dict[str, Any]], query: Mapping[str, str], usual: int, most: int) -> dict[str, Any]:
    """A page of objects, by `limit` and `after` of a request. Raises RequestError where these are wrong."""
    limit = query.get("limit", str(usual))
    if not (limit.isdecimal() and limit.isascii() and len(limit) < 9 and 1 <= int(limit) <= most):
        raise RequestError(f"limit {shown(limit)}: accepted: a whole number from 1 to {most:,}", param="limit")
    start = 0
    if after := query.get("after"):
        start = next((at for at, each in enumerate(found, start=1) if each["id"] == after), -1)
        if start < 0:
            raise RequestError(f"after {shown(after)}: accepted: the id of an item of this list", param="after")
    data = list(found[start : start + int(limit)])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + len(data) < len(found),
    }
