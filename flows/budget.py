"""A run that would cost more than operation.budget asks for a person's approval before it trains.

A run of a deployment is suspended in Prefect, where no process waits with it, and goes on when somebody resumes it. A
run of a terminal ends, with the setting that approves it.
"""

import json
import logging
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.exceptions import Pause
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled
from pydantic import Field

from tunewright.artifacts import Base, Tokens
from tunewright.compat import suspending_as
from tunewright.config import Operation, Settings
from tunewright.cost_model import BudgetCase, devices, estimate, on_devices, trainings
from tunewright.cost_model.case import ground_of
from tunewright.cost_model.money import Price, money, price_of, rounded, rounded_up, without_price
from tunewright.errors import ConfigError
from tunewright.flows.release import AGAIN, THIRTY_DAYS
from tunewright.modeling.compute import Device
from tunewright.reports.progress import duration
from tunewright.tasks.train import calibration, shared_checkpoints

log = logging.getLogger("tunewright")


class BudgetForm(RunInput):
    """The approval of a run's cost, entered in a form of Prefect's UI."""

    by: str = Field(pattern=r"\S", max_length=100, title="Approved by", description="Your name")


def price_here(operation: Operation) -> Price | None:
    """The price of an hour of this machine's device; None without operation.prices, or without one of the device."""
    return price_of(devices.machine().device, operation.prices) if operation.prices else None


def refusal(operation: Operation, device: Device) -> str:
    """Why each run that trains on a device is refused: a budget is set, and the device has no price. "" where not."""
    if operation.budget is None or price_of(device, operation.prices):
        return ""
    accepted = "cpu" if device.kind == "cpu" else f"a part of its name, such as {_short(device.name)}"
    return f"operation.budget={operation.budget:g}: {without_price(device)}; accepted as its key: {accepted}"


def require_price(operation: Operation) -> None:
    """Raises ConfigError where a budget is set, and this machine's device has no price."""
    if operation.budget is not None and (said := refusal(operation, devices.machine().device)):
        raise ConfigError(said)


def require_approval(settings: Settings, base: Base, tokens: Tokens, work: Path, seconds: float) -> None:
    """Has a person approve a training whose estimate, with the `seconds` of the run so far, is above operation.budget.

    `work` is the working folder of the training; the approval is kept there, and in the store that machines share.
    Raises ConfigError in a terminal, and Prefect's Pause in a run of a deployment.
    """
    budget, here = settings.operation.budget, devices.machine()
    price = price_of(here.device, settings.operation.prices)
    if budget is None or price is None or shared_checkpoints.is_approved(work):
        return
    case = BudgetCase(ground_of(base, tokens), settings.method, settings.sft, settings.compute, here)
    rate = calibration.measured(base, tokens, case)
    if rate is None:
        log.info("  operation.budget=%g: timing a few training steps", budget)
        with on_devices(settings.compute.devices):
            rate = calibration.calibrate(base, tokens, case)
    would = [estimate(each, rate) for _, each in trainings(case, settings)]
    most = sum(each.seconds[1] for each in would if each.seconds)
    spent, cost = rounded(price.of(seconds)), rounded(price.of(most, settings.compute.num_ranks))
    total = spent + cost  # of what is shown, so that the sum is right
    said = (
        f"up to {money(total)} by the end of its training: {money(spent)} so far, and up to {money(cost)} for "
        f"{duration(most)} of training at {price.said}, by {rate.source}"
    )
    if total <= budget:
        log.info("  within operation.budget=%g: the run costs %s", budget, said)
        return
    over = f"operation.budget={budget:g}: the run would cost {said}"
    if not deployment.id:
        least = rounded_up(total * 1.1)  # a tenth more than the estimate
        raise ConfigError(f"{over}; nothing has trained; to approve it, add --set operation.budget={least:g}")
    question = (
        f"{over}.\n\nThis form approves the cost. Its own *Cancel* only closes it: to end the run, close the form and "
        "choose *Cancel* in the menu at the top right of the run's page. " + AGAIN
    )
    log.warning("%s; it is suspended until somebody resumes it in Prefect", over)
    with suspending_as(f"{over}; to approve it, choose Resume in this page's menu"):
        answer = _ask(question)
    shared_checkpoints.keep_approval(work, json.dumps({"by": answer.by, "cost": total}))
    log.info("  the cost was approved by %s", answer.by)


def _ask(question: str) -> BudgetForm:
    """Suspend the run until a person answers; earlier runs that wait for the same approval are then superseded."""
    form = BudgetForm.with_initial_data(description=question)
    try:
        return suspend_flow_run(wait_for_input=form, timeout=THIRTY_DAYS, key="budget")
    except Pause:
        _supersede_earlier()
        raise


def _supersede_earlier() -> None:
    """Cancel the suspended runs of this deployment with the settings of this run, which reads the newer data."""
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        own = client.read_flow_run(UUID(str(flow_run.id)))
        suspended = client.read_flow_runs(
            deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [own.deployment_id]}}),
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.PAUSED]}}}),
        )
        said = f"superseded by {own.name}, a later run that waits for the same approval: flow run {own.id}"
        for run in suspended:
            is_earlier = run.created and own.created and run.created < own.created  # else two at once would cancel both
            if is_earlier and run.parameters == own.parameters:
                client.set_flow_run_state(run.id, Cancelled(message=said), force=True)
                log.info("  %s waited for the same approval, and was cancelled", run.name)


def _short(name: str) -> str:
    """The word of a card's name that says which it is: h100 of "NVIDIA H100 80GB HBM3"."""
    words = [word for word in name.lower().split() if word not in ("nvidia", "geforce", "tesla")]
    return next((word for word in words if any(map(str.isdigit, word))), name.lower())
