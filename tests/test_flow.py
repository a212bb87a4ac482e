"""The pipeline ends with its verdict and does nothing twice, and a plan tells beforehand what a run does."""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from chat_server import chat_server, reply_of
from conftest import Harness, Once
from mlflow import MlflowClient
from mlflow.entities import ViewType
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter
from rich.console import Console
from trained import done_once, first_home

import tunewright.tasks.dedupe
import tunewright.tasks.evaluate
import tunewright.tasks.evaluate.answers
from tunewright.artifacts import Base
from tunewright.cli.terminal import show_outcome
from tunewright.config import (
    Compute,
    Data,
    Evaluation,
    Gate,
    LmEval,
    Method,
    Model,
    Registry,
    Settings,
    Source,
    Stage,
    Training,
)
from tunewright.config.evaluation import ApiModel
from tunewright.errors import ApiError, ConfigError, DataError, StageFailed, TrainingError
from tunewright.flows.calls import Step, stages
from tunewright.flows.finetune import ASKS_APIS, finetune, plan
from tunewright.flows.outcome import Outcome
from tunewright.flows.run_name import ORIGINS, STOPPED_IN_TERMINAL, run_name
from tunewright.registry import needless, release
from tunewright.registry.tracking import connected
from tunewright.store import code_hashes
from tunewright.store.backup import backup, restore
from tunewright.store.caching import Cached
from tunewright.store.data_history import history
from tunewright.tasks.judge import judge

SUBJECTS = ("my parcel", "the red shoes", "a broken lamp", "one late letter", "your green chair", "an old phone")
PLACES = ("in Berlin", "at the harbour", "from Lisbon", "near our school", "on the train", "by the lake")
ROWS = [
    {"instruction": f"{subject} {place} {what}", "output": ("refund", "delivery", "repair")[i % 3]}
    for i, subject in enumerate(SUBJECTS)
    for place in PLACES
    for what in ("is missing", "came late")
]
DATA = "rows.jsonl"  # 72 rows that differ, 4 of them twice, and 2 records that cannot be read


def write(rows: Sequence[dict[str, str]]) -> None:
    lines = [json.dumps(row) for row in [*rows, *rows[:4]]] + ["{", "[]"]
    Path(DATA).write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness():
        yield


@pytest.fixture(scope="module")
def settings(tiny_base: Base) -> Settings:
    return Settings(
        data=Data(sources=(Source(path=DATA),)),
        model=Model(base=tiny_base.reference, max_length=128),
        method=Method(rank=2, alpha=4),
        training=Training(learning_rate=0.01, max_steps=2, batch=4, evaluate_every=1),
        compute=Compute(threads=1),
        evaluation=Evaluation(max_new_tokens=4),
        gate=Gate(metric="perplexity", confidence=0.8),  # of seven test rows
        registry=Registry(name="tiny"),
    )


@pytest.fixture(scope="module")
def done(
    server: None, settings: Settings, once: Once, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, State[Any]]:
    """The folder of a first run and its final state: the one that all tests here start from."""
    folder = tmp_path_factory.mktemp("done")
    with first_home(folder, once, mlflow_database):
        write(ROWS)
        return folder, run(settings)


@pytest.fixture(autouse=True)
def _copy(done: tuple[Path, State[Any]], home: Path, once: Once, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test goes on from the first run, in a copy of its own."""
    done_once(once, monkeypatch)
    shutil.copytree(done[0], home.parent, dirs_exist_ok=True)
    monkeypatch.chdir(home.parent)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were executed in this test, one entry an attempt."""
    executed: list[str] = []
    original = Cached._make

    def make(self: Cached[Any, Any], *args: Any, **kwargs: Any) -> Any:
        if not self.stage.endswith("_part"):  # of which ingest and evaluate are put together
            executed.append(self.stage)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Cached, "_make", make)
    return executed


def run(settings: Settings, until: Stage = "register", refresh: tuple[Stage, ...] = ()) -> State[Any]:
    sections = {name: getattr(settings, name) for name in Settings.model_fields}
    return finetune(**sections, until=until, refresh=refresh, return_state=True)


def outcome(state: State[Any]) -> Outcome:
    return Outcome.of(state.result())


def changed(settings: Settings, section: str, **values: Any) -> Settings:
    new = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: new})


def names(steps: Sequence[Step], *states: str) -> list[str]:
    return [f"{step.stage} {step.of}".strip() for step in steps if step.state in states]


def causes(steps: Sequence[Step]) -> dict[str, list[str]]:
    return {f"{step.stage} {step.of}".strip(): list(step.because) for step in steps if step.because}


def artifacts(state: State[Any]) -> dict[str | None, Any]:
    """Return the newest of the flow run's Prefect artifacts for each key."""
    flow_run = state.state_details.flow_run_id
    assert flow_run
    with get_client(sync_client=True) as client:
        ours = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
        return {artifact.key: artifact.data for artifact in client.read_artifacts(artifact_filter=ours)}


def tracked(home: Path) -> tuple[int, int]:
    """How many runs and how many model versions MLflow has."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{home / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    return len(runs), len(client.search_model_versions("name = 'tiny'"))


def test_a_run_ends_in_a_state_that_is_named_after_its_verdict(done: tuple[Path, State[Any]]) -> None:
    state = done[1]
    verdict = outcome(state).verdict
    assert verdict
    assert (state.name, verdict.decision) == ("Promoted", "promote")
    assert state.message == verdict.sentence
    assert state.is_completed()
    assert names(state.result(), "ran") == [
        *("ingest", "base", "check", "dedupe", "split", "render", "train"),
        *("prompt", "evaluate base", "evaluate candidate", "evaluate few_shot", "evaluate retrieval"),
        *("forgetting base", "forgetting candidate", "decide", "verdict_page", "register"),
    ]


def runs_of(home: Path, number: int) -> list[Any]:
    """The runs in MLflow, the newest first, which are so many."""
    uri = f"sqlite:///{home / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == number
    return [*found]


def test_a_run_that_fails_is_in_mlflow_with_its_stage_and_error_and_goes_on_there(
    settings: Settings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise TrainingError("the disk is on fire")

    changing = changed(settings, "training", learning_rate=0.02)
    with monkeypatch.context() as patch:
        patch.setattr("tunewright.tasks.train.stage.run_trainer", broken)
        assert run(changing).is_failed()
    failed, before = runs_of(home, 2)
    assert failed.info.status == "FAILED"
    assert failed.info.run_name.startswith("tiny ")
    tags = failed.data.tags
    assert (tags["failed_stage"], tags["error"]) == ("train", "the disk is on fire")
    assert tags["cached_stages"] == "ingest, base, check, dedupe, split, render"
    assert failed.data.params["training.learning_rate"] == "0.02"
    assert before.info.status == "FINISHED"

    assert run(changing).is_completed()
    again, _ = runs_of(home, 2)
    assert (again.info.run_id, again.info.status) == (failed.info.run_id, "FINISHED")
    assert again.data.tags["verdict"]
    assert not {"failed_stage", "error", "progress"} & again.data.tags.keys()


def test_a_run_whose_training_is_cached_says_so_and_has_its_curves(settings: Settings, home: Path) -> None:
    state = run(changed(settings, "gate", margin=0.5), until="register")
    assert state.is_completed()
    newest, first = runs_of(home, 2)
    assert "train" in newest.data.tags["cached_stages"].split(", ")
    assert newest.data.metrics["train/loss"] == first.data.metrics["train/loss"]


def test_a_run_that_comes_to_nothing_new_leaves_nothing_in_mlflow(settings: Settings, home: Path) -> None:
    (first,) = runs_of(home, 1)
    assert run(settings).is_completed()  # nothing is made
    assert run(settings, refresh=("ingest",)).is_completed()  # and here nothing that is new
    shutil.rmtree(home / "artifacts" / "decide")
    shutil.rmtree(home / "artifacts" / "register")
    assert run(settings).name == "Unchanged"
    (now,) = runs_of(home, 1)
    assert (now.info.run_id, now.info.status) == (first.info.run_id, "FINISHED")
    assert now.data.metrics == first.data.metrics
    uri = f"sqlite:///{home / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    removed = client.search_runs([first.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert {each.info.status for each in removed} == {"FINISHED"}
    found = {(each.kind, each.why) for each in needless.in_mlflow(10)}
    assert found == {("unchanged run", "it found nothing new, so Tunewright hid it in MLflow")}
    assert not (home / "live_runs").exists() or not [*(home / "live_runs").iterdir()]


def test_a_run_of_the_first_stages_is_none_in_mlflow(settings: Settings, home: Path) -> None:
    assert run(changed(settings, "dedupe", threshold=0.9), until="render").is_completed()
    runs_of(home, 1)
    assert run(changed(settings, "training", learning_rate=0.03), until="train").is_completed()
    trained, _ = runs_of(home, 2)
    assert trained.info.status == "FINISHED"
    assert "train/loss" in trained.data.metrics
    assert "verdict" not in trained.data.tags


def test_each_verdict_has_its_state(settings: Settings, done: tuple[Path, State[Any]]) -> None:
    verdict = outcome(done[1]).verdict
    assert verdict
    mean = verdict.differences["base"][1]
    for margin, name in ((mean, "Inconclusive"), (mean + 10, "Not promoted")):
        state = run(changed(settings, "gate", margin=margin), until="decide")
        verdict = outcome(state).verdict
        assert verdict
        assert state.name == name
        assert (state.message or "").startswith(f"{verdict.sentence.removesuffix('.')}. 14 of 15 tasks cached, about ")


def test_a_judge_that_does_not_answer_costs_no_verdict(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any) -> None:
        raise ApiError("no answer after 5 attempts")

    monkeypatch.setattr("tunewright.flows.finetune.ask_judge", judge.with_options(retries=0))
    monkeypatch.setattr("tunewright.tasks.judge.replies", silent)
    asked = changed(settings, "judge", url="http://127.0.0.1:9/v1", model="wise")
    state = run(asked, until="verdict_page")
    assert outcome(state).verdict
    assert outcome(state).page
    assert outcome(state).judged is None
    (said,) = outcome(state).failed
    assert said.startswith("judge: no answer after 5 attempts; the verdict does not depend on it")
    console = Console(file=StringIO(), width=200)
    show_outcome(console, outcome(state), "x.yaml")
    assert said in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ApiError, match="no answer after 5 attempts"):
        run(asked, until="judge").result()


def test_a_model_behind_an_api_is_compared_and_costs_no_verdict(settings: Settings) -> None:
    statuses = [401]

    def answer(request: Any, key: str | None) -> tuple[int, Any]:
        status = statuses[0]
        return status, reply_of("no idea") if status == 200 else "a wrong key"

    with chat_server(answer) as url:
        asked = changed(settings, "evaluation", api_models=(ApiModel(url=url, model="wise"),))
        asked = changed(asked, "gate", metric="exact_match", guardrails=())
        failed = run(asked, until="verdict_page")
        statuses[0] = 200
        state = run(asked)
        asks = ASKS_APIS.set(False)
        reproduced = run(changed(asked, "evaluation", metrics=("exact_match",)), until="evaluate")
        ASKS_APIS.reset(asks)
    assert "wise" in outcome(state).answers
    assert "wise" not in outcome(reproduced).answers
    (said,) = outcome(failed).failed
    assert said.startswith("evaluate wise: evaluation.api_models=http://127.0.0.1:")
    assert " answers 401 " in said
    assert "the verdict does not depend on it" in said
    verdict = outcome(state).verdict
    assert verdict
    assert verdict.sentence == outcome(failed).verdict.sentence  # pyright: ignore[reportOptionalMemberAccess]
    (beside,) = verdict.beside
    assert " wise" in beside
    assert outcome(state).failed == []
    made = outcome(state).page
    assert made
    assert beside in made.path("report.html").read_text()
    assert beside in artifacts(state)["verdict"]
    console = Console(file=StringIO(), width=2000)
    show_outcome(console, outcome(state), "x.yaml")
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert beside in shown
    assert re.search(r"^scores .* wise ", shown, re.M)


def test_a_run_of_a_terminal_that_is_stopped_is_cancelled(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Cached, "_make", stopped)
    began = datetime.now(UTC)
    with pytest.raises(KeyboardInterrupt):
        run(changed(settings, "dedupe", threshold=0.85))
    with get_client(sync_client=True) as client:
        newest = {"start_time": {"after_": began}}
        (found,) = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(newest))
    assert found.state
    assert (found.state.name, found.state.message) == ("Cancelled", STOPPED_IN_TERMINAL)


def test_a_version_that_waits_for_a_person_is_said_everywhere_until_one_decides(settings: Settings) -> None:
    asks = changed(settings, "gate", approval=True)
    asks = changed(asks, "registry", name="asked")
    state = run(asks)
    command = 'To approve: tunewright release approve asked 1 --reason "..."'
    assert (state.name, state.is_completed()) == ("Waiting", True)
    assert command in str(state.message)
    shown = artifacts(state)["verdict"]
    assert shown.startswith("# Waiting")
    assert "Registered as `models:/asked/1`, no alias." in shown
    page = outcome(state).page
    assert page
    assert "a person approves or rejects the promotion" in page.path("report.html").read_text()
    said = outcome(state).as_json()
    assert (said["model"]["alias"], said["approval"]["state"]) == (None, "waiting")
    registry = Registry(name="asked")
    release.decide(registry, "1", "reject", by="ann", why="rude")
    again = run(asks)
    assert {step.state for step in again.result()} == {"cached"}
    assert again.name == "Unchanged"
    assert str(again.message).startswith("As before: Rejected by ann on 20")


def test_a_candidate_is_compared_with_a_champion_that_came_up_meanwhile(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = Cached._make

    def make(self: Cached[Any, Any], *args: Any, **kwargs: Any) -> Any:
        if self.stage == "register" and "raced" not in models():
            by_hand()
        return original(self, *args, **kwargs)

    def models() -> set[str]:
        with connected(Registry()) as client:
            return {model.name for model in client.search_registered_models()}

    def by_hand() -> None:
        with connected(Registry()) as client:
            tiny = client.get_model_version("tiny", "1")
            client.create_registered_model("raced")
            tags = tiny.tags | {"model_digest": "of another candidate"}
            client.create_model_version("raced", str(tiny.source), tiny.run_id, tags, model_id=tiny.model_id)
            client.set_registered_model_alias("raced", "champion", "1")

    monkeypatch.setattr(Cached, "_make", make)
    state = run(changed(settings, "registry", name="raced"), refresh=("render",))
    assert "version 1 of raced became champion while this run compared its candidate with no champion" in caplog.text
    assert names(state.result(), "ran") == ["render", "evaluate champion", "decide", "verdict_page", "register"]
    assert (state.name, state.is_completed()) == ("Not promoted", True)  # it is no better than a copy of itself
    assert outcome(state).alias == "the alias points to version 1"


def test_a_plan_with_another_base_does_not_reckon_with_the_one_before(
    settings: Settings, done: tuple[Path, State[Any]]
) -> None:
    steps = plan(changed(settings, "model", base="org/seventy-billion"), "register", ())
    (base,) = (step for step in steps if step.stage == "base")
    assert (base.state, base.last) == ("run", None)
    assert any("org/seventy-billion" in cause for cause in base.because)
    assert names(steps, "cached") == ["ingest"]
    assert causes(steps)["check"] == ["runs after base"], "its special tokens are not known"
    assert causes(steps)["dedupe"] == ["runs after check"]
    assert "evaluate few_shot" in names(steps, "run")


def test_a_second_run_executes_nothing_and_shows_the_same(
    settings: Settings, done: tuple[Path, State[Any]], home: Path, made: list[str]
) -> None:
    assert causes(plan(settings, "register", ())) == {}
    again = run(settings)
    assert made == []
    assert {step.state for step in again.result()} == {"cached"}
    assert (again.name, outcome(again).name) == ("Unchanged", done[1].name)
    taken = sum(step.seconds for step in done[1].result() if step.stage != "register")
    assert 0.5 * taken < sum(step.saved for step in again.result()) < 2 * sum(s.seconds for s in done[1].result())
    said = f"As before: {(done[1].message or '').removesuffix('.')}. 17 of 17 tasks cached, about "
    assert (again.message or "").startswith(said)
    assert (again.message or "").endswith(" saved.")
    shown, shown_before = artifacts(again), artifacts(done[1])
    assert {"settings", "rows", "scores", "verdict"} <= shown.keys()
    assert {"settings", "rows", "scores", "verdict"} <= shown_before.keys()
    for key in ("settings", "scores"):
        assert shown[key] == shown_before[key]
    assert shown["verdict"].replace(str(home), str(done[0] / "home")) == shown_before["verdict"]
    assert "| read | 78 |" in shown["rows"]
    assert "| duplicates | 4 |" in shown["rows"]
    assert "# Promoted" in shown["verdict"]
    said = "These test rows were used for 1 decision so far; each comparison of this one was tested at a one-sided "
    assert f"{said}level of at most .1, so that" in shown["verdict"], "half of 1 - gate.confidence"
    assert "\nForgetting: general tasks correct " in shown["verdict"]
    assert "\n| arithmetic | .00 | .00 |\n" in shown["verdict"]
    assert tracked(home) == (1, 1)


def test_a_plan_says_where_a_training_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tunewright.flows.calls.plan.newest_sealed", lambda folder: 12 if folder.parts[-3] == "train" else 0
    )
    assert causes(plan(settings, "register", ())) == {}
    found = causes(plan(changed(settings, "training", learning_rate=0.02), "register", ()))
    assert found["train"] == ["training.learning_rate: 0.01 -> 0.02", "it resumes from its checkpoint at step 12"]
    assert [stage for stage, because in found.items() if any("checkpoint" in each for each in because)] == ["train"]
    write(ROWS[2:])  # whose tokens are unknown as yet: the checkpoint is of others
    assert causes(plan(settings, "register", ()))["train"] == ["runs after render"]


def test_the_limit_of_an_answer_goes_by_the_data_and_a_number_of_the_same_changes_nothing(
    settings: Settings, made: list[str]
) -> None:
    answers = outcome(run(changed(settings, "evaluation", max_new_tokens="auto"), until="evaluate")).answers
    assert {each.max_new_tokens for each in answers.values()} == {32}
    assert made == ["prompt", *["evaluate"] * 4]
    made.clear()
    run(changed(settings, "evaluation", max_new_tokens=32), until="evaluate")
    assert made == []


def test_another_metric_or_schema_decodes_nothing_again(
    settings: Settings, made: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(tunewright.tasks.evaluate.answers, "load_model")
    Path("schema.json").write_text('{"type": "object"}')
    run(changed(settings, "evaluation", json_schema="schema.json"), until="evaluate")
    assert made == ["evaluate"] * 4
    made.clear()
    caplog.clear()
    with caplog.at_level(logging.INFO, "tunewright"):
        found = outcome(run(changed(settings, "gate", metric="exact_match"), until="decide")).answers
    (said,) = {text for text in caplog.messages if "measured are" in text}
    assert "; exact_match decides (gate.metric); " in said
    assert all("exact_match" in each.scores for each in found.values())
    assert made == [*["evaluate"] * 4, "decide"]


def test_another_learning_rate_trains_again_and_nothing_before(settings: Settings, home: Path, made: list[str]) -> None:
    other = changed(settings, "training", learning_rate=0.02)
    planned = plan(other, "register", ())
    assert causes(planned)["train"] == ["training.learning_rate: 0.01 -> 0.02"]
    state = run(other)
    after = ["train", *(f"evaluate {name}" for name in ("champion", "candidate", "few_shot", "retrieval"))]
    after += ["forgetting candidate", "decide", "verdict_page", "register"]
    assert names(state.result(), "ran") == after
    assert names(planned, "run") == after
    assert made == [name.split()[0] for name in after]
    verdict = outcome(state).verdict
    assert verdict
    assert verdict.differences.keys() == {"base", "champion", "few_shot", "retrieval"}
    assert verdict.test_set_uses == 2
    assert tracked(home) == (2, 2)


def test_another_data_row_runs_again_what_reads_it(settings: Settings, made: list[str]) -> None:
    write([{"instruction": "nobody answers the door", "output": "delivery"}, *ROWS[1:]])
    planned = plan(settings, "render", ())
    assert causes(planned)["ingest"] == ["data.sources[0]: rows.jsonl changed"]
    state = run(settings, until="render")
    after = ["ingest", "check", "dedupe", "split", "render"]
    assert names(state.result(), "ran") == names(planned, "run") == made == after
    assert names(state.result(), "cached") == ["base"]


@pytest.mark.parametrize("deleted", [True, False])
def test_a_lost_or_altered_file_is_made_again(settings: Settings, home: Path, made: list[str], deleted: bool) -> None:
    (file,) = home.glob("artifacts/dedupe/*/rows.parquet")
    before = file.read_bytes()
    file.unlink() if deleted else file.write_bytes(before[:-1] + b"x")
    planned = plan(settings, "register", ())
    said = "rows.parquet is missing" if deleted else "rows.parquet was altered"
    assert causes(planned)["dedupe"] == [f"artifact {file.parent.name}: {said}"]
    assert causes(planned)["split"] == ["runs after dedupe"]
    state = run(settings, until="render")
    assert made == ["dedupe"]
    assert names(state.result(), "ran") == ["dedupe"]
    assert file.read_bytes() == before


def test_an_edited_stage_runs_again_and_what_it_hands_on_unchanged_runs_nothing(
    settings: Settings, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited(name: str, file: Path, _: int) -> code_hashes._Module:
        source = file.read_text()
        return code_hashes._Module(name, source.replace("counts = Counter(REASONS", "counts = Counter[str](REASONS"))

    monkeypatch.setattr(code_hashes, "_parsed", edited)
    monkeypatch.setattr(code_hashes, "_known", {})
    planned = plan(settings, "register", ())
    assert names(planned, "cached") == ["ingest", "base", "check", "forgetting base"]
    assert causes(planned)["dedupe"] == ["code tunewright.tasks.dedupe:dedupe changed"]
    assert causes(planned)["split"] == ["runs after dedupe"]
    state = run(settings)
    assert made == ["dedupe"]
    assert names(state.result(), "ran") == ["dedupe"]
    assert causes(plan(settings, "register", ())) == {}


def test_a_stage_to_refresh_runs_and_no_other(settings: Settings, made: list[str]) -> None:
    assert causes(plan(settings, "register", ("dedupe",)))["dedupe"] == ["requested by refresh"]
    state = run(settings, until="render", refresh=("dedupe",))
    assert made == ["dedupe"]
    assert names(state.result(), "ran") == ["dedupe"]


@pytest.mark.parametrize("until", ["split", "evaluate"])
def test_a_run_goes_as_far_as_it_is_asked_to(settings: Settings, until: Stage) -> None:
    state = run(settings, until=until)
    reached = {step.stage for step in state.result()}
    used = stages(settings)
    assert reached == {*used[: used.index(until) + 1]} - {"prepend"}, (
        "of which there is one with a few-shot prompt only"
    )
    assert {step.stage for step in plan(settings, until, ())} == reached
    assert state.name == "Completed"
    number = len(state.result())
    assert (state.message or "").startswith(f"ended after {until}, as requested. {number} of {number} tasks cached")


def test_a_plan_before_the_first_run_has_the_tasks_that_the_run_has(
    settings: Settings, done: tuple[Path, State[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "empty"))
    steps = plan(settings, "decide", ())
    first = names(done[1].result(), "ran")
    assert names(steps, "run") == first[: first.index("decide") + 1]
    assert causes(steps)["ingest"] == ["not run yet"]
    assert causes(steps)["check"] == ["runs after ingest and base"]
    assert causes(steps)["dedupe"] == ["runs after check"]
    assert not (tmp_path / "empty").exists()


def test_a_stage_that_fails_for_a_moment_is_tried_again_alone(
    settings: Settings, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tunewright.tasks.dedupe.find_repeats
    monkeypatch.setattr(tunewright.tasks.dedupe.dedupe, "retry_delay_seconds", 0)
    failures = iter([ConnectionError("the storage does not answer")])

    def find_repeats(*args: Any) -> Any:
        for failure in failures:
            raise failure
        return original(*args)

    monkeypatch.setattr(tunewright.tasks.dedupe, "find_repeats", find_repeats)
    state = run(changed(settings, "dedupe", threshold=0.8), until="split")
    assert state.is_completed()
    assert made[:2] == ["dedupe", "dedupe"]
    assert "ingest" not in made
    assert names(state.result(), "ran")[0] == "dedupe"


@pytest.mark.parametrize(("failures", "is_completed"), [(1, True), (2, False)])
def test_a_stage_that_fails_for_no_known_reason_is_tried_once_more(
    settings: Settings,
    made: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failures: int,
    is_completed: bool,
) -> None:
    original = tunewright.tasks.evaluate.scored
    monkeypatch.setattr(tunewright.tasks.evaluate.evaluate, "retry_delay_seconds", 0)
    long = "by\nzero \x1b[31m" + "of a row's text " * 100
    raised = iter([ZeroDivisionError(long)] * failures)
    caplog.set_level(logging.DEBUG, "tunewright")

    def scored(*args: Any) -> Any:
        for error in raised:
            raise error
        return original(*args)

    monkeypatch.setattr(tunewright.tasks.evaluate, "scored", scored)
    state = run(changed(settings, "evaluation", max_new_tokens=5), until="evaluate")
    assert state.is_completed() == is_completed
    assert made.count("evaluate") == (5 if is_completed else 2)  # of four contenders
    (line,) = [each for each in caplog.messages if each.endswith("; retrying once")]
    said = r"evaluate failed: ZeroDivisionError: by zero \x1b[31mof a row's text of"
    assert line.startswith(f"  {said}")
    assert len(line) < 300
    if not is_completed:
        error = state.result(raise_on_failure=False)
        assert isinstance(error, StageFailed)
        assert str(error).startswith(said.replace("evaluate", "evaluate base"))
        assert str(error).endswith("…; --verbose shows its traceback")
        assert len(str(error)) < 300
        (shown,) = [each for each in caplog.records if each.levelno == logging.DEBUG]  # by --verbose alone
        assert shown.exc_info
        assert isinstance(shown.exc_info[1], ZeroDivisionError)


def test_a_home_that_cannot_be_written_ends_a_run_before_its_first_stage(
    settings: Settings, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_HOME", "/sys/kernel")  # where not even root makes files
    error = run(settings).result(raise_on_failure=False)
    assert isinstance(error, ConfigError)
    assert str(error).startswith("TUNEWRIGHT_HOME=/sys/kernel: ")
    assert made == []


def test_refused_data_are_not_tried_again(settings: Settings, made: list[str]) -> None:
    state = run(changed(settings, "dedupe", max_removed_share=0.0), until="split")
    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), DataError)
    assert made == ["dedupe"]


def test_no_row_is_lost_whichever_stage_sets_it_aside(settings: Settings, done: tuple[Path, State[Any]]) -> None:
    before = outcome(done[1])
    assert before.tokens
    long = changed(settings, "model", max_length=before.tokens.longest - 1, on_long="quarantine")
    after = outcome(run(long, until="render"))
    first, second = before.account(), after.account()
    assert first
    assert second
    assert (first.read, first.quarantined, first.duplicates, first.kept) == (78, 2, 4, 72)
    assert second.read == 78
    assert second.quarantined > 2
    for account in (first, second):
        assert account.read == account.kept + account.quarantined + account.duplicates
        assert account.kept == account.train + account.validation + account.test
    assert sum(after.reasons().values()) == second.quarantined + second.duplicates
    assert after.reasons()["too_many_tokens"] == second.quarantined - 2


def test_a_run_is_named_after_its_pipeline_what_it_changes_and_when_it_starts(server: None) -> None:
    seen: list[str] = []

    @flow(flow_run_name=run_name)
    def pipeline(
        training: Training,
        lm_eval: LmEval,
        gate: Gate,
        registry: Registry = Registry(name="triage"),  # noqa: B008
    ) -> None:
        from prefect.runtime import flow_run

        seen.append(flow_run.name or "")

    def run(**of: str) -> None:
        token = ORIGINS.set({"training.learning_rate": "demo.yaml line 9", **of})
        state: State[None] = pipeline(
            Training(learning_rate=0.0001, epochs=2), LmEval(), Gate(approval=True), return_state=True
        )
        ORIGINS.reset(token)
        assert state.is_completed()

    run()
    run(**{"training.learning_rate": "command line"})
    run(**dict.fromkeys([f"training.{key}" for key in Training.model_fields], "command line"))
    run(**dict.fromkeys(["training.max_steps", "lm_eval.tasks", "gate.approval"], "command line"))
    day = r" \d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(f"triage{day}", seen[0])
    assert re.fullmatch(f"triage learning_rate=0.0001{day}", seen[1])
    assert re.fullmatch(rf"triage learning_rate=0.0001 epochs=2\S* \S+ and \d+ more{day}", seen[2])
    assert re.fullmatch(rf"triage max_steps=null tasks=\[\] approval=true{day}", seen[3])


def on_splits(home: Path) -> dict[str, str]:
    """Row_id -> its split, in the newest version of the data."""
    newest = history("tiny", 0, "cluster")[-1]
    folder = home / "artifacts" / "split" / newest.splits.key
    return {
        row_id: split
        for split in ("train", "validation", "test")
        for row_id in pq.read_table(folder / f"{split}.parquet")["row_id"].to_pylist()
    }


def remembered(home: Path) -> tuple[Any, ...]:
    """All that must be the same after a loss: splits, versions of the data, uses of the test set, runs and models."""
    files = (home / "versions" / "tiny.jsonl", home / "test_set_uses" / "tiny.jsonl")
    return on_splits(home), *(file.read_text() for file in files), tracked(home)


def more(number: int) -> list[dict[str, str]]:
    return [
        {"instruction": f"a wholly new matter {n} of another kind altogether", "output": "repair"}
        for n in range(number)
    ]


def test_all_artifacts_can_be_deleted(settings: Settings, home: Path, made: list[str]) -> None:
    write([*ROWS, *more(12)])
    run(settings)
    before = remembered(home)
    shutil.rmtree(home / "artifacts")
    made.clear()
    again = run(settings)
    assert {"split", "train", "register"} <= {*made}
    assert remembered(home) == before
    assert outcome(again).registered
    assert (again.name, outcome(again).state) == ("Unchanged", "Unchanged"), "no notice of the same verdict once more"
    shutil.rmtree(home / "artifacts")
    write([*ROWS, *more(24)])
    run(settings, "split")
    after = on_splits(home)
    assert {row_id: after[row_id] for row_id in before[0]} == before[0]
    assert len(after) > len(before[0])


DOCUMENTED = ("mlflow.db", "mlartifacts", "versions", "test_set_uses")  # docs/recovering.md


@pytest.mark.parametrize("how", ["moved", "backed up", "copied"])
def test_a_home_that_was_moved_or_restored_goes_on_as_it_was(
    settings: Settings, home: Path, made: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    write([*ROWS, *more(12)])
    run(settings, "split")
    before = remembered(home)
    there = home.parent / "elsewhere" / "home"
    there.parent.mkdir()
    if how == "moved":
        home.rename(there)
    elif how == "copied":
        there.mkdir()
        for name in DOCUMENTED:
            copy = shutil.copytree if (home / name).is_dir() else shutil.copy
            copy(home / name, there / name)
    else:
        backup(home.parent / "home.tar")
    shutil.rmtree(home, ignore_errors=True)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(there))
    if how == "backed up":
        restore(home.parent / "home.tar")
    run(settings, "split")
    assert remembered(there) == before

    write(ROWS)
    made.clear()
    unchanged = outcome(run(settings)).registered
    assert unchanged
    assert (unchanged.version, "train" in made) == ("1", how != "moved")
    assert remembered(there)[1:] == before[1:], "no version, use of the test set, run or model more"
    write([*ROWS, *more(12)])
    compared = outcome(run(changed(settings, "training", learning_rate=0.02)))
    assert compared.verdict
    assert "champion" in compared.verdict.intervals
    assert not home.exists()
