"""A training begins as the champion only where its data only grew, and data that did not change train nothing."""

import json
import logging
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Harness, MakeSplits, Once
from mlflow import MlflowClient
from orders import ROWS
from pydantic import ValidationError
from safetensors.torch import load_file
from trained import (
    ZERO,
    by_forks,
    done_once,
    first_home,
    fork_trainers,
    in_this_process,
    kill_trainer_after,
    reproduce_here,
)
from typer.testing import CliRunner, Result

from tunewright.artifacts import Adapter, Artifact, Base, Scan, Tokens
from tunewright.cli.main import app
from tunewright.config import (
    Compute,
    Data,
    Evaluation,
    Gate,
    Method,
    Model,
    Registry,
    Settings,
    Source,
    Split,
    Stage,
    Training,
)
from tunewright.errors import AnotherChampion, TrainerDied
from tunewright.flows.calls import Run
from tunewright.flows.finetune import finetune, plan
from tunewright.flows.outcome import Outcome
from tunewright.registry import release
from tunewright.registry.tracking import connected
from tunewright.tasks.render import render
from tunewright.tasks.train import stage as train_stage
from tunewright.tasks.train.stage import train

NIGHTLY = Registry(name="nightly")


@pytest.fixture(scope="module")
def settings(tiny_base: Base) -> Settings:
    return Settings(
        data=Data(sources=(Source(path="rows.jsonl"),)),
        model=Model(base=tiny_base.reference, max_length=256, start="champion"),
        split=Split(test=0.3, decontaminate="report"),
        method=Method(rank=2, alpha=4),
        training=Training(learning_rate=0.01, max_steps=4, batch=8, evaluate_every=2),
        compute=Compute(threads=1),
        evaluation=Evaluation(metrics=("perplexity",), max_new_tokens=4, contenders=(), forgetting=False),
        gate=Gate(metric="perplexity", confidence=0.8, guardrails=()),
        registry=NIGHTLY,
    )


@pytest.fixture(scope="module")
def nights(
    settings: Settings,
    prefect_harness: Harness,
    once: Once,
    mlflow_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """A folder with the homes after the first and the second night: `1` and `2`."""
    folder = tmp_path_factory.mktemp("nights")
    with first_home(folder, once, mlflow_database), prefect_harness():
        for number, rows in (("1", 36), ("2", 46)):
            write(rows)
            night(settings)
            shutil.copytree(folder / "home", folder / number)
        yield folder


@pytest.fixture
def after(nights: Path, home: Path, once: Once, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`after(number)` puts the home and the rows of after that night in place."""
    monkeypatch.chdir(home.parent)
    done_once(once, monkeypatch)

    def put(number: int) -> None:
        shutil.copytree(nights / str(number), home, dirs_exist_ok=True)
        write({1: 36, 2: 46}[number])

    return put


def write(number: int, first: int = 0) -> None:
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS[first:number]))


def run(settings: Settings, until: Stage = "register") -> Outcome:
    sections = {name: getattr(settings, name) for name in Settings.model_fields}
    state: Any = finetune(**sections, until=until, refresh=(), return_state=True)
    return Outcome.of(state.result())


def night(settings: Settings) -> Outcome:
    """A run whose version becomes the champion, by the gate or by hand."""
    done = run(settings)
    assert done.registered
    if done.registered.current_version != done.registered.version:
        release.promote(NIGHTLY, done.registered.version, by="me", why="it is the newer one")
    return done


def began(done: Outcome) -> str:
    """The version that the training of a run began as; empty for the base."""
    assert done.adapter
    return done.adapter.began_as


def said(settings: Settings) -> str:
    return next(step.note for step in plan(settings, "train", ()) if step.stage == "train")


def changed(settings: Settings, section: str, **values: Any) -> Settings:
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


def states(settings: Settings) -> set[str]:
    return {step.state for step in plan(settings, "register", ())}


def test_nights_of_growing_data_go_on_from_champion_to_champion(
    settings: Settings, after: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    write(46)
    assert said(settings) == "begins as the base: no version is champion yet", "and nothing is split yet"
    after(1)
    assert began(run(settings)) == ""
    assert states(settings) == {"cached"}
    assert said(settings) == "begins as the base, as did version 1, which has the same training rows"
    faster = changed(settings, "training", learning_rate=0.02)
    assert said(faster) == said(settings), "other settings are tried from the same weights"
    write(46)
    assert said(settings) == "begins as the champion where the training rows only grew", "nothing is split yet"

    after(2)
    caplog.clear()
    second = run(settings)
    assert {step.state for step in second.steps} == {"cached"}, "although the champion is another one now"
    as_before = "begins as version 1, as did version 2, which has the same training rows"
    assert [message for message in caplog.messages if "begins" in message] == [f"train {as_before}"]
    assert second.adapter and second.registered and second.as_json()["training"]["began_as"] == "1"
    before_the_first_step = json.loads(second.adapter.path("metrics.jsonl").read_text().splitlines()[0])
    assert before_the_first_step["step"] == 0 and before_the_first_step["eval_loss"] > 0
    with connected(NIGHTLY) as client:
        assert isinstance(client, MlflowClient)
        assert client.get_run(second.registered.run_id).data.tags["began_as"] == "version 1"
        assert "begun as version 1" in (client.get_model_version("nightly", "2").description or "")

    write(56)
    assert began(night(settings)) == "2"
    assert states(settings) == {"cached"}
    release.rollback(NIGHTLY, by="me", why="the third is worse")
    assert states(settings) == {"cached"}, "version 2 was trained on fewer rows: the third began as it does now"
    assert said(settings).startswith("begins as version 2: the training rows have grown from ")
    release.rollback(NIGHTLY, by="me", why="the second is worse, too")
    assert said(settings).startswith("begins as version 1: the training rows have grown from ")
    because = next(step.because for step in plan(settings, "train", ()) if step.stage == "train")
    assert because == ["model.start: the weights that the training begins with changed"]
    release.withdraw(NIGHTLY, by="me", why="so is the first")
    assert said(settings) == "begins as the base: no version is champion yet"


def test_it_begins_as_the_base_where_the_champion_is_of_another_kind_or_saw_other_rows(
    settings: Settings, after: Callable[[int], None]
) -> None:
    after(1)
    other = "begins as the base and not as version 1: "
    assert said(changed(settings, "method", rank=4)) == f"{other}method.rank was 2"
    assert said(changed(settings, "model", start="base")) == ""
    templated = changed(settings, "model", chat_template="plain")
    assert "where the training rows only grew" in said(templated), "render has to run first"
    run(templated, until="render")
    assert said(templated) == f"{other}it has another chat template"
    write(46, first=2)
    run(settings, until="render")
    assert re.fullmatch(rf"{other}[12] of its \d+ training rows are not in the training split any more", said(settings))


def test_a_run_that_begins_again_with_another_champion_trains_nothing_anew(
    settings: Settings, after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    after(2)
    release.rollback(NIGHTLY, by="me", why="to look at it")
    write(56)
    starts: list[str] = []
    champion = Run.champion

    def moved(self: Run, *given: Any) -> Any:
        starts.append(self.started.said if self.started else "")
        found = champion(self, *given)
        if len(starts) == 1:
            release.promote(NIGHTLY, "2", by="me", why="meanwhile")
            raise AnotherChampion("version 2 became champion meanwhile")
        return found

    monkeypatch.setattr(Run, "champion", moved)
    done = run(settings, until="evaluate")
    assert starts[0] == starts[1] and starts[0].startswith("begins as version 1: ")
    assert [step.state for step in done.steps if step.stage == "train"] == ["ran"]


def test_a_champion_whose_files_were_altered_is_not_gone_on_from(
    settings: Settings, after: Callable[[int], None], home: Path
) -> None:
    after(1)
    write(46)
    shutil.rmtree(home / "champions", ignore_errors=True)
    (stored,) = (file for file in home.rglob("adapter_model.safetensors") if file.parts[-4] != "train")
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(Exception, match=r"adapter_model\.safetensors was altered"):
        run(settings, until="train")


def test_a_version_that_began_as_another_is_made_again_with_the_same_bytes(
    settings: Settings, after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    after(2)
    reproduce_here(monkeypatch)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    result = invoke("reproduce", "nightly")
    assert result.exit_code == 0, result.output
    assert invoke("verify", "nightly").exit_code == 0
    with connected(NIGHTLY) as client:
        client.delete_model_version("nightly", "1")
    result = invoke("reproduce", "nightly")
    assert result.exit_code == 3
    gone = "it was begun as version 1 of nightly, which is not in MLflow any more"
    assert gone in " ".join(result.output.split())
    gone = "version 1 is not in MLflow any more, as which version 2, which has the same training rows, began"
    assert said(settings) == f"begins as the base: {gone}"


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("preference", {"method": "dpo"}, r"preference\.method=none"),
        ("grpo", {"rewards": {"exact_match": 1}}, r"no grpo\.rewards"),
        ("training", {"share": 0.5}, r"training\.share=1"),
    ],
)
def test_a_loss_whose_reference_would_move_and_a_part_of_the_rows_are_refused(
    key: str, value: dict[str, Any], accepted: str
) -> None:
    given = {"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "x/y", "start": "champion"}, key: value}
    with pytest.raises(ValidationError, match=rf"model\.start=champion cannot go on .*; accepted with it: {accepted}"):
        Settings.model_validate(given)


SFT = Training(learning_rate=0.01, max_steps=6, batch=4, evaluate_every=3, patience=None)
SMALL = Method(rank=2, alpha=4)
PLAIN = Compute(threads=1, precision="float32")
IN_A_PROCESS = train_stage._attempt  # which `nights` replaces for as long as this module's tests run


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    rows = [[f"the question number {i}", f"yes, the answer is the {i % 3} again"] for i in range(18)]
    return render.fn(make_splits(rows[:12], rows[12:15], rows[15:]), tiny_base, Model(base="tiny", max_length=256))


def version(made: Adapter) -> Artifact:
    return Artifact(stage="version", key="7", digest=made.digest, folder=made.folder)


def weights(made: Adapter) -> dict[str, Any]:
    return load_file(next(made.path("model").glob("*.safetensors")))


@pytest.mark.parametrize("kind", ["lora", "qlora", "full", "spectrum", "osf"])
def test_each_kind_of_method_goes_on_from_a_version(
    kind: Any, tokens: Tokens, tiny_base: Base, once: Once, monkeypatch: pytest.MonkeyPatch
) -> None:
    done_once(once, monkeypatch)
    method = SMALL.model_copy(update={"kind": kind}) if "lora" in kind else Method(kind=kind)
    chosen = Scan(num_modules=1, chosen=("model.layers.0.mlp.down_proj",)) if kind == "spectrum" else None
    first = train.fn(tokens, tiny_base, method, SFT, PLAIN, chosen)
    gentle = SFT.model_copy(update={"learning_rate": 1e-8, "max_steps": 1})
    made = train.fn(tokens, tiny_base, method, gentle, PLAIN, chosen, begins_as=version(first))
    assert (made.began_as, first.began_as) == ("7", "")
    before, after = weights(first), weights(made)
    assert before.keys() == after.keys(), "it is whole, and of the same form"
    for name, tensor in before.items():
        assert torch.allclose(after[name].float(), tensor.float(), atol=1e-6), f"{name} began elsewhere"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", *ZERO])
def test_two_ranks_go_on_from_a_version_as_one_process_does(
    strategy: str, tokens: Tokens, tiny_base: Base, once: Once, monkeypatch: pytest.MonkeyPatch
) -> None:
    done_once(once, monkeypatch)
    first = train.fn(tokens, tiny_base, SMALL, SFT, PLAIN)
    one = train.fn(tokens, tiny_base, SMALL, SFT, PLAIN, begins_as=version(first))
    monkeypatch.setattr(train_stage, "_attempt", by_forks)
    several = PLAIN.model_copy(update={"devices": 2, "strategy": strategy})
    two = train.fn(tokens, tiny_base, SMALL, SFT, several, begins_as=version(first))
    assert two.best_step == one.best_step
    assert two.best_validation_loss == pytest.approx(one.best_validation_loss, rel=1e-3)
    for name, tensor in weights(one).items():
        assert torch.allclose(weights(two)[name], tensor, atol=2e-3), f"{name} differs"


def test_where_no_step_is_better_the_weights_of_the_version_are_kept(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stage, "_attempt", in_this_process)
    first = train.fn(tokens, tiny_base, SMALL, SFT.model_copy(update={"max_steps": 60}), PLAIN)
    wild = SFT.model_copy(update={"learning_rate": 1.0})
    made = train.fn(tokens, tiny_base, SMALL, wild, PLAIN, begins_as=version(first))
    assert (made.best_step, made.steps) == (0, 6)
    assert made.best_validation_loss == pytest.approx(first.best_validation_loss, rel=1e-3)
    assert all(torch.equal(weights(made)[name], tensor) for name, tensor in weights(first).items())
    first_line = json.loads(made.path("metrics.jsonl").read_text().splitlines()[0])
    assert (first_line["step"], first_line["epoch"]) == (0, 0)
    assert any(warning.startswith("no gain in loss: the validation loss was ") for warning in made.warnings)


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(
    tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stage, "_attempt", IN_A_PROCESS)
    fork_trainers(monkeypatch)
    first = train.fn(tokens, tiny_base, SMALL, SFT, PLAIN)
    longer = SFT.model_copy(update={"max_steps": 24})
    begins_as = version(first)
    with monkeypatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
        undisturbed = train.fn(tokens, tiny_base, SMALL, longer, PLAIN, begins_as=begins_as)
    killer = kill_trainer_after(home, '"step": 7', signal.SIGKILL)
    with pytest.raises(TrainerDied, match="SIGKILL"):
        train.fn(tokens, tiny_base, SMALL, longer, PLAIN, begins_as=begins_as)
    killer.join()
    resumed = train.fn(tokens, tiny_base, SMALL, longer, PLAIN, begins_as=begins_as)
    assert json.loads(resumed.path("status.json").read_text())["resumed_from"] >= 6
    assert resumed.digest == undisturbed.digest != train.fn(tokens, tiny_base, SMALL, longer, PLAIN).digest
