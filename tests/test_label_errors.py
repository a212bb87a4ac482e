"""Rows whose answers are likely wrong are found by models that were trained without them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Harness, MakeSplits
from prefect import State
from test_json import documented, faults
from trained import fork_trainers

from tunewright.artifacts import Base, Splits, Tokens
from tunewright.cli.data import find, look_up
from tunewright.cli.data.as_json import row_json
from tunewright.config import (
    Checks,
    Compute,
    Data,
    Evaluation,
    Method,
    Model,
    Registry,
    Settings,
    Source,
    Split,
    Training,
)
from tunewright.errors import ConfigError, TrainerDied, TunewrightError
from tunewright.flows.calls import stages
from tunewright.flows.finetune import finetune, plan
from tunewright.flows.outcome import Outcome
from tunewright.tasks import label_errors as module
from tunewright.tasks.label_errors import dealt, label_errors
from tunewright.tasks.render import render

WRONG = (5, 17)  # rows whose answer is not that of all others
ROWS = [[f"is question number {i} one of ours", "no" if i in WRONG else "yes"] for i in range(30)]
TRAINING = Training(learning_rate=0.01, max_steps=40, batch=8, evaluate_every=40)
METHOD, ONE_THREAD = Method(kind="full"), Compute(threads=1)


@pytest.fixture(autouse=True)
def _forked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_trainers(monkeypatch)


@pytest.fixture
def splits(make_splits: MakeSplits) -> Splits:
    return make_splits(ROWS, [("is this one of ours", "yes")], [("and is that one of ours", "yes")])


@pytest.fixture
def tokens(tiny_base: Base, splits: Splits) -> Tokens:
    return render.fn(splits, tiny_base, Model(base="tiny", max_length=256))


def test_the_answers_that_models_trained_on_other_rows_contradict_come_first(
    tiny_base: Base, splits: Splits, tokens: Tokens
) -> None:
    found = label_errors.fn(splits, tokens, tiny_base, METHOD, TRAINING, ONE_THREAD, num_folds=3)
    rows = pq.read_table(found.path("label_errors.parquet")).to_pylist()
    places = pq.read_table(splits.path("train.parquet"), columns=["row_id", "line"]).to_pylist()
    assert {(row["row_id"], row["line"]) for row in rows} == {(row["row_id"], row["line"]) for row in places}
    assert [row["log_odds"] for row in rows] == sorted((row["log_odds"] for row in rows), reverse=True)
    likely = [row for row in rows if row["likely"]]
    assert {row["row_id"] for row in likely} == {places[number]["row_id"] for number in WRONG}
    assert all((row["reference"], row["answer"]) == ("no", "yes") for row in likely)
    assert all(row["log_odds"] == 0 for row in rows if row["answer"] == row["reference"])
    assert (found.num_folds, found.num_rows, found.num_same, found.num_likely) == (3, 30, 28, 2)
    first, *lines = found.says()
    assert first == (
        "2 of 30 training rows are likely label errors (cross-validation with 3 folds, in which 93 % got the given "
        "answer):"
    )
    assert lines[0] == f"{likely[0]['file']}:{likely[0]['line']}: no, where the model answers yes"
    page = found.path("report.html").read_text()
    assert page.count('<tr class="row">') == 2
    assert f"line {likely[0]['line']}<br>" in page and "question number 5" in page
    assert "28 rows (93 %) got the given answer" in page


def test_models_without_finite_likelihoods_say_nothing_of_the_rows(
    tiny_base: Base, splits: Splits, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_likelihoods(*_: Any) -> Iterator[dict[str, Any]]:
        row_id = pq.read_table(tokens.path("train.parquet"))["row_id"][0].as_py()
        yield {"row_id": row_id, "loss": float("nan"), "log_odds": float("nan"), "reference": "yes", "answer": ""}

    monkeypatch.setattr(module, "run_trainer", lambda _, work: work.mkdir(exist_ok=True))
    monkeypatch.setattr(module, "_answered", without_likelihoods)
    with pytest.raises(TunewrightError, match="2 of 2 training rows have NaN or infinite likelihoods"):
        label_errors.fn(splits, tokens, tiny_base, METHOD, TRAINING, ONE_THREAD, num_folds=2)


def test_among_labels_an_invented_answer_shows_no_error_and_a_label_that_was_not_learned_is_told(
    tiny_base: Base, splits: Splits, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(*inputs: Any) -> Iterator[dict[str, Any]]:
        for row in inputs[3].to_pylist():
            is_no = row["reference"] == "no"
            answer = "yes" if is_no else "perhaps" if row["row_id"] == first else "yes"
            odds = 9.0 if answer != row["reference"] else 0.0
            yield {
                "row_id": row["row_id"],
                "loss": 1.0,
                "log_odds": odds,
                "reference": row["reference"],
                "answer": answer,
            }

    rows = pq.read_table(tokens.path("train.parquet")).to_pylist()
    first = next(row["row_id"] for row in rows if row["reference"] == "yes")
    monkeypatch.setattr(module, "run_trainer", lambda _, work: work.mkdir(exist_ok=True))
    monkeypatch.setattr(module, "_answered", answered)
    monkeypatch.setattr(module, "MOSTLY", 1)
    found = label_errors.fn(splits, tokens, tiny_base, METHOD, TRAINING, ONE_THREAD, num_folds=2)
    table = pq.read_table(found.path("label_errors.parquet")).to_pylist()
    assert [row["likely"] for row in table if row["row_id"] == first] == [False]
    assert (found.num_likely, found.num_same) == (2, 27)
    assert found.unlearned == ("2 of the 2 rows with 'no'",)
    assert "; among them are 2 of the 2 rows with 'no': too few for the models to learn, or most are" in found.says()[0]
    page = " ".join(found.path("report.html").read_text().split())
    assert '<td>no</td><td class="number">2</td><td class="number">0</td><td class="number">2</td>' in page
    assert '<td>yes</td><td class="number">28</td><td class="number">27</td><td class="number">0</td>' in page


def rows_of(clusters: Sequence[int], replay: Sequence[bool] = (), answers: Sequence[str] = ()) -> pa.Table:
    ids = [f"{(7 * at) % 101:064x}" for at in range(len(clusters))]
    rest = {"replay": replay or [False] * len(clusters), "reference": answers or ["yes"] * len(clusters)}
    return pa.table({"row_id": ids, "cluster": clusters, **rest})


def test_clusters_are_dealt_whole_evenly_and_whatever_their_order() -> None:
    rows = rows_of([at // 2 for at in range(40)])
    folds = dealt(rows, 3)
    assert all(folds[at] == folds[at + 1] for at in range(0, 40, 2))
    assert sorted((folds == fold).sum() for fold in range(3)) == [12, 14, 14]
    backwards = rows.take(list(range(39, -1, -1)))
    assert dealt(backwards, 3).tolist() == folds[::-1].tolist()


def test_each_fold_has_its_share_of_each_label() -> None:
    answers = ["theft"] * 6 + ["fire"] * 21 + ["hail"] * 3
    folds = dealt(rows_of(range(30), answers=answers), 3)
    for label, share in {"theft": 2, "fire": 7, "hail": 1}.items():
        of_label = [fold for fold, answer in zip(folds, answers, strict=True) if answer == label]
        assert [of_label.count(fold) for fold in range(3)] == [share] * 3


def test_rows_for_replay_are_in_no_fold() -> None:
    folds = dealt(rows_of(range(6), [False, True, False, False, True, False]), 2)
    assert [fold == -1 for fold in folds] == [False, True, False, False, True, False]


def test_fewer_clusters_than_folds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"folds=3: all training rows are in 2 clusters .*; accepted: at most 2; for"):
        dealt(rows_of([1, 1, 2, 2]), 3)
    with pytest.raises(ConfigError, match=r"in 1 cluster .*, and of rows of one group\); so none can be left out; for"):
        dealt(rows_of([1, 1]), 2)


def test_a_killed_run_goes_on_with_the_fold_that_it_was_in(
    tiny_base: Base, splits: Splits, tokens: Tokens, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, answered = list[str](), list[str]()
    of_trainer, of_fold = module.run_trainer, module._answered

    def noted(*inputs: Any) -> Iterator[dict[str, Any]]:
        answered.append(inputs[-1])
        return of_fold(*inputs)

    monkeypatch.setattr(module, "_answered", noted)

    def killed_in_the_second(job: Any, work: Path) -> None:
        begun.append(work.name)
        if len(begun) == 2:
            raise TrainerDied("killed")
        of_trainer(job, work)

    monkeypatch.setattr(module, "run_trainer", killed_in_the_second)
    with pytest.raises(TrainerDied):
        label_errors.fn(splits, tokens, tiny_base, METHOD, TRAINING, ONE_THREAD, num_folds=2)
    resumed = label_errors.fn(splits, tokens, tiny_base, METHOD, TRAINING, ONE_THREAD, num_folds=2)
    assert begun == ["fold_0", "fold_1", "fold_1"]
    assert answered == ["fold 1 of 2", "fold 2 of 2"]
    shutil.rmtree(home / "artifacts" / "label_errors")
    again = label_errors.fn(splits, tokens, tiny_base, METHOD, TRAINING, ONE_THREAD, num_folds=2)
    assert again.digest == resumed.digest


@pytest.fixture
def settings(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(f"{json.dumps({'prompt': q, 'completion': a})}\n" for q, a in ROWS))
    return Settings(
        data=Data(sources=(Source(path="rows.jsonl"),)),
        model=Model(base=tiny_base.reference, max_length=256),
        checks=Checks(label_error_folds=2),
        split=Split(decontaminate="report", threshold=1.0, validation=0.1, test=0.1),
        method=METHOD,
        training=TRAINING,
        compute=ONE_THREAD,
        evaluation=Evaluation(forgetting=False, contenders=()),
        registry=Registry(name="yes"),
    )


@pytest.fixture(scope="module")
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness():
        yield


@pytest.mark.usefixtures("server")
def test_it_is_a_stage_of_its_own_on_which_no_other_depends(settings: Settings) -> None:
    sections = {name: getattr(settings, name) for name in Settings.model_fields}
    state: State[Any] = finetune(**sections, until="label_errors", refresh=(), return_state=True)
    done = Outcome.of(state.result())
    assert done.suspected and done.tokens
    assert done.suspected.num_rows == done.tokens.num_train
    shown = json.loads(json.dumps({"label_errors": done.as_json()["label_errors"]}))
    assert [*faults(shown, "", documented()["run"], seen := set[str]())] == []
    assert seen == {key for key in documented()["run"] if key.startswith("label_errors")}
    assert {step.state for step in plan(settings, "label_errors", ())} == {"cached"}
    train = pq.read_table(done.suspected.path("label_errors.parquet")).to_pylist()[0]
    data = look_up(settings)
    row = row_json(data, find(data, None, f"rows.jsonl:{train['line']}", None))
    assert [event["stage"] for event in row["life"]][-2:] == ["render", "label_errors"]
    assert row["life"][-1]["outcome"] == ("likely label error" if train["likely"] else "no label error")
    assert row["life"][-1]["answer"] == train["answer"]
    assert [*faults(row, "", documented()["data, one row"], set())] == []
    without = settings.model_copy(update={"checks": Checks()})
    assert "label_errors" not in stages(without)
    steps = {step.stage: step.state for step in plan(without, "render", ())}
    assert set(steps.values()) == {"cached"}, "the rows are checked as before"
