"""A file's deployments on a server: what its settings ask for, twice the same, and data that start a run."""

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import pytest
import yaml
from conftest import Harness
from make_payloads import SINCE, make_check_results
from prefect import State, flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.actions import RunDeployment
from prefect.exceptions import ObjectNotFound, Pause
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_DEPLOYMENTS_CLEAR_SCHEDULES_ON_EMPTY,
    temporary_settings,
)
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running, Suspended
from prefect.testing.cli import CycloptsCliRunner
from prefect.utilities.callables import parameter_schema
from rich.console import Console
from servers import free_port
from test_automations import event
from typer.testing import CliRunner
from waiting import until

from tunewright import config
from tunewright.artifacts import Base, CheckedRows
from tunewright.cli.deploy import deploy, removal
from tunewright.cli.deploy import server as server_calls
from tunewright.cli.deploy.automations import CRASHED_POLLS, CRASHES
from tunewright.cli.deploy.removal import remove
from tunewright.cli.deploy.timing import in_words, next_times, require_due
from tunewright.cli.deploy.view import as_json, show
from tunewright.cli.main import app
from tunewright.cli.up import service
from tunewright.config import Data, Registry, Source
from tunewright.cost_model import devices
from tunewright.errors import ConfigError, TunewrightError
from tunewright.flows import announcing, budget, run_name
from tunewright.flows.calls import Step
from tunewright.flows.watch import _was_stopped, watch
from tunewright.machine import addresses
from tunewright.machine.addresses import Addresses
from tunewright.store import in_use
from tunewright.tasks.ingest import source_files, watching


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (CronSchedule(cron="0 3 * * *", timezone="UTC"), "every day at 03:00 UTC"),
        (CronSchedule(cron="30 22 * * 1", timezone="Europe/Berlin"), "every Monday at 22:30 Europe/Berlin"),
        (CronSchedule(cron="*/5 * * * *"), "cron */5 * * * * UTC"),
        (IntervalSchedule(interval=timedelta(seconds=30)), "every 30 s"),
        (IntervalSchedule(interval=timedelta(days=1)), "every day"),
        (IntervalSchedule(interval=timedelta(hours=6)), "every 6 h"),
        (IntervalSchedule(interval=timedelta(seconds=90)), "every 90 s"),
        (RRuleSchedule(rrule="FREQ=DAILY"), "rrule FREQ=DAILY UTC"),
    ],
)
def test_a_schedule_is_said_in_words(schedule: Any, words: str) -> None:
    assert in_words(schedule) == words
    first, second = next_times(schedule)
    assert first < second


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (CronSchedule(cron="* * * * * */5"), r"cron \* \* \* \* \* \*/5 UTC: due again after 5 s"),
        (CronSchedule(cron="0 3 * * * 0,30"), r"due again after 30 s"),
        (RRuleSchedule(rrule="FREQ=SECONDLY;INTERVAL=20"), r"due again after 20 s"),
    ],
)
def test_a_schedule_that_is_due_again_within_a_minute_is_refused(schedule: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^x.yaml line 4: schedules: .*{said}; accepted: at least 60 s between"):
        require_due([schedule], ["x.yaml line 4"])
    require_due([CronSchedule(cron="* * * * *"), CronSchedule(cron="0 3 * * * 0")], ["here", "there"])


def test_drift_is_what_the_expectations_found_or_that_there_is_no_version_before(tmp_path: Path) -> None:
    def checked(since: Any, **findings: int) -> CheckedRows:
        make_check_results(since=since).save(tmp_path)
        return CheckedRows(folder=tmp_path, num_rows=1, num_quarantined=0, reasons={}, findings=findings)

    assert announcing.drifts(checked(None)) == ["no version before"]
    assert announcing.drifts(checked(SINCE, refusal=3)) == []
    assert announcing.drifts(checked(SINCE, label_drift=1, refusal=3)) == ["label_drift"]


def test_without_a_server_it_says_what_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = CliRunner().invoke(app, ["deploy", "deployments/demo.yaml"])
    assert done.exit_code == 2
    assert "no Prefect server: start one with tunewright up, or set PREFECT_API_URL" in done.stderr
    assert done.stderr.endswith(", or set TUNEWRIGHT_HOME if one is up in another home\n")


@pytest.mark.parametrize("api", ["", "http://127.0.0.1:9/api"])
def test_while_up_starts_it_says_to_wait(api: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", api)
    with addresses.held():
        done = CliRunner().invoke(app, ["deploy", "deployments/demo.yaml"])
    said = f"error: tunewright up is still starting in {home}: wait until it has printed its addresses\n"
    assert (done.exit_code, done.stderr) == (2, said)


# From here on there is a server.

FILE = """
deployments:
  - name: drops
    entrypoint: tunewright.flows.finetune.finetune
    schedules: [{{cron: "0 3 * * *", timezone: UTC}}]
    concurrency_limit: {{limit: 1, collision_strategy: ENQUEUE}}
    parameters:
      data: {{sources: [{{path: "in/*.jsonl"}}]}}
      model: {{base: {base}}}
      training: {{learning_rate: {rate}}}
      operation: {operation}
"""


described = cache(parameter_schema)


def deployed_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Does what `prefect deploy` does, without the seconds in which a process imports it and describes the flow."""
    with (
        temporary_settings({PREFECT_DEPLOYMENTS_CLEAR_SCHEDULES_ON_EMPTY: True}),
        patch("prefect.logging.configuration.setup_logging"),
        patch("prefect.cli.deploy._core.parameter_schema", described),
        patch("prefect.deployments.runner.parameter_schema", described),
    ):
        done = CycloptsCliRunner().invoke(["--no-prompt", "deploy", *arguments])
    return subprocess.CompletedProcess(arguments, done.exit_code, done.output)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that asks for more than how Prefect itself is called deploys in this process."""
    monkeypatch.setattr(server_calls, "_prefect_deploy", deployed_here)


@pytest.fixture(scope="module")
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness(own=True):
        yield


@pytest.fixture
def client(server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    Path("in").mkdir()
    Path("in/a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def write(tiny_base: Base) -> Callable[..., Path]:
    def write(operation: str = "{}", rate: str = "0.001") -> Path:
        Path("drops.yaml").write_text(FILE.format(base=tiny_base.reference, rate=rate, operation=operation))
        return Path("drops.yaml")

    return write


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[str]]]:
    """An address that takes messages, and what came."""
    came: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's name
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/", came
    listening.shutdown()
    listening.server_close()


def test_a_file_is_deployed_and_a_second_time_nothing_changes(
    client: SyncPrefectClient,
    write: Callable[..., Path],
    webhook: tuple[str, list[str]],
    request: pytest.FixtureRequest,
) -> None:
    save_block("pager", webhook[0])
    operation = "{watch: 30, notify: [custom-webhook/pager], notify_on: [failure, rejection]}"

    first = as_json(deploy(write(operation), None, "local"))["deployments"][0]
    assert (first["name"], first["state"], first["work_pool"]) == ("finetune/drops", "created", "local")
    assert first["schedules"][0]["when"] == "every day at 03:00 UTC"
    assert len(first["automations"]["made"]) == 5
    (looks,) = client.read_deployment_by_name("watch/drops").schedules
    assert in_words(looks.schedule) == "every 30 s"
    request.getfixturevalue("quick")
    again = as_json(deploy(write(operation), None, "local"))["deployments"][0]
    assert (again["state"], again["changed"], again["id"]) == ("unchanged", [], first["id"])
    assert again["automations"] == {"made": [], "updated": [], "removed": []}

    data_start_a_run(client)
    a_run_that_is_rejected_is_told_of(client, webhook[1], first["link"])

    less = as_json(deploy(write("{}", rate="0.002"), None, "local"))["deployments"][0]
    assert (less["state"], less["changed"]) == ("updated", ["parameters"])
    assert len(less["automations"]["removed"]) == 5
    assert {each.name for each in client.read_automations()} == {CRASHES, CRASHED_POLLS}
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("watch/drops")


def data_start_a_run(client: SyncPrefectClient) -> None:
    """A look that finds a new file makes the server schedule a run of the deployment; a second look none."""
    deployment = client.read_deployment_by_name("finetune/drops")

    def runs() -> list[Any]:
        all_runs = client.read_flow_runs()
        return [r for r in all_runs if r.deployment_id == deployment.id and not r.auto_scheduled]

    def polled() -> tuple[str, str]:
        state: Any = watch("finetune/drops", return_state=True)
        return state.name, state.message

    for name in ("b", "c"):
        before = len(runs())
        Path(f"in/{name}.jsonl").write_text(f'{{"instruction": "{name}", "output": "b"}}\n')
        assert polled() == ("Changed", "no run has finished yet")
        until(lambda before=before: len(runs()) == before + 1)
        (waits,) = [run for run in runs() if not run.state.is_final()]
        Path("in/d.jsonl").write_text(f'{{"instruction": "{name}", "output": "d"}}\n')
        assert (
            polled()[1]
            == f"the run {waits.name} waits for its turn and has not read the files yet; a later poll compares"
        )
        Path("in/d.jsonl").unlink()
        client.set_flow_run_state(waits.id, Running(), force=True)
        assert polled()[0] == "Unsettled", "it has not said what it reads"
        with (
            patch.object(announcing.deployment, "id", deployment.id),
            patch.object(announcing.flow_run, "id", waits.id),
        ):
            announcing.tell_files(source_files(Data(sources=(Source(path="in/*.jsonl"),))))
        assert polled()[0] == "Unchanged"
        with patch.dict(os.environ, TUNEWRIGHT_HOME=f"elsewhere/{name}"):
            assert polled()[0] == "Unchanged", "a worker with another home"
        client.set_flow_run_state(waits.id, Cancelled(), force=True)
    assert polled()[1] == "3 files; a run for this change was started already (no run has finished yet)"
    time.sleep(2)
    assert len(runs()) == 2


def a_run_that_is_rejected_is_told_of(client: SyncPrefectClient, came: list[str], link: str) -> None:
    deployment = client.read_deployment_by_name("finetune/drops")
    run = client.create_flow_run_from_deployment(deployment.id)
    ended = Completed(name="Not promoted", message="Not promoted: it is no better")
    client.set_flow_run_state(run.id, ended, force=True)
    until(lambda: came)
    message = json.loads(came.pop())
    assert message["subject"] == "drops: Not promoted"
    assert message["body"].startswith("it is no better\n")
    assert message["body"].endswith(f"{link.partition('/v2/')[0]}/v2/runs/flow-run/{run.id}")
    failed = client.create_flow_run_from_deployment(deployment.id)
    client.set_flow_run_state(failed.id, Failed(message="no rows"), force=True)
    until(lambda: came)
    failure = json.loads(came.pop())
    assert failure["subject"] == "drops: Failed" and "again" not in failure["body"]
    crashed = client.create_flow_run_from_deployment(deployment.id)
    client.set_flow_run_state(crashed.id, Crashed(message="killed"), force=True)
    until(lambda: came)
    crash = json.loads(came.pop())
    assert crash["subject"] == "drops: Crashed"
    assert crash["body"].startswith("killed\nAfter the first and the second crash in a row the watcher restarts it at")
    said = {"said": "the run crashed 3 times in a row and is not restarted", "run": str(crashed.id)}
    announcing.announce(announcing.GAVE_UP, "drops", said)
    until(lambda: came)
    told = json.loads(came.pop())
    assert told["subject"] == "drops: not restarted"
    assert told["body"].startswith(f"{said['said']}\nThe last run of drops: http")
    assert told["body"].endswith(f"/v2/runs/flow-run/{crashed.id}")
    client.delete_flow_run(crashed.id)  # the next poll would start it again
    files_that_stay_unreadable_are_told_of(came)


def files_that_stay_unreadable_are_told_of(came: list[str]) -> None:
    Path("in").rename("out")
    with patch.object(watching, "LONG_UNREADABLE", timedelta(0)):
        state: Any = watch("finetune/drops", return_state=True)
    Path("out").rename("in")
    assert state.name == "Unreadable"
    until(lambda: came)
    told = json.loads(came.pop())
    assert told["subject"] == "drops: unreadable"
    assert told["body"].startswith("No poll could read the files since ") and state.message in told["body"]
    assert told["body"].endswith(f"/v2/runs/flow-run/{state.state_details.flow_run_id}")


BEAT = "/work_pools/{work_pool_name}/workers/heartbeat"


@pytest.mark.usefixtures("quick")
def test_a_worker_that_ended_is_not_said_to_wait_for_runs(
    client: SyncPrefectClient, write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def shown() -> str:
        found = deploy(write(), None, "be at")
        counts.append(as_json(found)["deployments"][0]["workers"])
        show(Console(width=400), found)
        return capsys.readouterr().out

    counts: list[int] = []
    api = PREFECT_API_URL.value()
    home = config.home()
    command = f"TUNEWRIGHT_HOME={home} PREFECT_API_URL={api} DO_NOT_TRACK=1 prefect worker start --pool 'be at'\n"
    assert f"no worker is running; start one: {command}" in shown()
    with temporary_settings({PREFECT_API_AUTH_STRING: "admin:secret"}):
        said = shown()
    needs = "with PREFECT_API_AUTH_STRING set as for this command"
    assert f"start one, {needs}: {command}" in said and "secret" not in said
    client.request("POST", BEAT, path_params={"work_pool_name": "be at"}, json={"name": "w"})
    assert re.search(r"be at; 1 worker waiting for runs, by a heartbeat \d+ s ago\n", shown())
    with patch.object(server_calls, "OVERDUE", -1):  # as if it had been silent since, and were not yet offline
        said = shown()
    assert re.search(
        r"the last heartbeat of a worker was \d+ s ago, so it may have ended; start one: TUNEWRIGHT_HOME=", said
    )
    assert counts == [0, 0, 1, 0]


@pytest.mark.usefixtures("quick")
def test_runs_of_any_worker_send_the_pipelines_lines_to_prefect(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    file = write("{watch: 30}")
    deploy(file, None, "local")
    for name in ("finetune/drops", "watch/drops"):
        variables = client.read_deployment_by_name(name).job_variables
        assert variables == {"env": {"PREFECT_LOGGING_EXTRA_LOGGERS": "tunewright"}}
    own = "{name: local, job_variables: {env: {PREFECT_LOGGING_EXTRA_LOGGERS: sqlalchemy, OMP_NUM_THREADS: '1'}}}"
    file.write_text(file.read_text().replace("    parameters:", f"    work_pool: {own}\n    parameters:"))
    assert as_json(deploy(file, None, "local"))["deployments"][0]["changed"] == ["job variables"]
    variables = client.read_deployment_by_name("finetune/drops").job_variables
    loggers = {"PREFECT_LOGGING_EXTRA_LOGGERS": "sqlalchemy,tunewright", "OMP_NUM_THREADS": "1"}
    assert variables == {"env": loggers}
    assert as_json(deploy(file, None, "local"))["deployments"][0]["state"] == "unchanged"


@pytest.mark.usefixtures("quick")
def test_what_cannot_run_is_said_before_anything_is_deployed(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    file = write()
    Path("in/a.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"drops.yaml line 8: data.sources\[0\].path=in/\*.jsonl: no file matches"):
        deploy(file, None, "local")


@pytest.mark.usefixtures("quick")
def test_a_base_that_the_hub_has_not_is_refused_and_what_was_deployed_stays(
    client: SyncPrefectClient, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write()
    deploy(file, None, "local")
    before = client.read_deployment_by_name("finetune/drops").parameters
    file.write_text(file.read_text().replace(before["model"]["base"], "models/nope"))
    with pytest.raises(ConfigError, match=r"drops.yaml line 9: model.base=models/nope: taken for a hub id, as there"):
        deploy(file, None, "local")
    assert client.read_deployment_by_name("finetune/drops").parameters == before


@pytest.mark.usefixtures("quick")
def test_no_two_deployments_get_one_model_from_their_names(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    deploy(write(), None, "local")
    text = write().read_text()
    other = Path("other.yaml")
    other.write_text(text.replace("name: drops", "name: Drops!"))
    with pytest.raises(ConfigError, match=r'"Drops!" and "drops", which is on the server, would share automations'):
        deploy(other, None, "local")
    other.write_text(
        text.replace("name: drops", "name: Drops!").replace("parameters:", "parameters:\n      registry: {name: other}")
    )
    with pytest.raises(ConfigError, match=r"would share automations and registry.name=drops; rename one, or remove "):
        deploy(other, None, "local")
    with pytest.raises(
        ConfigError, match=r"--remove \"Drops!\": the server has no such deployment; did you mean drops"
    ):
        remove("Drops!")


def test_a_deployed_run_begins_in_the_folder_of_its_file_wherever_deploy_was_called(
    client: SyncPrefectClient,
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    file = write().rename("elsewhere.yaml")
    file.write_text(file.read_text().replace("name: drops", "name: elsewhere"))
    Path("called/in").mkdir(parents=True)
    monkeypatch.chdir("called")
    result = deploy(Path("../elsewhere.yaml"), None, "local")
    assert Path.cwd() == tmp_path / "called"
    made = client.read_deployment_by_name("finetune/elsewhere")
    assert made.pull_steps == [{"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}]
    assert made.parameters["data"] == {"sources": [{"path": "in/*.jsonl"}]}
    monkeypatch.chdir(tmp_path)
    request.getfixturevalue("quick")
    again = deploy(Path("elsewhere.yaml"), None, "local")
    assert [each.state for each in (*result.deployed, *again.deployed)] == ["created", "unchanged"]


@pytest.mark.usefixtures("quick")
def test_a_file_of_another_folder_that_takes_over_a_deployment_is_told_of(
    client: SyncPrefectClient, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(file: Path) -> str:
        show(Console(width=400), deploy(file, None, "local"))
        return capsys.readouterr().out

    file = write()
    file.write_text(file.read_text().replace("name: drops", "name: taken"))
    Path("other/in").mkdir(parents=True)
    Path("other/in/a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    Path("other/drops.yaml").write_text(file.read_text())
    assert "its folder was" not in shown(file)
    said = f"\n  its folder was {tmp_path}, now {tmp_path / 'other'}: it replaced the deployment of that folder; if"
    assert said in shown(Path("other/drops.yaml"))
    assert "its folder was" not in shown(Path("other/drops.yaml"))
    remove("taken")


@pytest.mark.usefixtures("quick")
def test_a_time_that_never_comes_and_a_pool_that_is_not_there_are_refused(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    file = write()
    deploy(file, None, "local")
    before = client.read_deployment_by_name("finetune/drops")
    text = file.read_text()
    file.write_text(text.replace("0 3 * * *", "0 0 31 2 *"))
    with pytest.raises(
        ConfigError, match=r"drops.yaml line 5: schedules: cron 0 0 31 2 \* UTC: no such time in the future"
    ):
        deploy(file, None, "local")
    file.write_text(text.replace("    parameters:", "    work_pool: {name: lo cal}\n    parameters:"))
    with pytest.raises(
        ConfigError,
        match=r"drops.yaml line 7: work_pool.name=lo cal: .* no such pool; did you mean local\?.* makes it: "
        r"PREFECT_API_URL=\S+ DO_NOT_TRACK=1 prefect work-pool create 'lo cal' --type process$",
    ):
        deploy(file, None, "local")
    assert client.read_deployment_by_name("finetune/drops").schedules == before.schedules


def test_a_failure_of_prefects_own_deploy_is_one_line(
    client: SyncPrefectClient, write: Callable[..., Path], home: Path
) -> None:
    file = write()
    file.write_text(file.read_text().replace("concurrency_limit: {", "build: 7\n    concurrency_limit: {"))
    with pytest.raises(TunewrightError, match=r"^drops.yaml: prefect deploy of drops: .*; see ") as error:
        deploy(file, None, "local")
    assert "\n" not in str(error.value)
    assert (home / "logs" / "deploy.log").exists()


@pytest.mark.usefixtures("quick")
def test_a_run_that_crashed_is_started_again_as_it_was_and_not_for_ever(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    deploy(write("{watch: 30}"), None, "local")
    deployment = client.read_deployment_by_name("finetune/drops").id
    watching.keep_read("drops", source_files(Data(sources=(Source(path="in/*.jsonl"),))))

    def looked() -> str:
        state: Any = watch("finetune/drops", return_state=True)
        said.append(state.message)
        return state.name

    said: list[str] = []

    def end(run: Any, state: State[Any]) -> None:
        client.set_flow_run_state(run.id, state, force=True)

    def started() -> list[Any]:
        key = "again after "
        runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_ASC)
        return [run for run in runs if (run.idempotency_key or "").startswith(key)]

    first = client.create_flow_run_from_deployment(deployment, parameters={"until": "split"})
    end(first, Cancelled())
    assert looked() != "Restarted"
    end(first, Crashed())
    assert looked() == "Restarted"
    (second,) = started()
    assert said[-1] == f"{first.name} crashed, and drops was started again: flow run {second.id}"
    assert looked() != "Restarted"  # it waits for its turn
    assert said[-1] == f"the run {second.name} waits for its turn and has not read the files yet; a later poll compares"
    assert second.parameters["until"] == "split"
    end(second, Crashed())
    assert looked() == "Restarted"
    stop = Crashed(message="Execution was aborted by a termination signal.")
    end(started()[1], stop)
    assert looked() == "Restarted"  # a stop of `up` is no crash
    end(started()[2], stop)
    assert looked() == "Restarted"
    end(started()[3], Crashed())
    assert looked() == "Not restarted"  # a third time in a row
    assert said[-1].startswith(f"{started()[3].name} crashed 3 times in a row and is not restarted. Read its log")
    assert looked() == "Unchanged"  # it is told once
    last = f"; {started()[3].name} crashed again after restarts and is not restarted: "
    assert said[-1].endswith(f"{last}a change of the files, the schedule or you start the next run")
    end(started()[3], Failed())
    assert looked() == "Unchanged"
    assert f"; {started()[3].name} failed and is not restarted: a change of the files" in said[-1]
    end(started()[3], Completed())
    assert looked() != "Restarted"
    assert len(started()) == 4


@pytest.mark.usefixtures("quick")
def test_runs_that_nobody_could_end_are_crashed_or_cancelled_if_that_was_asked(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    deploy(write("{watch: 30}"), None, "local")
    deployment = client.read_deployment_by_name("finetune/drops").id
    runs = [client.create_flow_run_from_deployment(deployment) for _ in range(2)]
    for run in runs:
        client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(runs[1].id, Cancelling(), force=True)
    server = str(client.api_url).rstrip("/").removesuffix("/api")
    ended = service.end_leftover_runs(Addresses(pid=1, prefect=server, mlflow="http://127.0.0.1:9", pool="local"))
    assert {*ended} == {run.name for run in runs}
    states = [client.read_flow_run(run.id).state for run in runs]
    assert [state.name for state in states if state] == ["Crashed", "Cancelled"]
    said = "tunewright up was killed during this run; started again, it resumes from the last checkpoint"
    assert states[0] and states[0].message == said

    killed, living, ended = (client.create_flow_run_from_deployment(deployment) for _ in range(3))
    for run in (killed, living, ended):
        client.set_flow_run_state(run.id, Completed() if run is ended else Running(), force=True)
    with in_use.of_terminal(str(living.id)):
        for run_id in (killed.id, ended.id, uuid4()):  # the last is another server's
            (config.home() / in_use.OF_TERMINALS / str(run_id)).touch()
        assert run_name.end_killed(lambda: nullcontext(client)) == [killed.name]
        found = {run.name: client.read_flow_run(run.id).state_name for run in (killed, living, ended)}
        assert [*found.values()] == ["Crashed", "Running", "Completed"]
        assert [*in_use.killed()] == []
    assert not [*(config.home() / in_use.OF_TERMINALS).iterdir()]
    client.set_flow_run_state(living.id, Completed(), force=True)

    stop = "Execution was aborted by a termination signal."
    begun = datetime.now(UTC)
    client.set_flow_run_state(runs[0].id, Running(), force=True)
    client.set_flow_run_state(runs[0].id, Crashed(message=stop), force=True)
    at = Addresses(pid=1, prefect=server, mlflow="http://127.0.0.1:9", pool="local")
    assert service.end_leftover_runs(at) == []  # whoever stops `up` means it
    assert service.end_leftover_runs(at, since=begun) == [runs[0].name]  # its worker died
    state = client.read_flow_run(runs[0].id).state
    said = "its worker was killed during this run; started again, it resumes from the last checkpoint"
    assert state and state.message == said

    # One that reported its crash itself, while the runs were read, was notified of.
    own = Crashed(message="Execution was cancelled by the runtime environment.")
    read_flow_runs = SyncPrefectClient.read_flow_runs

    def read_and_ended(server: SyncPrefectClient, **filters: Any) -> Any:
        found = read_flow_runs(server, **filters)
        if [each.id for each in found] == [runs[0].id]:
            client.set_flow_run_state(runs[0].id, own, force=True)
        return found

    client.set_flow_run_state(runs[0].id, Running(), force=True)
    with patch.object(SyncPrefectClient, "read_flow_runs", read_and_ended):
        assert service.end_leftover_runs(at, since=begun) == []
    state = client.read_flow_run(runs[0].id).state
    assert state and state.message == own.message

    poll = client.create_flow_run_from_deployment(client.read_deployment_by_name("watch/drops").id)
    client.set_flow_run_state(poll.id, Running(), force=True)
    assert service.end_leftover_runs(at) == [f"{poll.name}, a poll of finetune/drops"]
    state = client.read_flow_run(poll.id).state
    assert state and state.message == "tunewright up was killed during this poll; the next one looks at the files again"

    for run_id in (runs[0].id, poll.id):  # which the worker had taken up
        client.set_flow_run_state(run_id, Pending(), force=True)
    assert {*service.end_leftover_runs(at, is_stop=True)} == {runs[0].name, f"{poll.name}, a poll of finetune/drops"}
    stopped = [client.read_flow_run(run_id) for run_id in (runs[0].id, poll.id)]
    assert all(_was_stopped(run) for run in stopped)
    assert [run.state.message.partition("; ")[2] for run in stopped if run.state and run.state.message] == [
        "started again, it resumes from the last checkpoint",
        "the next one looks at the files again",
    ]


@pytest.mark.usefixtures("quick")
def test_without_a_watch_the_end_of_a_worker_sends_one_message(
    client: SyncPrefectClient, write: Callable[..., Path], webhook: tuple[str, list[str]]
) -> None:
    address, came = webhook
    save_block("lone", address)
    deploy(write("{notify: [custom-webhook/lone], notify_on: [failure]}"), None, "local")
    run = client.create_flow_run_from_deployment(client.read_deployment_by_name("finetune/drops").id)
    begun = datetime.now(UTC)
    client.set_flow_run_state(run.id, Running(), force=True)
    # What the run reports of itself when its worker has died; then `up` looks for runs that could not report.
    client.set_flow_run_state(run.id, Crashed(message="Execution was aborted by a termination signal."), force=True)
    until(lambda: came)
    server = str(client.api_url).rstrip("/").removesuffix("/api")
    at = Addresses(pid=1, prefect=server, mlflow="http://127.0.0.1:9", pool="local")
    assert service.end_leftover_runs(at, since=begun) == []
    time.sleep(3)
    assert [json.loads(each)["subject"] for each in came] == ["drops: Crashed"]
    client.delete_flow_run(run.id)  # the watch of another test would start it again


@pytest.mark.usefixtures("quick")
def test_a_test_message_is_sent_by_each_block_and_one_that_cannot_is_a_line(
    client: SyncPrefectClient, write: Callable[..., Path], webhook: tuple[str, list[str]]
) -> None:
    address, came = webhook
    with pytest.raises(ConfigError, match=r"^--test-message: drops\.yaml names no notification block; set operation\."):
        deploy(write(), None, "local", tests=True)
    save_block("heard", address)
    operation = "{notify: [custom-webhook/heard], notify_on: [failure]}"
    assert "tested" not in as_json(deploy(write(operation), None, "local")) and not came
    assert as_json(deploy(write(operation), None, "local", tests=True))["tested"] == ["custom-webhook/heard"]
    (message,) = map(json.loads, came)
    assert message == {"subject": "Tunewright: test message", "body": "Notifications of Tunewright arrive here."}
    save_block("deaf", "http://127.0.0.1:9/")
    SlackWebhook(url="http://127.0.0.1:9/services/a/b/c").save("deaf")  # pyright: ignore[reportArgumentType]
    came.clear()
    names = ("custom-webhook/deaf", "slack-webhook/deaf", "custom-webhook/heard")
    file = write(operation.replace("custom-webhook/heard", ", ".join(names)))
    done = CliRunner().invoke(app, ["deploy", str(file), "--test-message", "--json"])
    assert done.exit_code == 1 and len(came) == 1
    summary, *sent = done.stderr.partition("custom-webhook/deaf: ")
    assert "  link       http" in summary
    first, second, third = "".join(sent).splitlines()
    advice = "; correct the block in Prefect's pages under Blocks"
    assert first.startswith("custom-webhook/deaf: test message not sent: ") and first.endswith(f"refused{advice}")
    assert second.startswith("slack-webhook/deaf: test message not sent: ") and second.endswith(advice)
    assert third == "custom-webhook/heard: test message sent"
    told = json.loads(done.stdout)
    assert (told["tested"], [*told["not_sent"]]) == (["custom-webhook/heard"], [*names[:2]])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "custom-webook/horn",
            r"custom-webook/horn; did you mean custom-webhook/horn\? accepted: .*custom-webhook/horn",
        ),
        ("custom-webhook/horm", r"custom-webhook/horm; did you mean custom-webhook/horn\? "),
        (
            "slack-webhok/room",
            r"room, and no type slack-webhok of .*; did you mean slack-webhook\? accepted: .*email",
        ),
        ("pigeon/loft", r"pigeon/loft, and no type pigeon of notification blocks; accepted: .*slack-webhook.*"),
        (
            "slack-webhook/chat",
            r"make one named chat in its UI under Blocks, of the type slack-webhook; or write one that .*/horn",
        ),
        ("secret/chat", r"secret/chat, and no type secret of notification blocks; accepted: "),
    ],
)
def test_a_notification_block_that_is_not_there_is_named_with_the_nearest(
    client: SyncPrefectClient, write: Callable[..., Path], webhook: tuple[str, list[str]], name: str, message: str
) -> None:
    save_block("horn", webhook[0])
    with pytest.raises(ConfigError, match=f"operation.notify: the server has no block .*{message}"):
        deploy(write(f"{{notify: [{name}]}}"), None, "local")


@pytest.mark.usefixtures("quick")
def test_an_interval_keeps_its_anchor_until_it_is_another(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    def deployed(schedules: str) -> tuple[str, list[str], list[Any]]:
        file = write()
        file.write_text(re.sub(r"schedules: .*", f"schedules: {schedules}", file.read_text()))
        made = as_json(deploy(file, None, "local"))["deployments"][0]
        due: Any = [each.schedule for each in client.read_deployment(made["id"]).schedules]
        times = [each.anchor_date for each in due]
        return made["state"], made["changed"], times

    hourly = "[{interval: 3600}, {interval: 7200, timezone: Europe/Berlin, slug: two}]"
    *_, first = deployed(hourly)
    time.sleep(1.1)
    assert deployed(hourly) == ("unchanged", [], first)
    state, changed, moved = deployed(hourly.replace("3600", "1800"))
    assert (state, changed) == ("updated", ["schedule"])
    assert {*moved} & {*first} == {next(each for each in first if each in moved)}
    state, changed, (anchor,) = deployed("[{interval: 1800, anchor_date: 2026-01-01T00:00:00+00:00}]")
    assert (state, changed, anchor) == ("updated", ["schedule"], datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.usefixtures("quick")
def test_an_mlflow_that_does_not_answer_is_a_warning_of_deploy(
    client: SyncPrefectClient, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    begun = time.monotonic()
    assert deploy(write(f"{{}}\n      registry: {{tracking_uri: {uri}}}"), None, "local").deployed
    assert time.monotonic() - begun < 60
    (said,) = [record.getMessage() for record in caplog.records if "tracking_uri" in record.getMessage()]
    assert said.startswith(f"drops.yaml line 12: registry.tracking_uri={uri}: MLflow does not answer (")
    assert said.endswith("refused); runs fail before their first stage until it does")


@pytest.mark.usefixtures("quick")
def test_a_budget_without_a_price_of_this_device_is_a_warning_of_deploy(
    client: SyncPrefectClient, write: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    def said(operation: str) -> list[str]:
        caplog.clear()
        assert deploy(write(operation), None, "local").deployed
        return [record.getMessage() for record in caplog.records if "operation.budget" in record.getMessage()]

    (warning,) = said("{prices: {abacus: 2.5}, budget: 3}")
    assert re.match(r"drops\.yaml line \d+: each run on this machine, .* will be refused: operation\.budget=3", warning)
    assert "; accepted as its key: " in warning
    assert said(f"{{prices: {{{devices.machine().device.name}: 2.5}}, budget: 3}}") == []


def save_block(name: str, url: str) -> None:
    """Save a webhook as a notification block of the server."""
    CustomWebhookNotificationBlock(
        name=name, url=url, json_data={"subject": "{{subject}}", "body": "{{body}}"}, headers=None, cookies=None
    ).save(name, overwrite=True)


TRIGGER = "type: event, expect: [files.came], match: {prefect.resource.id: bucket}"


@pytest.mark.usefixtures("quick")
def test_a_deployment_is_removed_with_all_that_was_made_for_it(
    client: SyncPrefectClient, write: Callable[..., Path], webhook: tuple[str, list[str]]
) -> None:
    def removed(name: str) -> list[str]:
        done = CliRunner().invoke(app, ["deploy", "--remove", name])
        assert done.exit_code == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith(("removed: ", "cancelled: "))]

    for each in client.read_deployments():
        client.delete_deployment(each.id)
    save_block("ear", webhook[0])
    file = write("{watch: 30, notify: [custom-webhook/ear], notify_on: [failure]}\n      gate: {approval: true}")
    plain = file.read_text()
    file.write_text(
        plain.replace("    parameters:", f"    triggers: [{{name: files came, {TRIGGER}}}]\n    parameters:")
    )
    shown = Console(width=400, record=True)
    show(shown, deploy(file, None, "local"))
    assert re.search("^  triggers +files came$", shown.export_text(), re.MULTILINE)
    asking, given = client.read_deployment_by_name("approval/drops").id, {"name": "drops", "version": "1"}
    asked = client.create_flow_run_from_deployment(
        asking, parameters=given, name="approve drops 1", state=Suspended(pause_key="answer")
    )
    file.write_text(plain.replace("name: drops", "name: beside"))
    shown = Console(width=400, record=True)
    show(shown, deploy(file, None, "local"))
    assert "removes it and its automations: tunewright deploy --remove drops\n" in shown.export_text()
    wrong = CliRunner().invoke(app, ["deploy", "--remove", "dorps"])
    assert wrong.exit_code == 2
    assert (
        '--remove "dorps": the server has no such deployment; did you mean drops? accepted: beside, drops'
        in wrong.stderr
    )

    client.delete_deployment(client.read_deployment_by_name("finetune/beside").id)  # in Prefect, and the rest is left
    assert removed("beside")[-2:] == ["removed: watcher watch/beside", "removed: approval deployment approval/beside"]
    assert client.read_automations_by_name(CRASHES)
    assert removed("finetune/drops") == [
        "removed: automation tunewright: drops runs when its data change",
        "removed: automation tunewright: custom-webhook/ear notified when drops is not restarted",
        "removed: automation tunewright: custom-webhook/ear notified when drops is unreadable",
        "removed: automation tunewright: custom-webhook/ear notified of failures of drops",
        "removed: watcher watch/drops",
        "removed: automation files came",
        "removed: deployment finetune/drops",
        "cancelled: approval request approve drops 1",
        "removed: approval deployment approval/drops",
        f"removed: automation {CRASHES}",
        f"removed: automation {CRASHED_POLLS}",
    ]
    state = client.read_flow_run(asked.id).state
    command = 'tunewright release approve drops --reason "..."'
    said = f"approval/drops was removed. To approve: {command}; to reject, add --reject"
    assert state and (state.type, state.message) == (StateType.CANCELLED, said)
    assert client.read_deployments() == []
    assert client.read_automations() == []
    none = CliRunner().invoke(app, ["deploy", "--remove", "nobody"])
    said = 'error: --remove "nobody": the server has no such deployment; it has no deployment of Tunewright\n'
    assert (none.exit_code, none.stderr) == (2, said)


@pytest.mark.usefixtures("quick")
def test_a_run_that_waits_for_the_approval_of_its_cost_supersedes_earlier_ones(
    client: SyncPrefectClient, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def suspend(*_: object, **__: object) -> None:
        client.set_flow_run_state(newer.id, Suspended(), force=True)
        raise Pause

    deploy(write(), None, "local")
    deployment = client.read_deployment_by_name("finetune/drops").id
    earlier, resumed, newer = (client.create_flow_run_from_deployment(deployment) for _ in range(3))
    other = client.create_flow_run_from_deployment(deployment, parameters={"until": "train"})
    for run, state in ((earlier, Suspended()), (resumed, Running()), (other, Suspended())):
        client.set_flow_run_state(run.id, state, force=True)
    monkeypatch.setattr(budget, "suspend_flow_run", suspend)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(newer.id))
    with pytest.raises(Pause):
        budget._ask("Resume it?")
    found = {run.id: client.read_flow_run(run.id).state for run in (earlier, resumed, other, newer)}
    assert [state.type for state in found.values() if state] == ["CANCELLED", "RUNNING", "PAUSED", "PAUSED"]
    said = f"superseded by {newer.name}, a later run that waits for the same approval: flow run {newer.id}"
    cancelled = found[earlier.id]
    assert cancelled and cancelled.message == said
    for run in (resumed, other, newer):
        client.set_flow_run_state(run.id, Cancelled(), force=True)


def test_many_active_runs_are_cancelled_by_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = [SimpleNamespace(id=f"id-{i}", name=f"run-{i}", state_name="Running") for i in range(22)]
    deployment: Any = SimpleNamespace(id=uuid4(), name="drops")

    def refusal(number: int) -> str:
        monkeypatch.setattr(server_calls, "active_runs", lambda *_: runs[:number])
        with pytest.raises(TunewrightError) as refused:
            removal._require_idle(None, deployment, [])  # pyright: ignore[reportArgumentType] the calls are replaced
        return str(refused.value)

    assert "active: run-0 (Running), run-1 (Running); wait for their end, or cancel them in Prefect " in refusal(2)
    assert "(for run in id-0 id-1; do prefect flow-run cancel $run; done), then" in refusal(2)
    assert "run-19 (Running) and 2 more; wait" in refusal(22)
    assert "id-19; do" in refusal(22)


def begun(client: SyncPrefectClient, deployment: str) -> Any:
    """Start a run as a worker does, with a slot of the deployment's concurrency limit."""
    run = client.create_flow_run_from_deployment(client.read_deployment_by_name(deployment).id)
    for state in (Pending(), Running()):
        client.set_flow_run_state(run.id, state)
    assert client.read_flow_run(run.id).state_name == "Running"
    return run


@pytest.mark.usefixtures("quick")
def test_a_deployment_with_an_active_run_is_not_removed_and_the_run_can_report_its_end(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    deploy(write("{watch: 30}"), None, "local")
    run = begun(client, "finetune/drops")
    deployment = client.read_deployment_by_name("finetune/drops").id
    queued = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(queued.id, Pending())  # as a worker does, and the server has it wait for its turn
    assert client.read_flow_run(queued.id).state_name == "AwaitingConcurrencySlot"
    done = CliRunner().invoke(app, ["deploy", "--remove", "drops"])
    said = (
        f'error: --remove "drops": not removed, as a run of it is active: {run.name} (Running); wait for its '
        f"end, or cancel it in Prefect (prefect flow-run cancel {run.id}), then remove it again; "
        f"its queued run {queued.name} was removed; finetune/drops stays paused, so that no schedule and no poll "
        "starts a run, until it is removed or deployed again\n"
    )
    assert (done.exit_code, done.stderr) == (1, said)
    assert not client.read_deployment_by_name("watch/drops").paused
    assert client.read_deployment_by_name("finetune/drops").paused
    with pytest.raises(ObjectNotFound):  # else it would begin when the active one ends
        client.read_flow_run(queued.id)
    queued, asks = (client.create_flow_run_from_deployment(deployment) for _ in range(2))
    client.set_flow_run_state(queued.id, Pending())
    client.set_flow_run_state(asks.id, Suspended(), force=True)
    assert client.set_flow_run_state(run.id, Completed()).state
    done = CliRunner().invoke(app, ["deploy", "--remove", "drops"])
    assert done.exit_code == 0 and f"removed: queued run {queued.name}\n" in done.stdout
    assert f"\ncancelled: suspended run {asks.name}\n" in done.stdout
    with pytest.raises(ObjectNotFound):
        client.read_flow_run(queued.id)
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("finetune/drops")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("how", ["remove", "no watch"])
def test_a_watcher_is_removed_when_its_active_poll_has_ended(
    how: str, client: SyncPrefectClient, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed() -> None:
        if how == "remove":
            remove("drops")
        else:
            deploy(write("{}"), None, "local")

    deploy(write("{watch: 30}"), None, "local")
    poll = begun(client, "watch/drops")
    monkeypatch.setattr(server_calls, "POLL_SECONDS", 1.0)
    with pytest.raises(TunewrightError, match=f"^watch/drops: the poll {poll.name} has not ended within 1 s; cancel"):
        removed()
    assert not client.read_deployment_by_name("watch/drops").paused
    monkeypatch.setattr(server_calls, "POLL_SECONDS", 60.0)
    ends: list[Any] = []
    ended = threading.Timer(2, lambda: ends.append(client.set_flow_run_state(poll.id, Completed()).status.value))
    ended.start()
    removed()
    ended.join()
    assert ends == ["ACCEPT"]
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("watch/drops")


@pytest.mark.usefixtures("quick")
def test_polls_of_a_paused_deployment_start_nothing_and_say_so(
    client: SyncPrefectClient, write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    deploy(write("{watch: 30}"), None, "local")
    deployment = client.read_deployment_by_name("finetune/drops").id
    crashed = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(crashed.id, Crashed(), force=True)
    client.pause_deployment(deployment)
    Path("in/paused.jsonl").write_text('{"instruction": "c", "output": "d"}\n')
    state: Any = watch("finetune/drops", return_state=True)
    assert (state.name, state.message) == (
        "Deployment paused",
        "finetune/drops is paused, so this poll starts nothing; the first poll after it is resumed looks for "
        "changes again",
    )
    file = write("{watch: 30}")
    file.write_text(file.read_text().replace("    parameters:", "    paused: true\n    parameters:"))
    show(Console(width=400), deploy(file, None, "local"))
    said = capsys.readouterr().out
    assert "paused: no schedule and no poll starts a run\n" in said
    assert "polled every 30 s by watch/drops; once it is resumed, the next poll looks for changes\n" in said
    client.resume_deployment(deployment)
    state = watch("finetune/drops", return_state=True)
    assert state.name == "Restarted"
    for run in (str(crashed.id), state.message.rpartition(" ")[2]):
        client.delete_flow_run(UUID(run))


@pytest.mark.usefixtures("quick")
def test_drift_of_a_deployment_that_was_paused_during_its_check_starts_nothing(
    client: SyncPrefectClient,
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = deploy(write("{watch: 30, start_on: drift}"), None, "local").deployed[0].pipeline.settings
    deployment = client.read_deployment_by_name("finetune/drops").id
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", "drops")
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(deployment))
    make_check_results(since=None).save(tmp_path)
    rows = CheckedRows(folder=tmp_path, num_rows=1, num_quarantined=0, reasons={}, findings={})
    with patch.object(announcing, "emit_event") as emitted:
        announcing.announce_drift([Step(stage="check", state="ran", record=rows)], settings, "check")
        assert emitted.call_count == 1
        client.pause_deployment(deployment)
        announcing.announce_drift([Step(stage="check", state="ran", record=rows)], settings, "check")
        assert emitted.call_count == 1
    assert "drops is paused, so the drift starts no run; start one in Prefect" in caplog.text
    client.resume_deployment(deployment)


def test_a_deployment_that_is_gone_is_not_looked_for_again(client: SyncPrefectClient) -> None:
    with pytest.raises(ConfigError, match="deployment=finetune/gone: this deployment no longer exists"):
        watch("finetune/gone")


@pytest.mark.usefixtures("quick")
def test_a_person_is_asked_by_a_deployment_of_its_own(client: SyncPrefectClient, write: Callable[..., Path]) -> None:
    deploy(write("{}\n      gate: {approval: true}"), None, "local")
    asking = client.read_deployment_by_name("approval/drops")
    assert asking.work_pool_name == "local"
    assert asking.entrypoint == "tunewright.flows.release.approval"


PULLED = """pull:
  - prefect.deployments.steps.git_clone: {id: clone, repository: 'https://me:secret@git.example/team.git'}
  - prefect.deployments.steps.set_working_directory: {directory: '{{ clone.directory }}/jobs'}
"""


@pytest.mark.usefixtures("quick")
def test_a_run_elsewhere_begins_where_the_pull_steps_of_its_file_lead_and_so_do_its_watcher_and_approval(
    client: SyncPrefectClient,
    write: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = write("{watch: 30}\n      gate: {approval: true}")
    file.write_text(f"{file.read_text().replace('name: drops', 'name: away').replace('in/*', 'there/*')}{PULLED}")
    show(Console(width=200), deploy(file, None, "local"))
    shown = capsys.readouterr().out
    assert "  folder     jobs of https://git.example/team.git\n" in shown
    assert "  made for each run: workers need TUNEWRIGHT_HOME, a folder that is kept, or TUNEWRIGHT_STORE\n" in shown
    (warning,) = [text for text in caplog.messages if text.startswith("not checked, as its runs begin in another")]
    assert "there/*.jsonl" in warning
    steps = client.read_deployment_by_name("finetune/away").pull_steps
    assert steps and steps[1] == yaml.safe_load(PULLED)["pull"][1]
    for name in ("watch/away", "approval/away"):
        assert client.read_deployment_by_name(name).pull_steps == steps
    again = deploy(file, None, "local").deployed[0]
    assert again.state == "unchanged"
    with patch.object(run_name.deployment, "id", str(again.now.id)):
        run_name.require_kept_home()  # of this test
        monkeypatch.delenv("TUNEWRIGHT_HOME")
        with pytest.raises(ConfigError, match=r"^TUNEWRIGHT_HOME: not set on this worker, and the pull steps of away "):
            run_name.require_kept_home()
        (tmp_path / "store").mkdir()
        monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "store"))
        run_name.require_kept_home()


@pytest.mark.usefixtures("quick")
def test_a_poll_on_kubernetes_needs_no_gpu_and_the_approval_that_loads_the_model_has_what_a_run_has(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    template = json.loads((Path(__file__).parents[1] / "infra" / "kubernetes" / "job-template.json").read_text())
    client.create_work_pool(WorkPoolCreate(name="cluster", type="kubernetes", base_job_template=template))
    file = write("{watch: 30}\n      gate: {approval: true}")
    pool = "work_pool: {name: cluster, job_variables: {gpus: 2, memory_request: 64Gi, secret: ours}}"
    text = file.read_text().replace("name: drops", "name: clustered")
    file.write_text(text.replace("parameters:", f"{pool}\n    parameters:"))
    deploy(file, None, "local")
    needs = {"finetune": (2, "64Gi", None), "watch": (0, "1Gi", "2Gi"), "approval": (2, "64Gi", None)}
    for kind, need in needs.items():
        variables = client.read_deployment_by_name(f"{kind}/clustered").job_variables
        assert tuple(variables.get(name) for name in ("gpus", "memory_request", "memory_limit")) == need
        assert variables["secret"] == "ours"
    assert deploy(file, None, "local").deployed[0].state == "unchanged"


@pytest.mark.usefixtures("quick")
def test_the_folder_of_runs_in_containers_is_said_as_it_is_that_of_the_file(
    client: SyncPrefectClient, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client.create_work_pool(WorkPoolCreate(name="boxes", type="docker"))
    file = write()
    text = file.read_text().replace("name: drops", "name: boxed")
    file.write_text(text.replace("parameters:", "work_pool: {name: boxes}\n    parameters:"))
    show(Console(width=300), deploy(file, None, "local"))
    shown = capsys.readouterr().out
    assert f"  folder     {tmp_path}, on the machine or in the container of the run; pull: in the file sets" in shown
    file.write_text(f"{file.read_text()}    pull: jobs\n")
    with pytest.raises(
        ConfigError, match=r"drops.yaml line \d+: deployments\[0\].pull: .jobs. is refused; accepted: a list"
    ):
        deploy(file, None, "local")


@pytest.mark.usefixtures("quick")
def test_watcher_and_approval_of_a_deployment_have_its_name_in_one_form(
    client: SyncPrefectClient, write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write("{watch: 30}\n      gate: {approval: true}")
    file.write_text(file.read_text().replace("name: drops", "name: Tri Age"))
    show(Console(width=200), deploy(file, None, "local"))
    made = client.read_deployments(
        deployment_filter=DeploymentFilter.model_validate({"name": {"any_": ["Tri Age", "tri-age"]}})
    )
    flows = {each.name: client.read_flow(each.flow_id).name for each in made if each.name == "Tri Age"}
    assert (len(made), flows) == (3, {"Tri Age": "finetune"})
    said = capsys.readouterr().out
    assert "polled every 30 s by watch/tri-age;" in said
    assert "requested by approval/tri-age" in said


def test_a_deployment_without_latin_letters_shares_its_events_and_automations_with_no_other() -> None:
    assert announcing.resource("分类") != announcing.resource("翻译")


@pytest.mark.usefixtures("quick")
def test_an_automation_whose_content_is_another_now_is_updated_and_stays_as_paused_as_it_was(
    client: SyncPrefectClient, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(write(), None, "local")
    (before,) = client.read_automations_by_name(CRASHES)
    client.pause_automation(before.id)
    monkeypatch.setattr("tunewright.cli.deploy.automations.SILENT_SECONDS", 700)
    deploy(write(), None, "local")
    (after,) = client.read_automations_by_name(CRASHES)
    assert (after.id, event(after).within) == (before.id, timedelta(seconds=700))
    assert not after.enabled
    deploy(write(), None, "local")
    assert [each.id for each in client.read_automations_by_name(CRASHES)] == [before.id]


@pytest.mark.usefixtures("quick")
def test_a_deployment_that_was_deleted_in_prefect_is_deployed_again_with_its_automations(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    file = write("{watch: 30}")
    deploy(file, None, "local")
    for name in ("finetune/drops", "watch/drops"):
        client.delete_deployment(client.read_deployment_by_name(name).id)
    deploy(file, None, "local")
    (automation,) = client.read_automations_by_name("tunewright: drops runs when its data change")
    (action,) = automation.actions
    assert isinstance(action, RunDeployment)
    assert action.deployment_id == client.read_deployment_by_name("finetune/drops").id


@pytest.mark.usefixtures("quick")
def test_the_first_poll_waits_for_a_run_of_the_same_pipeline_that_a_terminal_started(
    client: SyncPrefectClient, write: Callable[..., Path]
) -> None:
    deploy(write("{watch: 30}"), None, "local")

    @flow(name="finetune")
    def terminal(registry: Registry) -> tuple[str, str]:
        state: Any = watch("finetune/drops", return_state=True)
        return state.name, state.message

    with in_use.by_a_run():
        name, message = terminal(Registry(name="drops"))
        assert name == "Unsettled"
        assert message.startswith("no run of this deployment has finished yet, and ")
        assert message.endswith(
            " is under way; the first poll after its end starts a run, as it is no run of this deployment"
        )
        assert terminal(Registry(name="another"))[0] == "Changed"


@pytest.mark.usefixtures("quick")
def test_a_rate_in_scientific_notation_is_deployed_as_a_run_takes_it(
    write: Callable[..., Path], client: SyncPrefectClient
) -> None:
    """YAML 1.1, which Prefect reads, takes 1e-3 for a text, as it has no point."""
    deploy(write(rate="1e-3"), None, "local")
    assert client.read_deployment_by_name("finetune/drops").parameters["training"] == {"learning_rate": 0.001}
