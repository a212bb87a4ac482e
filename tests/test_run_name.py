"""Names of flow runs that a person finds again in Prefect and MLflow, and the machine that an error names."""

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import Harness
from prefect import Flow
from prefect.utilities.names import generate_slug

from tunewright.artifacts import Artifact
from tunewright.config import Settings, Stage
from tunewright.errors import DataError, TrainerFailed
from tunewright.flows.compare import compare
from tunewright.flows.finetune import run
from tunewright.flows.release import approval
from tunewright.flows.run_name import is_random
from tunewright.flows.watch import watch
from tunewright.registry import release
from tunewright.store.naming import naming_machine
from tunewright.store.stage import stage

SETTINGS = Settings.model_validate(
    {"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "tiny"}, "registry": {"name": "n"}}
)
FAULT = "/data/rows.jsonl line 3: no answer"
NAMED = f"{FAULT} (on {platform.node()})"


def fail(*_: Any) -> None:
    """Raises an error that names a path."""
    raise DataError(FAULT)


def test_a_name_that_prefect_made_up_is_told_from_one_that_a_person_typed() -> None:
    assert all(is_random(generate_slug(2)) for _ in range(500))
    assert is_random("Refined-Saola")  # of the form, which is filled in before anybody types
    assert not any(
        map(
            is_random, ("Small-rank", "Rank-Eight", "my-trial", "demo", "lurking-puffin-2", "demo 2026-11-27 14:05", "")
        )
    )


def test_an_error_of_a_worker_says_which_machine_its_paths_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=f"^{FAULT}$"), naming_machine():
        fail()
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "0c5a")
    with pytest.raises(DataError, match=f"^{re.escape(NAMED)}$") as found, naming_machine(), naming_machine():
        raise DataError(FAULT, see=("quarantine.parquet",))
    assert found.value.see == ("quarantine.parquet",)


@stage("{word}")
def fail_to_train(folder: Path, word: str) -> Artifact:
    raise TrainerFailed(FAULT)


def test_the_state_of_a_stage_and_the_warning_before_its_retry_name_the_machine_once(
    prefect_harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "0c5a")
    with prefect_harness(), naming_machine():
        state = fail_to_train.with_options(retry_delay_seconds=0)("tea", return_state=True)
    assert state.message == f"Task run encountered an exception TrainerFailed: {NAMED}"
    assert f"  fail_to_train failed: {NAMED}; retrying once" in caplog.messages


@pytest.mark.parametrize(
    ("flow", "given"),
    [(watch, {"deployment": "finetune/n"}), (approval, {"name": "n", "version": "1"}), (compare, {})],
    ids=["watch", "approval", "compare"],
)
def test_each_flow_names_the_machine_of_its_error(
    flow: Flow[..., Any], given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "0c5a")
    monkeypatch.setattr(release, "waits", fail)
    for name in ("get_client", "require_answer"):
        monkeypatch.setitem(flow.fn.__globals__, name, lambda *_, **__: fail())
    given = given or {"settings": SETTINGS, "variants": {}}
    with pytest.raises(DataError, match=f"^{re.escape(NAMED)}$"):
        flow.fn(**given)


@pytest.mark.parametrize(
    ("until", "tracking_uri", "warns"),
    [("evaluate", None, True), ("evaluate", "sqlite:///x.db", False), ("split", None, False)],
)
def test_a_run_with_a_store_and_a_registry_of_its_own_warns_once(
    until: Stage,
    tracking_uri: str | None,
    warns: bool,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path))
    monkeypatch.setitem(run.__globals__, "require_answer", lambda _: None)
    monkeypatch.setitem(run.__globals__, "looked_at", lambda _: nullcontext())
    monkeypatch.setitem(run.__globals__, "seen_in_mlflow", lambda _: nullcontext())
    monkeypatch.setitem(run.__globals__, "inputs", fail)
    registry = SETTINGS.registry.model_copy(update={"tracking_uri": tracking_uri})
    with pytest.raises(DataError):
        run(SETTINGS.model_copy(update={"registry": registry}), until, ())
    said = [each for each in caplog.messages if each.startswith("TUNEWRIGHT_STORE names a store")]
    assert len(said) == warns and all(
        "; set MLFLOW_TRACKING_URI to one server for all machines" in each for each in said
    )


def test_the_error_of_a_run_in_mlflow_names_its_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @contextmanager
    def seen_in_mlflow(_: Any) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            seen.append(str(error))
            raise

    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "0c5a")
    monkeypatch.setitem(run.__globals__, "seen_in_mlflow", seen_in_mlflow)
    monkeypatch.setitem(run.__globals__, "looked_at", lambda _: nullcontext())
    monkeypatch.setitem(run.__globals__, "inputs", fail)
    with pytest.raises(DataError), naming_machine():
        run(SETTINGS, "ingest", ())
    assert seen == [NAMED]
