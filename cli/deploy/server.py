"""Calls to Prefect's server and `prefect deploy`: pools, deployments, their watches, notification blocks."""

import asyncio
import copy
import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any, NamedTuple
from uuid import UUID

import yaml
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, FlowFilter, FlowRunFilter, WorkerFilter
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_WORKER_HEARTBEAT_SECONDS
from prefect.utilities.callables import parameter_schema
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from tunewright import config
from tunewright.accepted import did_you_mean, meant, shown
from tunewright.cli.deployment_file import Pipeline
from tunewright.cli.up.service import log_file
from tunewright.config import outside, quietly
from tunewright.errors import ConfigError, TunewrightError
from tunewright.flows.parameters import FLOW, identifier, slug
from tunewright.flows.watch import watch
from tunewright.machine import addresses

LOGGER = "tunewright"
LOGGERS = "PREFECT_LOGGING_EXTRA_LOGGERS"
COMPARED = {  # what makes a deployment what it is -> in words
    "parameters": "parameters",
    "schedules": "schedule",
    "work_pool_name": "work pool",
    "work_queue_name": "work queue",
    "job_variables": "job variables",
    "global_concurrency_limit": "concurrency limit",
    "concurrency_options": "concurrency limit",
    "description": "description",
    "tags": "tags",
    "paused": "paused",
    "entrypoint": "entrypoint",
    "pull_steps": "folder",
    "parameter_openapi_schema": "form",
    "enforce_parameter_schema": "form",
}
ACTIVE = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
POLL_SECONDS = 60.0  # for a poll to end; it takes a second or two, and more on a busy machine
LOOK_SECONDS = 0.5
OVERDUE = 1.5  # intervals between heartbeats; Prefect itself has a worker as online for three
ORIGINS = ("repository", "bucket", "container")  # of Prefect's pull steps
POLL = {"gpus": 0, "cpu_request": "250m", "memory_request": "1Gi", "memory_limit": "2Gi"}  # what a poll needs
OF_SCHEDULE = {"schedule", "active", "parameters", "slug"}


def make_pool(client: SyncPrefectClient, name: str) -> bool:
    """Makes a work pool whose runs are processes, unless there is one of that name; returns whether it did."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = asyncio.run(get_default_base_job_template_for_infrastructure_type("process"))
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template or {}))
        return True
    return False


def require_pool(client: SyncPrefectClient, pipeline: Pipeline) -> None:
    """Raises ConfigError where the server has not the pool that the file names: nothing would ever run there."""
    there = [pool.name for pool in client.read_work_pools()]
    if pipeline.work_pool and pipeline.work_pool not in there:
        own = shlex.quote(pipeline.work_pool)
        raise ConfigError(
            f"{pipeline.place_of_pool}: work_pool.name={pipeline.work_pool}: the server has no such pool; "
            f"{did_you_mean(pipeline.work_pool, there) if there else 'it has none'}; this makes it: "
            f"{addresses.for_prefect(PREFECT_API_URL.value())} prefect work-pool create {own} --type process"
        )


def require_own_name(client: SyncPrefectClient, pipeline: Pipeline) -> None:
    """Raise ConfigError where another deployment on the server has a name with the same letters and digits."""
    for each in deployments(client):
        if each.name != pipeline.name and identifier(each.name) == identifier(pipeline.name):
            raise ConfigError(
                f"{pipeline.path}: {shown(pipeline.name)} and {shown(each.name)}, which is on the server, would share "
                f"automations and registry.name={identifier(each.name)}; rename one, or remove the other with "
                f"tunewright deploy --remove {shlex.quote(each.name)}"
            )


class Workers(NamedTuple):
    """Those that wait for runs of a pool, as far as their heartbeats say: one that ended takes no leave."""

    waiting: int
    seconds: float | None  # since the last heartbeat of all that the server has not yet given up


def workers(client: SyncPrefectClient, pool: str) -> Workers:
    """The workers of a pool, without those whose next heartbeat is overdue."""
    online = WorkerFilter.model_validate({"status": {"any_": ["ONLINE"]}})
    now, ages, waiting = datetime.now(UTC), [], 0
    for each in client.read_workers_for_work_pool(pool, worker_filter=online):
        if each.last_heartbeat_time:
            age = max(0.0, (now - each.last_heartbeat_time).total_seconds())
            waiting += age <= OVERDUE * (each.heartbeat_interval_seconds or PREFECT_WORKER_HEARTBEAT_SECONDS.value())
            ages.append(age)
    return Workers(waiting, min(ages, default=None))


def _no_block(client: SyncPrefectClient, name: str) -> str:
    """Describe which notification blocks, or which types of them, there are in place of `name`."""
    kind, _, document = name.partition("/")
    schemas = {each.block_type_id: each for each in client.read_block_schemas() if "notify" in each.capabilities}
    kinds = {each.id: each.slug for each in client.read_block_types() if each.id in schemas}
    saved = [
        f"{kinds[each.block_type_id]}/{each.name}"
        for each in client.read_block_documents(limit=None, include_secrets=False)
        if each.block_type_id in kinds and each.name
    ]
    said = f"operation.notify: the server has no block {name}"
    alike = [each for each in saved if all(map(_is_near, each.split("/", 1), (kind, document)))]  # in both parts
    if near := get_close_matches(name, alike, 1):
        return f"{said}; {meant(near)}accepted: {', '.join(sorted(saved))}"
    if kind not in kinds.values():
        return (
            f"{said}, and no type {kind} of notification blocks; "
            f"{did_you_mean(kind, sorted(kinds.values()))}; make one named {document} in its UI under Blocks"
        )
    there = f"; or write one that is there: {', '.join(sorted(saved))}" if saved else ""
    return f"{said}; make one named {document} in its UI under Blocks, of the type {kind}{there}"


def _is_near(one: str, other: str) -> bool:
    return bool(get_close_matches(one, [other]))


def block_ids(client: SyncPrefectClient, names: tuple[str, ...]) -> dict[str, UUID]:
    """The ids of notification blocks. Raises ConfigError where one is not there."""
    found: dict[str, UUID] = {}
    for name in names:
        kind, _, document = name.partition("/")
        try:
            found[name] = client.read_block_document_by_name(document, kind, include_secrets=False).id
        except ObjectNotFound:
            raise ConfigError(_no_block(client, name)) from None
    return found


def send_test_messages(names: Sequence[str]) -> dict[str, str]:
    """Send a message by each notification block, and return for each why it was not sent; empty where it was."""
    return {name: _send_test_message(name) for name in names}


def _send_test_message(name: str) -> str:
    try:
        block: Any = Block.load(name)
        with block.raise_on_failure():  # else some blocks report nothing
            block.notify(body="Notifications of Tunewright arrive here.", subject="Tunewright: test message")
    except Exception as error:  # what a block's own library raises is anything
        return outside.without_credentials(" ".join(str(error).split()))[:300] or type(error).__name__
    return ""


def read(client: SyncPrefectClient, flow: str, name: str) -> DeploymentResponse | None:
    """A deployment, or None where there is none."""
    try:
        return client.read_deployment_by_name(f"{flow}/{name}")
    except ObjectNotFound:
        return None


def deploy(pipeline: Pipeline, pool: str, before: DeploymentResponse | None) -> None:
    """Calls `prefect deploy` on one deployment of a file.

    Where the file has no pull steps, its runs begin in the folder that this is called in.

    `before` is the deployment on the server, whose interval schedules keep their anchors.

    Raises TunewrightError with what it said, in one line.
    """
    named = () if pipeline.work_pool else ("--pool", pool)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        assert pipeline.document
        # YAML 1.1, by which Prefect reads it, takes 1e-4 for text: here it is the number.
        content = copy.deepcopy(pipeline.document.value)
        given = next(each for each in content["deployments"] if each["name"] == pipeline.name)
        _anchor(given, pipeline, before)
        _send_log(given)
        yaml.safe_dump(content, file)
        file.flush()
        done = _prefect_deploy("--prefect-file", file.name, "--name", pipeline.name, *named)
    if done.returncode:
        config.make_home()
        log = log_file("deploy")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout, encoding="utf-8")
        raise TunewrightError(f"{pipeline.path}: prefect deploy of {pipeline.name}: {_said(done.stdout)}; see {log}")


def _anchor(given: dict[str, Any], pipeline: Pipeline, before: DeploymentResponse | None) -> None:
    """Give intervals of a file's deployment without an anchor that of the same schedule on the server.

    Prefect anchors such a schedule at the time of each deploy, which moves its runs.
    """
    there = [each.schedule for each in before.schedules] if before else []
    left = [each for each in there if isinstance(each, IntervalSchedule)]
    for each, due in zip(given.get("schedules") or (), pipeline.schedules or (), strict=True):
        if not isinstance(due, IntervalSchedule) or each.get("anchor_date"):
            continue
        for known in left:
            if (known.interval, known.timezone or "UTC") == (due.interval, due.timezone or "UTC"):
                each["anchor_date"] = known.anchor_date.isoformat()
                left.remove(known)
                break


def _send_log(given: dict[str, Any]) -> None:
    """Have runs of a file's deployment send the pipeline's lines to Prefect whichever worker starts them.

    Prefect takes lines of the loggers that this variable names; those that the file names stay.
    """
    pool = given["work_pool"] = given.get("work_pool") or {}
    variables = pool["job_variables"] = pool.get("job_variables") or {}
    environment = variables.get("env") or {}
    if isinstance(environment, dict):  # a pool may have a list
        named = [name for name in str(environment.get(LOGGERS) or "").split(",") if name.strip()]
        added = [] if LOGGER in named else [LOGGER]
        variables["env"] = environment | {LOGGERS: ",".join([*named, *added])}


def _prefect_deploy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*quietly.COMMAND, "prefect", "--no-prompt", "deploy", *arguments],
        env=os.environ
        | {
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "PREFECT_DEPLOYMENTS_CLEAR_SCHEDULES_ON_EMPTY": "true",  # schedules: [] means none
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
            "NO_COLOR": "1",
            "COLUMNS": "1000",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def environment_of(deployment: DeploymentResponse) -> dict[str, Any] | None:
    """The variables that a deployment sets for its runs; None where they are a list, as a pool may have it."""
    environment = deployment.job_variables.get("env") or {}
    return environment if isinstance(environment, dict) else None


def _said(output: str) -> str:
    """The last line of words in what Prefect printed, without its frames and what pydantic adds."""
    added = r"\[type=.*|^For further information .*"
    lines = (re.sub(added, "", line.strip(" │╭╮╰╯─\t")).strip() for line in output.splitlines())
    worded = [line for line in lines if re.search(r"\w", line)]
    return worded[-1][:500] if worded else "no output"


def changed(before: DeploymentResponse, after: DeploymentResponse) -> list[str]:
    """Describe the differences between two readings of a deployment."""
    was, now = _compared(before), _compared(after)
    said = COMPARED | {"paused": "paused" if after.paused else "resumed"}
    return list(dict.fromkeys(words for name, words in said.items() if was[name] != now[name]))


def _compared(deployment: DeploymentResponse) -> dict[str, Any]:
    """Return the fields that define a deployment."""
    values = deployment.model_dump(mode="json", include=set(COMPARED))
    limit = values["global_concurrency_limit"]
    schedules = [{name: each[name] for name in OF_SCHEDULE if name in each} for each in values["schedules"]]
    return values | {"schedules": schedules, "global_concurrency_limit": limit["limit"] if limit else None}


def folder(deployment: DeploymentResponse) -> str:
    """Return the folder that runs of a deployment begin in, and where it is got from: "a folder", "a folder of URL".

    Empty where the deployment has no pull steps.
    """
    steps = [step for each in deployment.pull_steps or () for step in each.values() if isinstance(step, dict)]
    named = (re.sub(r"{{.*?}}/?", "", str(step["directory"])) for step in reversed(steps) if "directory" in step)
    origins = (outside.without_credentials(str(step[key])) for step in steps for key in ORIGINS if key in step)
    return " of ".join(each for each in (next(named, ""), next(origins, "")) if each)


def deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """All of the pipeline."""
    return client.read_deployments(flow_filter=FlowFilter.model_validate({"name": {"any_": [FLOW]}}))


def model_of(deployment: DeploymentResponse) -> str:
    """The registered model of a deployment."""
    return deployment.parameters.get("registry", {}).get("name") or slug(deployment.name)


def active_runs(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    """The runs of a deployment that a worker has begun and that have not ended."""
    return _runs(client, deployment, ACTIVE)


def scheduled_runs(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    """The runs of a deployment that wait for their time, a worker or a concurrency slot."""
    return _runs(client, deployment, [StateType.SCHEDULED])


def suspended_runs(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    """The runs of a deployment that wait for a person's answer."""
    return _runs(client, deployment, [StateType.PAUSED])


def _runs(client: SyncPrefectClient, deployment: UUID, types: Sequence[StateType]) -> list[FlowRun]:
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": types}}}),
    )


@contextmanager
def paused(client: SyncPrefectClient, them: Sequence[DeploymentResponse]) -> Iterator[None]:
    """Pause deployments. They stay paused, but where the block raises TunewrightError they are resumed."""
    try:
        for each in them:
            client.pause_deployment(each.id)
        yield
    except TunewrightError:
        for each in them:
            if not each.paused:
                client.resume_deployment(each.id)
        raise


@contextmanager
def paused_idle(client: SyncPrefectClient, watchers: Sequence[DeploymentResponse]) -> Iterator[None]:
    """Pause watchers and wait for their active polls to end: once deleted, Prefect refuses the end of a poll.

    They stay paused. Where a poll does not end, or the block raises TunewrightError, they are resumed.
    """
    with paused(client, watchers):
        for watcher in watchers:
            _await_poll(client, watcher)
        yield


def _await_poll(client: SyncPrefectClient, watcher: DeploymentResponse) -> None:
    until = time.monotonic() + POLL_SECONDS
    while active := active_runs(client, watcher.id):
        if time.monotonic() > until:
            raise TunewrightError(
                f"watch/{watcher.name}: the poll {active[0].name} has not ended within {POLL_SECONDS:.0f} s; cancel it "
                f"in Prefect (prefect flow-run cancel {active[0].id}), then call this command again"
            )
        time.sleep(LOOK_SECONDS)


def _delete_watcher(client: SyncPrefectClient, watcher: DeploymentResponse) -> None:
    with paused_idle(client, [watcher]):
        client.delete_deployment(watcher.id)


def keep_watch(client: SyncPrefectClient, watched: DeploymentResponse, seconds: int | None) -> bool:
    """Sees that the data are looked at every so many seconds, or not at all; returns whether anything changed."""
    name = identifier(watched.name)
    if name != watched.name and (older := read(client, "watch", watched.name)):  # named so before
        _delete_watcher(client, older)
    there = read(client, "watch", name)
    if seconds is None:
        if there:
            _delete_watcher(client, there)
        return there is not None
    asked: dict[str, Any] = {
        "parameters": {"deployment": f"{FLOW}/{watched.name}"},
        "job_variables": _of_poll(client, watched),
        "pull_steps": watched.pull_steps,
        "work_pool_name": watched.work_pool_name,
    }
    interval = timedelta(seconds=seconds)
    intervals = [getattr(each.schedule, "interval", None) for each in there.schedules] if there else []
    if there and intervals == [interval] and all(getattr(there, name) == asked[name] for name in asked):
        return False
    client.create_deployment(
        client.create_flow(watch),
        name,
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


def _of_poll(client: SyncPrefectClient, watched: DeploymentResponse) -> dict[str, Any]:
    """The job variables of a deployment, with those of POLL that the template of its work pool has.

    A pool for trainings gives each job a GPU, for which a poll would wait as long as a training has it.
    """
    assert watched.work_pool_name  # of `deploy`
    template = client.read_work_pool(watched.work_pool_name).base_job_template
    variables = template.get("variables", {}).get("properties", {})

    def is_ours(name: str, value: object) -> bool:  # a team's own template may mean another thing by it
        return isinstance(variables.get(name, {}).get("default"), type(value))

    return watched.job_variables | {name: value for name, value in POLL.items() if is_ours(name, value)}
