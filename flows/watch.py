"""A look at the files of a deployment, every operation.watch seconds; it tells the server where they have changed.

It also starts a run again that crashed: its process or its machine died, and nothing was wrong with it. A look is a
process of a second or two, and those that saw nothing new are deleted but for the last ones.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect import State, flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment as own
from prefect.runtime import flow_run
from prefect.states import Completed

from tunewright import config
from tunewright.compat import STOPPED, STOPPED_EARLY
from tunewright.errors import ConfigError, DataError
from tunewright.flows import announcing
from tunewright.flows.parameters import FLOW, checked, identifier, named
from tunewright.reports.pages import counted
from tunewright.store import in_use
from tunewright.store.naming import naming_machine, on_machine
from tunewright.tasks.ingest import watching

log = logging.getLogger("tunewright")

KEPT_RUNS = 10  # of those that saw nothing new
PAUSED = "Deployment paused"
# Prefect cancels a poll that comes too soon.
NO_NEWS = (PAUSED, "Unchanged", "Unreadable", "Unsettled", "Cancelled", "Crashed")
RESTARTS = 2  # in a row: what crashes again and again may do so by itself, as where memory is short
RESTARTED_WITHIN = timedelta(days=1)  # of the crash
READS_WITHIN = timedelta(minutes=10)  # of its start; one that did not was killed, or is of an earlier version
READ_RUNS = 20  # the newest: crashes are counted among them, without those that were stopped
GIVEN_UP = "Not restarted"
BROKEN = (StateType.FAILED, StateType.CRASHED)


@flow(name="watch")
def watch(deployment: str) -> State[None]:
    """Looks at the files of a deployment, and emits the event tunewright.data.changed where they have.

    Where its last run crashed, that is started again instead, and the files are left to the next look.

    Args:
        deployment: Whose files, such as finetune/demo
    """
    with naming_machine():
        return _poll(deployment)


def _poll(deployment: str) -> State[None]:
    config.quiet_libraries()  # its process ends sooner
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    with get_client(sync_client=True) as client:
        try:
            watched = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            if own.id:
                client.pause_deployment(UUID(own.id))
            raise ConfigError(
                f"deployment={deployment}: this deployment no longer exists; the watcher was paused"
            ) from None
        _forget(client)
        if watched.paused:
            message = (
                f"{deployment} is paused, so this poll starts nothing; the first poll after it is resumed looks for "
                "changes again"
            )
            log.info("%s", message)
            return Completed(name=PAUSED, message=message)
        begun = _begun(client, watched)
        if restarted := _start_again(client, watched, begun):
            log.warning("%s", restarted)
            return Completed(name="Restarted", message=restarted)
        if given_up := _give_up(client, watched, begun):
            log.warning("%s", given_up)
            return Completed(name=GIVEN_UP, message=given_up)
        settings = checked(watched.parameters, lambda _: deployment)
        name = named(settings.registry, watched.name).name
        if coming := _on_its_way(client, watched, begun):
            message = f"the run {coming} waits for its turn and has not read the files yet; a later poll compares"
            return Completed(name="Unsettled", message=message)
        if not watching.has_finished(identifier(watched.name)) and (running := _under_way(client, watched, name)):
            of_it = "compares the files with those that it read"
            of_others = "starts a run, as it is no run of this deployment"
            message = (
                f"no run of this deployment has finished yet, and {running.name} is under way; the first poll after "
                f"its end {of_it if running.deployment_id == watched.id else of_others}"
            )
            log.info("%s", message)
            return Completed(name="Unsettled", message=message)
    try:
        found = watching.look(identifier(watched.name), settings.data, _newest(begun))
    except (ConfigError, DataError) as error:  # files on their way, or none yet: a run would say the same and fail
        why = on_machine(str(error))
        log.warning("%s", why)
        if since := watching.long_unreadable(identifier(watched.name)):
            said = f"No poll could read the files since {since:%Y-%m-%d %H:%M} UTC, so no run starts: {why}"
            announcing.announce(announcing.UNREADABLE, watched.name, {"said": said, "poll": str(flow_run.id)})
        return Completed(name="Unreadable", message=why)
    said = watching.shown(found.changes)
    if found.is_new:
        announcing.announce(announcing.CHANGED, watched.name, {"changes": list(found.changes)})
        log.info("%s", said)
        return Completed(name="Changed", message=said)
    if found.is_unsettled:
        return Completed(
            name="Unsettled", message=f"{said}; still being written; a poll that finds them at rest announces it"
        )
    as_before = (
        f"a run for this change was started already ({said})" if said else "unchanged since the last finished run"
    )
    return Completed(name="Unchanged", message=f"{counted(found.num_files, 'file')}; {as_before}{_what_next(begun)}")


def _under_way(client: SyncPrefectClient, watched: DeploymentResponse, name: str | None) -> FlowRun | None:
    """A run of the deployment or its pipeline `name` that is under way, one of the deployment first.

    A run that was killed can be Running to Prefect for ever, but no longer uses the home.
    """
    if not in_use.is_by_a_run():
        return None
    running = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.RUNNING]}}})
    runs = client.read_flow_runs(
        flow_run_filter=running, flow_filter=FlowFilter.model_validate({"name": {"any_": [FLOW]}})
    )
    # A run of a terminal has its registry.name in its parameters, as a dump of the section.
    sections = {run.id: run.parameters.get("registry") for run in runs}
    names = {id_: section.get("name") if isinstance(section, dict) else None for id_, section in sections.items()}
    own = (run for run in runs if run.deployment_id == watched.id)
    return next(own, None) or next((run for run in runs if names[run.id] == name), None)


def _on_its_way(client: SyncPrefectClient, watched: DeploymentResponse, begun: Sequence[FlowRun]) -> str:
    """The name of a run of the deployment that has yet to read the files, or "" if there is none."""
    due = {"state": {"type": {"any_": [StateType.SCHEDULED]}}, "expected_start_time": {"before_": datetime.now(UTC)}}
    waiting = client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [watched.id]}}),
        flow_run_filter=FlowRunFilter.model_validate(due),
        limit=1,
    )
    starting = [
        run
        for run in begun[:1]
        if run.state and not run.state.is_final() and run.state.timestamp > datetime.now(UTC) - READS_WITHIN
    ]
    return next((run.name for run in (*waiting, *starting) if announcing.FILES not in run.labels), "")


def _newest(begun: Sequence[FlowRun]) -> watching.NewestRun | None:
    if not begun or not (state := begun[0].state):
        return None
    files = str(begun[0].labels.get(announcing.FILES, ""))
    return watching.NewestRun(files, has_finished=state.is_completed(), has_failed=state.is_failed())


def _begun(client: SyncPrefectClient, watched: DeploymentResponse) -> list[FlowRun]:
    """The last runs of the deployment, the newest first, without those that still wait for their time."""
    begun = [kind for kind in StateType if kind != StateType.SCHEDULED]
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [watched.id]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": begun}}}),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=READ_RUNS,
    )


def _start_again(client: SyncPrefectClient, watched: DeploymentResponse, newest: Sequence[FlowRun]) -> str:
    """Starts the newest run again, as it was, if it crashed; says so, or nothing where it did not."""
    if not _is_restarted(newest):
        return ""
    crashed, key = newest[0], f"again after {newest[0].id}"
    known = FlowRunFilter.model_validate({"idempotency_key": {"any_": [key]}})
    if client.read_flow_runs(flow_run_filter=known, limit=1):  # it waits for its turn
        return ""
    again = client.create_flow_run_from_deployment(watched.id, parameters=crashed.parameters, idempotency_key=key)
    return f"{crashed.name} crashed, and {watched.name} was started again: flow run {again.id}"


def _give_up(client: SyncPrefectClient, watched: DeploymentResponse, newest: Sequence[FlowRun]) -> str:
    """Announces once that the newest run crashed once too often, and says so; nothing where it did not."""
    if not newest or not _has_crashed(newest[0]) or _is_restarted(newest):
        return ""
    crashed = newest[0]
    said = (
        f"{crashed.name} crashed {RESTARTS + 1} times in a row and is not restarted. Read its log, and "
        "remove the cause. Then start a run in Prefect; it resumes from the last checkpoint. A change of "
        f"the files or the schedule also starts one. Flow run {crashed.id}"
    )
    announced = FlowRunFilter.model_validate({"state": {"name": {"any_": [GIVEN_UP]}}})
    before = client.read_flow_runs(
        flow_run_filter=announced,
        flow_filter=FlowFilter.model_validate({"name": {"any_": ["watch"]}}),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=READ_RUNS,
    )
    if any(run.state and run.state.message == said for run in before):
        return ""
    announcing.announce(announcing.GAVE_UP, watched.name, {"said": said, "run": str(crashed.id)})
    return said


def _is_restarted(newest: Sequence[FlowRun]) -> bool:
    """Whether the newest run crashed and is to be started again; one that was stopped always is."""
    if not newest or not _has_crashed(newest[0]):
        return False
    return _was_stopped(newest[0]) or _num_crashes(newest) <= RESTARTS


def _num_crashes(newest: Sequence[FlowRun]) -> int:
    """Count the newest runs that crashed; a stop of `tunewright up` ends a run with SIGTERM, and is no crash."""
    ended = [run for run in newest if not _was_stopped(run)]
    return sum(map(_has_crashed, ended[: RESTARTS + 1]))


def _has_crashed(run: FlowRun) -> bool:
    since = datetime.now(UTC) - RESTARTED_WITHIN
    return bool(run.state and run.state.is_crashed() and run.state.timestamp > since)


def _was_stopped(run: FlowRun) -> bool:
    return bool(run.state and run.state.is_crashed() and (run.state.message or "").startswith((STOPPED, STOPPED_EARLY)))


def _what_next(newest: Sequence[FlowRun]) -> str:
    """The rest of a sentence: what follows on the last run if that failed or crashed."""
    last = newest[0] if newest else None
    if not last or not last.state or last.state.type not in BROKEN:
        return ""
    why = " again after restarts" if _num_crashes(newest) > RESTARTS else ""
    how = "crashed" if last.state.is_crashed() else "failed"
    return (
        f"; {last.name} {how}{why} and is not restarted: a change of the files, the schedule or you start the next run"
    )


def _forget(client: SyncPrefectClient) -> None:
    """Deletes old runs of this deployment that saw nothing new: there are thousands of them a day."""
    if own.id is None:
        return
    old = client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [own.id]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"name": {"any_": [*NO_NEWS]}}}),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        offset=KEPT_RUNS,
        limit=KEPT_RUNS,
    )
    for run in old:
        client.delete_flow_run(run.id)
