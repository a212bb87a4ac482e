"""A cause is said in the words of the deployment file, once, and none is left out."""

import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from tunewright.artifacts import Artifact, Contender, EndingRule, RunArtifacts
from tunewright.config import STAGES, Checks, Data, Dedupe, Evaluation, Expectation, Settings, Source, Training
from tunewright.registry.candidate import Candidate
from tunewright.store.cache_key import flat
from tunewright.store.miss_reasons import FOLLOWS, MADE, NAMED_BY, OPTIONAL, SENTENCES, SETTINGS, causes
from tunewright.store.stage import cached_part
from tunewright.tasks.ingest import ingest, source_files

LINE = json.dumps({"instruction": "Say hello", "output": "Hello"}) + "\n"
ONE, OTHER = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(*sources: str) -> dict[str, Any]:
    data = Data(sources=tuple(Source(path=path) for path in sources))
    return ingest.fn.ingredients(data, source_files(data))  # pyright: ignore[reportFunctionMemberAccess]


def of_checks(*names: str, **options: Any) -> dict[str, Any]:
    checks = Checks(expectations=tuple(Expectation(name=name) for name in names), **options)
    return dict(flat("checks", checks))


@pytest.mark.parametrize(
    ("stage", "before", "now", "said"),
    [
        ("split", dict(flat("settings", Dedupe())), dict(flat("settings", Dedupe(threshold=0.8))), "split.threshold"),
        ("base", {"reference": "a"}, {"reference": "b"}, 'model.base: "a" -> "b"'),
        ("base", {"reference": "a", "identity": "1"}, {"reference": "b", "identity": "2"}, 'model.base: "a" -> "b"'),
        ("base", {"reference": "a", "identity": "1"}, {"reference": "a", "identity": "2"}, "model.base: its files"),
        (
            "dedupe",
            dict(flat("settings", Dedupe())) | {"embedding": "1"},
            dict(flat("settings", Dedupe(semantic_model="b"))) | {"embedding": "2"},
            'dedupe.semantic_model: "',
        ),
        (
            "prompt",
            {"contenders": ["few_shot", "retrieval"], "embedding": "1"},
            {"contenders": ["few_shot"], "embedding": ""},
            "evaluation.contenders: ",
        ),
        ("prompt", {"documents": []}, {"documents[0].digest": "1"}, "evaluation.documents: there are some now"),
        ("prompt", {"documents[0].digest": "1"}, {"documents": []}, "evaluation.documents: there are none any more"),
        (
            "prompt",
            {"documents[0].digest": "1"},
            {"documents[0].digest": "2"},
            "evaluation.documents: the files changed",
        ),
        ("prompt", {"asks_apis": True}, {"asks_apis": False}, "evaluation.api_models: there are none any more"),
        (
            "prompt",
            {"contenders": ["few_shot"], "embedding": ""},
            {"contenders": ["few_shot", "retrieval"], "embedding": "1"},
            "evaluation.contenders: ",
        ),
        ("prompt", {"embedding": ""}, {"embedding": "1"}, "dedupe.semantic_model: "),
        (
            "dedupe",
            {"embedding": "", "settings.semantic": None},
            {"embedding": "1", "settings.semantic": 0.9},
            "dedupe.s",
        ),
        (
            "evaluate",
            {"evaluation.metrics": ["auto"]},
            {"evaluation.metrics": ["auto", "exact_match"]},
            'evaluation.metrics, with those of gate: ["auto"] -> ',
        ),
        (
            "register",
            {"candidate.settings.gate.margin": 0},
            {"candidate.settings.gate.margin": 1},
            "gate.margin: 0 -> 1",
        ),
        ("verdict_page", {"price": None}, {"price": [0.4, "cpu"]}, "operation.prices"),
        ("verdict_page", {"run.name": "a"}, {"run.name": "b"}, 'registry.name: "a" -> "b"'),
        ("check", {"rows": f"ingest {ONE}"}, {"rows": f"ingest {OTHER}"}, "the output of ingest changed"),
        (
            "check",
            {"before": None},
            {"before": f"check {ONE}"},
            "the last accepted version, for comparison, changed",
        ),
        (
            "check",
            {"own": [["a.B", "1"]]},
            {"own": [["a.B", "2"]]},
            "checks.expectations: the code of a class of yours is new or changed",
        ),
        (
            "evaluate",
            {"contender.base": f"base {ONE}"},
            {"contender.base": f"base {OTHER}"},
            "the output of base changed",
        ),
        ("train", {"library trl": "1.0"}, {"library trl": "1.1"}, 'library trl: "1.0" -> "1.1"'),
        ("dedupe", {"code a:b": "1"}, {"code a:b": "2"}, "code a:b changed"),
        ("dedupe", {}, {f"code a:{n}": "1" for n in range(9)}, "code a:0, a:1, a:2 and 6 more changed"),
        ("check", of_checks("refusal"), of_checks("refusal", "empty"), "checks.expectations[1]: empty is new"),
        ("check", of_checks("refusal"), of_checks(), "checks.expectations[0]: refusal is gone"),
        ("check", of_checks("refusal"), of_checks("empty"), 'checks.expectations[0].name: "refusal" -> "empty"'),
    ],
)
def test_what_changed_is_one_cause_in_the_words_of_the_file(
    stage: str, before: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    (cause,) = causes(stage, before, now)
    assert cause.startswith(said)


def test_one_of_several_outputs_that_is_left_out_changes_no_other() -> None:
    def read(*digests: str) -> dict[str, Any]:
        return {f"answers[{at}]": f"evaluate {digest}" for at, digest in enumerate(digests)}

    third = "2" * 64
    assert causes("decide", read(ONE, OTHER, third), read(ONE, third)) == ["an output of evaluate is no longer read"]
    assert causes("decide", read(ONE, third), read(ONE, OTHER, third)) == ["an output of evaluate is now read"]
    assert causes("decide", read(ONE, third), read(third, ONE)) == ["the order of its inputs changed"]
    assert causes("decide", read(ONE, OTHER), read(ONE, third)) == ["the output of evaluate changed"]


def test_an_artifact_that_is_still_to_be_made_is_known_by_any_contenders_name() -> None:
    assert MADE.fullmatch("evaluate unmade_evaluate_big-model-1.5")


def test_what_a_stage_that_runs_first_will_have_made_is_no_cause_of_its_own() -> None:
    before = {"rows": f"ingest {ONE}", "candidate.lineage": {"a": "1"}, "x": 1}
    now = {"rows": "ingest unmade_ingest", "candidate.lineage": {"a": "2"}, "x": 1}
    assert len(causes("register", before, now)) == 2
    assert causes("register", before, now, waits={"ingest"}) == []
    assert causes("register", before, now | {"x": 2}, waits={"ingest"}) == ["x: 1 -> 2"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (LINE * 3, LINE * 5, "changed (2 lines appended)"),
        (LINE + "{\n\n", LINE + "{\n\n" + LINE, "changed (1 line appended)"),
        (LINE + LINE.strip(), LINE * 3, "changed (1 line appended)"),
        (LINE * 2, LINE * 2 + LINE.strip(), "changed (1 line appended)"),
        (LINE * 2, LINE.replace("hello", "hallo") + LINE * 2, "changed"),
        (LINE * 3, LINE * 2, "changed"),
        (LINE * 2, LINE * 2 + "\n", "changed (1 line appended)"),
        (LINE + LINE.strip(), LINE * 2, "changed"),
    ],
)
def test_a_file_that_only_grew_says_by_how_much(old: str, new: str, said: str) -> None:
    data = Data(sources=(Source(path="a.jsonl"),), max_refused_share=1)
    Path("a.jsonl").write_text(old)
    made = ingest.fn(data, source_files(data))
    before = read("a.jsonl")
    Path("a.jsonl").write_text(new)
    assert causes("ingest", before, read("a.jsonl"), made) == [f"data.sources[0]: a.jsonl {said}"]


@pytest.mark.parametrize("table", ["rows.parquet", "quarantine.parquet"])
def test_a_table_of_rows_that_was_altered_is_not_read(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow's reader with filters waits without end at some altered bytes of a Parquet file's metadata."""
    data = Data(sources=(Source(path="a.jsonl"),), max_refused_share=1)
    Path("a.jsonl").write_text(LINE)
    made = ingest.fn(data, source_files(data))
    before = read("a.jsonl")
    Path("a.jsonl").write_text(LINE * 2)
    content = bytearray(made.path(table).read_bytes())
    content[-100] ^= 1
    made.path(table).write_bytes(content)
    monkeypatch.setattr("tunewright.store.miss_reasons.pq.read_table", pytest.fail)
    assert causes("ingest", before, read("a.jsonl"), made) == ["data.sources[0]: a.jsonl changed"]


def test_files_that_came_or_went_are_named_once() -> None:
    for name in ("a1.jsonl", "a2.jsonl", "b.jsonl"):
        Path(name).write_text(LINE)
    few, other = read("a*.jsonl"), read("b.jsonl")
    Path("a3.jsonl").write_text(LINE)
    Path("a1.jsonl").unlink()
    assert causes("ingest", few, read("a*.jsonl")) == [
        "data.sources[0]: a3.jsonl is new",
        "data.sources[0]: a1.jsonl is gone",
    ]
    assert causes("ingest", few, other) == ['data.sources[0].path: "a*.jsonl" -> "b.jsonl"']
    assert causes("ingest", other, read("b.jsonl", "a2.jsonl")) == ["data.sources[1]: a2.jsonl is new"]


def test_a_source_between_others_changes_none_of_them() -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"):
        Path(name).write_text(LINE)
    few, more = read("a.jsonl", "c.jsonl"), read("a.jsonl", "b.jsonl", "c.jsonl")
    assert causes("ingest", few, more) == ["data.sources[1]: b.jsonl is new"]
    assert causes("ingest", more, few) == ["data.sources[1]: b.jsonl is gone"]
    assert causes("ingest", more, read("c.jsonl")) == [
        "data.sources[0]: a.jsonl is gone",
        "data.sources[1]: b.jsonl is gone",
    ]
    assert causes("ingest", more, read("a.jsonl", "d.jsonl", "c.jsonl")) == [
        'data.sources[1].path: "b.jsonl" -> "d.jsonl"'
    ]
    assert causes("ingest", more, read("c.jsonl", "b.jsonl", "a.jsonl")) == ["the order of its inputs changed"]
    Path("c.jsonl").write_text(LINE * 2)
    assert causes("ingest", few, read("a.jsonl", "b.jsonl", "c.jsonl")) == [
        "data.sources[2]: c.jsonl changed",
        "data.sources[1]: b.jsonl is new",
    ]


def test_an_expectation_between_others_changes_none_of_them() -> None:
    few, more = of_checks("refusal", "mojibake"), of_checks("refusal", "empty", "mojibake")
    assert causes("check", few, more) == ["checks.expectations[1]: empty is new"]
    assert causes("check", more, few) == ["checks.expectations[1]: empty is gone"]


@pytest.mark.parametrize("stage", STAGES)
def test_no_argument_of_a_stage_is_told_by_its_own_name(stage: str) -> None:
    told = {"ingest.files", *SETTINGS, *SENTENCES, *OPTIONAL}
    for name, annotation in _flat(_arguments(stage)):
        if annotation in (RunArtifacts, Candidate):
            continue
        kinds = [kind for kind in _kinds(annotation) if isinstance(kind, type)]
        is_section = name in Settings.model_fields and Settings.model_fields[name].annotation in kinds
        is_artifact = any(issubclass(kind, Artifact) for kind in kinds)
        is_told = any(f"{key}.".startswith(f"{stage}.{name}.") for key in told)
        assert is_section or is_artifact or is_told, f"{stage}.{name}"


def test_every_sentence_and_setting_is_of_an_argument_that_there_is() -> None:
    there = {
        f"{stage}.{name}"
        for stage in STAGES
        for name, _ in _flat(_arguments(stage), into=(Contender, EndingRule, Evaluation, Training))
    }
    assert {*SETTINGS, *SENTENCES, *FOLLOWS, *NAMED_BY, *OPTIONAL} - there == set()


def _arguments(stage: str) -> dict[str, Any]:
    module = importlib.import_module(f"tunewright.tasks.{'train.stage' if stage == 'train' else stage}")
    arguments = inspect.get_annotations(getattr(module, stage).fn.build, eval_str=True)
    unkeyed = {*cached_part(getattr(module, stage)).unkeyed}  # the key does not depend on them
    return {name: arguments[name] for name in arguments.keys() - {"folder", "return"} - unkeyed}


def _flat(arguments: dict[str, Any], into: tuple[type, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Arguments, and the fields of those that are a record of several inputs."""
    for name, annotation in arguments.items():
        yield name, annotation
        for record in {RunArtifacts, Candidate, *into} & {*_kinds(annotation)}:
            yield from _flat({f"{name}.{field}": info.annotation for field, info in record.model_fields.items()}, into)


def _kinds(annotation: Any) -> list[Any]:
    return [annotation, *(inner for argument in get_args(annotation) for inner in _kinds(argument))]


def test_a_prompt_that_is_to_answer_all_rows_runs_for_that_alone() -> None:
    ended: dict[str, Any] = {"rule.metric": "exact_match", "rule.tolerance": 0.02, "rule.confidence": 0.975}
    assert causes("evaluate", ended, {"rule": None}) == ["evaluation.complete changed"]
    assert causes("evaluate", {"rule": None}, ended) == ["evaluation.complete changed"]
    assert causes("evaluate", ended, ended | {"rule.tolerance": 0.05}) == ["gate.tolerance changed"]
