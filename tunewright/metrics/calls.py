"""Scores of answers to rows with tools: which tools are called, with which arguments, and whether one is needed.

An answer's calls are compared with the reference's as sets, in whatever order they stand. Where the reference has no
call, an answer without one is right, whatever it says: metrics of texts say how good it is.
"""

import json
from collections import Counter
from functools import lru_cache

from tunewright.tools.parsing import Call, parse

MOST = 100_000  # answers that are remembered with their calls: each metric looks at the same ones


@lru_cache(MOST)
def calls(text: str) -> tuple[Call, ...]:
    """The calls of an answer."""
    return tuple(parse(text).calls)


def tool_call(answer: str, reference: str) -> float:
    """1.0 where the calls are those of the reference, names and arguments; or where rightly there are none."""
    said, wanted = (Counter(call.canonical for call in calls(text)) for text in (answer, reference))
    return float(said == wanted)


def tool_name(answer: str, reference: str) -> float:
    """1.0 where the tools that are called are those of the reference; or where rightly none is."""
    said, wanted = (Counter(call.name for call in calls(text)) for text in (answer, reference))
    return float(said == wanted)


def tool_arguments(answer: str, reference: str) -> float:
    """The share of arguments that are equal, of the answer's or of the reference's, whichever has more.

    A call without arguments counts as one of its own.
    """
    said, wanted = (Counter(_arguments(text)) for text in (answer, reference))
    most = max(said.total(), wanted.total())
    return (said & wanted).total() / most if most else 1.0


def needless_call(answer: str, reference: str) -> float:
    """1.0 where a tool is called and the reference calls none."""
    return float(bool(calls(answer)) and not calls(reference))


def tool_schema(answer: str, tools: str | None) -> float:
    """1.0 where each call is of one of the row's tools, and its arguments fit that tool's schema."""
    from tunewright.tools.schema import functions, misfit

    known = functions(json.loads(tools)) if tools else {}
    return float(all(call.name in known and not misfit(known[call.name], call.arguments) for call in calls(answer)))


def _arguments(text: str) -> list[str]:
    found = []
    for call in calls(text):
        each = [Call(call.name, {name: value}).canonical for name, value in call.arguments.items()]
        found += each or [call.canonical]
    return found
