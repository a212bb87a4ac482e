"""Runs that an earlier `tunewright up` left in a state that is not theirs any more, since nobody could say so.

When the machine went down, or all was killed at once, the database has them as running. The worker of this pool on this
machine is about to start, so none of them lives.
"""

from tunewright.cli.up.service import client
from tunewright.machine.addresses import Addresses

CRASHED = "tunewright was killed during this run; it resumes when it runs again"
CANCELLED = "tunewright was killed before it could cancel it"


def end(up: Addresses) -> list[str]:
    """Marks the unfinished runs of the pool as crashed, or cancelled if that was asked, and returns their names.

    Raises httpx.HTTPError where the server refuses, or stays busy for longer than Prefect's client repeats a request.
    """
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled, Crashed

    unfinished = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    with client(up) as server:
        found = server.read_flow_runs(
            flow_run_filter=filters.FlowRunFilter.model_validate({"state": {"type": {"any_": unfinished}}}),
            work_pool_filter=filters.WorkPoolFilter.model_validate({"name": {"any_": [up.pool]}}),
        )
        for run in found:
            is_cancelled = run.state is not None and run.state.is_cancelling()
            state = Cancelled(message=CANCELLED) if is_cancelled else Crashed(message=CRASHED)
            server.set_flow_run_state(run.id, state, force=True)
    return [run.name for run in found]
