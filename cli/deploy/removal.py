"""`tunewright deploy --remove`: takes a deployment off Prefect's server, with all that `deploy` made for it there.

Its flow runs stay in Prefect, and so do its artifacts, models and history in the home. While a run of it is active it
stays, paused and without its queued runs: Prefect refuses the end of a run whose deployment, and with it the
concurrency limit, is gone.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled

from tunewright.accepted import did_you_mean, shown
from tunewright.cli.deploy import server
from tunewright.cli.deploy.automations import SERVER, owner, sync
from tunewright.cli.prefect_server import connected
from tunewright.errors import ConfigError, TunewrightError
from tunewright.flows.parameters import FLOW, identifier, slug

SHOWN = 20  # active runs in an error; when these have ended, the next call names the others
CANCELLED = ("suspended run", "approval request")  # kinds of Removed


class Removed(NamedTuple):
    """Something that was removed from the server; a run or a request that waits for an answer stays, cancelled."""

    kind: str  # queued run, suspended run, deployment, watcher, approval request, approval deployment or automation
    name: str


def remove(name: str) -> list[Removed]:
    """Remove the deployment `name` and what belongs to it, also where only that is left, and return what was removed.

    Raises ConfigError where the server has nothing of that name, TunewrightError where a run of it is active.
    """
    name = name.removeprefix(f"{FLOW}/")
    with connected() as client:
        return list(_remove(client, name))


def _remove(client: SyncPrefectClient, name: str) -> Iterator[Removed]:
    there = {each.name: each for each in server.deployments(client)}
    watchers = client.read_deployments(flow_filter=FlowFilter.model_validate({"name": {"any_": ["watch"]}}))
    own = [each for each in watchers if each.parameters.get("deployment") == f"{FLOW}/{name}"]
    automations = client.read_resource_related_automations(owner(name))
    is_of_another = any(identifier(each) == identifier(name) for each in there)
    if name not in there and not own and (is_of_another or not automations):
        left = {str(each.parameters.get("deployment")).removeprefix(f"{FLOW}/") for each in watchers}
        known = sorted({*there, *left})
        raise ConfigError(
            f"--remove {shown(name)}: the server has no such deployment; "
            f"{did_you_mean(name, known) if known else 'it has no deployment of Tunewright'}"
        )
    deployment = there.pop(name, None)
    model = server.model_of(deployment) if deployment else slug(name)
    if deployment:
        yield from (Removed("queued run", each) for each in _idle(client, deployment, own))
    else:
        with server.paused_idle(client, own):
            pass
    yield from (Removed("automation", each) for each in sync(client, owner(name), []).removed)  # they start runs
    for each in own:
        client.delete_deployment(each.id)
        yield Removed("watcher", f"watch/{each.name}")
    if deployment:
        later = [each.name for each in server.scheduled_runs(client, deployment.id) if not each.auto_scheduled]
        yield from (Removed("queued run", each) for each in later)  # somebody's, for a later time
        said = f"{FLOW}/{name} was removed while the run waited for an approval of its cost"
        yield from (Removed("suspended run", each) for each in _end_suspended(client, deployment, said))
        yield from (Removed("automation", each) for each in _delete_triggers(client, deployment))
        client.delete_deployment(deployment.id)
        yield Removed("deployment", f"{FLOW}/{name}")
    is_shared = model in map(server.model_of, there.values())
    if not is_shared and (asking := server.read(client, "approval", model)):
        command = f'tunewright release approve {asking.name} --reason "..."'
        said = f"approval/{asking.name} was removed. To approve: {command}; to reject, add --reject"
        yield from (Removed("approval request", each) for each in _end_suspended(client, asking, said))
        client.delete_deployment(asking.id)
        yield Removed("approval deployment", f"approval/{model}")
    if not there:  # what all deployments share
        yield from (Removed("automation", each) for each in sync(client, SERVER, []).removed)


def _end_suspended(client: SyncPrefectClient, deployment: DeploymentResponse, message: str) -> Iterator[str]:
    """End the runs that wait for an answer, which no worker could start again, and yield their names."""
    for run in server.suspended_runs(client, deployment.id):
        client.set_flow_run_state(run.id, Cancelled(message=message), force=True)
        yield run.name


def _delete_triggers(client: SyncPrefectClient, deployment: DeploymentResponse) -> list[str]:
    """Delete the automations that Prefect made of the file's `triggers`, and return their names."""
    resource = f"prefect.deployment.{deployment.id}"
    before = client.read_resource_related_automations(resource)
    client.delete_resource_owned_automations(resource)
    left = {each.id for each in client.read_resource_related_automations(resource)}
    return [each.name for each in before if each.id not in left]


def _idle(
    client: SyncPrefectClient, deployment: DeploymentResponse, watchers: Sequence[DeploymentResponse]
) -> list[str]:
    """Pause the deployment and its watchers, delete its queued runs and return their names.

    Prefect keeps a run that waits for a concurrency slot when its deployment is deleted, and no worker can start it.
    Queued runs are deleted before active ones are looked at: the end of an active run would let the next one begin.

    Raises TunewrightError where a run is active. The deployment stays paused then: a schedule that starts the next run
    before the last one ends would never let it be removed.
    """
    deleted = _delete_queued(client, deployment)
    client.pause_deployment(deployment.id)
    try:
        deleted += _delete_queued(client, deployment)
        _require_idle(client, deployment, deleted)
        with server.paused_idle(client, watchers):
            deleted += _delete_queued(client, deployment)  # a poll may have started one
            _require_idle(client, deployment, deleted)
    except TunewrightError as error:
        raise TunewrightError(
            f"{error}; {FLOW}/{deployment.name} stays paused, so that no schedule and no poll starts a run, until it "
            "is removed or deployed again"
        ) from None
    return deleted


def _delete_queued(client: SyncPrefectClient, deployment: DeploymentResponse) -> list[str]:
    """Delete the runs that wait for a worker or a concurrency slot, and return their names."""
    deleted = []
    for run in server.scheduled_runs(client, deployment.id):
        due = run.next_scheduled_start_time
        if run.state_name == "Scheduled" and due and due > datetime.now(UTC):
            continue  # Prefect deletes it with the deployment
        with suppress(ObjectNotFound):
            client.delete_flow_run(run.id)
            deleted.append(run.name)
    return deleted


def _require_idle(client: SyncPrefectClient, deployment: DeploymentResponse, deleted: Sequence[str]) -> None:
    """Raise TunewrightError where a run of the deployment has begun and not ended; `deleted` are its queued runs."""
    if active := server.active_runs(client, deployment.id):
        is_one_queued = len(deleted) == 1
        queue = f"; its queued run{'s'[: not is_one_queued]} {', '.join(deleted)} "
        queue += "was removed" if is_one_queued else "were removed"
        named = active[:SHOWN]
        names = ", ".join(f"{run.name} ({run.state_name})" for run in named)
        names += f" and {len(active) - SHOWN} more" if len(active) > SHOWN else ""
        is_one = len(active) == 1
        raise TunewrightError(
            f"--remove {shown(deployment.name)}: not removed, as {'a run' if is_one else 'runs'} of it "
            f"{'is' if is_one else 'are'} active: {names}; wait for {'its' if is_one else 'their'} end, or cancel "
            f"{'it' if is_one else 'them'} in Prefect ({_cancelling(named)}), then remove it again"
            f"{queue if deleted else ''}"
        )


def _cancelling(runs: Sequence[FlowRun]) -> str:
    """Return the command that cancels these runs."""
    if len(runs) == 1:
        return f"prefect flow-run cancel {runs[0].id}"
    return f"for run in {' '.join(str(run.id) for run in runs)}; do prefect flow-run cancel $run; done"


def as_json(removed: list[Removed]) -> dict[str, Any]:
    """Return the output of `tunewright deploy --remove --json`."""
    return {"removed": [each._asdict() for each in removed]}
