"""What a run reads from outside: the content of its files, its models and the team's own code, each by what tells it.

It is looked at before the first stage, so that what is not there or cannot be used is said at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from tasks import models
from tasks.check import own_expectations
from tasks.config import Settings
from tasks.ingest import source_files
from tasks.ingest.files import SourceFile
from tasks.similarity import embedding


class Inputs(NamedTuple):
    """What becomes part of the stages' keys."""

    files: tuple[SourceFile, ...]  # of ingest
    base: str
    own: tuple[tuple[str, str], ...]  # the team's expectations, of check
    embedding: str  # the model of dedupe.semantic


_LOOKED_AT: ContextVar[Inputs | None] = ContextVar("looked_at", default=None)


def inputs(settings: Settings) -> Inputs:
    """What these settings name, or what was seen of it before. Raises ConfigError and DataError."""
    return _LOOKED_AT.get() or Inputs(
        own=own_expectations(settings.checks),
        embedding=embedding.model_identity(settings.dedupe),
        files=source_files(settings.data),
        base=models.identity(settings.model.base),
    )


@contextmanager
def looked_at(settings: Settings) -> Iterator[None]:
    """Looks at once, for the run within: the server that Prefect starts for one takes seconds."""
    token = _LOOKED_AT.set(inputs(settings))
    try:
        yield
    finally:
        _LOOKED_AT.reset(token)
