"""General rows train beside the others, at most a share of them, and change nothing else: no split, label or shot."""

import json
import random
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import SPECIAL, changed
from conftest import MakeRows
from pydantic import ValidationError
from rich.console import Console
from split_rows import in_splits, jaccard, prompt, prompts, quarantined, row_of, split_of, split_rows

from tunewright import metrics
from tunewright.artifacts import IGNORED, ROW_SCHEMA, Base, Rows, Splits
from tunewright.cli import terminal
from tunewright.cli.data import view
from tunewright.config import Data, Model, Settings, Source, Split
from tunewright.errors import ConfigError
from tunewright.flows.calls import Step
from tunewright.flows.outcome import Outcome
from tunewright.metrics.closed_set import count_answers
from tunewright.metrics.labels import training_answers
from tunewright.similarity.embedding import WORDLLAMA
from tunewright.tasks import prompt as prompting
from tunewright.tasks.check import check
from tunewright.tasks.ingest import source_files
from tunewright.tasks.render import render

TEXTS = prompts(260, seed=7)
OWN = [row_of(text, answer=("refund", "delivery")[at % 2]) for at, text in enumerate(TEXTS[:120])]
GENERAL = prompts(200, seed=8, copies=0.1)


def replay(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Replay rows, each with an answer of its own."""
    return [
        row_of(text, use_as="replay", source="general", answer=f"a long answer to {text}", time="2030-01-01")
        for text in texts
    ]


def drawn(splits: Splits) -> set[str]:
    return {row["row_id"] for row in in_splits(splits)["train"] if row["use_as"] == "replay"}


def settings(*sources: Source, **split: Any) -> Settings:
    return Settings(data=Data(sources=sources), model=Model(base="org/name"), split=Split(**split))


def test_a_share_without_replay_rows_and_replay_rows_alone_are_refused() -> None:
    own, general = Source(path="a.jsonl"), Source(path="b.jsonl", use_as="replay")
    assert settings(own, general, replay=0.2).split.replay == 0.2
    with pytest.raises(
        ValidationError, match=r"split\.replay=0\.2 has no effect: no source in data\.sources has use_as"
    ):
        settings(own, replay=0.2)
    with pytest.raises(ValidationError, match="sources: all have use_as: replay"):
        settings(general)
    for share in (0, 1.1):
        with pytest.raises(ValidationError):
            settings(own, general, replay=share)
    with pytest.raises(ConfigError, match=r"held_out\[0\]\.use_as=replay"):
        source_files(Data(sources=(Source(path=__file__, format="jsonl"),), held_out=(general,)))


def test_replay_files_are_read_last_so_that_dedupe_keeps_the_row_that_they_repeat(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text("{}")
    splits = {"a": "replay", "b": None, "c": "test"}
    files = source_files(
        Data(sources=tuple(Source(path=str(tmp_path / f"{n}.jsonl"), use_as=s) for n, s in splits.items()))  # pyright: ignore[reportArgumentType]
    )
    assert [(Path(file.path).stem, file.setting) for file in files] == [
        ("b", "data.sources[1]"),
        ("c", "data.sources[2]"),
        ("a", "data.sources[0]"),
    ]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_replay_rows_are_as_large_a_share_of_the_training_rows_as_there_may_be(share: float) -> None:
    splits = split_rows([*OWN, *replay(GENERAL)], Split(replay=share))
    assert splits.num_replay == len(drawn(splits)) > 0
    assert splits.num_replay / splits.num_train <= share < (splits.num_replay + 1) / (splits.num_train + 1)
    assert splits.num_train + splits.num_validation + splits.num_test + splits.num_quarantined == 320
    assert splits.reasons == {"not_drawn": 200 - splits.num_replay}  # over half of all rows
    assert {row["use_as"] for name in ("validation", "test") for row in in_splits(splits)[name]} == {None}
    why = json.loads(splits.path("proof.json").read_text())["because"]["train"]
    assert why == {"drawn": splits.num_train - splits.num_replay, "replay": splits.num_replay}


def test_of_few_replay_rows_and_of_a_share_of_one_all_train() -> None:
    assert split_rows([*OWN, *replay(GENERAL[:3])]).num_replay == 3
    assert split_rows([*OWN, *replay(GENERAL)], Split(replay=1)).num_replay == 200


def test_the_same_replay_rows_are_drawn_in_any_order_and_stay_as_data_grow() -> None:
    few = split_rows([*OWN, *replay(GENERAL)])
    mixed = random.Random(3).sample([*OWN, *replay(GENERAL)], 320)
    assert split_of(split_rows(mixed)) == split_of(few)
    more_own = [row_of(text) for text in prompts(300, seed=9)]
    more = split_rows([*OWN, *more_own, *replay(GENERAL)], earlier=few)
    assert drawn(few) < drawn(more)
    own = {row["row_id"] for row in OWN}
    splits = split_of(few)
    assert {row: split for row, split in split_of(more).items() if row in own} == {row: splits[row] for row in own}
    larger = split_rows([*OWN, *replay([*GENERAL, *prompts(20, seed=10)])], earlier=few)
    assert len(drawn(larger) & drawn(few)) > 0.6 * len(drawn(few))


@pytest.mark.parametrize("seed", range(3))
def test_no_row_has_another_split_or_cluster_for_a_replay_row_which_goes_where_it_repeats_one(seed: int) -> None:
    texts = prompts(200, seed=seed, copies=0.6)
    is_replay = [random.Random(seed + at).random() < 0.4 for at in range(200)]
    own = [row_of(text, group=f"g{at}" if at % 9 == 0 else None) for at, text in enumerate(texts)]
    own = [row for row, general in zip(own, is_replay, strict=True) if not general]
    general = replay([text for text, is_general in zip(texts, is_replay, strict=True) if is_general])
    general[0]["group"] = next(row["group"] for row in own if row["group"])
    options = Split(replay=1, test=0.3, validation=0.2)
    alone, beside = split_rows(own, options), split_rows([*general, *own], options)
    splits = split_of(beside)
    assert split_of(alone) == {row["row_id"]: splits[row["row_id"]] for row in own}
    clusters = [
        sorted(
            sorted(row["row_id"] for row in rows if row["cluster"] == number and not row["use_as"]) for number in found
        )
        for splits in (alone, beside)
        for rows in [[row for each in in_splits(splits).values() for row in each]]
        for found in [{row["cluster"] for row in rows if not row["use_as"]}]
    ]
    assert clusters[0] == clusters[1]
    alike = {
        row["row_id"]
        for row in general
        if any(jaccard(prompt(row), prompt(other)) >= options.threshold for other in own)
    } | {general[0]["row_id"]}
    assert len(alike) > 5
    aside = quarantined(beside)
    assert alike == {row_id for row_id, row in aside.items() if row["reason"] == "repeats_own_row"}
    assert {row["row_id"] for row in general} - aside.keys() == drawn(beside)
    assert any(", which takes precedence" in row["detail"] for row in aside.values())


def test_the_row_that_a_replay_row_repeats_is_named() -> None:
    (aside,) = quarantined(split_rows([*OWN, *replay([f"{prompt(OWN[4])} bel"])])).values()
    assert aside["reason"] == "repeats_own_row"
    assert aside["detail"].startswith("It is similar to row data.jsonl:5 (similarity ")
    assert aside["detail"].endswith("), which takes precedence")


def test_a_replay_row_that_holds_a_passage_of_a_test_row_goes() -> None:
    tested = next(row for row in in_splits(split_rows(OWN))["test"] if len(prompt(row).split()) > 13)
    around = f"{' '.join(GENERAL[:3])} {prompt(tested)} {' '.join(GENERAL[3:6])}"
    splits = split_rows([*OWN, *replay([*GENERAL[10:60], around])], Split(replay=1))
    assert splits.reasons == {"contaminated": 1}
    assert splits.num_replay == 50


def test_a_row_that_is_no_replay_row_any_more_still_trains() -> None:
    first = split_rows([*OWN, *replay(GENERAL)])
    later = split_rows([*OWN, *({**row, "use_as": None} for row in replay(GENERAL))], earlier=first)
    assert {split_of(later)[row["row_id"]] for row in replay(GENERAL)} == {"train"}


@pytest.mark.parametrize("by", [{"stratify": "label"}, {"stratify": "source"}, {"by": "time"}])
def test_strata_and_times_are_those_of_the_other_rows(by: dict[str, Any]) -> None:
    own = [row | {"time": f"2026-01-{at % 28 + 1:02}"} for at, row in enumerate(OWN)]
    alone, beside = (split_rows([*own, *more], Split(**by)) for more in ([], replay(GENERAL)))
    proofs = [json.loads(splits.path("proof.json").read_text()) for splits in (alone, beside)]
    same = ("balance", "time", "smallest_visible_difference", "random_leak_share")
    assert [proofs[0][name] for name in same] == [proofs[1][name] for name in same]


def test_labels_are_counted_without_replay_rows(tmp_path: Path) -> None:
    rows = [{"file": "a", "line": line} | row for line, row in enumerate([*OWN, *replay(GENERAL)])]
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), tmp_path / "rows.parquet")
    assert count_answers(tmp_path / "rows.parquet") == (2, 120)


def test_check_describes_a_set_without_its_replay_rows(make_rows: MakeRows) -> None:
    def profile(general: int) -> Any:
        table = pq.read_table(
            make_rows([*((f"Is it {n}?", "yes" if n % 2 else "no") for n in range(60)), *PAIRS[:general]]).path(
                "rows.parquet"
            )
        )
        splits = pa.array([None] * 60 + ["replay"] * general, pa.string())
        place = ROW_SCHEMA.get_field_index("use_as")
        made = check.fn(
            make_rows(table=table.set_column(place, ROW_SCHEMA.field("use_as"), splits)), changed(), SPECIAL
        )
        assert made.num_rows == 60 + general
        return json.loads(made.path("profile.json").read_text())

    assert profile(0) == profile(12)


def test_a_run_says_how_many_replay_rows_train_and_a_row_says_that_it_is_one() -> None:
    splits = split_rows([*OWN, *replay(GENERAL)])
    rows = Rows(num_read=320, num_rows=320, num_quarantined=0, reasons={}, detected={}, given={"g.jsonl": "replay"})
    steps = [Step(stage=stage, state="ran", record=made) for stage, made in (("ingest", rows), ("split", splits))]
    console = Console(file=StringIO(), width=120, highlight=False)
    terminal.show_outcome(console, Outcome.of(steps), "x.yaml")
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert f"{splits.num_replay} of the train rows are replay rows\n" in shown
    assert Outcome.of(steps).as_json()["rows"]["replay"] == splits.num_replay > 0
    empty = dict.fromkeys(("byte", "group", "time", "repairs"))
    read = view._said({"outcome": "read", "source": "general", "use_as": "replay"} | empty)
    assert read == "source general, a replay row"


PAIRS = [(text, f"Well, {text} is a long story") for text in GENERAL[:12]]


def test_replay_rows_are_trained_as_others_are_and_are_no_label_and_no_shot(tiny_base: Base) -> None:
    splits = split_rows([*OWN, *replay(GENERAL)], Split(replay=0.3))
    tokens = render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))
    assert (tokens.num_train, tokens.num_replay) == (splits.num_train, splits.num_replay)
    rows = {row["row_id"]: row for row in pq.read_table(tokens.path("train.parquet")).to_pylist()}
    assert {row_id for row_id, row in rows.items() if row["replay"]} == drawn(splits)
    for row_id in drawn(splits):
        trained = [label for label in rows[row_id]["labels"] if label != IGNORED]
        assert len(trained) > 10
        assert rows[row_id]["reference"].startswith("a long answer")

    references = pq.read_table(tokens.path("test.parquet"))["reference"].to_pylist()
    everything = [row["reference"] for row in rows.values()]
    assert metrics.choose(("auto",), references, training_answers(tokens)).decides == "exact_match"
    assert metrics.choose(("auto",), references, everything).decides == "token_f1"

    made = prompting.prompt.fn(splits, tokens, tiny_base, ("few_shot", "retrieval"), 4, 16, WORDLLAMA, "")
    told = json.loads(made.path("prompts.json").read_text())
    shots = {shot for name in ("few_shot", "retrieval") for ids in told[name]["shots"].values() for shot in ids}
    assert shots <= rows.keys() - drawn(splits)
    assert not any(pq.read_table(made.path("few_shot.parquet"))["replay"].to_pylist())
