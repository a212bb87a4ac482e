"""Every knob is described, bounded in words, closed to what it does not know, and held against the others."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from tunewright import config
from tunewright.cli.main import app
from tunewright.config import (
    STAGES,
    Compute,
    Data,
    Evaluation,
    Gate,
    Guardrail,
    Method,
    Model,
    Operation,
    Registry,
    Section,
    Settings,
    Source,
    Split,
    Training,
    environment,
    home,
    quietly,
)
from tunewright.config.environment import RARE_COLLECTIONS
from tunewright.errors import ConfigError, DataError
from tunewright.modeling import chat_templates

SOURCES = (Source(path="a.jsonl"),)
NEEDED = {"data": Data(sources=SOURCES), "model": Model(base="org/name")}
SECTIONS: dict[str, Any] = {name: field.annotation for name, field in Settings.model_fields.items()}
FIELDS = [
    pytest.param(name, field, id=f"{model.__name__}.{name}")
    for model in (*SECTIONS.values(), Source)
    for name, field in model.model_fields.items()
]


def test_only_the_data_and_the_base_model_are_required() -> None:
    models = (Settings, *SECTIONS.values())
    required = {f"{m.__name__}.{n}" for m in models for n, f in m.model_fields.items() if f.is_required()}
    assert required == {"Settings.data", "Settings.model", "Data.sources", "Model.base"}


@pytest.mark.parametrize("model", [*SECTIONS.values(), Source])
def test_a_default_is_what_the_form_sends_back_for_it(model: type[BaseModel]) -> None:
    defaults = {n: f.default for n, f in model.model_fields.items() if not f.is_required()}
    required = {
        n: v for n, v in {"sources": SOURCES, "base": "org/name", "path": "a"}.items() if n in model.model_fields
    }
    sent_back = model.model_validate({**required, **defaults})
    assert {n: repr(getattr(sent_back, n)) for n in defaults} == {n: repr(v) for n, v in defaults.items()}


@pytest.mark.parametrize("model", [*SECTIONS.values(), Source])
def test_each_section_says_what_it_is_for(model: type[BaseModel]) -> None:
    assert model.__doc__
    assert model.__doc__ != Section.__doc__


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_each_field_is_described_in_plain_text(name: str, field: FieldInfo) -> None:
    assert field.description
    assert field.description.isprintable()
    assert not field.description.endswith(".")
    assert not set(field.description) & set("<>`")
    assert field.description.count("*") < 2  # between two of them Prefect's first form has italics


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_each_default_is_plain_so_that_the_form_shows_it(name: str, field: FieldInfo) -> None:
    assert field.default_factory is None
    plain = (str, int, float, bool, tuple, type(None))
    assert field.is_required() or isinstance(field.default, plain) or field.default == {}


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_each_bound_but_zero_and_one_from_below_is_said_in_words(name: str, field: FieldInfo) -> None:
    said = (field.description or "").replace(",", "")
    for bound in field.metadata:
        lower = getattr(bound, "ge", getattr(bound, "gt", None))
        upper = getattr(bound, "le", getattr(bound, "lt", None))
        for value in ([lower] if lower not in {None, 0, 1} else []) + ([upper] if upper is not None else []):
            assert f"{value:.10g}" in said


@pytest.mark.parametrize("model", [Settings, *SECTIONS.values(), Source])
def test_unknown_keys_are_refused(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError) as error:
        model.model_validate({"surprise": 1})
    assert {"type": "extra_forbidden", "loc": ("surprise",)} in [
        {"type": e["type"], "loc": e["loc"]} for e in error.value.errors()
    ]


def test_epochs_make_no_other_training_beside_max_steps() -> None:
    assert Training(epochs=5, max_steps=4).used() == Training(max_steps=4).used() == Training(max_steps=4)
    assert Training(epochs=5).used() == Training(epochs=5)


@pytest.mark.parametrize("section", [Training(), Gate(), Settings(**NEEDED), SOURCES[0]])
def test_settings_do_not_change_once_made(section: BaseModel) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(section, next(iter(type(section).model_fields)), 1)


def test_defaults_hold_their_own_bounds_and_agree_with_each_other() -> None:
    defaults = {
        name: {n: f.default for n, f in model.model_fields.items() if f.default is not PydanticUndefined}
        for name, model in SECTIONS.items()
    }
    for name, needed in NEEDED.items():
        defaults[name] |= needed.model_dump()
    assert Settings.model_validate(defaults) == Settings(**NEEDED)


@pytest.mark.parametrize(("longest", "limit"), [(0, 32), (9, 32), (32, 32), (33, 64), (200, 256), (600, 512)])
def test_an_answer_has_room_for_the_longest_of_the_data(longest: int, limit: int) -> None:
    assert Evaluation().resolved(longest, 512, has_bfloat16=False).limit == limit
    assert Evaluation(max_new_tokens=7).resolved(longest, 512, has_bfloat16=False).limit == 7


def test_answers_are_computed_in_what_the_hardware_multiplies_fast_or_in_what_is_asked_for() -> None:
    assert Evaluation().resolved(9, 512, has_bfloat16=True).precision == "bfloat16"
    assert Evaluation().resolved(9, 512, has_bfloat16=False).precision == "float32"
    for asked in ("float32", "bfloat16"):
        for has_bfloat16 in (False, True):
            settings = Evaluation.model_validate({"precision": asked})
            assert settings.resolved(9, 512, has_bfloat16=has_bfloat16).precision == asked


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            Split,
            {"validation": 0.5, "test": 0.5},
            "validation=0.5 and test=0.5 leave nothing to train on; accepted: a sum below 1",
        ),
        (
            Method,
            {"kind": "full", "rank": 8},
            "rank=8 has no effect with kind=full, which uses no other setting; leave it out, or set kind to lora or",
        ),
        (
            Method,
            {"kind": "full", "alpha": 8, "dropout": 0.1},
            "alpha=8 and dropout=0.1 have no effect with kind=full, ",
        ),
        (Method, {"kind": "lora", "bits": 8}, "bits=8 has no effect with kind=lora, which uses alpha, "),
        (
            Method,
            {"kind": "spectrum", "rank": 8},
            "rank=8 has no effect with kind=spectrum, which uses share; leave it out, or set kind to lora",
        ),
        (Training, {"batch": 16, "micro_batch": 17}, "micro_batch=17 is not between 1 and batch=16"),
        (Training, {"batch": 16, "micro_batch": 0}, "micro_batch=0 is not between 1 and batch=16"),
        (Registry, {"alias": "latest"}, "alias=latest is reserved by MLflow; accepted: any other, such as champion"),
        (Registry, {"alias": "v12"}, "alias=v12 is reserved by MLflow; accepted: any other, such as champion"),
        (Operation, {"start_on": "drift"}, "start_on=drift has no effect without watch; set operation.watch"),
        (Operation, {"notify_on": ["failure"]}, "notify_on has no effect without notify; set operation.notify"),
        (Operation, {"notify": ["slack-webhook/ops"], "notify_on": []}, "notify has no effect with an empty notify_on"),
        (
            Operation,
            {"notify": ["slack"]},
            "'slack' is not a Prefect block; accepted: type/name",
        ),
        (
            Settings,
            NEEDED | {"gate": Gate(metric="chrf"), "evaluation": Evaluation(metrics=("exact_match",))},
            "gate.metric=chrf is not in evaluation.metrics, which has exact_match",
        ),
        (
            Settings,
            NEEDED | {"model": Model(base="a/b", max_length=128), "evaluation": Evaluation(max_new_tokens=129)},
            "evaluation.max_new_tokens=129 is more than model.max_length=128, the longest row there can be; accepted: "
            "1 to 128, or auto",
        ),
        (Evaluation, {"max_new_tokens": 0}, "max_new_tokens=0 is less than 1"),
    ],
)
def test_settings_that_contradict_each_other_say_so(section: type[BaseModel], values: Any, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        section.model_validate(values)
    assert str(error.value.errors()[0]["ctx"]["error"]).startswith(message)  # pyright: ignore[reportTypedDictNotRequiredAccess]


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (Split, {"validation": 0.5, "test": 0.4}),
        (Method, {"kind": "full", "rank": 16, "alpha": 32, "dropout": 0.0, "target": "all-linear"}),
        (Method, {"kind": "qlora", "rank": 8, "bits": 8}),
        (Training, {"batch": 16, "micro_batch": 5}),
        (Training, {"batch": 16, "micro_batch": "auto"}),
        (Registry, {"alias": "v1a"}),
        (Settings, NEEDED | {"model": Model(base="org/name", max_length=256)}),
    ],
)
def test_settings_that_just_agree_are_taken(section: type[BaseModel], values: Any) -> None:
    assert section.model_validate(values)


@pytest.mark.parametrize(
    ("section", "values", "most"),
    [
        (Training, {"batch": 99_999_999_999_999_999_999}, 1_000_000),
        (Training, {"max_steps": 99_999_999_999_999}, 100_000_000),
        (Model, {"base": "org/name", "max_length": 99_999_999_999_999_999_999_999}, 100_000_000),
        (Compute, {"threads": 100_000}, 4_096),
    ],
)
def test_a_size_that_no_training_has_is_refused(section: type[BaseModel], values: Any, most: int) -> None:
    with pytest.raises(ValidationError, match=f"less than or equal to {most}"):
        section.model_validate(values)
    assert section.model_validate(values | {[*values][-1]: most})


@pytest.mark.parametrize("alias", ["Champion", "", "-a", "a b", "a" * 51])
def test_an_alias_that_mlflow_would_refuse_is_refused(alias: str) -> None:
    with pytest.raises(ValidationError):
        Registry(alias=alias)


def test_the_stages_stand_in_the_order_in_which_they_run() -> None:
    chain = [STAGES.index(s) for s in ("ingest", "check", "dedupe", "split", "render", "train", "evaluate", "decide")]
    assert chain == sorted(chain)
    assert STAGES.index("base") < STAGES.index("render")
    assert STAGES[-1] == "register"


def test_home_is_what_the_environment_says_or_a_folder_here(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("TUNEWRIGHT_HOME")
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path / ".tunewright"
    monkeypatch.setenv("TUNEWRIGHT_HOME", "")
    assert home() == tmp_path / ".tunewright"
    assert config.store() == ("", "") and config.of_home() == {"TUNEWRIGHT_HOME": str(home())}


def test_a_url_in_place_of_a_home_is_the_store_of_all_machines(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEWRIGHT_HOME", "s3://bucket/x")
    for named in ("", "s3://bucket/x"):
        monkeypatch.setenv("TUNEWRIGHT_STORE", named)
        assert home() == tmp_path / ".tunewright" and config.store() == ("TUNEWRIGHT_HOME", "s3://bucket/x")
    monkeypatch.setenv("TUNEWRIGHT_STORE", "")
    for name, value in config.of_home().items():
        monkeypatch.setenv(name, value)
    assert home() == tmp_path / ".tunewright" and config.store() == ("TUNEWRIGHT_STORE", "s3://bucket/x")


def test_a_tilde_that_no_shell_expanded_is_the_users_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("TUNEWRIGHT_HOME", "TUNEWRIGHT_STORE", "TUNEWRIGHT_LOCKS"):
        monkeypatch.setenv(name, f"~/{name}")
    assert home() == tmp_path / "TUNEWRIGHT_HOME"
    assert config.store() == ("TUNEWRIGHT_STORE", str(tmp_path / "TUNEWRIGHT_STORE"))
    assert environment.device_locks() == tmp_path / "TUNEWRIGHT_LOCKS"


def test_a_tilde_of_nobody_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_HOME", "~nobody-here/x")
    result = CliRunner().invoke(app, ["clean"])
    said = "TUNEWRIGHT_HOME=~nobody-here/x: no user here is called so; accepted: a path, also from ~/"
    assert (result.exit_code, result.stderr) == (2, f"error: {said}\n")


def test_two_stores_are_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_HOME", "s3://me:hush@bucket/x")
    monkeypatch.setenv("TUNEWRIGHT_STORE", "/mnt/store")
    said = "^TUNEWRIGHT_HOME=s3://bucket/x and TUNEWRIGHT_STORE=/mnt/store name two stores; accepted: one store in "
    with pytest.raises(ConfigError, match=said):
        config.store()


def test_what_the_gate_looks_at_is_measured() -> None:
    gate = Gate(metric="bleu", guardrails=(Guardrail(metric="stopped"), Guardrail(metric="chrf")))
    assert Settings(**NEEDED, gate=gate).measured().metrics == ("auto", "bleu", "chrf")
    named = Evaluation(metrics=("bleu", "chrf"))
    assert Settings(**NEEDED, gate=gate, evaluation=named).measured() == named
    assert Settings(**NEEDED).measured() == Evaluation()
    prompts = Evaluation(contenders=("retrieval",), documents=("handbook.md",), shots=4)
    assert Settings(**NEEDED, evaluation=prompts).measured() == Evaluation()


@pytest.mark.parametrize("path", ["~nobody-here/a.jsonl", "a\0b", "\ud800", "n" * 300])
def test_a_path_that_no_file_can_have_is_one_line(path: str) -> None:
    for section, name in ((Source, "path"), (Model, "base"), (Evaluation, "json_schema")):
        with pytest.raises(ValidationError) as raised:
            section.model_validate({name: path})
        (error,) = raised.value.errors()
        assert error["loc"] == (name,)
        assert len(error["msg"].encode().splitlines()) == 1
    with pytest.raises(ConfigError, match=r"^model\.chat_template="):
        chat_templates.text(path)
    assert Source(path=f"https://a/{'n' * 300}.jsonl")


def test_an_error_is_one_line_of_text_whatever_it_names() -> None:
    assert str(DataError("a\rb\n\ud800c")) == "a b \\ud800c"


LIBRARY = """
import atexit, gc, os, sys
atexit.register(lambda: print("frozen" if gc.get_freeze_count() else "collected"))
print(__name__, sys.argv[1:], gc.get_threshold(), os.environ["DO_NOT_TRACK"])
"""


def test_a_program_of_a_library_is_quiet_collects_rarely_and_ends_without_a_last_collection(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(LIBRARY)
    environment = {name: value for name, value in os.environ.items() if name != "DO_NOT_TRACK"}
    code = "import atexit, gc; from tunewright import config; config.quiet_libraries()"

    def said(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    known = f"__main__ ['a', 'b'] {RARE_COLLECTIONS} 1\n"
    assert said("-m", quietly.__name__, "library", "a", "b").startswith(known)
    looks = "atexit.register(lambda: print(gc.get_freeze_count()))"
    assert int(said("-c", f"import atexit, gc; {looks}; {code}")) > 10_000
