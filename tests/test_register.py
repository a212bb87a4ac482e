"""A version is the model that was measured, stands on its own, and gets the alias only if it won."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Adapter, Answers, Base, Judged, Prompts, Registered, Rows, Splits, Verdict, VerdictPage
from tasks.config import Data, Judge, Model, Registry, Settings, Source, Split, Training
from tasks.errors import TrackingError, TunewrightError
from tasks.models import load_model, load_tokenizer
from tasks.register import champion, register, trained_on_test
from tasks.register.candidate import curves, parameters
from tasks.register.tracking import connected
from tasks.register.versions import lost

QUESTIONS = ("Where is my order?", "I was charged twice.", "one two three")
METRICS = [
    {"step": 1, "epoch": 0.5, "loss": 2.123456, "learning_rate": 0.000123456, "grad_norm": float("nan")},
    {"step": 2, "epoch": 1.0, "loss": 1.0, "learning_rate": 0.0001, "grad_norm": 3.0, "memory_bytes": 2_000_000_000},
    {"step": 2, "epoch": 1.0, "eval_loss": 1.5, "eval_token_f1": 0.25, "seconds": 1.0},
]
Make = Callable[..., Registered]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: to make one takes MLflow six seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}")
    return file


@pytest.fixture(autouse=True)
def _database(home: Path, database: Path) -> None:
    home.mkdir()
    shutil.copy(database, home)


@pytest.fixture(scope="session")
def tuned(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What train hands on: an adapter that changes the tiny base's answers, contract and curves."""
    import torch
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_model(tiny_base), config).save_pretrained(str(folder / "model"))
    tokenizer = load_tokenizer(tiny_base)
    contract = {
        "chat_template": tokenizer.chat_template,
        "date_in_template": None,
        "stop_token_ids": [tokenizer.eos_token_id],
    }
    (folder / "contract.json").write_text(json.dumps(contract))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in METRICS))
    (folder / "curves.html").write_text("<p>falling</p>")
    return folder


@pytest.fixture(scope="session")
def said(tiny_base: Base, tuned: Path) -> list[str]:
    """The answers that training's own model gives, decoded one token at a time without any cache."""
    import torch

    model, tokenizer = load_model(tiny_base, tuned / "model"), load_tokenizer(tiny_base)
    answers = []
    for question in QUESTIONS:
        prompt = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        new: list[int] = []
        while len(new) < 6:
            with torch.inference_mode():
                token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
        answers.append(tokenizer.decode(new))
    assert len(set(answers)) > 1
    return answers


@pytest.fixture
def make(tiny_base: Base, tuned: Path, said: list[str], make_splits: Any, tmp_path: Path) -> Make:
    """`make(decision="promote", digest="a", answers=[...])` registers a candidate; `digest` stands for its weights."""

    def make(
        *,
        decision: str = "promote",
        digest: str = "a",
        answers: list[str] | None = None,
        challenged: str = "",
        base: Base = tiny_base,
        judged: Judged | None = None,
        prompted: str = "p",
        **sections: Any,
    ) -> Registered:
        splits: Splits = make_splits([("q", "a")], [("r", "b")], [(question, "yes") for question in QUESTIONS])
        own = _answers(tmp_path, splits, "candidate", answers or said, {"exact_match": 0.87654321, "perplexity": 1.5})
        others = [
            _answers(tmp_path, splits, "base", ["", "", ""], {"exact_match": 0.05, "perplexity": float("inf")}),
            _answers(tmp_path, splits, "few_shot", ["no", "no", "no"], {"exact_match": 0.05}),
        ]
        if challenged:
            others.append(_answers(tmp_path, splits, "champion", ["yes", "no", "no"], {"exact_match": 0.5}))
        prompts = Prompts(stage="prompt", digest=prompted, chosen={"few_shot": "draw 2 of 3"}, num_shortened={})
        report = tmp_path / "render"
        report.mkdir(exist_ok=True)
        (report / "report.html").write_text("<p>all is well</p>")
        settings = Settings(
            data=Data(sources=(Source(path="data.jsonl"),)),
            model=Model(base=base.reference),
            registry=Registry(name="triage"),
            evaluation={"max_new_tokens": 6},  # pyright: ignore[reportArgumentType]
        ).model_copy(update=sections)
        return register.fn(
            adapter=_adapter(tuned, digest),
            base=base,
            rows=_rows(),
            splits=splits,
            verdict=_verdict(tmp_path, decision, challenged),
            looks=1,
            answers=(*others, own),
            page=VerdictPage(stage="verdict_page", folder=report, num_rows=3, suggestions=()),
            reports=(splits.model_copy(update={"stage": "render", "folder": report}),),
            lineage={"data.jsonl": "0" * 64},
            data_version=3,
            challenged=challenged,
            prompts=prompts,
            judged=judged,
            settings=settings,
        )

    return make


def _answers(tmp_path: Path, splits: Splits, contender: str, texts: list[str], scores: dict[str, float]) -> Answers:
    folder = tmp_path / contender
    folder.mkdir(exist_ok=True)
    ids = pq.read_table(splits.path("test.parquet"))["row_id"]
    pq.write_table(pa.table({"row_id": ids, "answer": texts}), folder / "answers.parquet")
    digest = f"{contender} {texts}"
    return Answers(
        stage="evaluate", key="e", folder=folder, digest=digest, contender=contender, num_rows=3, scores=scores
    )


def _rows() -> Rows:
    return Rows(
        stage="ingest", key="i", digest="r" * 64, num_read=5, num_rows=5, num_quarantined=0, reasons={}, detected={}
    )


def _adapter(tuned: Path, digest: str) -> Adapter:
    return Adapter(
        stage="train",
        key="t",
        folder=tuned,
        digest=digest,
        method="lora",
        steps=2,
        best_step=2,
        best_by="loss",
        best_value=1.5,
        best_validation_loss=1.5,
        stopped_early=False,
        warnings=("overfitting since step 1: seen; try less",),
        train_seconds=3.0,
    )


def _verdict(tmp_path: Path, decision: str, challenged: str) -> Verdict:
    (tmp_path / "verdict.json").write_text(json.dumps({"decision": decision}))
    differences = {"base": (0.75, 0.82, 0.88)} | ({"champion": (-0.1, 0.0, 0.1)} if challenged else {})
    return Verdict(
        stage="decide",
        key="d",
        folder=tmp_path,
        digest=f"{decision} {challenged}",
        decision=decision,
        sentence="Promoted: better than the base by 0.82.",
        metric="exact_match",
        differences=differences,
        intervals={},
        general={"base": {"general_loss": 3.57301}, "candidate": {"general_loss": 3.92}},
        rows_needed=None,
    )


def aliases() -> dict[str, str]:
    with connected(Registry(name="triage")) as client:
        found = client.search_registered_models("name = 'triage'")
        return {alias: str(version) for alias, version in found[0].aliases.items()} if found else {}


def versions() -> list[Any]:
    with connected(Registry(name="triage")) as client:
        return sorted(client.search_model_versions("name = 'triage'"), key=lambda version: int(version.version))


def runs() -> list[Any]:
    """The newest first, each with the models that it was given."""
    with connected(Registry(name="triage")) as client:
        experiment = client.get_experiment_by_name("triage")
        assert experiment
        return [client.get_run(run.info.run_id) for run in client.search_runs([experiment.experiment_id])]


def test_a_promoted_candidate_gets_a_version_the_alias_and_a_run_to_compare(make: Make, home: Path) -> None:
    registered = make()
    assert (registered.version, registered.alias, registered.uri) == ("1", "champion", "models:/triage/1")
    assert aliases() == {"champion": "1"}
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_id == registered.run_id
    assert run.data.tags["verdict"] == versions()[0].tags["verdict"] == "promote"
    assert run.data.tags["looks"] == "1"
    assert run.data.tags["gain"] == versions()[0].tags["gain"] == "+0.82 [0.75, 0.88] exact_match vs base"
    assert run.data.params["training.learning_rate"] == "0.0002"
    assert run.data.params["data.sources.0.path"] == "data.jsonl"
    assert run.data.metrics["test/exact_match"] == 0.8765
    assert run.data.metrics["gate/base/low"] == 0.75
    assert run.data.metrics["forgetting/base/general_loss"] == 3.573
    assert "test/base/perplexity" not in run.data.metrics, "infinity cannot be drawn"
    assert versions()[0].description.splitlines()[0] == "Promoted: better than the base by 0.82."
    assert run.data.tags["training"] == "overfitting since step 1: seen; try less"
    assert "- In training: overfitting since step 1" in versions()[0].description
    with connected(Registry(name="triage")) as client:
        assert [file.path for file in client.list_artifacts(run.info.run_id, "reports/train")] == [
            "reports/train/curves.html"
        ]
        page = "reports/verdict_page/report.html"
        assert [file.path for file in client.list_artifacts(run.info.run_id, "reports/verdict_page")] == [page]
        model_id = versions()[0].source.removeprefix("models:/")
        assert [file.path for file in client.list_logged_model_artifacts(model_id, "reports")] == [
            "reports/report.html"
        ]
    link = f"#/experiments/{registered.experiment_id}/runs/{registered.run_id}/artifacts/{page}"
    assert f"[The verdict page]({link})" in versions()[0].description
    assert not (home.parent / "mlruns").exists()


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
    assert {side: dataset.name for side, dataset in inputs.items()} == {
        side: f"triage {side}" for side in ("train", "validation", "test")
    }
    for side, dataset in inputs.items():
        assert splits.startswith(dataset.digest)
        assert len(dataset.digest) == 36
        source = json.loads(dataset.source)
        assert source == {"files": {"data.jsonl": "0" * 64}, "rows": "r" * 64, "splits": splits}
        (file,) = tmp_path.glob(f"splits/*/{side}.parquet")
        rows = pq.read_table(file).num_rows
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        assert json.loads(dataset.profile) == {"num_rows": rows, "sha256": sha256}


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
assert not any(name == "tasks" or name.startswith("tasks.") for name in sys.modules)
print("\\n" + json.dumps(model.predict([{"prompt": text} for text in sys.argv[2:]])))
"""


def test_a_version_is_loaded_and_asked_without_this_project(make: Make, said: list[str], tmp_path: Path) -> None:
    registered = make()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TUNEWRIGHT_HOME")}
    # -P and no site hook of an editable install: the project cannot be imported.
    hidden = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    command = [sys.executable, "-P", "-c", hidden + ASK, registered.tracking_uri, *QUESTIONS]
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
    assert lost(again.model_copy(update={"run_id": "of another model"}))
    (home / "mlflow.db").unlink()
    assert lost(again) == f"{home / 'mlflow.db'} is gone"


def test_an_attempt_that_died_between_run_and_version_is_completed(make: Make, monkeypatch: Any) -> None:
    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.register.versions.get_or_create", die)
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


def test_a_model_that_answers_otherwise_than_it_was_measured_never_gets_the_alias(make: Make, said: list[str]) -> None:
    make()
    with pytest.raises(TunewrightError, match=r"not the model that was measured.*was answered 'no', and after"):
        make(digest="b", answers=[said[0], "no", said[2]], challenged="1")
    assert aliases() == {"champion": "1"}
    assert {run.info.status for run in runs()} == {"FINISHED", "FAILED"}


def test_a_base_that_was_altered_is_refused(make: Make, tiny_base: Base, tmp_path: Path) -> None:
    from mlflow.pyfunc import load_model as load_version

    copy = tmp_path / "base"
    shutil.copytree(tiny_base.weights, copy)
    registered = make(base=tiny_base.model_copy(update={"reference": str(copy), "folder": copy}))
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"rope_theta": 1.0}))
    with pytest.raises(ValueError, match=r"base .* holds another model \(sha256"):
        load_version(registered.uri)


def test_the_alias_does_not_move_past_a_champion_that_was_not_challenged(make: Make) -> None:
    make(digest="a")
    with pytest.raises(TunewrightError, match="version 1 of triage became champion while"):
        make(digest="b")
    assert make(digest="b", challenged="1").version == "2"
    assert aliases() == {"champion": "2"}


def test_a_champion_is_found_and_nothing_is_made_in_looking(tiny_base: Base, home: Path, make: Make) -> None:
    (home / "mlflow.db").rename(home / "aside")
    assert champion(Registry(name="triage"), "a", tiny_base) is None
    assert not (home / "mlflow.db").exists()
    (home / "aside").rename(home / "mlflow.db")
    assert champion(Registry(name="triage"), "a", tiny_base) is None
    make(digest="a", decision="keep")
    assert champion(Registry(name="triage"), "b", tiny_base) is None
    make(digest="a")
    found = champion(Registry(name="triage"), "b", tiny_base)
    assert found
    assert (found.version, found.model_digest, found.base) == ("1", "a", tiny_base)
    assert found.model
    assert (found.model / "adapter_model.safetensors").is_file()


def test_a_champion_made_of_this_very_candidate_hands_on_the_one_it_challenged(make: Make, tiny_base: Base) -> None:
    registry = Registry(name="triage")
    make(digest="a")
    assert champion(registry, "a", tiny_base) is None
    make(digest="b", challenged="1")
    before = champion(registry, "b", tiny_base)
    assert before
    assert before.version == "1"


def test_a_champion_on_another_base_brings_its_own(make: Make, tiny_base: Base, tmp_path: Path) -> None:
    make(digest="a")
    other = tiny_base.model_copy(update={"weights_digest": "another"})
    found = champion(Registry(name="triage"), "b", other)
    assert found
    assert found.base.weights_digest == tiny_base.weights_digest
    assert found.base.weights == tiny_base.weights


def test_test_rows_that_trained_the_champion_are_counted(make: Make, make_splits: Any, tiny_base: Base) -> None:
    make(digest="a")
    (version,) = versions()
    registry = Registry(name="triage")
    held = champion(registry, "b", tiny_base)
    assert held
    other = make_splits([("r", "b")], [("s", "c")], [("q", "a"), ("t", "d")]).model_copy(update={"digest": "other"})
    assert trained_on_test(registry, held, other, Split()) == "", "of one history, where rows keep their sides"
    unknown = trained_on_test(registry, held, other, Split(seed=1))
    assert unknown.startswith("the champion, version 1, may have been trained on some of these test rows")
    theirs = make_splits([("q", "a")], [("r", "b")], [(question, "yes") for question in QUESTIONS])
    theirs = theirs.model_copy(update={"digest": version.tags["data.splits"]})
    assert trained_on_test(registry, held, theirs, Split(seed=1)) == "", "the same sides"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("tasks.register.champion"), "kept", lambda *_: theirs)
        known = trained_on_test(registry, held, other, Split(seed=1))
        assert known.startswith("1 of 2 test rows are training rows of the champion, version 1; ")
        apart = make_splits([("r", "b")], [("s", "c")], [("t", "d")]).model_copy(update={"digest": "other"})
        assert trained_on_test(registry, held, apart, Split(seed=1)) == ""


def test_a_dead_server_is_an_error_within_seconds(make: Make) -> None:
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9: MLflow does not answer"):
        make(registry=Registry(name="triage", tracking_uri="http://127.0.0.1:9"))
    assert time.monotonic() - started < 20


def test_curves_are_rounded_and_what_is_no_number_is_left_out(tuned: Path) -> None:
    assert curves(tuned / "metrics.jsonl") == [
        ("train/loss", 2.1235, 1),
        ("train/learning_rate", 0.0001235, 1),
        ("train/loss", 1.0, 2),
        ("train/learning_rate", 0.0001, 2),
        ("train/grad_norm", 3.0, 2),
        ("train/memory_gigabytes", 2.0, 2),
        ("validation/loss", 1.5, 2),
        ("validation/token_f1", 0.25, 2),
    ]


def test_parameters_are_flat_and_dotted() -> None:
    sources = (Source(path="a.jsonl"), Source(path="b" * 1_000))
    settings = Settings(data=Data(sources=sources), model=Model(base="x/y"), training=Training(learning_rate=1e-5))
    named = parameters(settings)
    assert named["training.learning_rate"] == "1e-05"
    assert named["evaluation.metrics"] == "auto"
    assert named["model.revision"] == "none"
    assert len(named["data.sources.1.path"]) == 500
