"""Where each effective setting of a run came from: a default, the deployment, the command line, or this run."""

import re
from contextvars import ContextVar
from typing import Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from tunewright.flows.parameters import DEPLOYMENT_NAME, field, flat, shown

ORIGINS: ContextVar[dict[str, str]] = ContextVar("origins")  # set by the command line, which read the file
THIS_RUN = "this run"


def origins_of(settings: dict[str, Any]) -> dict[str, str]:
    """Return the origin of each effective setting of the run that is going on; both are flat."""
    return ORIGINS.get({}) or _of_worker(settings)


def _of_worker(settings: dict[str, Any]) -> dict[str, str]:
    """Tell what the deployment says from what the form, a trigger or a call changed, in a run of a worker."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None:
        return {}
    if run.deployment_id is None:
        return dict.fromkeys(flat(run.parameters), "call")
    with get_client(sync_client=True) as client:
        deployed = flat(client.read_deployment(run.deployment_id).parameters)
    origins = {key: origin(key, value, deployed) for key, value in settings.items()}
    return origins if flat(run.parameters).get("registry.name") else origins | {"registry.name": DEPLOYMENT_NAME}


def origin(key: str, value: Any, deployed: dict[str, Any]) -> str:
    """Return the origin of an effective setting of a deployed run; `deployed` are the deployment's, flat."""
    if key in deployed and deployed[key] == value:
        return "deployment"
    found = field(re.sub(r"\[\d+\]", "", key))
    default = found.default if found else None
    plain = flat({key: list(default) if isinstance(default, tuple) else default})[key]
    place = "default" if found and not found.is_required() and value == plain else THIS_RUN
    return f"{place}; the deployment has {shown(deployed[key])}" if key in deployed else place
