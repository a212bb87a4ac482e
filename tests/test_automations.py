"""The automations that the settings define on Prefect's server: they start runs and notify people."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.events.actions import ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.events.schemas.events import RelatedResource, Resource
from prefect.server.events.ordering import PRECEDING_EVENT_LOOKBACK
from prefect.server.utilities.user_templates import render_user_template_sync
from prefect.settings.models.flows import FlowsSettings

from tunewright.cli.deploy.automations import Target, of_deployment, of_server
from tunewright.config import Operation
from tunewright.flows.outcome import STANDS, UNCHANGED, VERDICTS

TARGET = Target(uuid4(), "Demo", "triage", "http://127.0.0.1:4200")
BLOCK = uuid4()
BLOCKS = {"slack-webhook/ops": BLOCK}
TOLD = Operation(notify=("slack-webhook/ops",), notify_on=("failure", "rejection", "approval", "promotion"))


def event(automation: AutomationCore) -> EventTrigger:
    assert isinstance(automation.trigger, EventTrigger)
    return automation.trigger


def started(automation: AutomationCore) -> tuple[Any, Any]:
    """The deployment that an automation runs, and with which parameters."""
    (action,) = automation.actions
    assert isinstance(action, RunDeployment)
    return action.deployment_id, action.parameters


def sent(automation: AutomationCore, state: dict[str, str]) -> tuple[str, str]:
    """The subject and the body of the message that an automation sends about a run in this state."""
    (message,) = automation.actions
    assert isinstance(message, SendNotification)
    of_run = {"flow_run": {"state": state}}
    return render_user_template_sync(message.subject, of_run), render_user_template_sync(message.body, of_run)


def test_nothing_is_made_of_settings_that_ask_for_nothing() -> None:
    assert of_deployment(TARGET, Operation(), {}) == []


def test_a_change_of_watched_data_starts_a_run() -> None:
    (made,) = of_deployment(TARGET, Operation(watch=30), {})
    assert made.name == "tunewright: Demo runs when its data change"
    assert event(made).expect == {"tunewright.data.changed"}
    assert covers(made, {"prefect.resource.id": "tunewright.data.demo"})
    assert not covers(made, {"prefect.resource.id": "tunewright.data.other"})
    assert started(made) == (TARGET.id, None)


def test_with_drift_a_change_starts_the_data_stages_and_drift_the_rest() -> None:
    checks, runs = of_deployment(TARGET, Operation(watch=30, start_on="drift"), {})
    assert event(checks).expect == {"tunewright.data.changed"}
    assert started(checks) == (TARGET.id, {"until": "check", "refresh": []})
    assert event(runs).expect == {"tunewright.data.drifted"}
    assert started(runs) == (TARGET.id, None)


@pytest.mark.parametrize("name", ["{{ flow_run", "{{ 7 * 7 }}", "{# a", 'a "b" }} {{ \\ 😀'])
def test_a_name_with_braces_is_no_template(name: str) -> None:
    state = {"name": "Failed", "type": "FAILED", "message": "no data"}
    for made in of_deployment(TARGET._replace(name=name), TOLD, BLOCKS):
        subject, body = sent(made, state)
        assert subject.startswith(f"{name}: ")
        assert f" of {name}: http" in body


def test_each_kind_of_news_is_an_automation_that_links_to_the_run() -> None:
    made = of_deployment(TARGET, TOLD, BLOCKS)
    assert [each.name for each in made] == [
        "tunewright: slack-webhook/ops notified of failures of Demo",
        "tunewright: slack-webhook/ops notified of rejections of Demo",
        "tunewright: slack-webhook/ops notified of pending approvals of Demo",
        "tunewright: slack-webhook/ops notified of promotions of Demo",
    ]
    for each in made:
        (message,) = each.actions
        assert isinstance(message, SendNotification)
        assert message.block_document_id == BLOCK
        assert "http://127.0.0.1:4200/v2/runs/flow-run/{{ flow_run.id }}" in message.body


def test_a_message_names_the_verdict_once() -> None:
    failure, rejection, _, promotion = of_deployment(TARGET, TOLD, BLOCKS)
    for made, name in ((rejection, "Not promoted"), (rejection, "Inconclusive"), (promotion, "Promoted")):
        subject, body = sent(made, {"name": name, "type": "COMPLETED", "message": f"{name}: exact match .84."})
        assert (subject, body.splitlines()[0]) == (f"Demo: {name}", "exact match .84.")
    assert sent(failure, {"name": "Failed", "type": "FAILED", "message": "no rows"})[1].startswith("no rows\n")


def test_the_states_that_are_told_of_are_those_that_a_run_ends_in() -> None:
    _, rejection, _, promotion = (event(each).expect for each in of_deployment(TARGET, TOLD, BLOCKS))
    assert {name.rpartition(".")[2] for name in rejection | promotion} == set(VERDICTS.values())
    assert promotion == {"prefect.flow-run.Promoted"}


def test_with_approval_a_promotion_is_told_of_when_a_person_has_said_yes() -> None:
    told = Operation(notify=TOLD.notify, notify_on=("promotion",))
    (promotion,) = of_deployment(TARGET._replace(approval=True), told, BLOCKS)
    assert event(promotion).expect == {"prefect.flow-run.Approved"}
    run = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}", "prefect.state-message": "version 2, by Ada"}
    flow = {
        "prefect.resource.id": "prefect.flow.1",
        "prefect.resource.role": "flow",
        "prefect.resource.name": "approval",
    }
    asking = {"prefect.resource.id": f"prefect.deployment.{uuid4()}", "prefect.resource.role": "deployment"}
    assert covers(promotion, run, flow, asking | {"prefect.resource.name": "triage"})
    assert not covers(promotion, run, flow, asking | {"prefect.resource.name": "other"})


def test_a_verdict_is_told_once_and_not_each_night_on_unchanged_data() -> None:
    _, rejection, _, promotion = of_deployment(TARGET, TOLD, BLOCKS)
    assert f"prefect.flow-run.{UNCHANGED}" not in event(rejection).expect | event(promotion).expect


def test_no_end_of_a_run_is_taken_for_a_crash() -> None:
    made, polls = of_server()
    (action,) = made.actions
    assert isinstance(action, ChangeFlowRunState)
    expected = event(made).expect
    assert event(made).after <= expected
    for name in (
        *VERDICTS.values(),
        *STANDS.values(),
        "Completed",
        "Failed",
        "Crashed",
        "Cancelled",
        "Suspended",
        "Unchanged",
    ):
        assert f"prefect.flow-run.{name}" in expected
    assert "prefect.flow-run.Running" not in expected
    default = FlowsSettings.model_fields["heartbeat_frequency"].default  # of a run in a terminal, or another worker's
    assert event(made).within >= timedelta(seconds=3 * default)
    # The states of a scheduled poll reach the trigger so much later than its heartbeat, and an old poll is deleted.
    assert event(polls).within > PRECEDING_EVENT_LOOKBACK
    assert event(polls).expect == expected


def test_a_crashed_poll_is_not_said_to_resume_from_a_checkpoint() -> None:
    actions = [action for made in of_server() for action in made.actions if isinstance(action, ChangeFlowRunState)]
    assert ["checkpoint" in (each.message or "") for each in actions] == [True, False]


def covers(automation: AutomationCore, resource: dict[str, str], *related: dict[str, str]) -> bool:
    """Whether the server would take an event about this for one that the automation waits for."""
    from prefect.server.events.schemas.automations import EventTrigger as Trigger

    trigger = Trigger.model_validate(automation.trigger.model_dump())
    return trigger.covers_resources(
        Resource.model_validate(resource),  # pyright: ignore[reportArgumentType] the server's has the same fields
        [RelatedResource.model_validate(each) for each in related],  # pyright: ignore[reportArgumentType]
    )


def test_only_runs_of_the_deployment_itself_are_told_of() -> None:
    failure, _, approval, _ = of_deployment(TARGET, TOLD, BLOCKS)
    run = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}", "prefect.state-type": "FAILED"}

    def deployed(id: Any, name: str) -> dict[str, str]:  # noqa: A002
        return {
            "prefect.resource.id": f"prefect.deployment.{id}",
            "prefect.resource.role": "deployment",
            "prefect.resource.name": name,
        }

    flow = {"prefect.resource.id": "prefect.flow.1", "prefect.resource.role": "flow"}
    assert covers(failure, run, deployed(TARGET.id, "Demo"))
    assert not covers(failure, run, deployed(uuid4(), "Demo"))
    assert not covers(failure, run | {"prefect.state-type": "COMPLETED"}, deployed(TARGET.id, "Demo"))
    assert covers(approval, run, flow | {"prefect.resource.name": "approval"}, deployed(uuid4(), "triage"))
    (message,) = approval.actions
    assert isinstance(message, SendNotification)
    command = 'run tunewright release approve triage {{ flow_run.parameters.version }} --reason "..."'
    assert command in message.body
    assert not covers(approval, run, flow | {"prefect.resource.name": "approval"}, deployed(uuid4(), "other"))
    assert not covers(approval, run, flow | {"prefect.resource.name": "finetune"}, deployed(uuid4(), "triage"))


def test_a_run_whose_cost_waits_for_approval_is_told_of_where_there_is_a_budget() -> None:
    told = Operation(notify=("slack-webhook/ops",), notify_on=("approval",), prices={"cpu": 1}, budget=20)
    version, cost = of_deployment(TARGET, told, BLOCKS)
    assert cost.name == "tunewright: slack-webhook/ops notified of costs to approve of Demo"
    run = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}", "prefect.state-type": "PAUSED"}
    own = {"prefect.resource.id": f"prefect.deployment.{TARGET.id}", "prefect.resource.role": "deployment"}
    assert covers(cost, run, own)
    assert not covers(version, run, own)
    assert cost.trigger.model_dump()["expect"] == {"prefect.flow-run.Suspended"}
    (message,) = cost.actions
    assert isinstance(message, SendNotification)
    assert "more than operation.budget=20" in message.body
    assert "Choose Resume in the menu at the top right of its page: the form there has the estimate" in message.body


def test_a_crash_is_told_with_what_happens_next() -> None:
    for watch, says in (
        (None, "Only the schedule or a person starts it again"),
        (30, "After the third crash it is not"),
    ):
        operation = Operation(watch=watch, notify=TOLD.notify, notify_on=("failure",))
        *_, failure = of_deployment(TARGET, operation, BLOCKS)
        run = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}", "prefect.state-type": "CRASHED"}
        of = {"prefect.resource.id": f"prefect.deployment.{TARGET.id}", "prefect.resource.role": "deployment"}
        stopped = {"prefect.state-message": "Execution was aborted by a termination signal."}
        assert covers(failure, run | stopped, of) == (watch is None)  # the watcher restarts it, however often
        assert covers(failure, run | {"prefect.state-message": "No heartbeat"}, of)
        (message,) = failure.actions
        assert isinstance(message, SendNotification)
        assert "{% if flow_run.state.type == 'CRASHED' %}" in message.body and says in message.body
        early = "Process exited with status code: -15. Process exited due to a SIGTERM signal."
        stops = (stopped["prefect.state-message"], early)
        for message_of_state, is_signal in (*((each, True) for each in stops), ("killed", False), (None, False)):
            state = {"name": "Crashed", "type": "CRASHED", "message": message_of_state}
            shown = render_user_template_sync(message.body, {"flow_run": {"state": state}})
            assert ("or when its worker is stopped or killed." in shown) == (is_signal and watch is None)
