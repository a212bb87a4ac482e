"""A plan compares a pipeline with its own last runs, and says of a stage what it knows."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from conftest import Harness

from tunewright.artifacts import CheckedRows, Prompts, Rows, Splits, Tokens, UniqueRows, Verdict
from tunewright.config import Checks, Data, Evaluation, Expectation, Model, Registry, Settings, Source, Stage
from tunewright.cost_model import one_at_a_time
from tunewright.errors import ConfigError, DataError, StoreRefused
from tunewright.flows.calls import Plan, Reached, Run, Step, stages
from tunewright.flows.calls.calls import Calls
from tunewright.store import pipelines
from tunewright.store.caching import cached, lock, seconds_of
from tunewright.store.stage import stage
from tunewright.tasks.ingest import ingest, source_files

LENIENT, STRICT = Checks(), Checks(max_quarantined_share=0)


@cached()
def check(folder: Path, rows: Rows, checks: Checks) -> CheckedRows:
    if checks == STRICT:
        raise DataError("refused")
    (folder / "rows.txt").write_text(rows.digest)
    return CheckedRows(num_rows=rows.num_rows, num_quarantined=0, reasons={}, findings={})


@cached()
def dedupe(folder: Path, rows: CheckedRows) -> UniqueRows:
    (folder / "rows.txt").write_text(rows.digest)
    return UniqueRows(num_rows=rows.num_rows, num_removed=0, reasons={}, boilerplate=())


@cached()
def on_device_part(folder: Path, name: str) -> UniqueRows:
    with one_at_a_time.held(["cpu"], "run late-lynx"):
        (folder / "rows.txt").write_text(name)
        return UniqueRows(num_rows=1, num_removed=0, reasons={}, boilerplate=())


@stage("as evaluate does")
def on_device(folder: Path, name: str) -> UniqueRows:
    return UniqueRows(num_rows=on_device_part.record(name).num_rows, num_removed=0, reasons={}, boilerplate=())


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(f"{name}.jsonl").write_text(json.dumps({"instruction": f"Say {name}", "output": name}) + "\n")


def settings(name: str, checks: Checks = LENIENT) -> Settings:
    data = Data(sources=(Source(path=f"{name}.jsonl"),))
    return Settings(data=data, model=Model(base="x/y"), registry=Registry(name=name), checks=checks)


def run(asked: Settings) -> None:
    """Run the pipeline up to dedupe without Prefect."""

    def call(task: Any) -> Any:
        def made(**inputs: Any) -> Any:
            pipelines.note(asked.registry.name, task.name, task.fn.key(**inputs))
            return task.fn(**inputs)

        return made

    _pipeline(asked, call)


def plan(asked: Settings, until: Stage = "dedupe", refresh: tuple[Stage, ...] = ()) -> dict[str, Step]:
    calls = Plan(asked, until, refresh)
    with suppress(Reached):
        _pipeline(asked, calls)
    return {step.stage: step for step in calls.steps}


def _pipeline(asked: Settings, call: Callable[..., Any]) -> None:
    rows = call(ingest)(data=asked.data, files=source_files(asked.data))
    checked = call(SimpleNamespace(name="check", fn=check))(rows=rows, checks=asked.checks)
    call(SimpleNamespace(name="dedupe", fn=dedupe))(rows=checked)


def causes(steps: dict[str, Step]) -> dict[str, list[str]]:
    return {stage: list(step.because) for stage, step in steps.items() if step.because}


def test_a_pipeline_that_never_ran_is_compared_with_no_other() -> None:
    run(settings("a"))
    assert causes(plan(settings("a"))) == {}
    steps = plan(settings("b"))
    assert causes(steps) == {"ingest": ["not run yet"], "check": ["runs after ingest"], "dedupe": ["runs after check"]}
    assert all(step.last is None for step in steps.values())


def test_what_another_pipeline_made_is_found_and_becomes_ones_own() -> None:
    run(settings("a"))
    same = settings("a").model_copy(update={"registry": Registry(name="c")})
    assert causes(plan(same)) == {}
    run(same)
    Path("a.jsonl").write_text("{}\n" + Path("a.jsonl").read_text())
    assert causes(plan(same))["ingest"] == ["data.sources[0]: a.jsonl changed"]


def test_a_stage_is_held_against_the_most_alike_of_its_own_and_not_the_last() -> None:
    run(settings("a"))
    run(settings("a", Checks(max_quarantined_share=0.5, expectations=(Expectation(name="refusal", severity="skip"),))))
    planned = plan(settings("a", Checks(max_quarantined_share=0.4)))
    assert causes(planned) == {"check": ["checks.max_quarantined_share: 0.2 -> 0.4"], "dedupe": ["runs after check"]}


def test_an_artifact_that_was_deleted_is_said_to_be_gone(home: Path) -> None:
    run(settings("a"))
    (folder,) = (home / "artifacts" / "dedupe").glob("*/")
    folder.rename(home / "elsewhere")
    assert causes(plan(settings("a"))) == {"dedupe": [f"artifact {folder.name} was deleted"]}


def test_what_another_run_makes_now_is_not_said_to_be_gone(home: Path) -> None:
    run(settings("a"))
    (folder,) = (home / "artifacts" / "dedupe").glob("*/")
    folder.rename(home / "elsewhere")
    with lock(folder):
        assert causes(plan(settings("a"))) == {"dedupe": ["another run is making it now"]}
        assert causes(plan(settings("a"), refresh=("dedupe",))) == {"dedupe": ["requested by refresh"]}
    (home / "elsewhere").rename(folder)
    with lock(folder):  # a run that looks whether it is whole
        assert causes(plan(settings("a"))) == {}


def test_a_stage_whose_run_ended_before_it_is_not_said_to_be_gone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> UniqueRows:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(dedupe, "build", killed)
        run(settings("a"))
    locks = set(home.rglob("*.lock"))
    assert causes(plan(settings("a"))) == {"dedupe": ["an earlier run did not finish it"]}
    assert set(home.rglob("*.lock")) == locks, "a plan writes nothing"


def test_a_stop_is_told_only_where_what_the_stage_reads_is_the_same() -> None:
    asked = settings("a", STRICT)
    with pytest.raises(DataError):
        run(asked)
    (said,) = causes(plan(asked))["check"]
    assert said.startswith("it stopped on the same data, ")
    Path("a.jsonl").write_text(Path("b.jsonl").read_text())
    planned = plan(asked)
    assert causes(planned)["check"] == ["runs after ingest"]
    assert planned["check"].stopped, "what it left is still to be looked at"
    assert causes(plan(asked, refresh=("ingest",)))["check"] == ["runs after ingest"]


def test_a_stage_to_refresh_after_the_last_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"refresh=train: it comes after until=split, .* accepted: ingest, base, "):
        stages(settings("a"), "split", ("ingest", "train"))
    assert stages(settings("a"), "check", ("check",)) == ("ingest", "base", "check")


def test_the_seconds_of_a_stage_are_without_those_that_it_waited_for_the_device(
    prefect_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, refused, free = threading.Event(), threading.Event(), threading.Event()
    try_lock = one_at_a_time.try_lock

    def hold() -> None:
        with one_at_a_time.held(["cpu"], "run early-bird"):
            entered.set()
            free.wait(150)

    def try_lock_and_free_a_second_later(lock: IO[str]) -> bool:
        if (is_held := not try_lock(lock)) and not refused.is_set():
            refused.set()
            threading.Timer(1.0, free.set).start()
        return not is_held

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(150)
    monkeypatch.setattr(one_at_a_time, "try_lock", try_lock_and_free_a_second_later)
    calls = Run(settings("a"), "train")
    with prefect_harness():
        started = time.monotonic()
        record = calls.called(on_device, "", {"name": "a"})
        whole = time.monotonic() - started
        again = calls.called(on_device, "", {"name": "a"})
    thread.join(10)
    made, found = calls.steps
    assert record.waited_seconds > 0.5
    assert 0 <= made.seconds <= whole - record.waited_seconds
    assert again.waited_seconds == record.waited_seconds
    assert found.state == "cached" and found.seconds >= 0
    assert seconds_of(record) <= whole - record.waited_seconds, "nor does it count those of its parts"


def test_what_a_run_beside_it_made_is_news_to_a_run_that_had_begun(
    prefect_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run(settings("a"), "train")
    monkeypatch.setattr("tunewright.store.caching.now", lambda: "9999-01-01T00:00:00Z")
    second = Run(settings("b"), "train")
    monkeypatch.setattr(second, "began", "9999-01-01T00:00:00Z")
    with prefect_harness():
        for run in (second, first, second):
            run.called(on_device, "", {"name": "a"})
    assert [(step.state, step.is_news) for step in second.steps] == [("ran", False), ("cached", False)]
    assert [(step.state, step.is_news) for step in first.steps] == [("cached", True)]


def test_a_store_that_is_away_fails_the_stage_and_its_reason_is_said_once(
    prefect_harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    team = tmp_path / "team"
    team.mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(team))
    calls, said = Run(settings("a"), "train"), "has no such folder"
    with prefect_harness():
        calls.called(on_device, "", {"name": "a"})
        assert len([*(team / "recent_runs" / "a").iterdir()]) == 1
        team.rename(tmp_path / "elsewhere")
        with pytest.raises(StoreRefused, match=said):
            calls.called(on_device, "", {"name": "b"})
    assert said not in " ".join(each.getMessage() for each in caplog.records if each.name == "tunewright")


def test_what_render_and_prompt_warned_of_is_a_warning_of_the_verdict() -> None:
    verdict = Verdict.model_construct(warnings=("few rows",), digest="1")
    said = {
        "split": Splits.model_construct(warned=("no file has a user-provided test set",)),
        "render": Tokens.model_construct(warned=("233 of 543 rows are too long",)),
        "prompt": Prompts.model_construct(warned=("few_shot: 3 of 9 test prompts have fewer examples than chosen",)),
    }
    calls: Any = SimpleNamespace(drawn=object(), digest=lambda record: record.digest, counted=lambda *_: verdict)
    calls.steps = [Step(stage=stage, state="ran", record=record) for stage, record in said.items()]
    calls.steps.append(Step(stage="prompt", state="failed"))
    settings = Settings(data=Data(sources=(Source(path="a.jsonl"),)), model=Model(base="tiny"))
    count_test_use: Any = Calls.count_test_use
    found = count_test_use(calls, verdict, None, None, None, None, settings)
    assert found.warnings == ("few rows", *said["render"].warned, *said["prompt"].warned)


def test_a_stage_that_the_settings_leave_out_ends_no_run_in_silence() -> None:
    with_documents = settings("a").model_copy(update={"evaluation": Evaluation(contenders=(), documents=("a.md",))})
    assert "prompt" in stages(with_documents)
    alone = Plan(settings("a").model_copy(update={"evaluation": Evaluation(contenders=())}), "register")
    with pytest.raises(AssertionError, match=r"^prompt is left out by the settings, but called$"):
        alone.begin("prompt")
    with pytest.raises(Reached):
        Plan(settings("a"), "train").begin("prompt")
