"""`tunewright deploy`: the deployments of a file on Prefect's server, with what starts them and who is told.

Prefect's own `prefect deploy` does the deploying (server.py). Before it all inputs are looked at as `plan` does; after
it come the watch on the data and the automations (automations.py). view.py says in words what is now due when,
and removal.py takes a deployment off the server again.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import get_current_settings

from tunewright.cli import deployment_file
from tunewright.cli.deploy import server
from tunewright.cli.deploy.automations import SERVER, Synced, Target, of_deployment, of_server, sync
from tunewright.cli.deploy.timing import require_due
from tunewright.cli.deployment_file import Pipeline
from tunewright.cli.prefect_server import connected
from tunewright.config import outside, working_in
from tunewright.cost_model import devices
from tunewright.errors import ConfigError, DataError
from tunewright.flows import calls, release
from tunewright.flows.budget import refusal
from tunewright.flows.inputs import inputs
from tunewright.flows.parameters import FLOW
from tunewright.modeling import models
from tunewright.registry.address import VARIABLE, asked

log = logging.getLogger("tunewright")

ANSWER_SECONDS = 3.0  # of an MLflow server


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """Result of one deployment of a file."""

    pipeline: Pipeline
    now: DeploymentResponse
    is_new: bool
    changed: Sequence[str]  # of what was there, in words
    moved_from: str  # the folder that its runs began in, where this is another one now; empty otherwise
    pool_type: str  # "process", "docker", "kubernetes" or another
    automations: Synced
    has_watch_changed: bool
    is_pool_new: bool
    workers: server.Workers
    link: str

    @property
    def state(self) -> str:
        """The result in one word: "created", "updated" or "unchanged"."""
        if self.is_new:
            return "created"
        return "updated" if self.changed or any(self.automations) or self.has_watch_changed else "unchanged"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The deployments of a file, and others that begin in the same folder and are none of it."""

    deployed: Sequence[Deployed]
    others: Sequence[str]
    tested: Mapping[str, str]  # notification block -> why it did not send a test message; empty where it did


def deploy(file: Path, deployment: str | None, pool: str, *, tests: bool = False) -> Result:
    """Deploys a file's deployments, or the one that is named; `pool` is the work pool where the file names none.

    `tests` has each notification block of theirs send a test message.

    Raises ConfigError or DataError where one of them could not run, before any is deployed.
    """
    document = deployment_file.read(file)
    names = deployment_file.names(document)
    pipelines = [deployment_file.load(document, name) for name in ([deployment] if deployment else names)]
    blocks = tuple(dict.fromkeys(name for each in pipelines for name in each.settings.operation.notify))
    if tests and not blocks:
        raise ConfigError(
            f"--test-message: {file} names no notification block; set operation.notify, such as [slack-webhook/ops]"
        )
    with working_in(file.parent):  # and so do its runs
        for pipeline in pipelines:
            with deployment_file.placed(pipeline):
                stages = calls.stages(pipeline.settings, pipeline.until, pipeline.refresh)
                if {*stages} & {*calls.TRAININGS}:
                    _warn_of_price(pipeline)
                _warn_of_mlflow(pipeline)
            _look_at_inputs(pipeline)
            require_due(pipeline.schedules or (), pipeline.places)
        with connected() as client:
            for pipeline in pipelines:
                with deployment_file.placed(pipeline):
                    server.block_ids(client, pipeline.settings.operation.notify)
                server.require_pool(client, pipeline)
                server.require_own_name(client, pipeline)
            deployed = [_deploy(client, pipeline, pipeline.work_pool or pool) for pipeline in pipelines]
            sync(client, SERVER, of_server())
            tested = server.send_test_messages(blocks if tests else ())
            return Result(deployed=deployed, others=_others(client, deployed, names), tested=tested)


def _look_at_inputs(pipeline: Pipeline) -> None:
    """Raises ConfigError and DataError for what is missing or unusable here; a warning where runs begin elsewhere."""
    try:
        with deployment_file.placed(pipeline):
            inputs(pipeline.settings)
            models.look_up(pipeline.settings.model.base, pipeline.settings.model.revision)
    except (ConfigError, DataError) as error:
        if pipeline.pull is None:
            raise
        log.warning("not checked, as its runs begin in another folder, by pull: %s", error)


def _others(client: SyncPrefectClient, deployed: Sequence[Deployed], names: Sequence[str]) -> list[str]:
    """Deployments of the pipeline that begin where one of `deployed` does, and are none of `names`."""
    begin = [each.now.pull_steps for each in deployed]
    return [each.name for each in server.deployments(client) if each.name not in names and each.pull_steps in begin]


def _warn_of_price(pipeline: Pipeline) -> None:
    """Warn where a budget has no price of this machine's device; only the worker knows its own."""
    operation = pipeline.settings.operation
    if operation.budget is not None and (said := refusal(operation, devices.machine().device)):
        where = pipeline.origins["operation.budget"]
        log.warning("%s: each run on this machine, or on another with this device, will be refused: %s", where, said)


def _warn_of_mlflow(pipeline: Pipeline) -> None:
    """Warn where no server answers at registry.tracking_uri. Raises ConfigError for a metadata service.

    Runs go by the environment of their worker, so that of this command says nothing.
    """
    uri = pipeline.settings.registry.tracking_uri or ""
    if not uri.startswith("http") or pipeline.origins["registry.tracking_uri"] == VARIABLE:
        return
    outside.check_address("registry.tracking_uri", uri)
    try:
        asked(uri, ANSWER_SECONDS)
    except httpx.HTTPError as error:
        log.warning(
            "%s: registry.tracking_uri=%s: MLflow does not answer (%s); "
            "runs fail before their first stage until it does",
            pipeline.origins["registry.tracking_uri"],
            outside.without_credentials(uri),
            " ".join(str(error).split()) or type(error).__name__,
        )


def _deploy(client: SyncPrefectClient, pipeline: Pipeline, pool: str) -> Deployed:
    is_pool_new = not pipeline.work_pool and server.make_pool(client, pool)
    before = server.read(client, FLOW, pipeline.name)
    server.deploy(pipeline, pool, before)
    now = server.read(client, FLOW, pipeline.name)
    assert now
    operation, registry = pipeline.settings.operation, pipeline.settings.registry
    if pipeline.settings.gate.approval:
        release.deploy(registry.name, now)
    ui = (get_current_settings().ui_url or "").rstrip("/")
    target = Target(now.id, now.name, registry.name, ui, approval=pipeline.settings.gate.approval)
    wanted = of_deployment(target, operation, server.block_ids(client, operation.notify))
    was_in = server.folder(before) if before else ""
    return Deployed(
        pipeline=pipeline,
        now=now,
        is_new=before is None,
        changed=server.changed(before, now) if before else (),
        moved_from=was_in if was_in != server.folder(now) else "",
        automations=sync(client, target.owner, wanted),
        has_watch_changed=server.keep_watch(client, now, operation.watch),
        is_pool_new=is_pool_new,
        pool_type=client.read_work_pool(now.work_pool_name or pool).type,
        workers=server.workers(client, now.work_pool_name or pool),
        link=f"{ui}/v2/deployments/deployment/{now.id}",
    )
