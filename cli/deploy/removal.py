"""`tunewright deploy --remove`: takes a deployment off Prefect's server, with all that `deploy` made for it there.

Its flow runs stay in Prefect, and so do its artifacts, models and history in the home. While a run of it is active it
stays: Prefect refuses the end of a run whose deployment, and with it the concurrency limit, is gone.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter
from prefect.client.schemas.responses import DeploymentResponse

from tunewright.accepted import did_you_mean, shown
from tunewright.cli.deploy import server
from tunewright.cli.deploy.automations import SERVER, owner, sync
from tunewright.cli.prefect_server import connected
from tunewright.errors import ConfigError, TunewrightError
from tunewright.flows.parameters import FLOW, identifier, slug


class Removed(NamedTuple):
    """Something that was removed from the server."""

    kind: str  # deployment, watcher, approval deployment or automation
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
            f"--remove {shown(name)}: no such deployment on the server; "
            f"{did_you_mean(name, known) if known else 'it has none of this pipeline'}"
        )
    deployment = there.pop(name, None)
    model = server.model_of(deployment) if deployment else slug(name)
    if deployment:
        _require_idle(client, deployment)
    with server.paused_idle(client, own):
        if deployment:  # a poll may have started one
            _require_idle(client, deployment)
    yield from (Removed("automation", each) for each in sync(client, owner(name), []).removed)  # they start runs
    for each in own:
        client.delete_deployment(each.id)
        yield Removed("watcher", f"watch/{each.name}")
    if deployment:
        client.delete_deployment(deployment.id)
        yield Removed("deployment", f"{FLOW}/{name}")
    is_shared = model in map(server.model_of, there.values())
    if not is_shared and (asking := server.read(client, "approval", model)):
        client.delete_deployment(asking.id)
        yield Removed("approval deployment", f"approval/{model}")
    if not there:  # what all deployments share
        yield from (Removed("automation", each) for each in sync(client, SERVER, []).removed)


def _require_idle(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    """Raise TunewrightError where a run of the deployment has begun and not ended."""
    if active := server.active_runs(client, deployment.id):
        names = ", ".join(f"{run.name} ({run.state_name}, {run.id})" for run in active)
        is_one = len(active) == 1
        raise TunewrightError(
            f"--remove {shown(deployment.name)}: not removed, as {'a run' if is_one else 'runs'} of it "
            f"{'is' if is_one else 'are'} active: {names}; wait for {'its' if is_one else 'their'} end, or cancel "
            f"{'it' if is_one else 'them'} in Prefect (prefect flow-run cancel {active[0].id}), then remove it again"
        )


def as_json(removed: list[Removed]) -> dict[str, Any]:
    """Return the output of `tunewright deploy --remove --json`."""
    return {"removed": [each._asdict() for each in removed]}
