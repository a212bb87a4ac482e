"""Public benchmarks, or tasks of the team's own, by EleutherAI's lm-evaluation-harness (the extra lm-eval).

Base and candidate do the same documents, which decide then pairs. The score of a document is the first metric of its
task, behind the first of its filters, that is better higher and from 0 to 1.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import random
import re
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.artifacts import Contender, General
from tunewright.config import LmEval, or_meant
from tunewright.cost_model import on_devices
from tunewright.errors import ConfigError, one_line
from tunewright.metrics.catalogue import general_item, keep_general
from tunewright.modeling.models import load_model, load_tokenizer
from tunewright.store.stage import stage

BATCH = 16
SEED = 1234  # lm-eval's own, of the examples before a question
NAME = r"[\w.-]+"  # what stands in reports and in names of MLflow's metrics


def identity(settings: LmEval) -> str:
    """A digest of what the tasks ask and of the code in their folder; empty where there are none.

    Raises ConfigError where lm-eval, a task or its data are not there, or a task has no score to compare.
    """
    if not settings.tasks:
        return ""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            f"lm_eval.tasks={', '.join(settings.tasks)}: lm-eval is not installed: pip install 'tunewright[lm-eval]'; "
            "accepted without it is lm_eval.tasks=[]"
        )
    described: list[Any] = []
    for name, each in sorted(_loaded(settings).items()):
        config = {
            what: value for what, value in each.dump_config().items() if what not in ("metadata", "dataset_kwargs")
        }
        shots = list(each.fewshot_docs()) if each.get_config("num_fewshot") else []
        described.append([name, config, [*islice(each.eval_docs, settings.limit)], shots])
    code = sorted(Path(settings.include_path).expanduser().rglob("*.py")) if settings.include_path else []
    described.append([file.read_text(encoding="utf-8") for file in code])
    said = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(described, sort_keys=True, default=repr))
    return hashlib.sha256(said.encode()).hexdigest()


def _loaded(settings: LmEval) -> dict[str, Any]:
    """lm-eval's tasks by their names, those of groups one by one. Raises ConfigError."""
    where = f"lm_eval.tasks={', '.join(settings.tasks)}"
    if (tasks := settings.include_path) and not Path(tasks).expanduser().is_dir():
        raise ConfigError(f"lm_eval.include_path={tasks}: no such folder; accepted: one with *.yaml{or_meant(tasks)}")
    try:
        with _quiet():
            found = _find(settings)
    except ConfigError:
        raise
    except Exception as error:  # the files are the team's, the data wherever these say
        raise ConfigError(
            f"{where}: cannot be loaded: {one_line(error)}; accepted: tasks with data in local files or "
            "in the hub's cache, which HF_HUB_OFFLINE=0 fills"
        ) from error
    for name, each in found.items():
        if not re.fullmatch(NAME, name):
            raise ConfigError(f"lm_eval.tasks: {name!r} is not a valid name; accepted: letters, digits, _, - and dot")
        if not any(each.higher_is_better().values()):
            measured = ", ".join(each.higher_is_better())
            raise ConfigError(
                f"lm_eval.tasks: {name} has no metric where higher is better, only {measured}; accepted: tasks with "
                "one from 0 to 1, such as acc or exact_match"
            )
    return found


def _find(settings: LmEval) -> dict[str, Any]:
    from datasets import disable_progress_bars
    from lm_eval.tasks import TaskManager

    disable_progress_bars()
    own = settings.include_path and str(Path(settings.include_path).expanduser())
    manager = TaskManager(include_path=own, include_defaults=False)
    if not {*settings.tasks} <= {*manager.all_tasks}:  # to look through those of lm-eval takes seconds
        manager = TaskManager(include_path=own)
    if unknown := [name for name in settings.tasks if name not in manager.all_tasks]:
        close = get_close_matches(unknown[0], manager.all_tasks, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"lm_eval.tasks: there is no task {unknown[0]}; {meant}accepted: names that lm-eval ls tasks lists, and "
            "those in lm_eval.include_path"
        )
    found = manager.load([*settings.tasks])["tasks"]
    for each in found.values():
        if each.get_config("num_fewshot") is None:
            each.set_config(key="num_fewshot", value=0)
        each.set_fewshot_seed(seed=SEED)
    return found


def items(model: Any, tokenizer: Any, settings: LmEval) -> Iterator[dict[str, Any]]:
    """Each document with its score: rows of GENERAL_SCHEMA. Raises ConfigError where a task cannot score them."""
    import torch
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    harness: Any = HFLM  # its class makes others than itself, which a type checker cannot follow
    found = _loaded(settings)
    random.seed(SEED)
    torch.manual_seed(SEED)
    try:
        with _quiet():
            results: Any = evaluate(
                lm=harness(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, backend="causal"),
                task_dict={"tasks": found, "groups": {}, "group_map": {}},
                limit=settings.limit,
                bootstrap_iters=0,
                apply_chat_template=settings.chat_template,
                fewshot_as_multiturn=settings.chat_template,
            )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of a task's own code
        raise ConfigError(f"lm_eval.tasks={', '.join(settings.tasks)}: failed: {one_line(error)}") from error
    for name, samples in sorted(results["samples"].items()):
        of_filter = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
        metric = _metric(name, found[name].higher_is_better(), of_filter)
        for sample in of_filter:
            row_id = f"lm_eval {name} {sample['doc_id']:06}"
            asked, score = sample["arguments"][0][0], float(sample[metric])
            yield general_item(row_id, "lm_eval", f"lm_eval/{name}", asked, _said(sample), score)


def _metric(name: str, higher_is_better: dict[str, bool], samples: list[dict[str, Any]]) -> str:
    measured = samples[0]["metrics"]
    for metric in filter(higher_is_better.get, measured):
        with contextlib.suppress(TypeError, ValueError):  # of what is no number
            if all(0 <= float(sample[metric]) <= 1 for sample in samples):
                return metric
    raise ConfigError(
        f"lm_eval.tasks: {name} has no score from 0 to 1 per document, only {', '.join(measured)}; accepted: tasks "
        "with one, such as acc or exact_match"
    )


def _said(sample: dict[str, Any]) -> str:
    """Return the generated text, or the most likely of the compared continuations."""
    if isinstance(said := sample["filtered_resps"][0], str):
        return said
    if not isinstance(said, tuple | list) or not isinstance(said[0], float):
        return str(said)
    best = max(range(len(sample["filtered_resps"])), key=lambda at: sample["filtered_resps"][at][0])
    return str(sample["arguments"][best][1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@stage("{contender.name}", libraries=("lm_eval", "torch", "transformers", "peft", "tokenizers", "datasets", "pyarrow"))
def lm_eval(folder: Path, contender: Contender, lm_eval: LmEval, identity: str, precision: str) -> General:
    """Evaluate the contender on lm-eval's tasks; a base once. `identity` of the tasks is only for the cache key.

    Raises ConfigError where a task cannot be loaded or cannot score its documents.
    """
    with on_devices():
        model = load_model(contender.base, contender.model, dtype=precision)
        return keep_general(folder, contender.name, [*items(model, load_tokenizer(contender.base), lm_eval)])
