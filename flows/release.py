"""A person's say before the alias moves: a flow that asks in Prefect's UI, and holds no process while it waits.

The work is in tunewright/registry/release.py, which `tunewright release` calls as well, without any server.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect import State, flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed
from prefect.utilities.callables import parameter_schema
from prefect.utilities.urls import url_for
from pydantic import Field

from tunewright.artifacts import Registered
from tunewright.compat import suspending_as
from tunewright.config import Registry, outside
from tunewright.machine import addresses
from tunewright.registry import release
from tunewright.registry.address import tracking_uri
from tunewright.registry.alias_history import Event
from tunewright.registry.release import LONGEST_REASON, Waiting
from tunewright.registry.tracking import patient
from tunewright.store.naming import naming_machine

log = logging.getLogger("tunewright")

THIRTY_DAYS = 30 * 24 * 60 * 60  # seconds; after them the flow run fails, and the version waits on for the command
AGAIN = "If the page says *Failed to resume flow run*, submit this form again."  # as SQLite was locked for a moment
DECIDED = {"approve": "Approved", "reject": "Rejected"}  # what the flow's final state is named


class ApprovalForm(RunInput):
    """The reviewer's decision, entered in a form of Prefect's UI."""

    decision: Literal["approve", "reject"] = Field(
        description="approve moves the alias to this version; reject leaves it where it is"
    )
    reason: str = Field(pattern=r"\S", max_length=LONGEST_REASON, description="Kept in the history")
    by: str = Field(pattern=r"\S", max_length=100, title="Decided by", description="Your name")


@flow(name="approval", flow_run_name="approve {name} {version}")
def approval(name: str, version: str, alias: str = "champion", tracking_uri: str | None = None) -> State[None]:
    """Asks a person whether the alias may move to a version that waits for it, and does what the person says.

    Args:
        name: Registered model
        version: Version that waits for approval
        alias: Alias that the version would get
        tracking_uri: MLflow's address; empty is the database in the home folder
    """
    registry = Registry(name=name, alias=alias, tracking_uri=tracking_uri)
    with naming_machine():
        waiting = release.waits(registry, version)
        # Suspended, the run ends; resumed, it begins anew, and this call returns what was answered.
        form = ApprovalForm.with_initial_data(description=question(registry, waiting))
        with suspending_as(f"version {version} of {name} waits for approval: choose Resume in this page's menu"):
            answer = suspend_flow_run(wait_for_input=form, timeout=THIRTY_DAYS)
        decision = release.decide(registry, version, answer.decision, by=answer.by, why=answer.reason)
    message = f"version {version} of {name}, by {decision.event.by}: {decision.event.why}"
    return Completed(name=DECIDED[answer.decision], message=message)


def question(registry: Registry, waiting: Waiting) -> str:
    """Return the approval request in Markdown."""
    now = (
        f"Version {waiting.challenged} is {registry.alias} now."
        if waiting.challenged
        else f"There is no {registry.alias} now."
    )
    return (
        f"Make version {waiting.version} of {registry.name} the {registry.alias}? {now}\n\n"
        f"{waiting.sentence}\n\n[The verdict page]({waiting.page}) shows its answers row by row.\n\n{AGAIN}"
    )


def deploy(name: str, pipeline: DeploymentResponse) -> UUID:
    """Makes the deployment approval/NAME of a registered model, or brings it up to date.

    Its runs go to the work pool of the `pipeline` deployment, and begin in the same folder with the same environment.
    """
    with get_client(sync_client=True) as client:
        return client.create_deployment(
            client.create_flow(approval),
            name,
            description=f"Asks for approval before a version of {name} gets its alias; started by the pipeline",
            work_pool_name=pipeline.work_pool_name,
            entrypoint="tunewright.flows.release.approval",
            pull_steps=pipeline.pull_steps,
            parameter_openapi_schema=parameter_schema(approval).model_dump_for_openapi(),
            enforce_parameter_schema=True,
            job_variables=pipeline.job_variables,
        )


def ask(registry: Registry, registered: Registered) -> Registered:
    """Asks a person in Prefect's UI, where this run is one of a deployment; the record then has the link to it.

    A version is asked for once, and again where the run that asked has ended without an answer.
    """
    run = FlowRunContext.get()
    if registered.approval != "waiting" or run is None or run.flow_run is None or run.flow_run.deployment_id is None:
        return registered
    waiting = release.waits(registry, registered.version)
    deployment = f"approval/{registry.name}"
    given = _parameters(registry, registered.version)
    key = f"{registry.name} {waiting.version} {waiting.since}"
    with get_client(sync_client=True) as client:
        try:
            deployed = client.read_deployment_by_name(deployment).id
        except ObjectNotFound:
            log.warning(
                "no deployment %s, so Prefect asks nobody for approval; tunewright deploy creates it", deployment
            )
            return registered
        # No subflow of this run: Prefect suspends none.
        asked = client.create_flow_run_from_deployment(deployed, parameters=given, idempotency_key=key)
        while asked.state and asked.state.is_final():
            key = f"{key} after {asked.id}"
            asked = client.create_flow_run_from_deployment(deployed, parameters=given, idempotency_key=key)
    link = (url_for("flow-run", obj_id=asked.id) or "").replace("/runs/", "/v2/runs/")
    return registered.model_copy(update={"asked": link})


def end_for(registry: Registry, event: Event) -> None:
    """Ends the flow run that asks for a version on which somebody decided at the command line."""
    name = event.what.capitalize() if event.what in ("rejected", "withdrawn") else "Approved"
    end(registry, (event.version,), name, f"by {event.by}, at the command line: {event.why}")


def end_decided(registry: Registry) -> None:
    """Ends the flow runs that ask for versions on which somebody decided while Prefect did not answer."""
    asked: set[str] = set()
    with _prefect() as client:
        asked = {run.parameters["version"] for run in _asking(client, registry)} if client else asked
    if not asked:
        return
    history = patient(release.look_up)(registry)
    decided = {event.version: event for event in reversed(history.events)}  # the newest of each
    for version in sorted(asked & decided.keys() - {each.version for each in history.waiting}):
        event = decided[version]
        if event.what == "superseded":
            end(registry, (version,), "Superseded", event.why)
        else:
            end_for(registry, event)


def end(registry: Registry, versions: tuple[str, ...], name: str, message: str) -> None:
    """Ends the flow runs that ask for versions on which was decided elsewhere, where Prefect's server is known."""
    if not versions:
        return
    with _prefect() as client:
        for run in _asking(client, registry) if client else ():
            if client and run.parameters["version"] in versions:
                client.set_flow_run_state(run.id, Completed(name=name, message=message), force=True)


def _asking(client: SyncPrefectClient, registry: Registry) -> list[FlowRun]:
    """The flow runs that wait for an answer on a version of this model and alias."""
    suspended = client.read_flow_runs(
        flow_filter=FlowFilter.model_validate({"name": {"any_": ["approval"]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.PAUSED]}}}),
    )
    return [run for run in suspended if run.parameters == _parameters(registry, run.parameters.get("version", ""))]


@contextmanager
def _prefect() -> Iterator[SyncPrefectClient | None]:
    """A client of Prefect's server; None where none is known. One that does not answer is a warning."""
    if not addresses.lasting(PREFECT_API_URL.value()):
        yield None
        return
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        api = PREFECT_API_URL.value()
        log.warning(
            "%s: Prefect does not answer; if an approval run is open, it stays open until the next run of the pipeline "
            "(%s)",
            outside.without_credentials(str(api)),
            addresses.advice_on_api(api) or " ".join(str(error).split()),
        )


def _parameters(registry: Registry, version: str) -> dict[str, Any]:
    return {
        "name": registry.name,
        "version": version,
        "alias": registry.alias,
        "tracking_uri": tracking_uri(registry),
    }
