"""Before ingest has read the data, a plan reckons with their first rows, rendered, and says so."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from flows import deployment_file, plan_command
from flows.deployment_file import Pipeline
from flows.plan_command import Planned
from tasks.artifacts import Base
from tasks.config import Data, Source
from tasks.errors import DataError
from tasks.ingest import ingest, sampling, source_files
from tasks.ingest.sampling import first_rows


def record(number: int, words: int = 3) -> dict[str, str]:
    return {"instruction": f"Say {number} " + "one " * words, "output": "one"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *records: Any) -> None:
    Path(name).write_text("\n".join(map(json.dumps, records)) + "\n")


def pipeline(base: Base, **model: Any) -> Pipeline:
    """The pipeline of a.jsonl."""
    settings = {"base": base.reference, "max_length": 128} | model
    parameters = {"data": {"sources": [{"path": "a.jsonl"}]}, "model": settings, "evaluation": {"max_new_tokens": 8}}
    Path("mine.yaml").write_text(
        json.dumps(
            {"deployments": [{"name": "mine", "entrypoint": deployment_file.ENTRYPOINT, "parameters": parameters}]}
        )
    )
    return deployment_file.load(Path("mine.yaml"))


def planned(base: Base, **model: Any) -> Planned:
    """The plan of a.jsonl."""
    return plan_command.look_up(pipeline(base, **model), "mine.yaml")


def test_a_plan_before_anything_was_read_stands_on_the_first_rows_as_they_will_train(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    costs = planned(tiny_base).costs
    assert costs
    assert (costs.source, costs.is_most) == ("sample", False)
    assert costs.rows_from == "from the 50 rows of the sources, rendered"
    assert costs.chosen.work.num_rows == 40
    assert costs.chosen.work.longest < 60


def test_rows_over_max_length_are_told_by_plan(tiny_base: Base) -> None:
    write("a.jsonl", *(record(n, 60 + n) for n in range(10)))
    found = planned(tiny_base, max_length=16)
    assert found.costs is None
    assert (
        "10 of the 10 rows of the sources are longer than model.max_length=16 tokens, so render will" in found.unknown
    )
    assert "raise model.max_length to" in found.unknown
    write("a.jsonl", *map(record, range(10)), record(10, 200))
    some = planned(tiny_base)
    assert some.costs
    assert any("1 of the 11 rows of the sources are longer than" in note for note in some.costs.notes)
    assert some.costs.chosen.work.longest <= 128


def test_a_plan_beside_data_that_were_refused_does_not_stand_on_the_rows_of_last_time(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    data = Data(sources=(Source(path="a.jsonl"),))
    ingest.fn(data=data, files=source_files(data), needs=())
    before = planned(tiny_base).costs
    assert before
    assert before.source == "ingest"
    write("a.jsonl", *([{"nothing": 1}] * 30), *(record(n, 40) for n in range(20)))
    with pytest.raises(DataError, match="30 of 50 records refused"):
        ingest.fn(data=data, files=source_files(data), needs=())
    after = planned(tiny_base).costs
    assert after
    assert after.source == "sample"
    assert after.chosen.work.longest > before.chosen.work.longest


def test_an_evaluation_that_comes_after_the_last_step_is_said_to_be_the_end(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    longer = deployment_file.override(pipeline(tiny_base), ["training.max_steps=5", "training.evaluate_every=6"])
    costs = plan_command.look_up(longer, "mine.yaml").costs
    assert costs
    assert any(note.startswith("training.evaluate_every=6 is more than") for note in costs.chosen.notes)


def test_the_first_rows_are_of_all_files_and_the_rest_is_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ROWS", 20)
    write("a.jsonl", *map(record, range(400)))
    write("b.jsonl", *map(record, range(5)), {"nothing": 1}, *map(record, range(4)))
    write("test.jsonl", *map(record, range(7)))
    write("train.jsonl", *map(record, range(10)))
    sources = [Source(path="a.jsonl"), Source(path="b.jsonl"), Source(path="test.jsonl", side="test")]
    data = Data(sources=(*sources, Source(path="train.jsonl", side="train")))
    found = first_rows(source_files(data), data)
    assert found
    assert [len(found.conversations), found.train] == [6 + 5 + 6, 10]
    assert found.drawn == pytest.approx(400 + 10 * 5 / 6)
    monkeypatch.setattr(sampling, "MOST_BYTES", 9_000)
    about = first_rows(source_files(data), data)
    assert about
    assert about.drawn == pytest.approx(found.drawn, rel=0.05)


def test_of_objects_in_a_store_a_plan_says_the_most_that_the_settings_allow(tiny_base: Base) -> None:
    fsspec.filesystem("memory").pipe("/plan/a.jsonl", json.dumps(record(1)).encode())
    remote = deployment_file.override(pipeline(tiny_base), ["data.sources=memory://plan/a.jsonl"])
    costs = plan_command.look_up(remote, "mine.yaml").costs
    assert costs
    assert (costs.source, costs.is_most, costs.chosen.work.longest) == ("settings", True, 128)


def test_of_files_that_cannot_be_read_there_is_no_sample() -> None:
    Path("a.json").write_text("{")
    write("b.jsonl", {"nothing": 1})
    data = Data(sources=(Source(path="a.json"), Source(path="b.jsonl")))
    assert first_rows(source_files(data), data) is None
