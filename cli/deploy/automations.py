"""The automations of a deployment: what its settings ask of Prefect's server, made or brought up to date by name.

Each deployment's own belong to a resource of ours on the server, so that those no longer asked for are found and
removed, and no other is touched. Two of them belong to the server as a whole: they mark runs as crashed whose process
was killed, which nothing else would.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events import EventTrigger
from prefect.events.actions import ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, Posture
from prefect.events.schemas.events import ResourceSpecification

from tunewright.compat import STOPPED, STOPPED_EARLY
from tunewright.config import Operation
from tunewright.flows.announcing import CHANGED, DRIFTED, GAVE_UP, UNREADABLE, resource
from tunewright.flows.outcome import STANDS, UNCHANGED, VERDICTS
from tunewright.flows.parameters import FLOW, identifier
from tunewright.flows.watch import GIVEN_UP, PAUSED

_labels: Any = ResourceSpecification.model_validate  # as a trigger takes labels, whose type says less

SERVER = "tunewright"  # owns what is of no deployment
SILENT_SECONDS = 600.0  # three heartbeats of 180 s, Prefect's default, which runs of a terminal have
# A server that `up` did not start learns of a poll 15 minutes late (compat.tell_first_states_at_once).
SILENT_POLL_SECONDS = 1_200.0
CRASHES = "tunewright: a run without a heartbeat is marked crashed"
CRASHED_POLLS = "tunewright: a poll without a heartbeat is marked crashed"
ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "TimedOut", "Suspended", "Paused")
WATCH_ENDS = ("Changed", "Unsettled", "Unreadable", "Restarted", GIVEN_UP, PAUSED)
NOTIFIED = {  # of operation.notify_on, and of approvals those of a cost: what stands in the automation's name
    "failure": "failures",
    "rejection": "rejections",
    "approval": "pending approvals",
    "budget": "costs to approve",
    "promotion": "promotions",
}


class Target(NamedTuple):
    """A deployment on a server."""

    id: UUID
    name: str
    model: str  # registry.name
    ui: str  # the address of the server's pages
    approval: bool = False  # whether a person decides

    @property
    def owner(self) -> str:
        """The resource that its automations belong to."""
        return owner(self.name)


def owner(deployment: str) -> str:
    """Return the resource that the automations of a deployment belong to."""
    return f"tunewright.deployment.{identifier(deployment)}"


class Synced(NamedTuple):
    """Names of the automations that were created, updated and removed."""

    made: list[str]
    updated: list[str]
    removed: list[str]


def of_server() -> list[AutomationCore]:
    """Mark runs and polls whose heartbeat stops as crashed."""
    resumes = "Started again, it resumes from the last checkpoint"
    return [
        _crashes(CRASHES, FLOW, SILENT_SECONDS, resumes),
        _crashes(CRASHED_POLLS, "watch", SILENT_POLL_SECONDS, "The next poll looks at the files again"),
    ]


def _crashes(name: str, flow: str, silent_seconds: float, next_step: str) -> AutomationCore:
    """Marks runs of a flow whose heartbeat stops as crashed.

    States that a run ends in have names of their own, so each is named: of one that is not, the end would be missed.
    """
    ends = {*ENDS, *WATCH_ENDS, UNCHANGED, *VERDICTS.values(), *STANDS.values()}
    return AutomationCore(
        name=name,
        description="A killed run cannot report its end; without this automation it would stay Running",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in ends)},
            match=_labels({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=_labels(_role("flow", name=flow)),
            for_each={"prefect.resource.id"},
            within=timedelta(seconds=silent_seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"No heartbeat: its process was killed. {next_step}",
            )
        ],
        owner_resource=SERVER,
    )


def of_deployment(target: Target, operation: Operation, blocks: Mapping[str, UUID]) -> list[AutomationCore]:
    """Return the automations that the settings ask for; `blocks` are the ids of operation.notify."""
    return [*_starting(target, operation), *_telling(target, operation, blocks)]


def after_crash(operation: Operation) -> str:
    """Describe when a crashed run is restarted; a failed run is not, as it would fail again."""
    if operation.watch is None:
        return "Only the schedule or a person starts it again; the next run resumes from its last checkpoint."
    return (
        "After the first and the second crash in a row the watcher restarts it at its next poll, with the same "
        "settings and from its last checkpoint. After the third crash it is not restarted, and another message says "
        "so. If a newer run has begun, it is not restarted either."
    )


def _starting(target: Target, operation: Operation) -> Iterator[AutomationCore]:
    if operation.watch is None:
        return
    if operation.start_on == "changed":
        yield _on(target, CHANGED, f"tunewright: {target.name} runs when its data change")
        return
    only_data = {"until": "check", "refresh": []}
    yield _on(target, CHANGED, f"tunewright: {target.name} checks its data when they change", only_data)
    yield _on(target, DRIFTED, f"tunewright: {target.name} runs when its data have drifted")


def _on(target: Target, event: str, name: str, parameters: dict[str, Any] | None = None) -> AutomationCore:
    return AutomationCore(
        name=name,
        description=f"Starts a run of {target.name} on the event {event}",
        trigger=EventTrigger(expect={event}, match=_labels({"prefect.resource.id": resource(target.name)})),
        actions=[RunDeployment(source="selected", deployment_id=target.id, parameters=parameters, job_variables=None)],
        owner_resource=target.owner,
    )


def _telling(target: Target, operation: Operation, blocks: Mapping[str, UUID]) -> Iterator[AutomationCore]:
    deployment = _role("deployment", id=f"prefect.deployment.{target.id}")
    named = {"rejection": ("keep", "inconclusive", "invalid"), "promotion": ("promote",)}
    asking = [_labels(_role("flow", name="approval")), _labels(_role("deployment", name=target.model))]
    occasions = [*(operation.notify_on if operation.notify else ())]
    if "approval" in occasions and operation.budget is not None:
        occasions.append("budget")
    for occasion in occasions:
        expect = {f"prefect.flow-run.{VERDICTS[decision]}" for decision in named.get(occasion, ())}
        match: dict[str, Any] = {"prefect.resource.id": "prefect.flow-run.*"}
        related = [_labels(deployment)]
        if occasion == "failure":
            expect, match["prefect.state-type"] = {"prefect.flow-run.*"}, ["FAILED", "CRASHED"]
            if operation.watch is not None:  # who stops `tunewright up` knows, and the run is restarted
                match["prefect.state-message"] = f"!{STOPPED}*"
                yield _of_watcher(target, operation, blocks, GAVE_UP, "not restarted", "run")
                yield _of_watcher(target, operation, blocks, UNREADABLE, "unreadable", "poll")
        if occasion == "approval":  # a run of its own asks for it (flows/release.py)
            expect, related = {"prefect.flow-run.Suspended"}, asking
        if occasion == "budget":  # the run itself asks for it (flows/budget.py)
            expect = {"prefect.flow-run.Suspended"}
        if occasion == "promotion" and target.approval:
            expect, related = {"prefect.flow-run.Approved"}, asking
        yield AutomationCore(
            name=f"tunewright: {', '.join(operation.notify)} notified of {NOTIFIED[occasion]} of {target.name}",
            description="Set by operation.notify and notify_on of the deployment file",
            trigger=EventTrigger(expect=expect, match=_labels(match), match_related=related),
            actions=[_message(target, blocks[block], occasion, operation) for block in operation.notify],
            owner_resource=target.owner,
        )


def _of_watcher(
    target: Target, operation: Operation, blocks: Mapping[str, UUID], event: str, state: str, about: str
) -> AutomationCore:
    """Tells what the watcher says: that a run is not restarted, or that it cannot read the files."""
    of = _literal(target.name)
    link = f"{target.ui}/v2/runs/flow-run/{{{{ event.payload.{about} }}}}"
    return AutomationCore(
        name=f"tunewright: {', '.join(operation.notify)} notified when {target.name} is {state}",
        description="Set by operation.notify and notify_on of the deployment file",
        trigger=EventTrigger(expect={event}, match=_labels({"prefect.resource.id": resource(target.name)})),
        actions=[
            SendNotification(
                block_document_id=blocks[block],
                subject=f"{of}: {state}",
                body=f"{{{{ event.payload.said }}}}\nThe last {about} of {of}: {link}",
            )
            for block in operation.notify
        ],
        owner_resource=target.owner,
    )


def _message(target: Target, block: UUID, occasion: str, operation: Operation) -> SendNotification:
    """State and sentence of a run, of a crash what happens next, with the link to it; the server fills them in."""
    name = "{{ flow_run.state.name }}"
    said = "{{ (flow_run.state.message or '').removeprefix(flow_run.state.name ~ ': ') }}"  # the subject has the name
    if occasion == "approval":
        name = "approval needed"
        said = (
            f"A version of {target.model} is better and waits for approval: choose Resume in the menu at the top right "
            f"of the run's page, or run tunewright release approve {target.model} "
            '{{ flow_run.parameters.version }} --reason "..."'
        )
    if occasion == "budget":
        name = "approval of the cost needed"
        said = (
            f"This run would cost more than operation.budget={operation.budget:g}, and has not trained. Choose Resume "
            "in the menu at the top right of its page: the form there has the estimate and approves it. To end the "
            "run, choose Cancel in that menu."
        )
    if occasion == "failure":
        if operation.watch is None:  # else no message comes of these
            why = "A run ends so when tunewright up is stopped, or when its worker is stopped or killed."
            came = f"'{STOPPED}' in message or '{STOPPED_EARLY}' in message"
            said += f"{{% set message = flow_run.state.message or '' %}}{{% if {came} %}}\n{why}{{% endif %}}"
        said += f"{{% if flow_run.state.type == 'CRASHED' %}}\n{after_crash(operation)}{{% endif %}}"
    of = _literal(target.name)
    return SendNotification(
        block_document_id=block,
        subject=f"{of}: {name}",
        body=f"{said}\nRun {{{{ flow_run.name }}}} of {of}: {target.ui}/v2/runs/flow-run/{{{{ flow_run.id }}}}",
    )


def _literal(name: str) -> str:
    """Return a name that Prefect's template gives back: one with the braces of an expression is given as one."""
    return f"{{{{ {json.dumps(name, ensure_ascii=False)} }}}}" if "{" in name else name


def sync(client: SyncPrefectClient, owner: str, wanted: Sequence[AutomationCore]) -> Synced:
    """Makes what is not there, updates what differs, removes what is not wanted; what a person paused stays paused."""
    there = {each.name: each for each in client.read_resource_related_automations(owner)}
    synced = Synced([], [], [])
    for automation in wanted:
        known = there.pop(automation.name, None)
        if known is None:
            client.create_automation(automation)
            synced.made.append(automation.name)
        elif _content(known) != _content(automation):
            # Prefect sends only what was set, and refuses an owner; of a dictionary all is set, defaults as well.
            given = automation.model_dump(exclude={"owner_resource"}) | {"enabled": known.enabled}
            client.update_automation(known.id, AutomationCore.model_validate(given))
            synced.updated.append(automation.name)
    for name, known in there.items():
        client.delete_automation(known.id)
        synced.removed.append(name)
    return synced


def _content(automation: AutomationCore) -> dict[str, Any]:
    return AutomationCore.model_validate(
        automation.model_dump(exclude={"id", "created", "updated", "enabled", "owner_resource"})
    ).model_dump()


def _role(role: str, **labels: Any) -> dict[str, Any]:
    return {"prefect.resource.role": role} | {f"prefect.resource.{label}": value for label, value in labels.items()}
