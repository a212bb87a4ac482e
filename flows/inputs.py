"""A run's outside inputs: its files, models and the team's own code, each with what identifies its content.

They are read before the first stage, so that one that is missing or unusable is reported at once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from tunewright import config
from tunewright.config import Settings, Split, outside
from tunewright.metrics import json_schema, own_metrics
from tunewright.metrics.rewards import own_rewards
from tunewright.modeling import chat_templates, models
from tunewright.similarity import embedding
from tunewright.store import bases, test_set_uses
from tunewright.store.cache_key import hash_of
from tunewright.store.test_set_uses import Draw
from tunewright.tasks import lm_eval
from tunewright.tasks.check import own_expectations
from tunewright.tasks.ingest import Need, source_files
from tunewright.tasks.ingest.files import SourceFile
from tunewright.tasks.prompt.documents import TextFile, documents

# Sections that a candidate is made of.
OF_CANDIDATE = ("data", "checks", "dedupe", "split", "model", "method", "training", "preference", "grpo", "compute")


class Inputs(NamedTuple):
    """The outside inputs that enter the stages' cache keys."""

    files: tuple[SourceFile, ...]  # of ingest
    base: str
    base_here: str  # model.base, or where this machine has it from the shared store
    chat_template: str  # the text of model.chat_template, of base
    own: tuple[tuple[str, str], ...]  # the team's expectations, of check
    embedding: str  # the model of dedupe.semantic
    retrieval: str  # the same model, of prompt and examples
    metrics: tuple[tuple[str, str], ...]  # the team's metrics, of evaluate
    rewards: tuple[tuple[str, str], ...]  # the team's reward functions, of reinforce
    schema: str  # what evaluation.json_schema holds
    lm_eval: str  # what lm_eval.tasks ask
    documents: tuple[TextFile, ...] = ()  # of prompt
    needs: tuple[Need, ...] = ()  # what split reads of rows besides their messages, of ingest


_FILES: ContextVar[tuple[SourceFile, ...] | None] = ContextVar("files", default=None)
_LOOKED_AT: ContextVar[Inputs | None] = ContextVar("looked_at", default=None)


def inputs(settings: Settings, base_here: str = "") -> Inputs:
    """Return the inputs that the settings name, cached within `looked_at`. Raises ConfigError and DataError.

    `base_here` is where model.base lies on this machine; empty looks for it.
    """
    if seen := _LOOKED_AT.get():
        return seen
    _stop_outside(settings)
    # few_shot needs no embedding model
    evaluation = settings.evaluation
    retrieves = "retrieval" in (settings.method.kind, *evaluation.contenders) or evaluation.documents
    base_here = base_here or bases.at_hand(settings.registry.name, settings.model.base)
    return Inputs(
        own=own_expectations(settings.checks),
        metrics=_own_metrics(settings),
        rewards=own_rewards(tuple(settings.grpo.rewards)),
        schema=json_schema(settings.evaluation.json_schema),
        lm_eval=lm_eval.identity(settings.lm_eval),
        embedding=embedding.model_identity(settings.dedupe),
        retrieval=embedding.identity_if_installed(settings.dedupe.semantic_model) if retrieves else "",
        files=source_files(settings.data) if (files := _FILES.get()) is None else files,
        base=models.identity(base_here),
        base_here=base_here,
        chat_template=chat_templates.text(settings.model.chat_template),
        documents=documents(settings.evaluation.documents),
        needs=needs(settings.split),
    )


def _own_metrics(settings: Settings) -> tuple[tuple[str, str], ...]:
    """The team's metrics, each with a digest of its code. Raises ConfigError with the setting of a wrong one."""
    named = _metrics(settings).items()
    return tuple(sorted({each for setting, names in named for each in own_metrics(names, setting)}))


def _metrics(settings: Settings) -> dict[str, Sequence[str]]:
    """The metrics that each setting names."""
    return {
        "evaluation.metrics": settings.evaluation.metrics,
        "gate.metric": (settings.gate.metric,),
        "gate.guardrails": [each.metric for each in settings.gate.guardrails],
    }


def _stop_outside(settings: Settings) -> None:
    """Raises ConfigError where settings name what the environment of this worker does not allow to be reached."""
    base, template, embedder = settings.model.base, settings.model.chat_template, settings.dedupe.semantic_model
    files = {
        "model.base": base if Path(base).expanduser().exists() or ":" in base else f"hub:{base}",
        "model.chat_template": None if template in chat_templates.names() else template,
        "dedupe.semantic_model": None if embedder == embedding.WORDLLAMA else embedder,
        "evaluation.json_schema": settings.evaluation.json_schema,
        "lm_eval.include_path": settings.lm_eval.include_path,
    }
    for setting, path in files.items():
        if path:
            outside.check_path(setting, path)
    for number, pattern in enumerate(settings.evaluation.documents):
        outside.check_path(f"evaluation.documents[{number}]", pattern)
    for setting, names in {**_metrics(settings), "grpo.rewards": settings.grpo.rewards}.items():
        for name in names:
            if ":" in name:
                outside.check_module(setting, name)
    for expectation in settings.checks.expectations:
        if "." in expectation.name:
            outside.check_module("checks.expectations", expectation.name)
    for number, each in enumerate(settings.evaluation.api_models):
        outside.check_host(f"evaluation.api_models[{number}].url", each.url, "TUNEWRIGHT_API_HOSTS")
    if settings.compute.vllm:
        outside.check_host("compute.vllm", settings.compute.vllm, "TUNEWRIGHT_API_HOSTS")
    if settings.judge.url:
        outside.check_host("judge.url", settings.judge.url, "TUNEWRIGHT_JUDGE_HOSTS")
        config.judge_key(settings.judge.url)


def needs(split: Split) -> tuple[Need, ...]:
    """Return the fields that split needs in every row, so that ingest stops at once where rows lack them."""
    if split.by == "time":
        return ("time",)
    return ("label",) if split.stratify == "label" else ()


def draw(settings: Settings, read: Inputs) -> Draw:
    """Return the parameters for drawing the test rows, as the ledger reports them for these settings and inputs."""
    sections = {name: getattr(settings, name).model_dump(mode="json") for name in OF_CANDIDATE}
    if not settings.trains:
        sections["shots"] = settings.evaluation.shots
    files = [(file.path, file.digest) for file in read.files]
    return test_set_uses.draw(settings, hash_of([sections, files, read.base, read.own, read.embedding]))


@contextmanager
def reading(files: Sequence[SourceFile]) -> Iterator[None]:
    """All runs within read these files, whichever come to the folders and patterns of data.sources meanwhile."""
    token = _FILES.set(tuple(files))
    try:
        yield
    finally:
        _FILES.reset(token)


@contextmanager
def looked_at(settings: Settings, base_here: str = "") -> Iterator[None]:
    """Looks at once, for the run within: the server that Prefect starts for one takes seconds."""
    token = _LOOKED_AT.set(inputs(settings, base_here))
    try:
        yield
    finally:
        _LOOKED_AT.reset(token)
