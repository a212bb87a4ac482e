"""What a person sees of a run in the Prefect UI, cached or not: settings, row account, scores, verdict and links."""

import html
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from prefect import State
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.states import Completed

from flows.calls import Step
from flows.outcome import Outcome
from flows.parameters import flat
from tasks.config import Settings

STATE_NAMES = {"promote": "Promoted", "keep": "Kept", "inconclusive": "Inconclusive"}

ORIGINS: ContextVar[dict[str, str]] = ContextVar("origins")  # set by the command line, which read the file


def show_settings(settings: Settings) -> None:
    """A table of every effective setting and where it came from."""
    origins = ORIGINS.get({}) or _form_origins(settings)
    rows = [
        {"setting": key, "value": "" if value is None else str(value), "from": origins.get(key, "default")}
        for key, value in flat(settings).items()
    ]
    create_table_artifact(rows, key="settings", description="Effective settings, and where each came from")


def _form_origins(settings: Settings) -> dict[str, str]:
    """For a run that a worker started: what the deployment says, and what the form or the trigger changed."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None:
        return {}
    if run.deployment_id is None:
        return dict.fromkeys(flat(run.parameters), "call")
    with get_client(sync_client=True) as client:
        deployed = flat(client.read_deployment(run.deployment_id).parameters)
    defaults = flat({name: f.default.model_dump() for name, f in Settings.model_fields.items() if not f.is_required()})
    return {key: _origin(key, value, deployed, defaults) for key, value in flat(settings).items()}


def _origin(key: str, value: Any, deployed: dict[str, Any], defaults: dict[str, Any]) -> str:
    if key in deployed and str(deployed[key]) == str(value):
        return "deployment"
    return "default" if key in defaults and str(defaults[key]) == str(value) else "form"


def publish(steps: Sequence[Step], settings: Settings) -> State[tuple[Step, ...]]:
    """Makes the artifacts of a run's outcome and returns its final state, named after the verdict."""
    outcome = Outcome.of(steps)
    create_markdown_artifact(_account(outcome), key="rows", description="Where every row went")
    if outcome.answers:
        create_table_artifact(_scores(outcome), key="scores", description="Scores on the sealed test rows")
    if outcome.verdict is None:
        return Completed(message=f"went as far as {steps[-1].stage}", data=tuple(steps))
    create_markdown_artifact(_verdict(outcome), key="verdict", description=outcome.verdict.sentence)
    if outcome.registered and outcome.registered.tracking_uri.startswith("http"):
        link = mlflow_link(outcome)
        create_link_artifact(link, link_text="The run in MLflow", key="mlflow", description="Curves, metrics, model")
    name = STATE_NAMES[outcome.verdict.decision]
    return Completed(name=name, message=outcome.verdict.sentence, data=tuple(steps))


def mlflow_link(outcome: Outcome) -> str:
    """Where the run stands in MLflow's UI, under the address of its server."""
    registered = outcome.registered
    if registered is None:
        raise ValueError("nothing was registered")
    address = registered.tracking_uri if registered.tracking_uri.startswith("http") else "http://127.0.0.1:5000"
    path = f"#/experiments/{registered.experiment_id}/runs/{registered.run_id}?workflowType=machine_learning"
    return f"{address.rstrip('/')}/{path}"


def _account(outcome: Outcome) -> str:
    account = outcome.account()
    if account is None:
        return "Nothing was read."
    lines = ["| rows | |", "|---|---:|", *(f"| {name} | {count:,} |" for name, count in account.model_dump().items())]
    lines += ["", "| reason | rows |", "|---|---:|"]
    lines += [f"| {html.escape(reason)} | {count:,} |" for reason, count in outcome.reasons().items()]
    lines += ["", "| stage | | seconds | artifact |", "|---|---|---:|---|"]
    for step in outcome.steps:
        place = step.record.folder if step.record else ""
        lines.append(f"| {step.stage} {step.of} | {step.state} | {step.seconds:.1f} | `{place}` |")
    return "\n".join(lines)


def _scores(outcome: Outcome) -> list[dict[str, Any]]:
    metrics = sorted({metric for answers in outcome.answers.values() for metric in answers.scores})
    return [
        {"contender": name} | {metric: round(answers.scores.get(metric, float("nan")), 4) for metric in metrics}
        for name, answers in outcome.answers.items()
    ]


def _verdict(outcome: Outcome) -> str:
    verdict = outcome.verdict
    if verdict is None:
        return ""
    lines = [f"# {STATE_NAMES[verdict.decision]}", "", html.escape(verdict.sentence), ""]
    lines += [f"| {verdict.metric}: candidate minus | low | mean | high |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {low:+.3f} | {mean:+.3f} | {high:+.3f} |"
        for name, (low, mean, high) in verdict.differences.items()
    ]
    if verdict.rows_needed:
        lines += ["", f"About {verdict.rows_needed:,} test rows would be needed to tell."]
    if outcome.registered:
        registered = outcome.registered
        alias = f", @{registered.alias}" if registered.alias else ", without the alias"
        lines += ["", f"Registered as `{registered.uri}`{alias}."]
    return "\n".join(lines)
