"""Whatever is wrong with a parameter is said in one line with its key, its value and what is accepted."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.config import STAGES, Registry, Settings, Training
from tunewright.config.other_tools import IN_OTHER_TOOLS, OF_OTHERS
from tunewright.errors import ConfigError
from tunewright.flows.parameters import Parameters, checked, field, flat, named, shown, slug

VALID: dict[str, Any] = {"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "org/name"}}
TRAINING = ", ".join(Training.model_fields)
STAGE_NAMES = ", ".join(STAGES)
SECTIONS = ", ".join(Parameters.model_fields)


def refusal(**sections: Any) -> str:
    with pytest.raises(ConfigError) as error:
        checked(VALID | sections, lambda key: f"<{key}>")
    return str(error.value)


def test_each_name_of_another_tool_is_no_setting_here_and_stands_for_one_that_is() -> None:
    own = {key.rpartition(".")[2] for key in flat(Settings.model_validate(VALID))}
    assert not {*IN_OTHER_TOOLS} & own
    assert all(field(key) for key in IN_OTHER_TOOLS.values())
    assert len(IN_OTHER_TOOLS) == len(" ".join(OF_OTHERS.values()).split())


def test_two_sections_are_enough() -> None:
    run = checked(VALID, str)
    assert run.settings() == Settings.model_validate(VALID)
    assert (run.until, run.refresh) == ("register", ())


def test_all_sections_and_stages_are_taken() -> None:
    run = checked(VALID | {"training": {"epochs": 1}, "until": "split", "refresh": ["train", "base"]}, str)
    assert (run.training.epochs, run.until, run.refresh) == (1, "split", ("train", "base"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"training": {"learning_rat": 1}},
            f"<training.learning_rat>: training.learning_rat: unknown key; did you mean learning_rate? "
            f"accepted: {TRAINING}",
        ),
        (
            {"training": {"lr": 1}},
            f"<training.lr>: training.lr: unknown key; did you mean learning_rate? accepted: {TRAINING}",
        ),
        (
            {"training": {"rank": 8}},
            f"<training.rank>: training.rank: unknown key; did you mean method.rank? accepted: {TRAINING}",
        ),
        (
            {"training": {"lora_r": 8}},
            f"<training.lora_r>: training.lora_r: unknown key; did you mean method.rank? accepted: {TRAINING}",
        ),
        (
            {"training": {"num_train_epochs": 1}},
            "<training.num_train_epochs>: training.num_train_epochs: unknown key; did you mean epochs? accepted: learn",
        ),
        *(
            ({given: 1}, f"<{given}>: {given}: unknown key; did you mean {key}? accepted: {SECTIONS}")
            for given, key in {
                "lr": "training.learning_rate or preference.learning_rate or grpo.learning_rate",
                "learning_rat": "training.learning_rate or preference.learning_rate or grpo.learning_rate",
                "epochs": "training.epochs or preference.epochs or grpo.epochs",
                "batch_size": "training.batch",
                "metric": "gate.metric",
                "lora_r": "method.rank",
                "model_name_or_path": "model.base",
                "per_device_train_batch_size": "training.micro_batch",
                "seed": "split.seed or training.seed",
            }.items()
        ),
        ({"trainin": {}}, f"<trainin>: trainin: unknown key; did you mean training? accepted: {SECTIONS}"),
        (
            {"training": {"epochs": "three"}},
            '<training.epochs>: training.epochs: "three" is refused; accepted: a number (Epochs,'
            " at most 1000; max_steps overrides it)",
        ),
        ({"training": {"epochs": True}}, "<training.epochs>: training.epochs: true is refused; accepted: a number ("),
        ({"training": {"epochs": "3"}}, '<training.epochs>: training.epochs: "3" is refused; accepted: a number ('),
        ({"training": {"batch": True}}, "<training.batch>: training.batch: true is refused; accepted: a whole number"),
        ({"training": {"batch": 1.5}}, "<training.batch>: training.batch: 1.5 is refused; accepted: a whole number"),
        ({"training": {"batch": None}}, "<training.batch>: training.batch: null is refused; accepted: a whole number"),
        (
            {"training": {"learning_rate": 2}},
            "<training.learning_rate>: training.learning_rate: 2 is refused; accepted: more than 0, 1 or less (",
        ),
        (
            {"training": {"seed": 4_294_967_296}},
            "<training.seed>: training.seed: 4294967296 is refused; accepted: 0 to 4294967295 (",
        ),
        (
            {"training": {"max_steps": 100_000_001}},
            "<training.max_steps>: training.max_steps: 100000001 is refused; accepted: 1 to 100000000, or null (",
        ),
        (
            {"training": {"learning_rate": float("nan")}},
            "<training.learning_rate>: training.learning_rate: NaN is refused; accepted: a finite number (",
        ),
        ({"dedupe": {"near": 1}}, "<dedupe.near>: dedupe.near: 1 is refused; accepted: true or false ("),
        (
            {"model": {"base": 5}},
            "<model.base>: model.base: 5 is refused; accepted: text, in quotes where it looks like a number (",
        ),
        (
            {"method": {"kind": "lorra"}},
            '<method.kind>: method.kind: "lorra" is refused; did you mean lora? accepted: lora, qlora, full',
        ),
        (
            {"evaluation": {"metrics": ["exact_match", "blue"]}},
            '<evaluation.metrics[1]>: evaluation.metrics[1]: "blue" is refused; did you mean bleu? accepted: auto, '
            "exact_match, ",
        ),
        (
            {"gate": {"margin": 7}},
            "<gate.margin>: gate: margin=7 is out of range: scores of the metric that auto chooses are from 0 to 1; "
            "accepted: below 1",
        ),
        (
            {"gate": {"metric": "chrf", "tolerance": 1}},
            "<gate.tolerance>: gate: tolerance=1 is out of range: scores of chrf are from 0 to 1; accepted: below 1",
        ),
        (
            {"gate": {"guardrails": [{"metric": "stopped", "margin": 5}]}},
            "<gate.guardrails[0].margin>: gate.guardrails[0]: margin=5 is out of range: scores of stopped are from 0",
        ),
        (
            {"gate": {"guardrails": [{"metric": "stopped"}, {"metric": "stopped", "margin": 0.1}]}},
            "<gate>: gate: guardrails: duplicate metric stopped; accepted: each metric once",
        ),
        (
            {"gate": {"metric": "macro_f1"}},
            "<gate.metric>: gate.metric: macro_f1 is one score of all rows, but the paired decision needs",
        ),
        ({"until": "trian"}, '<until>: until: "trian" is refused; did you mean train? accepted: ' + STAGE_NAMES),
        (
            {"refresh": "split"},
            '<refresh>: refresh: "split" is refused; accepted: a list: [split] (Stages to run again',
        ),
        ({"refresh": ["x"]}, '<refresh[0]>: refresh[0]: "x" is refused; accepted: ' + STAGE_NAMES),
        ({"training": None}, f"<training>: training: null is refused; accepted: a mapping with any of {TRAINING}"),
        ({"training": [1]}, f"<training>: training: [1] is refused; accepted: a mapping with any of {TRAINING}"),
        ({"data": {}}, "<data.sources>: data.sources: missing (The files to read, in this order"),
        (
            {"data": "a.csv"},
            '<data>: data: "a.csv" is refused; did you mean {sources: [{path: a.csv}]}? accepted: a mapping',
        ),
        (
            {"data": {"sources": "a"}},
            '<data.sources>: data.sources: "a" is refused; did you mean [{path: a}]? accepted: a list',
        ),
        (
            {"data": {"sources": {"path": "a"}}},
            '<data.sources>: data.sources: {"path": "a"} is refused; accepted: a list: [{"path": "a"}] (',
        ),
        ({"data": {"sources": []}}, "<data.sources>: data.sources: [] is refused; accepted: at least one item ("),
        (
            {"data": {"sources": ["a.jsonl"]}},
            '<data.sources[0]>: data.sources[0]: "a.jsonl" is refused; did you mean {path: a.jsonl}? accepted: a map',
        ),
        (
            {"data": {"sources": [{"pth": "a.jsonl"}]}},
            "<data.sources[0].pth>: data.sources[0].pth: unknown key; did you mean path? accepted: path, layout, "
            "format, columns, split, revision, use_as (also wrong or missing: data.sources[0].path)",
        ),
        (
            {"registry": {"name": "My Model"}},
            '<registry.name>: registry.name: "My Model" is refused; did you mean my-model? accepted: lower-case ',
        ),
        (
            {"split": {"validation": 0.5, "test": 0.5}},
            "<split.validation>, <split.test>: split: validation=0.5 and test=0.5 leave nothing",
        ),
        (
            {"gate": {"metric": "chrf"}, "evaluation": {"metrics": ["exact_match"]}},
            "<gate.metric>, <evaluation.metrics>: gate.metric=chrf is not in evaluation.metrics, which has exact_match",
        ),
        (
            {"evaluation": {"metrics": ["macro_f1"]}},
            "<evaluation.metrics>: evaluation.metrics has no metric that can decide: macro_f1 is one score of all rows",
        ),
        (
            {"gate": {"metric": "schema_valid"}},
            "<gate.metric>: gate.metric: schema_valid needs evaluation.json_schema, the file with the schema",
        ),
        (
            {"data": {"path": "a"}},
            "<data.path>: data.path: unknown key; did you mean sources[0].path or held_out[0].path? accepted: sources,",
        ),
        (
            {"data": VALID["data"] | {"model": {"base": "b"}}},
            "<data.model>: data.model: unknown key; did you mean judge.model or model? accepted: sources, held_out,",
        ),
        (
            {"model": {"base": False}},
            "<model.base>: model.base: false is refused; accepted: text, in quotes since YAML reads on, yes, off and",
        ),
        (
            {"training": {"micro_batch": "many"}},
            '<training.micro_batch>: training.micro_batch: "many" is refused; accepted: a whole number or auto, '
            "or null",
        ),
        (
            {"lm_eval": {"tasks": "[hellaswag]"}},
            '<lm_eval.tasks>: lm_eval.tasks: "[hellaswag]" is refused; accepted: a list: [hellaswag], without quotes (',
        ),
        (
            {"method": {"target": ["q_proj", "v_proj"]}},
            '<method.target>: method.target: ["q_proj", "v_proj"] is refused; accepted: text, without brackets: '
            "q_proj, v_proj (",
        ),
        (
            {"data": {"sources": [{"path": "a", "use_as": "trian"}]}},
            '<data.sources[0].use_as>: data.sources[0].use_as: "trian" is refused; did you mean train? accepted: '
            "train, validation, test, replay, or null",
        ),
        (
            {"checks": {"expectations": [{"name": "empty_answer", "arguments": None}]}},
            "<checks.expectations[0].arguments>: checks.expectations[0].arguments: null is refused; accepted: a mapp",
        ),
        (
            {"checks": {"expectations": ["language"]}},
            '<checks.expectations[0]>: checks.expectations[0]: "language" is refused; did you mean {name: language}? ',
        ),
        (
            {"checks": {"expectations": [{"name": "refusal"}, {"name": "emty_answer"}]}},
            "<checks.expectations[1].name>: checks.expectations[1].name=emty_answer is not an expectation; "
            "did you mean em",
        ),
        (
            {"checks": {"expectations": [{"name": "language", "arguments": {"languages": ["EN"]}}]}},
            "<checks.expectations[0].arguments.languages[0]>: checks.expectations[0].arguments.languages[0]=EN is no d",
        ),
        (
            {"model": {"base": "{{ $BASE }}"}},
            '<model.base>: model.base: "{{ $BASE }}" is filled in by prefect deploy alone; write the value',
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(sections: dict[str, Any], message: str) -> None:
    said = refusal(**sections)
    assert said.startswith(message)
    assert len(said.splitlines()) == 1
    assert "pydantic" not in said


def test_what_a_pipeline_needs_is_said_when_it_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"^<data>: data: missing \(a pipeline needs data.sources and model.base\)"):
        checked({"model": VALID["model"]}, lambda key: f"<{key}>")


def test_a_misspelt_section_comes_before_what_it_left_missing() -> None:
    with pytest.raises(
        ConfigError, match=r"^<modle>: modle: unknown key; did you mean model\?.* \(also wrong or missing: model\)$"
    ):
        checked({"data": VALID["data"], "modle": VALID["model"]}, lambda key: f"<{key}>")


def test_several_problems_are_one_line_that_names_them_all() -> None:
    said = refusal(training={"epochs": 0, "batch": 0}, gate={"margn": 1})
    assert said.startswith("<gate.margn>")
    assert said.endswith("(also wrong or missing: training.epochs, training.batch)")


def test_flat_names_every_value_once() -> None:
    settings = Settings.model_validate(VALID | {"evaluation": {"metrics": ["exact_match", "chrf"]}})
    values = flat(settings)
    assert values["data.sources[0].path"] == "a.jsonl"
    assert values["data.limit"] is None
    assert values["evaluation.metrics"] == "exact_match, chrf"
    assert values["training.epochs"] == 3
    assert {key.split(".")[0] for key in values} == set(Settings.model_fields)
    assert not any(isinstance(value, dict | list | tuple) for value in values.values())


def test_a_shown_value_is_one_short_printable_line() -> None:
    assert shown("é") == '"é"'
    assert shown("a\u2028b\x1b") == '"a\\u2028b\\u001b"'
    assert len(shown("x" * 999)) == 60


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(Training.model_fields)), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Parameters.model_fields, "other"]), JSON))
def test_any_values_are_taken_or_refused_in_one_line(values: dict[str, Any]) -> None:
    try:
        checked(VALID | values, str)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


def test_a_registry_keeps_its_name_or_takes_the_deployments() -> None:
    assert named(Registry(name="mine"), "triage").name == "mine"
    assert named(Registry(name="mine"), None).name == "mine"
    assert named(Registry(alias="best"), "Triage (EN)") == Registry(name="triage-en", alias="best")
    for deployment in (None, "", "日本"):
        with pytest.raises(ConfigError, match=r"registry.name: missing; "):
            named(Registry(), deployment)


def test_a_slug_leaves_accents_out_and_not_their_letters() -> None:
    assert (slug("Über mich"), slug("café")) == ("uber-mich", "cafe")


@given(st.text(max_size=120))
def test_a_slug_is_a_name_that_the_registry_accepts(deployment: str) -> None:
    assert Registry(name=slug(deployment)).name == slug(slug(deployment)) == slug(deployment)


@given(st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,98}[a-z0-9])?", fullmatch=True))
def test_a_name_that_the_registry_accepts_is_its_own_slug(name: str) -> None:
    assert slug(name) == name
