"""Rows with tools go from their file through render to scores of calls, and rows without them stay as they were."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import read
from test_ingest_tools import CALLED, PARIS, TOOLS, call

from tunewright.artifacts import IGNORED, SPLIT_SCHEMA, Base, Contender, Splits
from tunewright.config import Evaluation, Gate, Model, Settings
from tunewright.errors import ConfigError
from tunewright.metrics.shape import require_metrics
from tunewright.modeling import chat_templates
from tunewright.modeling.models import load_tokenizer
from tunewright.tasks.evaluate import evaluate
from tunewright.tasks.render import render
from tunewright.tools.conversation import call_text

PLAIN = {"messages": [PARIS, {"role": "assistant", "content": "I see."}]}
RECORDS = [
    {"messages": CALLED, "tools": TOOLS},
    {"messages": [*CALLED[:3], CALLED[3] | {"weight": 0}, PARIS, call({"city": "Paris"})], "tools": TOOLS},
    PLAIN,
]


@pytest.fixture
def base(tiny_base: Base) -> Base:
    return tiny_base.model_copy(update={"chat_template": chat_templates.text("hermes")})


@pytest.fixture
def splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Splits:
    """The same three rows on each split, the one without tools last."""
    monkeypatch.chdir(tmp_path)
    kept, refused = read("\n".join(map(json.dumps, RECORDS)).encode())
    assert not refused
    table = pa.Table.from_pylist([row | {"cluster": at} for at, row in enumerate(kept)], SPLIT_SCHEMA)
    for name in ("train", "validation", "test"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    counts = {"num_train": 3, "num_validation": 3, "num_test": 3, "num_clusters": 3}
    return Splits(folder=tmp_path, digest="1", largest_similarity=0, random_leak_share=0, **counts)  # pyright: ignore[reportArgumentType]


def trained(base: Base, row: dict[str, Any]) -> str:
    return load_tokenizer(base).decode([label for label in row["labels"] if label != IGNORED])


def test_rows_with_tools_are_rendered_answered_and_scored_as_calls(splits: Splits, base: Base) -> None:
    tokens = render.fn(splits=splits, base=base, model=Model(base="tiny"))
    train, test = (pq.read_table(tokens.path(f"{name}.parquet")).to_pylist() for name in ("train", "test"))
    bonn, paris = (call_text("get_weather", {"city": city}) + "<|im_end|>" for city in ("Bonn", "Paris"))
    assert [trained(base, row) for row in train] == [f"{bonn}Rain.<|im_end|>", f"{bonn}{paris}", "I see.<|im_end|>"]
    assert [trained(base, row) for row in test] == ["Rain.<|im_end|>", paris, "I see.<|im_end|>"]
    assert [row["reference"] for row in test] == ["Rain.", call_text("get_weather", {"city": "Paris"}), "I see."]
    assert [row["tools"] for row in test] == [json.dumps(TOOLS)] * 2 + [None]
    answers = evaluate.fn(
        contender=Contender(name="candidate", base=base),
        tokens=tokens,
        evaluation=Evaluation(precision="float32", max_new_tokens=4),
    )
    assert answers.metric == "tool_call"
    assert answers.measured.startswith(
        "the references are tool calls (1 of 3), else short texts (median 3 words and signs): "
    )
    scored = pq.read_table(answers.path("answers.parquet")).to_pylist()
    assert [(row["tool_call"], row["needless_call"], row["tool_schema"]) for row in scored] == [
        (1.0, 0.0, 1.0),
        (0.0, 0.0, 1.0),  # of random weights
        (1.0, 0.0, 1.0),
    ]


def test_test_rows_that_begin_with_one_without_tools_are_scored_as_in_any_other_order(
    splits: Splits, base: Base
) -> None:
    rows = pq.read_table(splits.path("test.parquet"))
    pq.write_table(rows.take([2, 0, 1]), splits.path("test.parquet"))
    tokens = render.fn(splits=splits, base=base, model=Model(base="tiny"))
    answers = evaluate.fn(
        contender=Contender(name="base", base=base),
        tokens=tokens,
        evaluation=Evaluation(precision="float32", max_new_tokens=4),
    )
    scored = pq.read_table(answers.path("answers.parquet"), columns=["tools", "tool_schema"]).to_pylist()
    assert [(row["tools"] is None, row["tool_schema"]) for row in scored] == [(True, 1.0), (False, 1.0), (False, 1.0)]


def test_a_row_without_tools_has_the_tokens_that_it_has_under_a_template_without_tools(
    splits: Splits, base: Base, tiny_base: Base
) -> None:
    plain = pq.read_table(splits.path("train.parquet")).slice(2)
    for name in ("train", "validation", "test"):
        pq.write_table(plain, splits.path(f"{name}.parquet"))
    chatml = tiny_base.model_copy(update={"chat_template": chat_templates.text("chatml")})
    made = [render.fn(splits=splits, base=each, model=Model(base="tiny")) for each in (base, chatml)]
    first, second = (pq.read_table(each.path("train.parquet")).to_pylist() for each in made)
    assert first == second


def test_a_base_whose_template_writes_no_tools_stops_before_training(splits: Splits, tiny_base: Base) -> None:
    with pytest.raises(
        ConfigError, match=r"leaves out the definitions of tools; set model\.chat_template to hermes or"
    ):
        render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))


def test_a_template_that_was_set_and_writes_no_tools_is_named(splits: Splits, base: Base) -> None:
    chatml = base.model_copy(update={"chat_template": chat_templates.text("chatml")})
    with pytest.raises(
        ConfigError, match=r"model\.chat_template=chatml leaves out the definitions of tools; leave it out"
    ):
        render.fn(splits=splits, base=chatml, model=Model(base="tiny", chat_template="chatml"))


def test_a_gate_by_calls_is_held_against_the_test_rows(splits: Splits) -> None:
    settings = Settings.model_validate(
        {"data": {"sources": [{"path": "a"}]}, "model": {"base": "b"}, "gate": Gate(metric="tool_call").model_dump()}
    )
    require_metrics(settings, splits, "")
    pq.write_table(pq.read_table(splits.path("test.parquet")).slice(2), splits.path("test.parquet"))
    with pytest.raises(
        ConfigError, match=r"gate\.metric=tool_call cannot be measured on the test rows: no row has tools"
    ):
        require_metrics(settings, splits, "")
