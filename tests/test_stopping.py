"""The weights that are kept are those of the best step, bit for bit, however training went and was disturbed."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import MakeSplits
from safetensors.torch import load_file, save_file

from tunewright.artifacts import Base, Tokens
from tunewright.config import Compute, Method, Metric, Model, Training
from tunewright.metrics import choose
from tunewright.modeling.models import load_model, load_tokenizer
from tunewright.store.caching import digest_of
from tunewright.tasks.evaluate import scored
from tunewright.tasks.evaluate.answers import answered
from tunewright.tasks.render import render
from tunewright.tasks.train import trainer
from tunewright.tasks.train.trainer import FINISHED, INTERRUPTED, checkpoints, record
from tunewright.tasks.train.trainer.record import ValidationResult
from tunewright.tasks.train.trainer.watch import Watch, is_spike

STEADY = Training(
    learning_rate=0.05, max_steps=8, batch=4, evaluate_every=2, patience=None, schedule="constant", warmup=0.0
)
SMALL = Method(rank=2, alpha=4, dropout=0.1)  # dropout draws random numbers, which a resumed run has to draw again
WITHOUT_DROPOUT = Method(rank=2, alpha=4)
EXACT = Compute(precision="float32", threads=1)
BFLOAT16 = Compute(precision="bfloat16", threads=1)
Fit = Callable[..., dict[str, Any]]


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    questions = [[f"the question number {i}", f"the answer {i % 3}"] for i in range(18)]
    splits = make_splits(train=questions[:12], validation=questions[12:15], test=questions[15:])
    return render.fn(splits, tiny_base, Model(base="tiny", max_length=256))


@pytest.fixture
def fit(tokens: Tokens, tiny_base: Base, tmp_path: Path) -> Fit:
    """`fit("folder", training)` trains in this process; the summary with the digest of the weights that were kept."""
    from tunewright.tasks.train.trainer.fit import fit as run

    def fit(
        name: str,
        training: Training = STEADY,
        *,
        method: Method = SMALL,
        compute: Compute = EXACT,
        ends: int = FINISHED,
        weights: Path = tiny_base.weights,
    ) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        job = trainer.Job.of(
            weights,
            tokens.folder,
            reference="tiny",
            method=method,
            modules=(),
            training=training,
            compute=compute,
            micro_batch=4,
        )
        assert run(job, folder) == ends
        if ends != FINISHED:
            return {}
        digest = digest_of(next((folder / "model").glob("*.safetensors")))
        return json.loads((folder / "summary.json").read_text()) | {"weights": digest}

    return fit


def changed(**fields: Any) -> Training:
    return Training.model_validate(STEADY.model_dump() | fields)


def looks(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("eval_loss")) for line in lines]


@pytest.fixture
def worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation losses that have their lowest at step 4, whatever the weights."""
    from tunewright.tasks.train.trainer.answer_trainer import AnswerTrainer

    original = AnswerTrainer.evaluation_loop

    def evaluation_loop(self: Any, dataloader: Any, *args: Any, **options: Any) -> Any:
        output = original(self, dataloader, *args, **options)
        return output._replace(metrics={"eval_loss": 1 + abs(self.state.global_step - 4) / 10})

    monkeypatch.setattr(AnswerTrainer, "evaluation_loop", evaluation_loop)


@pytest.mark.usefixtures("worse")
def test_where_the_metric_gets_worse_the_best_steps_weights_are_kept(fit: Fit) -> None:
    whole = fit("whole")
    assert (whole["best_step"], whole["steps"], whole["stopped_early"]) == (4, 8, False)
    assert whole["weights"] == fit("until 4", changed(max_steps=4))["weights"]
    assert whole["weights"] != fit("until 2", changed(max_steps=2))["weights"]
    assert whole["weights"] == fit("whatever min_delta is", changed(max_steps=6, min_delta=5))["weights"]


@pytest.mark.usefixtures("worse")
def test_patience_counts_evaluations_that_are_no_better(fit: Fit) -> None:
    patient = fit("patient", changed(max_steps=20, patience=2))
    assert (patient["best_step"], patient["steps"], patient["stopped_early"]) == (4, 8, True)
    assert patient["planned_steps"] == 20
    assert patient["best_validation_loss"] == patient["best_value"] == 1.0
    assert patient["weights"] == fit("until 4", changed(max_steps=4))["weights"]


def test_where_the_metric_ties_the_first_is_the_best(fit: Fit) -> None:
    # No answer of these few steps is right.
    tied = fit("tied", changed(best_by="exact_match", max_steps=6))
    assert (tied["best_by"], tied["best_value"], tied["best_step"]) == ("exact_match", 0.0, 2)
    assert tied["weights"] == fit("until 2", changed(max_steps=2))["weights"]


def test_the_last_step_is_evaluated_where_it_is_no_multiple(fit: Fit, tmp_path: Path) -> None:
    summary = fit("odd", changed(max_steps=7, evaluate_every=3))
    seen = looks(tmp_path / "odd")
    assert list(seen) == [3, 6, 7]
    assert summary["best_step"] == min(seen, key=lambda step: seen[step])


@pytest.mark.usefixtures("worse")
def test_killed_after_its_last_checkpoint_it_ends_where_it_had_ended(fit: Fit, tmp_path: Path) -> None:
    for name, training in (("planned", changed(max_steps=7)), ("early", changed(max_steps=20, patience=1))):
        before = fit(name, training)
        shutil.rmtree(tmp_path / name / "model")
        assert fit(name, training) == before


@pytest.fixture
def interrupted(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`interrupted(step, ...)` is `fit(...)` that is asked to stop in the evaluation after a step."""
    from tunewright.tasks.train.trainer.observed import ObservedTrainer
    from tunewright.tasks.train.trainer.record import Record

    original = ObservedTrainer._until_interrupted

    def interrupted(step: int, *args: Any, **options: Any) -> None:
        with monkeypatch.context() as patched:

            def interrupt(self: Any, batches: Any) -> Any:
                if self.state.global_step == step:
                    patched.setattr(Record, "interrupted", property(lambda _: True, lambda *_: None), raising=False)
                    patched.setattr(self, "is_interrupted", lambda: True)
                return original(self, batches)

            patched.setattr(ObservedTrainer, "_until_interrupted", interrupt)
            fit(*args, **options, ends=INTERRUPTED)

    return interrupted


@pytest.mark.parametrize(
    ("interrupted_at", "compute", "method", "best_by"),
    [
        (4, EXACT, SMALL, "loss"),
        (5, EXACT, SMALL, "loss"),
        (2, BFLOAT16, SMALL, "exact_match"),
        (2, BFLOAT16, Method(rank=2, alpha=4, dora=True), "loss"),
        (2, BFLOAT16, Method(kind="qlora", rank=2, alpha=4), "loss"),
        (2, BFLOAT16, Method(kind="full"), "loss"),
    ],
)
def test_interrupted_in_an_evaluation_it_makes_up_for_it_and_ends_at_the_same_bytes(
    fit: Fit,
    interrupted: Callable[..., None],
    tmp_path: Path,
    interrupted_at: int,
    compute: Compute,
    method: Method,
    best_by: str,
) -> None:
    training = changed(max_steps=5 if interrupted_at > 2 else 3, patience=3, best_by=best_by)
    undisturbed = fit("undisturbed", training, compute=compute, method=method)
    interrupted(interrupted_at, "disturbed", training, compute=compute, method=method)
    newest, _ = checkpoints.newest_valid(tmp_path / "disturbed" / "checkpoints")
    assert newest
    assert checkpoints.steps(newest) == interrupted_at
    assert interrupted_at not in looks(tmp_path / "disturbed")
    assert fit("disturbed", training, compute=compute, method=method) == undisturbed
    assert looks(tmp_path / "disturbed") == looks(tmp_path / "undisturbed")


def test_killed_while_it_keeps_such_an_evaluation_it_ends_at_the_same_bytes(
    fit: Fit, interrupted: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def prune(_: Path) -> None:
        raise KilledError

    original = Path.rename
    training = changed(max_steps=3)
    undisturbed = fit("undisturbed", training)
    interrupted(2, "disturbed", training)
    # One after the other: each run goes on from what the one before left.
    for last in ("manifest.json", "trainer_state.json", "nothing but that"):

        def rename(self: Path, to: Path, last: str = last) -> Path:
            if to.name == last:
                raise KilledError
            return original(self, to)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", rename)
            patched.setattr(checkpoints, "prune", prune)
            with pytest.raises(KilledError):
                fit("disturbed", training)
        newest, _ = checkpoints.newest_valid(tmp_path / "disturbed" / "checkpoints")
        assert newest, f"killed before {last}"
        assert checkpoints.steps(newest) == 2
    assert fit("disturbed", training) == undisturbed
    lines = (tmp_path / "disturbed" / "metrics.jsonl").read_text().splitlines()
    assert sum("eval_loss" in line for line in lines) == 2


def flip(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip, "optimizer.pt was altered"),
    "a file cut in half": (lambda at: os.truncate(at / "optimizer.pt", 100), "optimizer.pt was altered"),
    "a file gone": (lambda at: (at / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "a manifest cut in half": (lambda at: os.truncate(at / "manifest.json", 50), "manifest.json was altered"),
    "an empty file": (lambda at: (at / "trainer_state.json").write_bytes(b""), "trainer_state.json was altered"),
    "a file added": (lambda at: (at / "more.bin").write_bytes(b"x"), "more.bin was added"),
    "nothing left": (lambda at: [file.unlink() for file in at.iterdir()], "it was not finished when"),
}


def test_a_damaged_checkpoint_is_skipped_by_name_and_the_one_before_leads_to_the_same_bytes(
    fit: Fit, interrupted: Callable[..., None], tmp_path: Path
) -> None:
    training = changed(max_steps=6)
    undisturbed = fit("undisturbed", training)
    interrupted(4, "left", training)
    for name, (damage, said) in DAMAGE.items():
        shutil.copytree(tmp_path / "left", tmp_path / name)
        damage(checkpoints.at(tmp_path / name / "checkpoints", 4))
        resumed = fit(name, training)
        status = json.loads((tmp_path / name / "status.json").read_text())
        assert status["resumed_from"] == 2, name
        (skipped,) = resumed.pop("skipped_checkpoints")
        assert skipped.startswith(f"checkpoint-4 is skipped: {said}"), name
        assert resumed == {key: value for key, value in undisturbed.items() if key != "skipped_checkpoints"}, name


def test_a_line_that_a_power_cut_left_broken_does_not_keep_a_run_from_going_on(
    fit: Fit, interrupted: Callable[..., None], tmp_path: Path
) -> None:
    training = changed(max_steps=3)
    undisturbed = fit("undisturbed", training)
    interrupted(2, "disturbed", training)
    metrics = tmp_path / "disturbed" / "metrics.jsonl"
    first, second = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(first + "\0" * len(second) + "\n")
    assert fit("disturbed", training) == undisturbed


def test_a_kill_while_the_metrics_are_cut_back_loses_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.tasks.train.trainer.record import Record

    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 6)))
    before = metrics.read_text()
    written = Path.write_text

    def cut_off(file: Path, text: str, *args: Any, **rest: Any) -> int:
        written(file, text[:10], *args, **rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", cut_off)
        Record(tmp_path, 3)
    assert metrics.read_text() == before
    assert len(Record(tmp_path, 3).losses) == 3


def test_a_full_models_config_keeps_the_cache_of_its_base(fit: Fit, tiny_base: Base, tmp_path: Path) -> None:
    fit("full", changed(max_steps=2), method=Method(kind="full"))
    base, tuned = (
        json.loads((folder / "config.json").read_text())["use_cache"]
        for folder in (tiny_base.weights, tmp_path / "full" / "model")
    )
    assert base is tuned is True


def test_compiled_it_trains_alike(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    graphs = CompileCounterWithBackend("eager")  # the graphs, without minutes of a C++ compiler
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: original(self, backend=graphs, **options))
    for name, compiled in (("compiled", True), ("not compiled", False)):
        fit(name, changed(max_steps=2), compute=EXACT.model_copy(update={"compile": compiled}), method=WITHOUT_DROPOUT)
    assert graphs.frame_count > 0
    one, other = (losses(tmp_path / name) for name in ("compiled", "not compiled"))
    assert len(one) == 3
    assert one == pytest.approx(other, rel=1e-5)


def test_eva_lists_no_more_rows_than_it_looks_at(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunewright.modeling import methods

    def load_trainable(*args: Any) -> None:
        *_, examples, _ = args
        assert not isinstance(examples, list)
        assert all(isinstance(token, int) for row in examples[::5] for token in row)
        raise LookupError(len(examples))

    monkeypatch.setattr(methods, "load_trainable", load_trainable)
    with pytest.raises(LookupError, match="12"):
        fit("eva", method=Method(init="eva"))


def test_without_the_best_steps_checkpoint_nothing_is_resumed(tmp_path: Path) -> None:
    for step in (2, 6):
        folder = checkpoints.at(tmp_path, step)
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(bytes(step))
        checkpoints.seal(folder, best_step=2)
    assert checkpoints.newest_valid(tmp_path)[0] == checkpoints.at(tmp_path, 6)
    (checkpoints.at(tmp_path, 2) / "adapter_model.safetensors").write_bytes(b"altered")
    assert checkpoints.newest_valid(tmp_path)[0] is None


@pytest.mark.parametrize(
    ("best", "kept"),
    [
        ({2: 2, 4: 4, 6: 4, 8: 4, 10: 4}, {4, 8, 10}),
        ({2: 2, 4: 4, 6: 6, 8: 8, 10: 10}, {8, 10}),
        ({2: 2, 4: 2, 6: 2, 8: 2, 10: 10}, {2, 8, 10}),  # from 8 on its best step has to be there
        ({2: None, 4: None}, {2, 4}),
    ],
)
def test_the_two_newest_checkpoints_and_those_of_their_best_steps_are_kept(
    tmp_path: Path, best: dict[int, int | None], kept: set[int]
) -> None:
    for step, best_step in best.items():
        folder = checkpoints.at(tmp_path, step)
        folder.mkdir()
        checkpoints.seal(folder, best_step)
        checkpoints.prune(folder)
    assert {checkpoints.steps(path) for path in tmp_path.iterdir()} == kept


def seen(*values: float) -> list[ValidationResult]:
    return [ValidationResult(step, value) for step, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "fields", "step", "exhausted"),
    [
        ((3, 2, 1), {}, 3, False),
        ((3, 2, 2, 2), {"patience": 2}, 2, True),
        ((1, 2), {"patience": 2}, 1, False),
        ((1, 2, 3), {"patience": None}, 1, False),
        ((1.0, 0.9, 0.8), {"min_delta": 0.15, "patience": 1}, 3, False),  # slow, but by more than 0.15 from the first
        ((1.0, 0.9), {"min_delta": 0.15, "patience": 1}, 2, True),
        ((1.0, 0.9, 0.95), {"min_delta": 0.15, "patience": 2}, 2, True),
        ((0.1, 0.3, 0.2), {"best_by": "chrf", "patience": 1}, 2, True),
        ((0.5, 0.5), {"best_by": "exact_match", "patience": 2}, 1, False),
    ],
)
def test_the_best_evaluation_has_the_best_value_and_patience_alone_asks_for_min_delta(
    values: tuple[float, ...], fields: dict[str, Any], step: int, exhausted: bool
) -> None:
    training = changed(**fields)
    best = record.best(seen(*values), training)
    assert best
    assert best.step == step
    assert record.is_exhausted(seen(*values), training) == exhausted


def test_a_metric_in_training_is_what_evaluate_measures(tokens: Tokens, tiny_base: Base) -> None:
    from tunewright.tasks.train.trainer.watch import Scores

    model = load_model(tiny_base).to(torch.float32).eval()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = load_tokenizer(tiny_base)
    rows = pq.read_table(tokens.path("train.parquet")).to_pylist()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for row in rows * 8:  # until it knows some answers, and not others
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    stops = json.loads(tokens.path("contract.json").read_text())["stop_token_ids"]
    metrics: tuple[Metric, ...] = ("exact_match", "token_f1", "chrf")
    in_training = [Scores(tokens.path("train.parquet"), tokenizer, stops, metric, batch=5) for metric in metrics]
    answers = answered(
        model,
        tokenizer,
        pq.read_table(tokens.path("train.parquet")),
        stops,
        2 * in_training[0].longest,
        batch=16,
    )
    for metric, scores in zip(metrics, in_training, strict=True):
        expected = scored(answers, choose([metric], answers.column("reference").to_pylist()))[1][metric]
        assert 0 < expected < 1, metric
        assert scores(model, lambda: False) == pytest.approx(expected), metric


def row(row_id: str) -> dict[str, Any]:
    return {"row_id": row_id, "input_ids": [1, 2], "labels": [-100, 2]}


def test_a_loss_that_is_no_number_names_the_step_and_the_rows_that_made_it() -> None:
    watch = Watch()
    watch.alone = lambda row: math.nan if row["row_id"].startswith("b") else 1.0
    with pytest.raises(FloatingPointError, match=r"nan at step 7; on its own, row bbbbbbbbbbbb gives a NaN") as failed:
        watch.step([row("a" * 64), row("b" * 64)], math.nan, 7)
    assert "tunewright data FILE --row bbbbbbbbbbbb" in str(failed.value)


def test_training_on_a_broken_base_ends_at_its_first_step_with_rows_of_the_data(
    fit: Fit, tokens: Tokens, tiny_base: Base, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base.weights, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = math.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1; .* --row (\w{12})") as failed:
        fit("nan", weights=broken)
    named = str(failed.value).partition("--row ")[2][:12]
    assert named in {row_id[:12] for row_id in pq.read_table(tokens.path("train.parquet"))["row_id"].to_pylist()}


def test_where_no_row_alone_has_such_a_loss_the_steps_rows_are_named() -> None:
    watch = Watch()
    watch.alone = lambda _: 1.0
    with pytest.raises(FloatingPointError, match=r"its rows: a{12}, b{12}, c{12} and 2 more"):
        watch.step([row(letter * 64) for letter in "abcde"], math.inf, 1)


def test_a_spike_names_the_worst_rows_and_noise_does_not() -> None:
    watch = Watch()
    watch.alone = lambda row: {"a": 1.0, "b": 9.0}[row["row_id"]]
    for step in range(30):
        watch.step([row("a"), row("b")], 1.0 + 0.1 * (step % 3), step)
        assert watch.found == []
    watch.step([row("a"), row("b")], 5.0, 31)
    assert watch.found == [("b", 9.0), ("a", 1.0)]
    watch.step([row("a")], 1.1, 32)
    assert watch.found == []
    assert not is_spike(9.0, [1.0] * 10), "too few to tell"
