"""MLflow: what was tried and what came of it, the model as a version, and the alias for the one that won.

Every contender is a LoggedModel with its scores on the test rows: MLflow's page of models compares them on these. The
candidate is its own model and the champion that of its version. The base, with a prompt or without, is an external
model: a name for what answered, without weights. There is one of each for equal weights and prompts in an experiment.

MLflow keeps the metric of a model in a run, and takes the latest for the run's own. So those of the others are of the
time at which the run began, and the candidate's come after them.
"""

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.artifacts import Answers, ApiUse, Registered, shown
from tunewright.errors import AnotherChampion, TunewrightError
from tunewright.evidence import bundle
from tunewright.registry import alias, rehearsal, runs, versions
from tunewright.registry.alias_state import NOTE
from tunewright.registry.candidate import PROGRESS, Candidate, scores
from tunewright.registry.runs import data
from tunewright.registry.tracking import connected
from tunewright.registry.versions import champion, trained_on_test
from tunewright.reports.progress import told_while_slow
from tunewright.store.cache_key import hash_of
from tunewright.store.stage import stage
from tunewright.tasks.register.model import logged_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

UNDECIDED = "tunewright.undecided"  # tag of a finished run without a decision: the alias moved, or a later run decided
DECIDED_AGAIN = re.compile(r"\ADecided again by .*\n\n")  # the line above the description of such a run
LATER = "later verdict"  # tag of the run in which a version was made: what a later run found of the version

__all__ = ["champion", "register", "trained_on_test"]


@stage("{candidate.run.name}", libraries=("mlflow",), lost=versions.lost)
def register(folder: Path, candidate: Candidate) -> Registered:
    """The candidate as an MLflow run and a model version, reloaded and compared; under the alias if it was promoted.

    With gate.approval it waits for a person instead. An earlier attempt, finished or not, is completed and never
    doubled.
    """
    from mlflow.exceptions import MlflowException

    registry = candidate.settings.registry
    with connected(registry) as client:
        run = runs.of_candidate(client, candidate)
        is_known = run.info.status == "FINISHED" and UNDECIDED not in run.data.tags
        try:
            with told_while_slow("logging the run and the model to MLflow"):
                runs.describe(client, candidate, run)
                model = logged_model(client, candidate, run)
                compare(client, candidate, run, model)
                version = versions.get_or_create(client, candidate, model, run)
                bundle.keep(client, candidate, version, run.info.run_id)
            with told_while_slow("loading the registered version and comparing its answers"):
                try:
                    rehearsal.rehearse(client, candidate, version)
                except TunewrightError:
                    client.set_model_version_tag(registry.name, version.version, "verdict", rehearsal.UNCONFIRMED)
                    client.set_tag(run.info.run_id, "verdict", rehearsal.UNCONFIRMED)
                    raise
            superseded = alias.conclude(client, candidate, str(version.version))
        except AnotherChampion as error:  # the version stays, and the same run must not look like a failed one
            with contextlib.suppress(MlflowException):
                _finish_undecided(client, run.info.run_id, str(error))
            raise
        except Exception:
            with contextlib.suppress(MlflowException):  # such as the one that ends this attempt
                client.set_terminated(run.info.run_id, "FAILED")
            raise
        registered = Registered(
            name=registry.name,
            version=str(version.version),
            alias="",
            uri=f"models:/{registry.name}/{version.version}",
            run_id=run.info.run_id,
            version_run_id=str(version.run_id),
            experiment_id=run.info.experiment_id,
            tracking_uri=registry.tracking_uri,
            superseded=tuple(superseded),
            is_known=is_known,
        )
        registered = alias.as_it_stands(client, registry, registered)
        _note_in_source(client, version, run.info.run_id, candidate.run.verdict.in_words)
        if UNDECIDED in run.data.tags:
            client.delete_tag(run.info.run_id, UNDECIDED)
        client.set_terminated(run.info.run_id, "FINISHED")  # the last: by it a later run knows the decision
    said = registered.model_dump_json(indent=1, exclude={"folder", "is_known"})
    (folder / "model.json").write_text(said, encoding="utf-8")
    return registered


def _finish_undecided(client: "MlflowClient", run_id: str, why: str) -> None:
    client.set_tag(run_id, UNDECIDED, why[:500])
    client.set_tag(run_id, "verdict", "undecided")
    if PROGRESS in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, PROGRESS)
    client.set_terminated(run_id, "FINISHED")


def _note_in_source(client: "MlflowClient", version: "ModelVersion", run_id: str, verdict: str) -> None:
    """Tells the verdict of a later run on a version in the run in which it was made; a failed one ends as finished."""
    if version.run_id == run_id:
        return
    source = client.get_run(str(version.run_id))
    if source.info.lifecycle_stage != "active":
        return
    client.set_tag(source.info.run_id, LATER, f"{verdict}, by run {run_id}")
    place = f"[a later run](#/experiments/{source.info.experiment_id}/runs/{run_id})"
    note = DECIDED_AGAIN.sub("", source.data.tags.get(NOTE, ""))
    client.set_tag(
        source.info.run_id, NOTE, f"Decided again by {place}: {shown(verdict)}. What follows is older.\n\n{note}"
    )
    if source.info.status == "FAILED":
        _finish_undecided(client, source.info.run_id, f"registered by run {run_id}")


def compare(client: "MlflowClient", candidate: Candidate, run: "Run", own: "LoggedModel") -> None:
    """Logs the scores of all contenders, each of its model and tied to the test rows; `own` is the candidate's."""
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    others = {
        answers.contender: (answers, _model(client, candidate, run, answers.contender, answers.api))
        for answers in candidate.run.answers
        if answers != candidate.own_answers
    }
    for answers, model in others.values():
        _log(client, candidate, run, answers, model, run.info.start_time)
    _log(client, candidate, run, candidate.own_answers, own, int(time.time() * 1000))
    now = client.get_run(run.info.run_id)  # a run that was searched for has no model_inputs
    inputs = {each.model_id for each in now.inputs.model_inputs} if now.inputs else set()
    outputs = {each.model_id for each in now.outputs.model_outputs} if now.outputs else set()
    if new := [LoggedModelInput(model.model_id) for _, model in others.values() if model.model_id not in inputs]:
        client.log_inputs(run.info.run_id, models=new)
    if own.model_id not in outputs:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(own.model_id, step=0)])


def _log(
    client: "MlflowClient", candidate: Candidate, run: "Run", answers: Answers, model: "LoggedModel", when: int
) -> None:
    """Logs those scores of a model that it does not have on these rows; the candidate's in each run of it."""
    from mlflow.entities import Metric

    name, digest = data(candidate, "test")
    is_own = answers == candidate.own_answers
    there = {
        (metric.key, metric.value)
        for metric in client.get_logged_model(model.model_id).metrics or ()
        if metric.dataset_digest == digest and (metric.run_id == run.info.run_id or not is_own)
    }
    missing = [
        Metric(
            point.key, point.value, when, point.step, model_id=model.model_id, dataset_name=name, dataset_digest=digest
        )
        for point in scores(answers, answers.contender if answers.in_part else "")
        if (point.key, point.value) not in there
    ]
    if missing:
        client.log_batch(run.info.run_id, metrics=missing)


def _model(
    client: "MlflowClient", candidate: Candidate, run: "Run", contender: str, api: ApiUse | None
) -> "LoggedModel":
    """The model of the champion; the model behind an API; or the base, behind the prompt of that name if it is one.

    It is an earlier one or new.
    """
    import mlflow
    from mlflow.entities import LoggedModelStatus

    if contender == "champion":
        version = client.get_model_version(candidate.name, candidate.challenged)
        return client.get_logged_model(str(version.source).removeprefix("models:/"))
    base, prompts = candidate.run.base, candidate.run.prompts
    chosen = prompts.chosen.get(contender) if prompts else None
    identity = hash_of(
        [candidate.name, contender, api.url, api.model]
        if api
        else [candidate.name, contender, base.weights_digest, prompts.digest if prompts and chosen else ""]
    )
    experiment = run.info.experiment_id
    found = client.search_logged_models([experiment], f"tags.fingerprint = '{identity}'", max_results=1)
    if found:
        ready = found[0].status == LoggedModelStatus.READY
        return found[0] if ready else client.finalize_logged_model(found[0].model_id, "READY")
    return mlflow.create_external_model(
        name=contender,
        source_run_id=run.info.run_id,
        tags={"fingerprint": identity},
        params={"api.url": api.url, "api.model": api.model}
        if api
        else {"model.base": base.reference} | ({"prompt": chosen[:500]} if chosen else {}),
        model_type="api" if api else "prompt" if chosen else "base",
        experiment_id=experiment,
    )
