"""The pipeline on preference pairs: SFT, then the pairs, then a verdict by the pairs that were held out."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Harness, Once
from mlflow import MlflowClient
from orders import PLACES, THINGS
from prefect import State
from test_json import documented, faults
from trained import done_once

from tunewright.artifacts import Base
from tunewright.artifacts.payloads import LeakProof
from tunewright.comparison import VariantComparison
from tunewright.config import (
    Compute,
    Data,
    Evaluation,
    Gate,
    Method,
    Model,
    Preference,
    Registry,
    Settings,
    Source,
    Split,
    Training,
)
from tunewright.config import home as home_folder
from tunewright.errors import ConfigError
from tunewright.flows.calls import stages
from tunewright.flows.compare import compare
from tunewright.flows.finetune import finetune, plan
from tunewright.flows.outcome import Outcome
from tunewright.registry.tracking import connected
from tunewright.reports.account import Account

ROWS = [
    {
        "prompt": f"what about the {thing} {place} of order {10 * i + j}",
        "chosen": f"We looked for the {thing} {place} and found that it goes out to you on Monday before noon, "
        f"with a note on order {10 * i + j}.",
        "rejected": f"It may or may not be the {thing}, who knows, ask again another time about number {10 * i + j}, "
        "there is no rush here.",
    }
    for i, thing in enumerate(THINGS)
    for j, place in enumerate(PLACES)
]


@pytest.fixture(scope="module")
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness():
        yield


@pytest.fixture
def settings(tiny_base: Base) -> Settings:
    return Settings(
        data=Data(sources=(Source(path="pairs.jsonl"),)),
        model=Model(base=tiny_base.reference, max_length=256),
        split=Split(test=0.3, decontaminate="report"),
        method=Method(rank=2, alpha=4),
        training=Training(learning_rate=0.01, max_steps=4, batch=8, evaluate_every=2),
        preference=Preference(method="dpo", learning_rate=0.01, max_steps=6),
        compute=Compute(threads=1),
        evaluation=Evaluation(max_new_tokens=4, contenders=(), forgetting=False),
        gate=Gate(confidence=0.8, guardrails=()),
        registry=Registry(name="pairs"),
    )


@pytest.fixture(autouse=True)
def _place(
    server: None, home: Path, once: Once, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done_once(once, monkeypatch)
    monkeypatch.chdir(tmp_path)
    home.mkdir(exist_ok=True)
    shutil.copy(mlflow_database, home)
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))


def run(settings: Settings) -> State[Any]:
    sections = {name: getattr(settings, name) for name in Settings.model_fields}
    return finetune(**sections, until="register", refresh=(), return_state=True)


def test_pairs_come_to_a_verdict_and_another_beta_trains_them_alone(settings: Settings) -> None:
    done = Outcome.of(run(settings).result())
    assert [each.stage for each in done.trainings] == ["train", "prefer"]
    assert done.verdict and done.verdict.metric == "preference_accuracy"
    base, candidate = (done.answers[name] for name in ("base", "candidate"))
    for answers in (base, candidate):
        table = pq.read_table(answers.path("answers.parquet"))
        margins = table["margin"].to_pylist()
        assert answers.scores["preference_accuracy"] == sum(margin > 0 for margin in margins) / len(margins)
        assert answers.scores["preference_margin"] == pytest.approx(sum(margins) / len(margins))
    assert candidate.scores["preference_margin"] > base.scores["preference_margin"]
    assert done.splits and LeakProof.load(done.splits).largest_similarity < Split().threshold
    printed = done.as_json()
    assert (printed["training"]["method"], printed["preference"]["method"]) == ("lora", "dpo")
    keys = {key for key in documented()["run"] if key.startswith("divergence")}
    shown = json.loads(json.dumps({"divergence": printed["divergence"]}))
    assert [*faults(shown, "", documented()["run"], seen := set[str]())] == []
    assert seen == keys
    assert printed["divergence"]["reference"] == "the model after SFT"
    assert 0 < printed["divergence"]["per_token"][1] < printed["divergence"]["per_answer"]

    assert done.page and done.adapter
    page = done.page.path("report.html").read_text()
    assert f"weights <code>prefer/{done.adapter.key}</code>" in page
    assert re.search(r"prefer</td>.*?6 steps", page, re.S) and re.search(r"train</td>.*?4 steps", page, re.S)

    assert done.registered
    with connected(settings.registry) as client:
        assert isinstance(client, MlflowClient)
        curve = client.get_metric_history(done.registered.run_id, "preference/reward_margin")
        assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
        there = client.get_run(done.registered.run_id).data.metrics
        assert {"train/loss", "preference/loss", "preference/validation_reward_accuracy"} <= there.keys()
        assert "preference/validation/best_loss" in there and "validation/best_loss" in there
        assert there["divergence/per_answer"] == pytest.approx(printed["divergence"]["per_answer"], abs=1e-4)

    assert {step.state for step in plan(settings, "register", ())} == {"cached"}
    changes = {"beta": 0.5, "learning_rate": 0.005}
    other = settings.model_copy(update={"preference": settings.preference.model_copy(update=changes)})
    would = {step.name: step for step in plan(other, "register", ())}
    assert (would["render"].state, would["train"].state) == ("cached", "cached")
    assert would["prefer"].because == ["preference.beta: 0.1 -> 0.5", "preference.learning_rate: 0.01 -> 0.005"]
    assert would["evaluate candidate"].because == ["runs after prefer"]
    assert would["divergence"].because == ["runs after evaluate"]


def test_labelled_answers_come_to_a_verdict_by_desirable_references(settings: Settings) -> None:
    labelled = [
        {"prompt": row["prompt"], "completion": row["rejected" if at % 3 == 0 else "chosen"], "label": at % 3 > 0}
        for at, row in enumerate(ROWS)
    ]
    Path("thumbs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in labelled))
    kto = Preference(method="kto", learning_rate=0.01, max_steps=6)
    data = Data(sources=(Source(path="thumbs.jsonl"),))
    done = Outcome.of(run(settings.model_copy(update={"data": data, "preference": kto})).result())
    assert [each.stage for each in done.trainings] == ["train", "prefer"]
    assert done.tokens and done.verdict
    assert done.tokens.num_undesirable and done.tokens.num_validation_undesirable and done.tokens.num_test_undesirable
    assert done.rows and done.splits
    at_split = Account.of(done.rows, done.checked, done.unique, done.splits)
    assert at_split.undesirable == done.tokens.sum_undesirable
    assert (at_split.train, at_split.test) == (done.tokens.num_train, done.tokens.num_test)
    wanted = {row["completion"] for row in labelled if row["label"]}
    for answers in done.answers.values():
        table = pq.read_table(answers.path("answers.parquet"))
        assert len(table) == done.tokens.num_test and {*table["reference"].to_pylist()} <= wanted
    assert done.registered
    with connected(settings.registry) as client:
        there = client.get_run(done.registered.run_id).data.metrics
    assert {"preference/kl", "preference/validation_kl", "preference/validation_reward_margin"} <= there.keys()


def test_kto_without_an_undesirable_answer_is_refused_before_anything_is_trained(settings: Settings) -> None:
    liked = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in ROWS]
    Path("thumbs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in liked))
    data = Data(sources=(Source(path="thumbs.jsonl"),))
    kto = settings.model_copy(update={"data": data, "preference": Preference(method="kto", max_steps=2)})
    said = r"preference\.method=kto: no training row has an undesirable answer"
    with pytest.raises(ConfigError, match=said):
        run(kto).result()
    assert not (home_folder() / "artifacts" / "train").exists()
    with pytest.raises(ConfigError, match=said):
        plan(kto, "register", ())


def test_without_preference_training_pairs_are_measured_alone(settings: Settings) -> None:
    done = Outcome.of(run(settings.model_copy(update={"preference": Preference()})).result())
    assert [each.stage for each in done.trainings] == ["train"]
    assert done.verdict and done.verdict.metric == "preference_accuracy"
    assert not {"preference", "divergence"} & done.as_json().keys()


def test_orpo_trains_once(settings: Settings) -> None:
    preference = Preference(method="orpo", learning_rate=0.01, max_steps=6)
    done = Outcome.of(run(settings.model_copy(update={"preference": preference})).result())
    assert [each.stage for each in done.trainings] == ["prefer"]
    assert "training" not in done.as_json()
    assert done.divergence and done.divergence.reference == "the base"


def test_variants_are_ranked_by_the_share_of_validation_pairs(settings: Settings) -> None:
    variants = {
        f"beta={beta}": settings.model_copy(
            update={"preference": settings.preference.model_copy(update={"beta": beta})}
        )
        for beta in (0.05, 0.5)
    }
    state: Any = compare(settings, variants, return_state=True)
    found: VariantComparison = state.result()
    assert {trial.measure for ranked in found.ranked for trial in ranked.trials} == {"reward_accuracy"}
    for ranked in found.ranked:
        (trial,) = ranked.trials
        assert trial.evaluations and trial.value in {each.value for each in trial.evaluations}


def test_a_stage_that_these_settings_leave_out_is_refused(settings: Settings) -> None:
    orpo = settings.model_copy(update={"preference": Preference(method="orpo")})
    assert {"train", "prefer"} & {*stages(orpo)} == {"prefer"}
    assert {"train", "prefer"} <= {*stages(settings)}
    with pytest.raises(ConfigError, match=r"^train is a stage with preference\.after_sft or grpo\.after_sft only"):
        stages(orpo, "train")
    with pytest.raises(ConfigError, match=r"^prefer is a stage with preference\.method only"):
        stages(settings.model_copy(update={"preference": Preference()}), "prefer")
