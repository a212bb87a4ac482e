"""A fine-tuning job of OpenAI: the job object, or the body of the request that creates it (JSON)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tunewright.accepted import shown
from tunewright.cli.imports.rules import (
    DataSetEntry,
    KeyRule,
    Original,
    Table,
    Tool,
    Treatment,
    by,
    carried,
    each,
    lost,
    missing,
    needless,
    not_needed,
    to,
)
from tunewright.cli.imports.trainer import ANSWERS
from tunewright.errors import ConfigError

MARKS = ("training_file", "hyperparameters", "method", "fine_tuned_model")
GROUPS = ("hyperparameters", "hyperparams")  # the second one of the API that was before
METHODS = (None, "supervised", "dpo")
OBJECTS = (None, "fine_tuning.job", "fine-tune")
RECORD = "a record of the job there"
OURS = "MLflow records every run"


def only_job(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The job of an answer that lists jobs; anything else as it is. Raises ConfigError where it lists several."""
    jobs = given.get("data")
    if given.get("object") != "list" or not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        return given
    if len(jobs) != 1:
        raise ConfigError(f"{name}: a list of {len(jobs)} jobs; accepted: one job; save the one to import")
    return jobs[0]


def method_of(original: Original) -> Any:
    """The type of a job's method; older jobs name none."""
    method = original.get("method")
    return method.get("type") if isinstance(method, dict) else None


def refused(original: Original) -> Iterator[tuple[str, str]]:
    """Keys that make it neither supervised fine-tuning nor DPO, with what it is."""
    kind = method_of(original)
    if kind == "reinforcement":
        yield "method.type", f"{shown(kind)} is training on rewards"
    elif kind not in METHODS:
        yield "method.type", f"{shown(kind)} is no known method of training"
    if original.get("object") not in OBJECTS:
        yield "object", f"{shown(original.get('object'))} is no fine-tuning job"


def chosen(target: str, of_dpo: str = "") -> KeyRule:
    """A hyperparameter, which `auto` leaves to them; `of_dpo` is what it becomes with DPO, where that differs."""

    def decide(value: Any, original: Original) -> Treatment:
        ours = of_dpo if of_dpo and method_of(original) == "dpo" else target
        return not_needed(f"chosen there; {ours} stays at its default") if value == "auto" else carried({ours: value})

    return by(decide, *filter(None, (target, of_dpo)))


def beta(value: Any, original: Original) -> Treatment:
    """How strongly the model is kept near where it began."""
    if method_of(original) != "dpo":
        return not_needed("of method.type: dpo")
    return chosen("preference.beta").decide(value, original)


def objective(_: Any, original: Original) -> Treatment:
    """The method."""
    if method_of(original) == "dpo":
        return carried({"preference.method": "dpo"})
    return not_needed("supervised, as here")


def base(value: Any, original: Original) -> Treatment:
    """A model that cannot be had."""
    return lost("its weights are not to be had: --base names the base in its place")


def is_ours(original: Original) -> bool:
    """Whether a job is of `tunewright api`."""
    return original.get("organization_id") == "tunewright"


def multiplier(value: Any, original: Original) -> Treatment:
    """A factor of a learning rate that the job does not name."""
    ours = f"{'preference' if method_of(original) == 'dpo' else 'training'}.learning_rate"
    if value == "auto":
        return not_needed(f"chosen there; {ours} stays at its default")
    whose = "in the deployment file of the server" if is_ours(original) else "not published"
    return lost(f"a factor of a learning rate that is {whose}: {ours} stays at its default")


TABLE: Table = {
    "model": by(base),
    "n_epochs": chosen("training.epochs", of_dpo="preference.epochs"),
    "batch_size": chosen("training.batch"),
    "learning_rate_multiplier": by(multiplier),
    "beta": by(beta, "preference.beta"),
    "seed": to("training.seed"),
    "early_stopping_patience": to("training.patience"),  # which no job has: they stop none early
    "prompt_loss_weight": by(lambda value, _: lost(ANSWERS) if value else not_needed(ANSWERS)),
    **each(
        "compute_classification_metrics classification_n_classes classification_positive_class classification_betas",
        needless("evaluation.metrics measures every model"),
    ),
    **each(
        "training_file validation_file training_files validation_files",
        by(lambda _value, _original: carried({}), "data.sources"),
    ),
    **each("suffix user_provided_suffix", needless("the name of the deployment")),
    "method": by(objective, "preference.method"),
    "hyperparameters": needless("those of method decide"),
    "integrations": needless(OURS),
    "metadata": missing("tags of a deployment are those of Prefect"),
    **each(
        "object id created_at finished_at fine_tuned_model organization_id result_files status trained_tokens error "
        "estimated_finish usage_metrics shared_with_openai eval_id checkpoints updated_at events _request_id",
        needless(RECORD),
    ),
    **each("trainingType training_type properties", needless("where Azure trains it")),
}


def file(value: Any, item: Original) -> Treatment:
    """A file by its id, which is fetched first, or a file here."""
    name, layout = str(value), str(item.get("layout") or "messages")
    if re.fullmatch(r"file-\w+", name):
        server, key = ("http://127.0.0.1:8000", "TUNEWRIGHT") if is_ours(item) else ("https://api.openai.com", "OPENAI")
        fetch = f'curl {server}/v1/files/{name}/content -H "Authorization: Bearer ${key}_API_KEY"'
        path, _ = item.places.named(f"{name}.jsonl")
        said = "" if item.places.found(f"{name}.jsonl") else f"fetch it first: {fetch} -o {name}.jsonl"
        return carried({"data.sources[].path": path, "data.sources[].layout": layout}, said)
    path, said = item.places.named(name)
    return carried({"data.sources[].path": path, "data.sources[].layout": layout}, said)


FILE: Table = {
    "id": by(file, "data.sources[].path", "data.sources[].layout"),
    **each("layout organization_id", needless("")),
}


def entries(original: Original) -> Iterator[DataSetEntry]:
    """The files, of which those of the API that was before have prompts and completions."""
    layout = "preference" if method_of(original) == "dpo" else "messages"
    for split, use in (("training", ""), ("validation", "validation")):
        if given := original.get(f"{split}_file"):
            whose = original.get("organization_id")
            values = original.of({"id": given, "organization_id": whose, "layout": layout})
            yield DataSetEntry(f"{split}_file", FILE, values, use, is_made=True)
        for i, each_file in enumerate(original.entries(f"{split}_files")):
            values = original.of({"id": each_file.get("id"), "layout": "prompt_completion"})
            yield DataSetEntry(f"{split}_files[{i}]", FILE, values, use, is_made=True)


DEFAULTS = {"early_stopping_patience": None}
TOOL = Tool("openai", "an OpenAI fine-tuning job", TABLE, MARKS, refused, entries, GROUPS, DEFAULTS)
