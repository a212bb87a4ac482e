"""A person at Prefect's pages, in a real browser: one changed setting runs what reads it, to a second version.

The server has a password of the person's own and CSRF protection, which the pages and all commands then use.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import browser, shows
from playwright.sync_api import HttpCredentials, Page, expect
from servers import ENDED, TUNEWRIGHT, Up, started, until

from tunewright.artifacts import Base

SECONDS = 60.0
DATA_STAGES = {"ingest", "base", "check", "dedupe", "split", "render"}


# What a user may have set: then all that reaches the server has it.
SETTINGS = {"PREFECT_SERVER_API_AUTH_STRING": "user:of my own & %", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"}


@pytest.fixture(scope="module")
def up(tiny_base: Base, ready: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with started(tmp_path_factory.mktemp("ui"), tiny_base, SETTINGS, made=ready) as up:
        yield up


@pytest.fixture(scope="module")
def first(up: Up) -> str:
    """A run of the deployment that has ended, with a first version."""
    run = up.run()
    assert up.ended(run)["type"] == "COMPLETED", up.state(run)["message"]
    return run


@pytest.fixture
def page(up: Up) -> Iterator[Page]:
    with browser() as chromium:
        login = HttpCredentials(username="anyone", password=up.password, origin=up.addresses.mlflow)
        page = chromium.new_page(viewport={"width": 1400, "height": 1000}, http_credentials=login)
        page.set_default_timeout(SECONDS * 1000)
        yield page


def is_submitted(page: Page) -> bool:
    """Clicks on Submit, which the form loses while it takes a value, and says whether the run is scheduled."""
    page.get_by_role("button", name="Submit").click()
    try:
        expect(page.get_by_text("scheduled to start")).to_be_visible(timeout=20_000)
    except AssertionError:
        return False
    return True


def test_a_run_with_one_changed_setting_from_the_form(up: Up, first: str, page: Page, tmp_path: Path) -> None:
    assert up.password == SETTINGS["PREFECT_SERVER_API_AUTH_STRING"]
    until(lambda: shows(page, f"{up.addresses.prefect}/v2/deployments", up.login, "tiny"))
    page.get_by_role("link", name="tiny").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    rate = page.get_by_label("Learning Rate").first  # of the section training; that of preference is below
    expect(rate).to_have_value("0.001")  # filled in from the file
    rate.fill("0.003")
    rate.blur()  # the form takes a value when it is left
    until(lambda: is_submitted(page))

    def newest() -> Any:
        runs = up.ask("POST", "/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_DESC", "limit": 5})
        return next((run for run in runs if run["id"] != first and run["state"]["type"] in ENDED), None)

    second = until(newest)
    assert second["name"].startswith("tiny learning_rate=0.003 "), second["name"]  # and not what the form fills in
    assert second["parameters"]["training"]["learning_rate"] == 0.003
    assert second["parameters"]["training"]["max_steps"] == 20  # the others of the section stay
    states = up.stages(second["id"])
    assert {stage for stage, state in states.items() if state == "Cached"} >= DATA_STAGES
    assert states["train"] == "Completed" and states["register"] == "Completed"
    assert up.versions() == 2

    page.goto(f"{up.addresses.prefect}/v2/runs/flow-run/{second['id']}")
    expect(page.get_by_text(second["state"]["name"]).first).to_be_visible()
    page.get_by_role("tab", name="Artifacts").click()
    for artifact in ("settings", "rows", "scores", "verdict"):
        expect(page.get_by_text(artifact, exact=True).first).to_be_visible()
    page.screenshot(path=tmp_path / "prefect.png")

    page.goto(f"{up.addresses.mlflow}/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=tunewright")
    expect(page.get_by_text("2 matching runs")).to_be_visible()
    for name in (second["name"], "verdict", "gain", "promote"):
        expect(page.get_by_text(name).first).to_be_attached()
    expect(page.get_by_text("Welcome to MLflow Assistant")).to_be_hidden()  # it is off, and would open by itself
    expect(page.locator("[data-assistant-ui]").first).to_be_hidden()
    page.goto(f"{up.addresses.mlflow}/#/models/tiny")
    for version in ("Version 1", "Version 2"):
        expect(page.get_by_text(version).first).to_be_visible()
    page.screenshot(path=tmp_path / "mlflow.png")


def test_code_that_replaces_that_of_a_version_over_http_is_never_loaded(up: Up, first: str) -> None:
    """Whoever has the password can write artifacts; what was altered so is refused."""
    folder, marker = up.home / "mlartifacts", up.folder / "it_ran"
    version = min(folder.rglob("serving.py"), key=lambda file: file.stat().st_mtime)
    whole = version.read_bytes()
    address = f"{up.addresses.mlflow}/api/2.0/mlflow-artifacts/artifacts/{version.relative_to(folder)}"
    code = whole + f"\nopen({str(marker)!r}, 'w').close()\n".encode()
    assert httpx.put(address, content=code).status_code == 401
    assert version.read_bytes() == whole
    httpx.put(address, content=code, auth=("anyone", up.password)).raise_for_status()
    assert version.read_bytes() == code
    promote = ["release", "promote", "tiny", "1", "--alias", "other", "--reason", "for the pilot"]
    done = subprocess.run([*TUNEWRIGHT, *promote], cwd=up.folder, env=up.environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: models:/tiny/1: serving.py was altered since the version was registered")
    assert not marker.exists()


@pytest.mark.parametrize(
    "command", [["doctor"], ["run", "tiny.yaml", "--until", "split"], ["release", "history", "tiny"]]
)
def test_commands_have_the_password_that_the_server_was_started_with(command: list[str], up: Up) -> None:
    without = {name: value for name, value in up.environment.items() if name not in SETTINGS}
    done = subprocess.run([*TUNEWRIGHT, *command], cwd=up.folder, env=without, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
