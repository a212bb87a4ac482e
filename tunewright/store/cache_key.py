"""The cache key of a stage's call, and its parts as named values.

training.learning_rate    a setting as it is
tokens                    an artifact by its content hash: "render 5f0c..."
code tunewright.tasks.split:draw     a definition that the stage reaches (code_hashes.py)
library numpy             a version
"""

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tunewright.artifacts import Artifact
from tunewright.store.code_hashes import fingerprints

Ingredients = dict[str, Any]
PIPELINE = "tunewright.flows.finetune"


def of_call(arguments: Mapping[str, Any], module: str, libraries: Sequence[str]) -> Ingredients:
    """The ingredients of a call with these arguments of a function in a module that leans on these libraries."""
    named = {name: value for argument, given in arguments.items() for name, value in flat(argument, given)}
    named |= {f"code {name}": digest for name, digest in fingerprints(module).items()}
    named |= {f"library {name}": _version(name) for name in libraries}
    named["python"] = f"{sys.version_info.major}.{sys.version_info.minor}"  # its Unicode tables shape texts
    return named


_version = cache(importlib.metadata.version)  # read from disk; cached stages ask for it hundreds of times


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """An argument as named values: a section field by field, an artifact by its digest, a contender by its parts."""
    if isinstance(value, Artifact):
        yield name, f"{value.stage} {value.digest}"
    elif isinstance(value, BaseModel):
        for field in type(value).model_fields:
            inner = getattr(value, field)
            if not isinstance(inner, Path):  # where it lies is not what it is
                yield from flat(f"{name}.{field}", inner)
    elif isinstance(value, tuple | list) and any(isinstance(item, BaseModel) for item in value):
        for position, item in enumerate(value):
            yield from flat(f"{name}[{position}]", item)
    else:
        yield name, _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        raise TypeError(f"{value}: a path is not an input; pass the digest of what it holds")
    return value


def differing(before: Ingredients, now: Ingredients) -> list[str]:
    """The names of the ingredients that set two calls apart."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def key_of(stage: str, ingredients: Ingredients) -> str:
    """The key of a call: 20 hex digits."""
    return hash_of([stage, ingredients])[:20]


def hash_of(value: Any) -> str:
    """The sha256 of a plain value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def pipeline_hash() -> str:
    """The hash of all code that the pipeline runs."""
    return hash_of(fingerprints(PIPELINE))
