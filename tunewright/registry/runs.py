"""The MLflow run: parameters, curves, scores, the data by our own digest, and the files to read.

A comparison is a run with one below it for each training; the same comparison again is completed.
"""

import json
import logging
import time
from datetime import datetime
from typing import TYPE_CHECKING

from prefect import task
from prefect.runtime import flow_run

from tunewright.artifacts import PromptExamples, shown
from tunewright.comparison import Trial, VariantComparison
from tunewright.config import Settings
from tunewright.errors import RETRIES, RETRY_SECONDS, is_retried
from tunewright.machine import addresses
from tunewright.registry import live_run
from tunewright.registry.address import tracking_uri
from tunewright.registry.alias_state import NOTE
from tunewright.registry.candidate import (
    EVALUATED,
    OF_MEASURES,
    Candidate,
    Point,
    card,
    comparisons,
    curves,
    divergences,
    opinions,
    parameters,
)
from tunewright.registry.run_writer import (
    BATCH,
    CONTEXT,
    FINGERPRINT,
    FLOW_RUN,
    HOME,
    KEY,
    log_params,
    points_in,
    source_of,
)
from tunewright.registry.tracking import IN_VIEW, connected, experiment, ui
from tunewright.reports.curves import no_warnings
from tunewright.store.cache_key import hash_of
from tunewright.store.caching import digest_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger("tunewright")

OF_LIVE_RUN = (KEY, HOME, FLOW_RUN, "prefect.flow_run", "prefect.deployment")  # tags of a run for its second decision
PARENT = "mlflow.parentRunId"
WARNINGS = "warnings"  # tag: of the verdict, one a line


def get_or_create(
    client: "MlflowClient", experiment_id: str, fingerprint: str, name: str | None, tags: dict[str, str]
) -> "Run":
    """The run with this fingerprint: a new one with a name and tags, or that which an attempt began or finished."""
    found = _with(client, experiment_id, fingerprint)
    return found or client.create_run(experiment_id, tags={FINGERPRINT: fingerprint, **tags}, run_name=name)


def _with(client: "MlflowClient", experiment_id: str, fingerprint: str) -> "Run | None":
    found = client.search_runs([experiment_id], f"tags.{FINGERPRINT} = '{fingerprint}'", max_results=1)
    return found[0] if found else None


def of_candidate(client: "MlflowClient", candidate: Candidate) -> "Run":
    """The run of this candidate's decision: the live one, unless that has another, or another has this one."""
    live = live_run.current()
    run_id = live.hand_over(client) if live else None
    experiment_id = experiment(client, candidate.settings.registry, candidate.name, candidate.columns)
    if live is None or run_id is None:
        tags = {"prefect.flow_run": str(flow_run.name), FLOW_RUN: str(flow_run.id)} if flow_run.id else {}
        return get_or_create(client, experiment_id, candidate.occasion, flow_run.name or None, tags)
    run = client.get_run(run_id)
    its = run.data.tags.get(FINGERPRINT)
    if its == candidate.occasion:
        return run
    if found := _with(client, experiment_id, candidate.occasion):
        log.info("  the same decision stands in an earlier run in MLflow: %s", found.info.run_name)
    elif its is None:
        client.set_tag(run_id, FINGERPRINT, candidate.occasion)
        return client.get_run(run_id)
    else:
        lasting = {key: value for key, value in run.data.tags.items() if key in OF_LIVE_RUN}
        tags = {FINGERPRINT: candidate.occasion, **lasting}
        found = client.create_run(experiment_id, tags=tags, run_name=run.info.run_name)
    live.go_on_as(client, found)
    return found


def describe(client: "MlflowClient", candidate: Candidate, run: "Run") -> None:
    """Logs all that does not belong to the model itself. What an earlier attempt logged is not logged again."""
    from mlflow.entities import RunTag

    log_params(client, run, parameters(candidate.settings))
    link = addresses.prefect_run(str(flow_run.id)) if flow_run.id else ""  # where the flow run's server outlives it
    origin = f"\n\n[The run in Prefect: {flow_run.name}]({link})" if link else ""
    stages = (candidate.run.base, candidate.run.rows, candidate.run.adapter, candidate.run.verdict)
    most, trainings = candidate.settings.registry.curve_points, candidate.run.trainings
    drawn = [curves(each.path("metrics.jsonl"), most) for each in trainings]
    points = [point for each in drawn for point in each]
    warnings = [warning for each in trainings for warning in each.warnings]
    if isinstance(candidate.run.adapter, PromptExamples):
        trained = candidate.run.adapter.says()
    else:
        trained = no_warnings(min(sum(point.key in EVALUATED for point in each) for each in drawn))
    tags = {
        "verdict": shown(candidate.run.verdict.in_words),
        "test_set_uses": str(candidate.run.test_set_uses),
        "gain": candidate.run.verdict.gain,
        "training": "; ".join(warnings)[:500] or trained,
        NOTE: f"{card(candidate, run.info.experiment_id, run.info.run_id)}{origin}",
        **({WARNINGS: "\n".join(candidate.run.warnings)[:5_000]} if candidate.run.warnings else {}),
        **candidate.data,
        **{f"tunewright.{artifact.stage}": artifact.key for artifact in stages},
        **({"began_as": f"version {trainings[0].began_as}"} if trainings and trainings[0].began_as else {}),
        **({"judge": candidate.run.judged.model} if candidate.run.judged else {}),
        **{f"tunewright.evaluate.{answers.contender}": answers.key for answers in candidate.run.answers},
    }
    client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    _log_data(client, candidate, run.info.run_id)
    points += comparisons(candidate)
    if candidate.run.judged:
        points += opinions(candidate.run.judged)
    if candidate.run.divergence:
        points += divergences(candidate.run.divergence)
    log_points(client, run, points)
    _log_files(client, candidate, run.info.run_id)


def log_points(client: "MlflowClient", run: "Run", points: list[Point]) -> None:
    """Logs those points that the run does not have yet."""
    from mlflow.entities import Metric

    there = points_in(client, run, {point.key for point in points})
    now = time.time()
    missing = [
        Metric(point.key, point.value, int(1000 * (point.time or now)), point.step)
        for point in points
        if (point.key, point.step) not in there
    ]
    for start in range(0, len(missing), BATCH):
        client.log_batch(run.info.run_id, metrics=missing[start : start + BATCH])


def data(candidate: Candidate, split: str) -> tuple[str, str]:
    """The name and the digest of a split, as MLflow has them."""
    return f"{candidate.name} {split}", candidate.run.splits.digest[:36]  # the longest that MLflow stores


def _log_data(client: "MlflowClient", candidate: Candidate, run_id: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    splits, tokens = candidate.run.splits, candidate.run.tokens
    sizes = {"train": tokens.num_train, "validation": tokens.num_validation, "test": tokens.num_test}
    source = source_of(candidate.lineage, rows=candidate.run.rows.digest, splits=splits.digest)
    inputs = []
    for split, size in sizes.items():
        # The rows that render left are counted. The sha256 is equal for candidates measured on equal rows.
        replay = tokens.num_replay if split == "train" else 0
        counts = {"num_rows": size} | ({"num_replay": replay} if replay else {})
        profile = json.dumps(counts | {"sha256": digest_of(splits.path(f"{split}.parquet"))})
        dataset = Dataset(*data(candidate, split), "files", source, profile=profile)
        inputs.append(DatasetInput(dataset, [InputTag(CONTEXT, split)]))
    client.log_inputs(run_id, inputs)


def _log_files(client: "MlflowClient", candidate: Candidate, run_id: str) -> None:
    client.log_artifact(run_id, str(candidate.run.verdict.path("verdict.json")))
    for adapter in candidate.run.trainings:
        client.log_artifact(run_id, str(adapter.path("curves.html")), f"reports/{adapter.stage}")
    for answers in candidate.run.answers:
        client.log_artifact(run_id, str(answers.path("answers.parquet")), f"answers/{answers.contender}")
    for artifact in (*candidate.reports, candidate.page):
        client.log_artifact(run_id, str(artifact.path("report.html")), f"reports/{artifact.stage}")


@task(
    name="log_comparison",
    task_run_name="log_comparison {settings.registry.name}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=is_retried,
)
def log_comparison(settings: Settings, variants: dict[str, Settings], found: VariantComparison) -> str:
    """Logs the trainings with their curves, and what came of all; returns where that stands in MLflow's UI.

    Of the parameters, a training has those in which the variants differ. Raises TrackingError where MLflow does not
    answer.
    """
    measure, most = found.ranked[0].trials[0].measure, settings.registry.curve_points
    given = {name: parameters(variant) for name, variant in variants.items()}
    varied = {key for one in given.values() for key in one if len({other.get(key) for other in given.values()}) > 1}
    columns = (
        *("attributes.`Created`", "tags.`state`", f"metrics.`validation/best_{measure}`"),
        *(f"params.`{key}`" for key in sorted({*varied, "training.seed"})),
    )
    from mlflow.entities import Param, RunTag

    with connected(settings.registry) as client:
        name = f"{settings.registry.name}.compare"
        experiment_id = experiment(client, settings.registry, name, columns)
        named = flow_run.name or f"compare {settings.registry.name} {len(found.ranked)} variants"
        parent = get_or_create(client, experiment_id, found.key, named, {})
        for trial in (trial for ranked in found.ranked for trial in ranked.trials):
            name = f"{trial.variant} seed {trial.seed}"
            tags = {PARENT: parent.info.run_id}
            dated = f"{settings.registry.name} {name} {datetime.now():%Y-%m-%d %H:%M}"
            run = get_or_create(client, experiment_id, hash_of([found.key, name]), dated, tags)
            params = {key: value for key, value in given[trial.variant].items() if key in varied}
            params |= {"training.seed": str(trial.seed)}
            client.log_batch(
                run.info.run_id,
                params=[Param(key, value) for key, value in params.items() if key not in run.data.params],
                tags=[RunTag("state", trial.state), RunTag(NOTE, trial.said)],
            )
            log_points(client, run, _points(trial, most))
            client.set_terminated(run.info.run_id, "FAILED" if trial.state == "failed" else "FINISHED")
        client.set_tag(parent.info.run_id, NOTE, found.sentence)
        client.log_artifact(parent.info.run_id, str(found.folder / "report.html"))
        client.log_artifact(parent.info.run_id, str(found.folder / "comparison.json"))
        client.set_terminated(parent.info.run_id, "FINISHED")
    return f"{ui(tracking_uri(settings.registry), experiment_id)}/runs?{IN_VIEW}"


def _points(trial: Trial, most: int) -> list[Point]:
    """All curves of a training that finished, and of the others what was seen of the validation rows."""
    if trial.folder is None or trial.value is None:
        return [
            Point(OF_MEASURES[f"eval_{trial.measure}"], evaluation.value, evaluation.step)
            for evaluation in trial.evaluations
        ]
    figures = {
        f"validation/best_{trial.measure}": trial.value,
        "train/seconds": trial.seconds,
        "train/learning_parameters": trial.learning,
    }
    last = [Point(name, float(value), 0) for name, value in figures.items() if value is not None]
    return curves(trial.folder / "metrics.jsonl", most) + last
