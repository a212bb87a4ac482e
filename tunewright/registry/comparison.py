"""A comparison in MLflow: a run, with one below it for each training; the same comparison again is completed."""

from prefect import task

from tunewright.comparison import Trial, VariantComparison
from tunewright.config import Settings
from tunewright.errors import RETRIES, RETRY_SECONDS, is_retried
from tunewright.registry.candidate import CURVES, Point, curves, parameters
from tunewright.registry.runs import get_or_create, log_points
from tunewright.registry.tracking import IN_VIEW, connected, experiment, tracking_uri, ui
from tunewright.store.cache_key import hash_of

PARENT = "mlflow.parentRunId"


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
        parent = get_or_create(client, experiment_id, found.key, f"compare {len(found.ranked)} variants", {})
        for trial in (trial for ranked in found.ranked for trial in ranked.trials):
            name = f"{trial.variant} seed {trial.seed}"
            tags = {PARENT: parent.info.run_id}
            run = get_or_create(client, experiment_id, hash_of([found.key, name]), name, tags)
            params = {key: value for key, value in given[trial.variant].items() if key in varied}
            params |= {"training.seed": str(trial.seed)}
            client.log_batch(
                run.info.run_id,
                params=[Param(key, value) for key, value in params.items() if key not in run.data.params],
                tags=[RunTag("state", trial.state), RunTag("mlflow.note.content", trial.said)],
            )
            log_points(client, run, _points(trial, most))
            client.set_terminated(run.info.run_id, "FAILED" if trial.state == "failed" else "FINISHED")
        client.set_tag(parent.info.run_id, "mlflow.note.content", found.sentence)
        client.log_artifact(parent.info.run_id, str(found.folder / "report.html"))
        client.log_artifact(parent.info.run_id, str(found.folder / "comparison.json"))
        client.set_terminated(parent.info.run_id, "FINISHED")
    return f"{ui(tracking_uri(settings.registry), experiment_id)}/runs?{IN_VIEW}"


def _points(trial: Trial, most: int) -> list[Point]:
    """All curves of a training that finished, and of the others what was seen of the validation rows."""
    if trial.folder is None or trial.value is None:
        return [Point(CURVES[f"eval_{trial.measure}"], look.value, look.step) for look in trial.looks]
    figures = {
        f"validation/best_{trial.measure}": trial.value,
        "train/seconds": trial.seconds,
        "train/learning_parameters": trial.learning,
    }
    last = [Point(name, float(value), 0) for name, value in figures.items() if value is not None]
    return curves(trial.folder / "metrics.jsonl", most) + last
