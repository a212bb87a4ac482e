"""Regular expressions and JSON Schemas of the team's expectations, tried within limits before Great Expectations does.

Great Expectations has no limit of its own, and one such as ^(a+)+$ can take longer than anybody waits. What ends in the
bounded child ends here as well.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tunewright.accepted import shown
from tunewright.errors import ConfigError
from tunewright.machine import bounded
from tunewright.metrics.schemas import ENDING_PATTERNS, Schema, check

if TYPE_CHECKING:  # what they import takes time, in the child as well
    import pandas as pd

    from tunewright.data_checks.rules import Expected

REGEXES = ("regex", "regex_list")
SCHEMA = "json_schema"
AT_ONCE = 1_000_000  # characters that are tried within the limits of a bounded call
SECONDS = bounded.SECONDS  # of processor time for them


def stop_on_endless(frame: "pd.DataFrame", asked: "Sequence[Expected]") -> None:
    """Raises ConfigError where a pattern of the team's meets a limit on the values that it will be held against."""
    for each in asked:
        column = getattr(each.expectation, "column", None)
        if not each.entry.own or column not in frame:
            continue
        for name in (*REGEXES, SCHEMA):
            if given := getattr(each.expectation, name, None):
                _try(f"{each.entry.key} ({each.entry.name}): {name}={shown(given)}", name, given, frame[column])


def _try(said: str, name: str, given: Any, values: "pd.Series") -> None:
    try:
        if name == SCHEMA:
            bounded.call(check, json.dumps(given), seconds=SECONDS)
        for texts in _parts(values.dropna().astype(str).unique().tolist()):
            bounded.call(_validate if name == SCHEMA else _search, json.dumps(given), texts, seconds=SECONDS)
    except bounded.Unreadable as error:
        if error.is_limit:
            at_most = f"on {AT_ONCE:,} characters of texts or fewer"
            raise ConfigError(f"{said} {error} {at_most}; {ENDING_PATTERNS}") from error
        if name == SCHEMA:
            raise ConfigError(f"{said} {error}") from error
    except (TypeError, ValueError):  # no pattern: Great Expectations says so
        return


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts, so many at a time that they have AT_ONCE characters; a longer one comes alone."""
    part: list[str] = []
    length = 0
    for text in texts:
        if part and length + len(text) > AT_ONCE:
            yield part
            part, length = [], 0
        part.append(text)
        length += len(text)
    if part:
        yield part


def _validate(schema: str, texts: list[str]) -> None:
    """Runs in the bounded child."""
    validator = Schema(schema).validator
    for text in texts:
        with suppress(ValueError, RecursionError):  # no JSON, or nested too deeply
            validator.is_valid(json.loads(text))


def _search(regexes: str, texts: list[str]) -> None:
    """Runs in the bounded child; `regexes` is the JSON of one or of a list."""
    given = json.loads(regexes)
    for regex in map(re.compile, [given] if isinstance(given, str) else given):
        for text in texts:
            regex.search(text)
