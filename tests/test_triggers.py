"""The real servers and a real worker: what starts runs by itself, and two runs of the same training at once."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from servers import Up, started, until
from test_flow import PLACES, SUBJECTS

from tunewright.artifacts import Base
from tunewright.cli.up.service import PASSING

WATCH_SECONDS = 20
STREAM = {"deployments": {"name": {"any_": ["stream"]}}, "flows": {"name": {"any_": ["finetune"]}}}  # its runs
RARE = {  # of a change and of a deploy, and not of each look
    "prefect.flow-run.Changed",
    "tunewright.data.changed",
    *(f"prefect.deployment.{what}" for what in ("created", "updated", "ready")),
}


@pytest.fixture(scope="module")
def up(tiny_base: Base, ready: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with started(tmp_path_factory.mktemp("up"), tiny_base, made=ready) as up:
        yield up


@pytest.fixture(scope="module")
def at_once(up: Up) -> list[str]:
    """Three runs that have started at once and ended, the first two of them of the same training.

    The trainer that comes first stands still until the other training waits for the device, however slow all is.
    """
    runs = [up.run(learning_rate=rate) for rate in (0.002, 0.002, 0.003)]
    trainer = until(lambda: up.living().get("trainer"))
    trainer.suspend()
    until(lambda: up.said(runs, "  waiting for the CPU: "))
    trainer.resume()
    for run in runs:
        assert up.ended(run)["type"] == "COMPLETED", up.state(run)["message"]
    return runs


def test_of_two_runs_at_once_one_trains_and_the_other_finds_what_it_made(up: Up, at_once: list[str]) -> None:
    assert sorted(up.stages(run)["train"] for run in at_once[:2]) == ["Cached", "Completed"]
    assert up.versions() == 2  # the third run's is the other


def test_of_two_trainings_at_once_one_waits_for_the_device(up: Up, at_once: list[str]) -> None:
    assert up.stages(at_once[2])["train"] == "Completed"
    manifests = [json.loads(each.read_text()) for each in up.home.glob("artifacts/train/*/manifest.json")]
    assert len(manifests) == 2
    assert sum(each["record"]["waited_seconds"] > 0.1 for each in manifests) == 1


def test_data_that_arrive_are_checked_and_what_has_drifted_starts_the_rest(up: Up) -> None:
    (up.folder / "inbox").mkdir()

    def arrive(name: str, output: str) -> datetime:
        rows = [{"instruction": f"{s} {p} {name}?", "output": f"{output} {s}"} for s in SUBJECTS for p in PLACES]
        (up.folder / "inbox" / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return datetime.now(UTC)

    def runs() -> list[tuple[str, str]]:
        """How far each run of the deployment went that has ended, the oldest first."""
        found = up.ask("POST", "/flow_runs/filter", json=STREAM | {"sort": "EXPECTED_START_TIME_ASC"})
        ended = [each for each in found if each["state"]["type"] == "COMPLETED"]
        return [(each["parameters"]["until"], each["state"]["message"].partition(".")[0]) for each in ended]

    checked, whole = ("check", "ended after check, as requested"), ("split", "ended after split, as requested")
    arrive("lamps", "We send you a new")
    up.deploy("stream", settings(up))
    until(lambda: runs() == [checked, whole])  # there is no version to drift from

    arrived = arrive("chairs", "We send you a new")
    until(lambda: len(runs()) == 3)
    assert polls_since(up, arrived) <= 3  # within a minute, where the machine is not busy
    arrive("novels", " ".join(["We are sorry to hear that, and will look into it as soon as we can."] * 8))
    until(lambda: len(runs()) == 5)
    assert runs() == [checked, whole, checked, checked, whole]  # the chairs are like the lamps
    assert events_of_looks(up) <= {*PASSING, *RARE}  # others would fill the database


def polls_since(up: Up, arrived: datetime) -> int:
    """How many polls began after the data arrived and before the newest run of the deployment was made."""
    made = max(run["created"] for run in up.ask("POST", "/flow_runs/filter", json=STREAM))
    polls = up.ask("POST", "/flow_runs/filter", json=STREAM | {"flows": {"name": {"any_": ["watch"]}}})
    began = [datetime.fromisoformat(each["start_time"]) for each in polls if each["start_time"]]
    assert began
    return sum(arrived < each < datetime.fromisoformat(made) for each in began)


def events_of_looks(up: Up) -> set[str]:
    """The kinds of events that the server has of runs of the watch."""
    flows = up.ask("POST", "/flows/filter", json={"flows": {"name": {"any_": ["watch"]}}})
    filters = {
        "occurred": {"since": (datetime.now(UTC) - timedelta(hours=1)).isoformat()},
        "related": {"resources_in_roles": [[f"prefect.flow.{flow['id']}", "flow"] for flow in flows]},
    }
    found = up.ask("POST", "/events/filter", json={"filter": filters, "limit": 50})
    assert found["total"] > 0
    return {event["event"] for event in found["events"]}


def settings(up: Up) -> dict[str, Any]:
    """Those of the deployment tiny, on the files of a folder that is watched, and only as far as split."""
    tiny = up.ask("GET", "/deployments/name/finetune/tiny")["parameters"]
    return {
        "data": {"sources": [{"path": "inbox/*.jsonl"}]},
        "model": tiny["model"],
        "evaluation": tiny["evaluation"],
        "operation": {"watch": WATCH_SECONDS, "start_on": "drift"},
        "until": "split",
    }
