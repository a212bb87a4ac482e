"""The deployment watch/NAME, which looks at the data of another: made, brought up to date or removed."""

from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.utilities.callables import parameter_schema

from tunewright.cli.deploy.server import read
from tunewright.flows.parameters import FLOW
from tunewright.flows.watch import watch

WATCH = "watch"


def keep(client: SyncPrefectClient, watched: DeploymentResponse, seconds: int | None) -> bool:
    """Sees that the data are looked at every so many seconds, or not at all; returns whether anything changed."""
    there = read(client, WATCH, watched.name)
    if seconds is None:
        if there:
            client.delete_deployment(there.id)
        return there is not None
    asked: dict[str, Any] = {
        "parameters": {"deployment": f"{FLOW}/{watched.name}"},
        "job_variables": watched.job_variables,
        "pull_steps": watched.pull_steps,
        "work_pool_name": watched.work_pool_name,
    }
    interval = timedelta(seconds=seconds)
    if there and _intervals(there) == [interval] and all(getattr(there, name) == asked[name] for name in asked):
        return False
    client.create_deployment(
        client.create_flow(watch),
        watched.name,
        **asked,
        entrypoint="tunewright.flows.watch.watch",
        description=f"Polls the files of {FLOW}/{watched.name} every {seconds} s",
        tags=["tunewright"],
        schedules=[DeploymentScheduleCreate(schedule=IntervalSchedule(interval=interval))],
        concurrency_limit=1,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        parameter_openapi_schema=parameter_schema(watch).model_dump_for_openapi(),
        enforce_parameter_schema=True,
    )
    return True


def _intervals(deployment: DeploymentResponse) -> list[timedelta | None]:
    """The interval of each schedule; None of one that has none."""
    schedules = (each.schedule for each in deployment.schedules)
    return [each.interval if isinstance(each, IntervalSchedule) else None for each in schedules]
