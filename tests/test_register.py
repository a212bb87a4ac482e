"""A version is the model that was measured, stands on its own, and gets the alias only if it won."""

import hashlib
import json
import logging
import os
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import registered
import torch
from pydantic import ValidationError
from registered import QUESTIONS, aliases, runs, versions

import tunewright.reports.progress
from tunewright.artifacts import ASSIGNMENTS_FILE, QUARANTINE_SCHEMA, Answers, Base, Judged, Registered
from tunewright.cli.predict.model import fetch
from tunewright.config import Data, Judge, Model, Registry, Settings, Source, Split, Training
from tunewright.errors import AnotherChampion, TrackingError, TunewrightError
from tunewright.modeling import near_ties
from tunewright.registry import candidate, files, rehearsal
from tunewright.registry.address import tracking_uri
from tunewright.registry.candidate import CurveThinning, curves, parameters, scores
from tunewright.registry.release import promote
from tunewright.registry.tracking import connected
from tunewright.registry.versions import champion, lost, trained_on_test
from tunewright.store.data_history import DIGITS, SCHEMA, place
from tunewright.tasks.base import base as load_base

Make = Callable[..., Registered]


@pytest.fixture
def make(register_candidate: Make) -> Make:
    return register_candidate


def test_a_model_that_another_run_makes_at_the_same_moment_is_taken(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "search_registered_models", lambda *_, **__: [])  # it was not there yet
        assert make(digest="b", challenged="1").version == "2"


def test_a_slow_registration_says_what_it_does(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    monkeypatch.setattr(tunewright.reports.progress, "FIRST_SECONDS", 0.0)
    make()
    said = [message.partition(":")[0].strip() for message in caplog.messages if " so far" in message]
    assert [*dict.fromkeys(said)] == [
        "logging the run and the model to MLflow",
        "loading the registered version and comparing its answers",
    ]


def test_a_promoted_candidate_gets_a_version_the_alias_and_a_run_to_compare(make: Make, home: Path) -> None:
    registered = make()
    assert (registered.version, registered.alias, registered.uri) == ("1", "champion", "models:/triage/1")
    assert aliases() == {"champion": "1"}
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_id == registered.run_id
    assert run.data.tags["verdict"] == versions()[0].tags["verdict"] == "promote"
    assert run.data.tags["test_set_uses"] == "1"
    assert run.data.tags["gain"] == versions()[0].tags["gain"] == "+.82 [.75, .88] exact match against the base"
    assert run.data.params["training.learning_rate"] == "0.0002"
    assert run.data.params["data.sources.0.path"] == "data.jsonl"
    assert run.data.metrics["test/exact_match"] == 0.8765
    assert run.data.metrics["gate/base/low"] == 0.75
    assert run.data.metrics["test/constant/exact_match"] == 0.25
    forgetting = {key: value for key, value in run.data.metrics.items() if key.startswith("forgetting/")}
    assert forgetting == {"forgetting/general_loss": 3.92, "forgetting/base/general_loss": 3.573}
    assert "test/base/perplexity" not in run.data.metrics, "infinity cannot be drawn"
    assert versions()[0].description.splitlines()[0] == "Promoted: better than the base by 0.82."
    assert run.data.tags["training"] == "overfitting since step 1: seen; try less"
    assert "| majority-class baseline | 0.25 |  |" in versions()[0].description
    assert "- In training: overfitting since step 1" in versions()[0].description
    assert "\n- These test rows were used for 1 decision so far (gate.max_test_set_uses=" in versions()[0].description
    with connected(Registry(name="triage")) as client:
        assert [file.path for file in client.list_artifacts(run.info.run_id, "reports/train")] == [
            "reports/train/curves.html"
        ]
        for stage in ("check", "dedupe", "render"):
            report = f"reports/{stage}/report.html"
            assert [file.path for file in client.list_artifacts(run.info.run_id, f"reports/{stage}")] == [report]
        page = "reports/verdict_page/report.html"
        assert [file.path for file in client.list_artifacts(run.info.run_id, "reports/verdict_page")] == [page]
        model_id = versions()[0].source.removeprefix("models:/")
        assert [file.path for file in client.list_logged_model_artifacts(model_id, "reports")] == [
            "reports/report.html"
        ]
    link = f"#/experiments/{registered.experiment_id}/runs/{registered.run_id}/artifacts/{page}"
    assert f"[The verdict page]({link})" in versions()[0].description
    assert not (home.parent / "mlruns").exists()


def test_a_run_without_warnings_says_where_too_few_evaluations_could_warn(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = registered._adapter
    monkeypatch.setattr(registered, "_adapter", lambda *given: adapter(*given).model_copy(update={"warnings": ()}))
    make()
    (run,) = runs()
    assert run.data.tags["training"].startswith("Only 1 evaluation: too few to tell whether the loss had converged")


def test_a_run_and_its_version_name_the_data_by_our_digests(make: Make, tmp_path: Path) -> None:
    make()
    (run,), (version,) = runs(), versions()
    splits = run.data.tags["data.splits"]
    assert len(splits) == 64
    data = {"data.version": "3", "data.rows": "r" * 64, "data.splits": splits}
    assert data.items() <= run.data.tags.items()
    assert data.items() <= version.tags.items()
    assert "version 3 of the data" in version.description
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert {split: dataset.name for split, dataset in inputs.items()} == {
        split: f"triage {split}" for split in ("train", "validation", "test")
    }
    for split, dataset in inputs.items():
        assert splits.startswith(dataset.digest)
        assert len(dataset.digest) == 36
        source = json.loads(dataset.source)
        assert source == {"files": {"data.jsonl": "0" * 64}, "rows": "r" * 64, "splits": splits}
        (file,) = tmp_path.glob(f"splits/*/{split}.parquet")
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        assert json.loads(dataset.profile) == {"num_rows": 1, "sha256": sha256}, "the rows that render left"
    assert "- Rows: 1 train, 1 validation, 1 test (used only" in version.description


def compared(experiment_id: str) -> dict[str, dict[tuple[str, str], list[float]]]:
    """Contender -> (metric, dataset) -> all that was logged of its model."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    with connected(Registry(name="triage")) as client:
        for model in client.search_logged_models([experiment_id]):
            assert str(model.name) not in found, "one model of each"
            scores = found.setdefault(str(model.name), {})
            for metric in model.metrics or []:
                scores.setdefault((metric.key, str(metric.dataset_digest)), []).append(metric.value)
    return found


def test_every_contender_is_a_model_with_its_scores_on_the_same_test_rows(make: Make) -> None:
    registered = make()
    digest = runs()[0].data.tags["data.splits"][:36]
    exact, perplexity = ("test/exact_match", digest), ("test/perplexity", digest)
    assert compared(registered.experiment_id) == {
        "triage": {exact: [0.8765], perplexity: [1.5]},
        "base": {exact: [0.05]},
        "few_shot": {exact: [0.05]},
    }
    (run,) = runs()
    assert run.data.metrics["test/exact_match"] == 0.8765, "the run's own is the candidate's"
    assert (len(run.inputs.model_inputs), len(run.outputs.model_outputs)) == (2, 1)


def test_a_contender_that_is_the_same_again_is_no_second_model(make: Make) -> None:
    registered = make()
    before = compared(registered.experiment_id)
    shutil.rmtree(registered.folder)
    make()
    assert compared(registered.experiment_id) == before
    make(digest="b", challenged="1", prompted="q")
    with connected(Registry(name="triage")) as client:
        models = client.search_logged_models([registered.experiment_id])
        champion_id = str(client.get_model_version("triage", "1").source).removeprefix("models:/")
    assert sorted(model.name for model in models) == ["base", "few_shot", "few_shot", "triage", "triage"]
    (run, _) = runs()
    assert champion_id in {each.model_id for each in run.inputs.model_inputs}
    assert run.data.metrics["test/exact_match"] == 0.8765
    assert [len(model.metrics or []) for model in models if model.name == "base"] == [1]
    (held,) = (model for model in models if model.model_id == champion_id)
    assert {metric.value for metric in held.metrics or [] if metric.run_id == run.info.run_id} == {0.5}


def test_a_model_that_somebody_deleted_is_made_again_and_the_runs_score_stays_the_candidates(make: Make) -> None:
    registered = make()
    with connected(Registry(name="triage")) as client:
        (model,) = (m for m in client.search_logged_models([registered.experiment_id]) if m.name == "base")
        client.delete_logged_model(model.model_id)
        shutil.rmtree(registered.folder)
        make()
        names = sorted(str(model.name) for model in client.search_logged_models([registered.experiment_id]))
    assert names == ["base", "few_shot", "triage"]
    (run,) = runs()
    assert run.data.metrics["test/exact_match"] == 0.8765


JUDGED = Judged(
    model="judge-1",
    num_rows=3,
    preferred={"base": (0.51234567, 0.75, 1.0)},
    agreement={"base": 0.9},
    unreadable={"base": 0.0},
)


def test_what_a_judge_said_stands_in_the_run_where_there_is_one(make: Make) -> None:
    make()
    assert not [key for key in runs()[0].data.metrics if key.startswith("judge/")]
    make(judged=JUDGED, judge=Judge(url="http://localhost:9/v1", model="judge-1"))
    run = runs()[0]
    assert run.data.tags["judge"] == "judge-1"
    assert {key: value for key, value in run.data.metrics.items() if key.startswith("judge/")} == {
        "judge/base/preferred_low": 0.5123,
        "judge/base/preferred": 0.75,
        "judge/base/preferred_high": 1.0,
        "judge/base/agreement": 0.9,
        "judge/base/unreadable": 0.0,
    }


def test_a_version_has_no_pickle(make: Make, home: Path) -> None:
    make()
    names = {path.suffix for path in (home / "mlartifacts").rglob("*") if path.is_file()}
    assert ".safetensors" in names
    assert not names & {".pkl", ".pickle", ".bin", ".pt", ".pth", ".joblib"}


ASK = """
import json, sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/triage@champion")
assert not any(name.partition(".")[0] == "tunewright" for name in sys.modules)
print("\\n" + json.dumps(model.predict([{"prompt": text} for text in sys.argv[2:]])))
"""


def test_a_version_is_loaded_and_asked_without_this_project(make: Make, said: list[str], tmp_path: Path) -> None:
    registered = make()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TUNEWRIGHT_HOME")}
    # -P and no site hook of an editable install: the project cannot be imported.
    hidden = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    command = [sys.executable, "-P", "-c", hidden + ASK, tracking_uri(registered), *QUESTIONS]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == said


def test_registered_twice_there_is_one_version_one_run_and_no_point_twice(make: Make) -> None:
    first = make()
    again = make()
    shutil.rmtree(first.folder)
    third = make()
    assert {first.version, again.version, third.version} == {"1"}
    assert len(runs()) == 1
    with connected(Registry(name="triage")) as client:
        assert len(client.get_metric_history(first.run_id, "train/loss")) == 2
        logged = client.get_metric_history(first.run_id, "test/exact_match")
        assert [metric.value for metric in logged] == [0.05, 0.8765], "those of the others, then the candidate's"


def test_a_version_that_somebody_deleted_is_made_again(make: Make, home: Path) -> None:
    first = make()
    with connected(Registry(name="triage")) as client:
        client.delete_model_version("triage", first.version)
    assert lost(first) == "models:/triage/1 is not in MLflow any more"
    again = make()
    assert (again.version, again.run_id, lost(again), aliases()) == ("2", first.run_id, "", {"champion": "2"})
    assert lost(again.model_copy(update={"version_run_id": "of another model"}))
    (home / "mlflow.db").unlink()
    assert lost(again) == f"{home / 'mlflow.db'} is gone"


def test_an_attempt_that_died_between_run_and_version_is_completed(make: Make, monkeypatch: Any) -> None:
    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tunewright.registry.versions.get_or_create", die)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert [run.info.status for run in runs()] == ["RUNNING"]
    registered = make()
    assert registered.version == "1"
    assert [run.info.status for run in runs()] == ["FINISHED"]
    with connected(Registry(name="triage")) as client:
        assert len(client.search_logged_models([registered.experiment_id])) == 3
        assert len(client.get_metric_history(registered.run_id, "train/loss")) == 2


def test_a_kept_candidate_is_a_version_without_the_alias(make: Make) -> None:
    assert make(decision="keep").alias == ""
    assert versions()[0].tags["verdict"] == "keep"
    assert aliases() == {}


def test_a_model_that_answers_otherwise_than_it_was_measured_never_gets_the_alias(
    make: Make, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    make()
    with pytest.raises(TunewrightError, match=r"not the model that was measured.*: measured 'no', reloaded "):
        make(digest="b", answers=[said[0], "no", said[2]], challenged="1")
    assert aliases() == {"champion": "1"}
    assert {run.info.status for run in runs()} == {"FINISHED", "FAILED"}
    assert versions()[1].tags["verdict"] == "not the model that was measured"
    assert [run.data.tags["verdict"] for run in runs() if run.info.status == "FAILED"] == [rehearsal.UNCONFIRMED]
    fetch(Registry(name="triage"), "2")
    assert "models:/triage/2 is not the model that was measured, as its registration found" in caplog.text


def test_a_base_that_was_altered_is_refused(make: Make, tiny_base: Base, tmp_path: Path) -> None:
    from mlflow.pyfunc import load_model as load_version

    copy = tmp_path / "base"
    shutil.copytree(tiny_base.weights, copy)
    registered = make(base=tiny_base.model_copy(update={"reference": str(copy), "folder": copy}))
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"rope_theta": 1.0}))
    with pytest.raises(ValueError, match=r"base .* holds another model \(sha256"):
        load_version(registered.uri)


def test_a_base_at_another_path_is_found_by_its_digest(
    make: Make, tiny_base: Base, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.pyfunc import load_model as load_version

    trained, here = tmp_path / "trained", tmp_path / "here"
    shutil.copytree(tiny_base.weights, trained)
    registered = make(base=tiny_base.model_copy(update={"reference": str(trained), "folder": trained}))
    trained.rename(here)
    registry, other = Registry(name="triage"), tiny_base.model_copy(update={"weights_digest": "another"})
    needed = rf"base {trained}: .* sha256 {tiny_base.weights_digest[:12]}, and is not on .*; set TUNEWRIGHT_BASE"
    with pytest.raises(FileNotFoundError, match=needed):
        load_version(registered.uri)
    with pytest.raises(TunewrightError, match=rf"^models:/triage/1: {needed}"):
        champion(registry, "b", other, load_base.fn)
    with connected(registry) as client:
        client.delete_registered_model_alias("triage", "champion")
    with pytest.raises(TunewrightError, match=needed):
        promote(registry, "1", by="me", why="back again")
    monkeypatch.setenv("TUNEWRIGHT_BASE", str(here))
    assert load_version(registered.uri).predict([{"prompt": text} for text in QUESTIONS]) == said
    assert promote(registry, "1", by="me", why="back again").rehearsed == 3
    found = champion(registry, "b", other, load_base.fn)
    assert found
    assert found.base.weights == here


def test_a_version_says_how_it_was_measured_and_how_many_rows_it_answers_at_once(make: Make, home: Path) -> None:
    make()
    (file,) = (home / "mlartifacts").rglob("base.json")
    said = json.loads(file.read_text())
    assert (said["precision"], said["batch"]) == ("float32", 8)


def test_weights_that_are_measured_in_another_precision_are_another_version(make: Make, home: Path) -> None:
    make(precision="bfloat16")
    measured = make()
    assert (measured.version, make().version) == ("2", "2")
    assert aliases() == {"champion": "2"}
    served = [json.loads(file.read_text())["precision"] for file in (home / "mlartifacts").rglob("base.json")]
    assert sorted(served) == ["bfloat16", "float32"]
    with connected(Registry(name="triage")) as client, files.copied(client, versions()[1]) as copy:
        assert rehearsal.load(copy).precision == "float32"


def test_a_version_that_is_asked_by_another_prompt_than_was_measured_is_refused(make: Make) -> None:
    make()
    with connected(Registry(name="triage")) as client:
        version = client.get_model_version("triage", "1")
        kept = rehearsal.kept(client, version)
        with files.copied(client, version) as copy:
            chat = rehearsal.load(copy)
    row, *rows = kept.rows
    altered = row.model_copy(update={"prompt": row.prompt.replace("helpful", "hopeful")})
    asked = rehearsal.Rehearsal(rows=(altered, *rows))
    prompts, said = (
        chat.prompts([row.messages for row in kept.rows]),
        [chat.tokenizer.encode(r.answer) for r in kept.rows],
    )
    with pytest.raises(
        TunewrightError, match=r"^models:/triage/1 .* has another prompt from character 31 on: measured"
    ) as at:
        rehearsal.require_measured(version, chat, asked, prompts, said, "nothing moved")
    assert "measured 'opeful AI assistant" in str(at.value) and str(at.value).endswith("; nothing moved")
    before = [each.model_copy(update={"prompt": ""}) for each in kept.rows]
    assert not rehearsal.require_measured(version, chat, rehearsal.Rehearsal(rows=tuple(before)), prompts, said, "")


@pytest.mark.parametrize(
    ("measured", "loaded", "accepted"),
    [
        ("float32", "float32", False),
        ("bfloat16", "bfloat16", True),
        ("bfloat16", "float32", True),  # a GPU that does not compute in bfloat16
        (None, "bfloat16", True),  # an earlier version, on a GPU
        (None, "float32", False),
    ],
)
def test_answers_may_differ_from_a_near_tie_on_where_bfloat16_rounds(
    measured: str | None,
    loaded: str,
    accepted: bool,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    make()
    monkeypatch.setattr(near_ties, "explains", lambda *_, **__: True)
    with connected(Registry(name="triage")) as client:
        version = client.get_model_version("triage", "1")
        kept = rehearsal.kept(client, version)
        with files.copied(client, version) as copy:
            chat = rehearsal.load(copy)
    chat.precision = measured
    chat.model.to(getattr(torch, loaded))
    prompts = rehearsal.questions(version, chat, kept, "nothing moved")
    other = [chat.tokenizer.encode(f"not {row.answer}") for row in kept.rows]
    if accepted:
        asked = chat.prompts(prompts)
        assert rehearsal.require_measured(version, chat, kept, asked, other, "nothing moved") == 3
        assert "0 of 3 test rows are answered as measured; 3 others differ from a token on" in caplog.text
        other[1:] = [chat.tokenizer.encode(row.answer) for row in kept.rows[1:]]
        assert rehearsal.require_measured(version, chat, kept, asked, other, "nothing moved") == 1
        assert "2 of 3 test rows are answered as measured; 1 other differs from a token on" in caplog.text
        return
    with pytest.raises(TunewrightError, match=r"3 of 3 test rows get another answer; row .*; nothing moved$"):
        rehearsal.require_measured(version, chat, kept, chat.prompts(prompts), other, "nothing moved")


@pytest.mark.parametrize(("num_near_ties", "is_warned"), [(1, False), (2, True)])
def test_what_rules_out_near_ties_is_named_where_more_than_one_answer_differs(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, num_near_ties: int, is_warned: bool
) -> None:
    monkeypatch.setattr(rehearsal, "_rehearse", lambda *_: num_near_ties)
    make()
    assert (rehearsal.SAME_ANSWERS in caplog.text) == is_warned


def test_a_champion_whose_files_are_elsewhere_says_how_to_reach_them(make: Make, home: Path, tiny_base: Base) -> None:
    make()
    (home / "mlartifacts").rename(home / "elsewhere")
    with pytest.raises(TunewrightError, match=r"is not on this machine.*registry.tracking_uri.*withdraw"):
        champion(Registry(name="triage"), "b", tiny_base, load_base.fn)


def test_the_alias_does_not_move_past_a_champion_that_was_not_challenged(make: Make) -> None:
    make(digest="a")
    with pytest.raises(AnotherChampion, match="version 1 of triage became champion while"):
        make(digest="b")
    assert make(digest="b", challenged="1").version == "2"
    assert aliases() == {"champion": "2"}


def test_a_version_whose_registration_the_alias_interrupted_comes_from_a_finished_run(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(digest="a", decision="keep")
    rehearse = rehearsal.rehearse

    def while_another_is_promoted(client: Any, *others: Any) -> None:
        rehearse(client, *others)
        client.set_registered_model_alias("triage", "champion", "1")

    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "rehearse", while_another_is_promoted)
        with pytest.raises(AnotherChampion):
            make(digest="b")
    source = next(run for run in runs() if run.info.run_id == versions()[1].run_id)
    assert source.info.status == "FINISHED"
    assert source.data.tags["tunewright.undecided"].startswith("version 1 of triage became champion while")
    assert source.data.tags["verdict"] == "undecided"
    again = make(digest="b", challenged="1")
    assert (again.version, again.version_run_id, again.is_known) == ("2", source.info.run_id, False)
    with connected(Registry(name="triage")) as client:
        client.delete_registered_model_alias("triage", "champion")
    first_decision = make(digest="b")
    assert (first_decision.run_id, first_decision.is_known) == (source.info.run_id, False)
    assert not any("tunewright.undecided" in run.data.tags for run in runs())
    assert {run.data.tags["verdict"] for run in runs()} == {"not promoted", "promote"}


def test_a_version_that_a_later_run_registers_comes_from_a_finished_run(make: Make, said: list[str]) -> None:
    with pytest.raises(TunewrightError, match="not the model that was measured"):
        make(answers=[said[0], "no", said[2]])
    assert [run.info.status for run in runs()] == ["FAILED"]
    later = make(decision="keep")
    assert later.run_id != later.version_run_id == versions()[0].run_id
    assert {run.info.status for run in runs()} == {"FINISHED"}
    (source,) = [run for run in runs() if run.info.run_id == later.version_run_id]
    assert source.data.tags["tunewright.undecided"] == f"registered by run {later.run_id}"


def test_a_version_that_is_decided_on_again_is_not_taken_for_lost(make: Make) -> None:
    first = make(digest="a", decision="keep")
    again = make(digest="a")
    assert (again.version, again.version_run_id) == (first.version, first.run_id)
    assert again.run_id != first.run_id
    assert lost(again) == ""
    by_id = {run.info.run_id: run.data.tags for run in runs()}
    assert (by_id[first.run_id]["verdict"], by_id[again.run_id]["verdict"]) == ("not promoted", "promote")
    assert by_id[first.run_id]["later verdict"] == f"promote, by run {again.run_id}"
    assert "later verdict" not in by_id[again.run_id]
    for _ in range(2):
        first_line = by_id[first.run_id]["mlflow.note.content"].splitlines()[0]
        assert f"runs/{again.run_id}): promote. What follows is older." in first_line
        assert by_id[first.run_id]["mlflow.note.content"].count("Decided again by") == 1
        make(digest="a")
        by_id = {run.info.run_id: run.data.tags for run in runs()}
    assert "Decided again" not in by_id[again.run_id]["mlflow.note.content"]


def test_equal_weights_on_other_splits_are_compared_with_the_champion(tiny_base: Base, make: Make) -> None:
    make(digest="a")
    registry, splits = Registry(name="triage"), versions()[0].tags["data.splits"]
    assert champion(registry, "a", tiny_base, load_base.fn, splits_digest=splits) is None
    found = champion(registry, "a", tiny_base, load_base.fn, splits_digest="of more test rows")
    assert found
    assert found.version == "1"


def test_a_champion_is_found_and_nothing_is_made_in_looking(tiny_base: Base, home: Path, make: Make) -> None:
    (home / "mlflow.db").rename(home / "aside")
    assert champion(Registry(name="triage"), "a", tiny_base, load_base.fn) is None
    assert not (home / "mlflow.db").exists()
    (home / "aside").rename(home / "mlflow.db")
    assert champion(Registry(name="triage"), "a", tiny_base, load_base.fn) is None
    make(digest="a", decision="keep")
    assert champion(Registry(name="triage"), "b", tiny_base, load_base.fn) is None
    make(digest="a")
    found = champion(Registry(name="triage"), "b", tiny_base, load_base.fn)
    assert found
    assert (found.version, found.model_digest, found.base) == ("1", "a", tiny_base)
    assert found.model
    assert (found.model / "adapter_model.safetensors").is_file()


def test_a_champion_made_of_this_very_candidate_hands_on_the_one_it_challenged(make: Make, tiny_base: Base) -> None:
    registry = Registry(name="triage")
    make(digest="a")
    assert champion(registry, "a", tiny_base, load_base.fn) is None
    make(digest="b", challenged="1")
    before = champion(registry, "b", tiny_base, load_base.fn)
    assert before
    assert before.version == "1"


def test_a_champion_on_another_base_brings_its_own(make: Make, tiny_base: Base, tmp_path: Path) -> None:
    make(digest="a")
    other = tiny_base.model_copy(update={"weights_digest": "another"})
    found = champion(Registry(name="triage"), "b", other, load_base.fn)
    assert found
    assert found.base.weights_digest == tiny_base.weights_digest
    assert found.base.weights == tiny_base.weights


def test_test_rows_that_trained_the_champion_are_counted(make: Make, make_splits: Any, tiny_base: Base) -> None:
    make(digest="a")
    (version,) = versions()
    registry = Registry(name="triage")
    held = champion(registry, "b", tiny_base, load_base.fn)
    assert held
    other = make_splits([("r", "b")], [("s", "c")], [("q", "a"), ("t", "d")]).model_copy(update={"digest": "other"})
    assert trained_on_test(registry, held, other, Split()) == "", "of one history, where rows keep their splits"
    unknown = trained_on_test(registry, held, other, Split(seed=1))
    assert unknown.startswith("the champion, version 1, may have trained on some of these test rows")
    apart = make_splits([("r", "b")], [("s", "c")], [("t", "d")]).model_copy(update={"digest": "other"})
    theirs = make_splits([("q", "a")], [("r", "b")], [(question, "yes") for question in QUESTIONS])
    theirs = theirs.model_copy(update={"digest": version.tags["data.splits"]})
    assert trained_on_test(registry, held, theirs, Split(seed=1)) == "", "the same splits"
    (trained,) = pq.read_table(theirs.path("train.parquet"))["row_id"].to_pylist()
    (tested,) = pq.read_table(apart.path("test.parquet"))["row_id"].to_pylist()
    lines = [(trained, "train", "kept", 1, True, True), (tested, "train", "contaminated", 1, True, False)]
    kept = place("triage") / f"{theirs.digest[:DIGITS]}-0" / ASSIGNMENTS_FILE
    kept.parent.mkdir(parents=True)
    pq.write_table(pa.table(list(zip(*lines, strict=True)), schema=SCHEMA), kept)
    known = trained_on_test(registry, held, other, Split(seed=1))
    assert known.startswith("1 of 2 test rows are training rows of the champion, version 1; ")
    assert trained_on_test(registry, held, apart, Split(seed=1)) == ""
    entry = {"row_id": trained, "reason": "repeats_test_row"}
    pq.write_table(pa.Table.from_pylist([entry], QUARANTINE_SCHEMA), apart.path("quarantine.parquet"))
    similar = trained_on_test(registry, held, apart, Split(seed=1))
    assert similar.startswith(
        "1 training row of the champion, version 1, is a near-duplicate of test rows; this favours "
    )
    entry = {"row_id": trained, "reason": "group_of_test_row"}
    pq.write_table(pa.Table.from_pylist([entry], QUARANTINE_SCHEMA), apart.path("quarantine.parquet"))
    of_group = trained_on_test(registry, held, apart, Split(seed=1))
    assert of_group.startswith("1 training row of the champion, version 1, has the group of test rows; this favours ")


def test_a_dead_server_is_an_error_within_seconds(make: Make) -> None:
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9: MLflow does not answer"):
        make(registry=Registry(name="triage", tracking_uri="http://127.0.0.1:9"))
    assert time.monotonic() - started < 20


def test_curves_are_rounded_and_what_is_no_number_is_left_out(tuned: Path) -> None:
    assert [point[:3] for point in curves(tuned / "metrics.jsonl", 1000)] == [
        ("train/loss", 2.1235, 1),
        ("train/learning_rate", 0.0001235, 1),
        ("train/loss", 1.0, 2),
        ("train/learning_rate", 0.0001, 2),
        ("train/grad_norm", 3.0, 2),
        ("train/memory_gigabytes", 2.0, 2),
        ("validation/loss", 1.5, 2),
        ("validation/token_f1", 0.25, 2),
    ]


def test_a_long_curve_is_thinned_to_its_ends_its_extremes_and_points_between_them(tmp_path: Path) -> None:
    steps = [{"step": n, "planned": 10_000, "loss": {2_345: 9.0, 6_789: -1.0}.get(n, 2.0)} for n in range(1, 10_001)]
    evaluations = [{"step": step, "planned": 10_000, "eval_loss": 1.0} for step in (5_000, 10_000)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in [*steps, *evaluations]))
    found = curves(file, 100)
    kept = [point.step for point in found if point.key == "train/loss"]
    assert 90 <= len(kept) <= 100
    assert {1, 2_345, 6_789, 10_000} <= {*kept}
    assert max(after - before for before, after in pairwise(kept)) <= 110
    assert [point.step for point in found if point.key == "validation/loss"] == [5_000, 10_000]

    growing = CurveThinning(100)  # what is sent while it trains is what is sent at its end, but for the extremes
    live = [line["step"] for line in steps if growing.keeps(line)]
    assert set(kept) - set(live) <= {2_345, 6_789, 10_000}
    assert set(live) <= set(kept)
    file.write_text("".join(f"{json.dumps(line | {'planned': 100})}\n" for line in steps[:100]))
    assert len(curves(file, 100)) == 100


def test_parameters_are_flat_and_dotted() -> None:
    sources = (Source(path="a.jsonl"), Source(path="b/" * 500))
    settings = Settings(data=Data(sources=sources), model=Model(base="x/y"), training=Training(learning_rate=1e-5))
    named = parameters(settings)
    assert named["training.learning_rate"] == "1e-05"
    assert named["evaluation.metrics"] == "auto"
    assert named["model.revision"] == "none"
    assert len(named["data.sources.1.path"]) == 500


def test_a_backtick_in_a_name_does_not_end_its_code() -> None:
    assert candidate.code("a`<img src=x>`\n.jsonl") == "`a'<img src=x>' .jsonl`"


def test_each_name_that_is_accepted_is_one_of_mlflow() -> None:
    from mlflow.utils.validation import _validate_model_name  # pyright: ignore[reportPrivateUsage]

    names = [f"a{character}b" for character in string.printable]
    accepted = [name for name in names if not refused_name(name)]
    assert accepted == [f"a{character}b" for character in string.digits + string.ascii_lowercase + "-_"]
    for name in accepted:
        _validate_model_name(name)


def refused_name(name: str) -> str:
    try:
        Registry(name=name)
    except ValidationError as error:
        return str(error)
    return ""


def test_the_scores_of_a_prompt_that_was_ended_are_under_its_name_alone(make: Make) -> None:
    make(unanswered=5)
    (run,) = runs()
    of_part = {key: value for key, value in run.data.metrics.items() if key.startswith("test_part/")}
    names = ("exact_match", "num_rows", "num_unanswered")
    assert of_part == dict(zip((f"test_part/few_shot/{name}" for name in names), (0.05, 3, 5), strict=True))
    assert run.data.metrics["test/exact_match"] == 0.8765


def test_scores_of_a_part_of_the_rows_stand_apart_from_those_of_all() -> None:
    whole = Answers(contender="retrieval", num_rows=300, scores={"exact_match": 0.5})
    part = whole.model_copy(update={"num_rows": 75, "num_unanswered": 225})
    assert {point.key: point.value for point in scores(whole)} == {"test/exact_match": 0.5}
    assert {point.key: point.value for point in scores(part, "retrieval")} == {
        "test_part/retrieval/exact_match": 0.5,
        "test_part/retrieval/num_rows": 75,
        "test_part/retrieval/num_unanswered": 225,
    }
