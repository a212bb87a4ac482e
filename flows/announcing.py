"""The events that tell of a deployment's data: that they have changed, have drifted, or have long been unreadable; and
of a crashed run that is not restarted. A run also has a label that tells which files it reads.

Automations that `tunewright deploy` makes wait for them (cli/deploy/automations.py); yours can as well.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.runtime import deployment, flow_run

from tunewright.artifacts import CheckedRows
from tunewright.artifacts.payloads import CheckResults
from tunewright.config import Settings, Stage
from tunewright.flows.calls import Step
from tunewright.flows.outcome import Outcome
from tunewright.flows.parameters import identifier
from tunewright.tasks.ingest import SourceFile, watching

log = logging.getLogger("tunewright")

CHANGED = "tunewright.data.changed"
DRIFTED = "tunewright.data.drifted"
UNREADABLE = "tunewright.data.unreadable"
FILES = "tunewright.files"  # label of a flow run
GAVE_UP = "tunewright.run.not-restarted"
DRIFTS = ("length_drift", "language_drift", "source_drift", "label_drift")  # of data_checks/suite.py


def announce(event: str, name: str, payload: dict[str, Any]) -> None:
    """Emits an event about the data or the runs of the deployment `name`."""
    emit_event(event, {"prefect.resource.id": resource(name), "prefect.resource.name": name}, payload=payload)


def tell_files(files: Sequence[SourceFile]) -> None:
    """Tells Prefect's server which files this run of a deployment reads, for polls that do not share its home."""
    if deployment.id and flow_run.id:
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            client.update_flow_run_labels(UUID(str(flow_run.id)), {FILES: watching.digest(files)})


def resource(name: str) -> str:
    """Return the resource id of the events about a deployment's data."""
    return f"tunewright.data.{identifier(name)}"


def announce_drift(steps: Sequence[Step], settings: Settings, until: Stage) -> None:
    """With operation.start_on=drift: where a run of a deployment ends with check, tells whether to go on from there."""
    if settings.operation.start_on != "drift" or until != "check" or not deployment.name:
        return
    checked = Outcome.of(steps).checked
    if checked and (found := drifts(checked)):
        if _is_paused():
            log.warning("%s is paused, so the drift starts no run; start one in Prefect", deployment.name)
            return
        announce(DRIFTED, deployment.name, {"found": found})


def _is_paused() -> bool:
    with get_client(sync_client=True) as client:
        return bool(deployment.id) and client.read_deployment(UUID(str(deployment.id))).paused


def drifts(checked: CheckedRows) -> list[str]:
    """The expectations of drift that failed, or that there is no version yet to drift from."""
    if CheckResults.load(checked).since is None:
        return ["no version before"]
    return [name for name in DRIFTS if name in checked.findings]
