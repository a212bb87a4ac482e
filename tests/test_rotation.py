"""Test rows that were looked at often enough are drawn anew, and what was looked at once keeps its own."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_test_set_uses import adapter

from tunewright.artifacts import Answers, Verdict
from tunewright.config import Data, Gate, Model, Registry, Settings, Source, Split
from tunewright.store import test_set_uses
from tunewright.store.test_set_uses import TestSetUse, draw, seed_of

SAMPLES = {
    seed: tuple(hashlib.sha256(f"{seed} {row}".encode()).hexdigest()[:12] for row in range(5)) for seed in range(9)
}


def look(candidate: str, seed: int, recipe: str = "") -> TestSetUse:
    return TestSetUse(
        candidate=candidate,
        test=f"rows of {seed}",
        decided="2026-01-01T00:00:00Z",
        run="",
        verdict="keep",
        seed=seed,
        recipe=recipe or candidate,
        sample=SAMPLES[seed],
    )


def after(looks: Sequence[TestSetUse], recipes: Sequence[str], most: int) -> list[TestSetUse]:
    """The ledger once a run of each recipe has been decided on; equal recipes make equal candidates."""
    looks = list(looks)
    for recipe in recipes:
        seed = seed_of(looks, 0, most, recipe)
        if not any((each.candidate, each.seed) == (recipe, seed) for each in looks):
            looks.append(look(recipe, seed))
    return looks


RECIPES = st.lists(st.sampled_from("abcdefgh"), max_size=16)


@settings(deadline=None)
@given(RECIPES, st.integers(1, 4))
def test_no_test_set_is_looked_at_more_often_than_allowed_and_none_is_left_before(
    recipes: list[str], most: int
) -> None:
    looks = after([], recipes, most)
    seeds = [each.seed for each in looks]
    different = len({*recipes})
    assert seeds == [position // most for position in range(different)]


@settings(deadline=None)
@given(RECIPES, st.sampled_from("abcdefgh"), RECIPES, st.integers(1, 4))
def test_a_recipe_that_was_looked_at_keeps_its_test_rows(
    before: list[str], recipe: str, others: list[str], most: int
) -> None:
    looks = after([], [*before, recipe], most)
    seed = seed_of(looks, 0, most, recipe)
    assert after(looks, [recipe], most) == looks, "the same again is no look"
    assert seed_of(after(looks, others, most), 0, most, recipe) == seed


def test_a_seed_that_was_used_up_by_hand_is_passed_over() -> None:
    looks = [look("a", 0), look("b", 1)]
    assert seed_of(looks, 0, 1, "new") == 2
    assert seed_of(looks, 1, 1, "new") == 2
    assert seed_of(looks, 0, 2, "new") == 0
    assert seed_of(looks, 5, 1, "new") == 5


def test_looks_that_share_rows_count_in_part() -> None:
    """Each of six candidates has seen two thirds of the rows of seed 1, so that two uses of six are left."""
    shared = look("x", 1).model_copy(update={"sample": (*SAMPLES[0][:4], *SAMPLES[1][:2])})
    looks = [look(name, 0) for name in "abcdef"]
    assert seed_of(looks, 0, 6, "new") == 1
    assert seed_of([*looks, shared], 0, 6, "new") == 1
    again = shared.model_copy(update={"candidate": "y", "recipe": "y"})
    assert seed_of([*looks, shared, again], 0, 6, "new") == 2


def asked(gate: Gate, sources: tuple[Source, ...] = (Source(path="a.jsonl"),), split: Split | None = None) -> Settings:
    return Settings(
        data=Data(sources=sources),
        model=Model(base="x/y"),
        gate=gate,
        split=split or Split(),
        registry=Registry(name="triage"),
    )


def enter(candidate: str, seed: int, tmp_path: Path) -> None:
    verdict = Verdict(
        decision="keep", sentence="Not promoted.", metric="exact_match", differences={}, intervals={}, rows_needed=None
    )
    pq.write_table(pa.table({"row_id": [f"{seed} {row}" for row in range(50)]}), tmp_path / "answers.parquet")
    answers = Answers(folder=tmp_path, contender="candidate", num_rows=50, scores={})
    test_set_uses.begin("triage", adapter(candidate), answers, seed=seed, recipe=candidate)
    test_set_uses.end("triage", verdict, adapter(candidate), answers, Gate(), seed=seed)


def test_with_gate_rotate_a_new_candidate_gets_other_rows_and_it_is_said(tmp_path: Path) -> None:
    enter("a", 0, tmp_path)
    rotating = asked(Gate(max_test_set_uses=1, rotate=True))
    drawn = draw(rotating, "new")
    assert (drawn.seed, drawn.settings(rotating).split) == (1, Split(seed=1))
    assert drawn.said == (
        "gate.rotate: the test rows of split.seed=0 were used gate.max_test_set_uses=1 times or more, so "
        "split.seed=1 draws other test rows; do not compare with earlier scores"
    )
    for same in (
        draw(rotating, "a"),
        draw(asked(Gate(max_test_set_uses=1)), "new"),
        draw(asked(Gate(rotate=True)), "new"),
    ):
        assert (same.seed, same.said) == (0, "")
    enter("b", 1, tmp_path)
    assert "split.seed=0 to 1 were" in draw(rotating, "new").said


@pytest.mark.parametrize(
    ("sources", "split", "said"),
    [
        (
            (Source(path="a.jsonl"), Source(path="gold.jsonl", use_as="test")),
            Split(),
            "gold.jsonl in data.sources has use_as: test",
        ),
        ((Source(path="a.jsonl"),), Split(by="time"), "with split.by=time the newest rows are the test split"),
    ],
)
def test_where_no_other_test_rows_can_be_drawn_gate_rotate_is_refused(
    sources: tuple[Source, ...], split: Split, said: str
) -> None:
    with pytest.raises(ValidationError, match=f"gate.rotate=true cannot draw other test rows: .*{said}"):
        asked(Gate(rotate=True), sources, split)
    asked(Gate(), sources, split)
