"""Parts of the training rows: the same rows each time, one within the other, and what more of them brought."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import MakeSplits
from trained import fork_trainers

from tunewright import comparison
from tunewright.artifacts import Adapter, Base, Tokens
from tunewright.artifacts.payloads import TrainingSummary
from tunewright.comparison.ranking import Trial, learning_curve, rank, twice_the_rows
from tunewright.config import Compute, Grpo, Method, Model, Preference, Settings, Training
from tunewright.cost_model import estimate
from tunewright.cost_model.case import BudgetCase, ground_of, on_rewards
from tunewright.cost_model.devices import machine
from tunewright.flows.compare import _shares  # pyright: ignore[reportPrivateUsage]
from tunewright.tasks.prefer import prefer
from tunewright.tasks.reinforce import reinforce
from tunewright.tasks.render import render
from tunewright.tasks.train.stage import train
from tunewright.tasks.train.trainer.rows import part_of
from tunewright.tools.conversation import Conversation

SMALL = Method(rank=2, alpha=4)
HALF = Training(learning_rate=0.01, epochs=1, batch=4, share=0.5, patience=None)
ONE_THREAD = Compute(threads=1)
DRAWS = 400  # of simulated curves


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    """16 preference pairs that train."""
    rows = [
        Conversation(
            [
                {"role": "user", "content": f"the question number {i}"},
                {"role": "assistant", "content": f"yes, the answer {i % 3}"},
            ],
            rejected=f"no answer to {i}",
        )
        for i in range(20)
    ]
    return render.fn(make_splits(rows[:16], rows[16:18], rows[18:]), tiny_base, Model(base="tiny", max_length=256))


def test_a_share_has_as_many_rows_as_it_says_and_is_within_a_larger_one() -> None:
    rows = pa.table({"row_id": [f"{i * 7919 % 1000:04}" for i in range(1000)]})
    parts = [{*part_of(rows, share)["row_id"].to_pylist()} for share in (0.0001, 0.25, 0.5, 1)]
    assert [len(part) for part in parts] == [1, 250, 500, 1000]
    assert parts[0] < parts[1] < parts[2] < parts[3]


def test_each_training_takes_its_share_and_the_plan_counts_it(
    tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_trainers(monkeypatch)

    def steps(adapter: Adapter) -> int:
        return TrainingSummary.load(adapter).steps

    given = (tokens, tiny_base, SMALL)
    assert steps(train.fn(*given, HALF, ONE_THREAD)) == 2, "8 of 16 rows, 4 a step"
    dpo = Preference(method="dpo", learning_rate=0.01)
    assert steps(prefer.fn(*given, dpo, dpo.schedule(HALF), ONE_THREAD)) == 2
    kto = Preference(method="kto", learning_rate=0.01)
    assert steps(prefer.fn(*given, kto, kto.schedule(HALF), ONE_THREAD)) == 4, "both answers of a pair have its id"
    grpo = Grpo(rewards={"exact_match": 1}, batch=2, group=2, max_new_tokens=2)
    assert steps(reinforce.fn(*given, grpo, grpo.schedule(HALF), ONE_THREAD)) == 4, "8 prompts, 2 a step"
    ground = ground_of(tiny_base, tokens)
    half = BudgetCase(ground, SMALL, HALF, ONE_THREAD, machine())
    of_pairs, of_labels = (replace(half, ground=ground.of_preference(each)) for each in (dpo, kto))
    assert (ground.num_rows, half.num_rows, of_pairs.num_rows, of_labels.num_rows) == (16, 8, 8, 16)
    assert on_rewards(half, grpo).num_rows == 16, "two answers to each of 8 prompts"
    planned = estimate(half).work
    assert planned.num_rows * planned.row_tokens == pytest.approx((ground.num_tokens or 0) / 2)


def trials(measure: str, **values: list[float]) -> list[Trial]:
    """Trainings that finished: the value of each seed, by variant."""
    return [
        Trial(
            variant=name,
            seed=seed,
            measure=measure,
            state="finished",
            evaluations=(),
            said="",
            value=value,
            best_step=1,
        )
        for name, of in values.items()
        for seed, value in enumerate(of)
    ]


def curve(measure: str, **values: list[float]) -> str:
    return learning_curve(rank(trials(measure, **values)), {"quarter": 0.25, "half": 0.5, "all": 1.0})


def test_the_curve_says_what_the_last_step_brought_and_whether_more_would_help() -> None:
    said = curve("loss", all=[0.8, 0.82], quarter=[1.2, 1.2], half=[1.0, 1.01])
    assert said.startswith(
        "Learning curve: validation loss 1.2 with 25 %, 1.005 with 50 %, 0.81 with all training rows. "
        "From 50 % to all training rows: -0.2 ["
    )
    assert "over 2 seeds: more rows are likely to help, as a rule each doubling by less than the one before." in said
    bumpy = curve("loss", all=[0.8, 0.82], quarter=[0.9, 0.9], half=[1.0, 1.01])
    assert "more rows are likely to help, but the curve goes up and down, so expect less" in bumpy
    noise = 6.3138 * math.sqrt(0.00005) / math.sqrt(2)  # t of one degree of freedom; the changes are -0.2 and -0.19
    assert f"[{-0.195 - noise:+.2g}, {-0.195 + noise:+.2g}]" in said
    assert "these seeds do not show that more rows help." in curve("chrf", all=[0.5, 0.7], half=[0.55, 0.6])
    assert "more rows did not help." in curve("chrf", all=[0.5, 0.51], half=[0.7, 0.71])
    assert "--seeds 3 gives it an interval" in curve("loss", all=[0.5], half=[0.7])
    assert curve("loss", all=[0.5]) == ""


def changed(share: float, exponent: float) -> float:
    """A measure at a share of the rows; each doubling changes it by 2^-exponent of what the one before did."""
    if exponent == 0:
        return -0.2 * math.log2(share)
    return 0.2 * (share**-exponent - 1) / (1 - 2**-exponent) * 2**-exponent


@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("fewer", [0.5, 0.75])
def test_the_forecast_of_twice_the_rows_covers_what_they_bring(exponent: float, fewer: float) -> None:
    random = np.random.default_rng(0)
    truth = changed(2, exponent)
    covered = 0
    for _ in range(DRAWS):
        part, whole = (changed(share, exponent) + random.normal(0, 0.02, 3) for share in (fewer, 1.0))
        ranked = rank(trials("loss", part=part.tolist(), all=whole.tolist()))
        found = twice_the_rows(ranked, {"part": fewer, "all": 1.0})
        assert found
        low, mean, high = found
        assert low < mean < high
        covered += low <= truth <= high
    assert covered / DRAWS >= 0.9 - 2 * math.sqrt(0.09 / DRAWS)


def test_the_forecast_is_said_with_the_curve_and_needs_all_rows_and_two_seeds() -> None:
    said = curve("loss", all=[0.8, 0.82], half=[1.0, 1.01])
    shares = {"quarter": 0.25, "half": 0.5, "all": 1.0}
    found = twice_the_rows(rank(trials("loss", all=[0.8, 0.82], half=[1.0, 1.01])), shares)
    assert found
    low, mean, high = found
    assert mean == pytest.approx(-0.195 * 3 / 4)
    noise = 6.3138 * math.sqrt(0.00005) / math.sqrt(2)
    assert (low, high) == pytest.approx((-0.195 - noise, -0.195 / 2 + noise / 2), abs=1e-5)
    assert said.endswith(f" Twice the rows, extrapolated from this step: {mean:+.2g} [{low:+.2g}, {high:+.2g}].")
    steeper = twice_the_rows(rank(trials("loss", all=[0.8, 0.82], half=[1.0, 1.01], quarter=[9.0, 9.0])), shares)
    assert steeper == found, "the steeper beginning of a curve says nothing of its end"
    for few in (trials("loss", half=[0.8, 0.82], quarter=[1.0, 1.01]), trials("loss", all=[0.8], half=[1.0])):
        assert twice_the_rows(rank(few), shares) is None
    assert "Twice" not in curve("loss", half=[0.8, 0.82], quarter=[1.0, 1.01])


def test_the_forecast_is_in_the_result_of_a_comparison_and_on_its_page(home: Path) -> None:
    found = comparison.of(trials("loss", all=[0.8, 0.82], half=[1.0, 1.01]), "tiny", {"half": 0.5, "all": 1.0})
    kept = json.loads((found.folder / "comparison.json").read_text())
    assert found.twice_the_rows
    assert kept["twice_the_rows"] == pytest.approx(found.twice_the_rows)
    assert "Twice the rows, extrapolated" in (found.folder / "report.html").read_text()
    assert comparison.of(trials("loss", all=[0.8, 0.82], half=[1.0, 1.01]), "tiny").twice_the_rows is None


def test_variants_that_differ_in_more_are_no_curve() -> None:
    def settings(share: float, rank: int = 4) -> Settings:
        sections = {"training": {"share": share}, "method": {"rank": rank}}
        return Settings.model_validate({"data": {"sources": [{"path": "a"}]}, "model": {"base": "b"}, **sections})

    assert _shares({"a": settings(0.5), "b": settings(1)}) == {"a": 0.5, "b": 1.0}
    assert _shares({"a": settings(0.5), "b": settings(1, rank=8)}) == {}
