"""Every setting is listed, with its default, what is accepted and what it is."""

import json
import re

import pytest
from typer.testing import CliRunner

from tunewright.cli.main import app
from tunewright.cli.settings import Setting, listed
from tunewright.errors import ConfigError
from tunewright.flows.parameters import Parameters, checked, flat

ALL = {each.key: each for each in listed()}


def test_each_value_of_a_pipeline_is_listed_with_its_default() -> None:
    values = flat(Parameters.model_validate({"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "a/b"}}))
    assert {re.sub(r"\[\d+\]", "[]", key) for key in values} <= ALL.keys()
    for key in ("training.learning_rate", "method.kind", "gate.approval", "until"):
        assert ALL[key].default == values[key]
    assert all(each.description for each in ALL.values())
    assert [key for key, each in ALL.items() if each.is_needed and "[]" not in key] == ["data.sources", "model.base"]


def test_names_are_listed_where_nothing_else_is_accepted() -> None:
    assert ALL["data.repair"].choices == ("mojibake", "nfc")
    assert ALL["data.sources[].use_as"].choices == ("train", "validation", "test", "replay")
    assert ALL["gate.general_tasks"].choices == ALL["gate.metric"].choices == ()  # numbers, metrics of one's own


def test_of_a_list_any_names_are_accepted_and_of_a_value_one() -> None:
    said = " ".join(CliRunner().invoke(app, ["settings"]).stdout.split())
    lists = {key for key, each in ALL.items() if each.is_list and each.choices}
    assert lists == {"data.repair", "evaluation.contenders", "operation.notify_on", "refresh"}
    assert "(Unicode NFC). A list of any of mojibake, nfc." in said
    assert "A list of any of ingest, base, rehearse, check, " in said
    assert "as many as split.replay allows. One of train, validation, test, replay." in said


def test_what_a_file_has_to_set_is_shown_as_required() -> None:
    shown = CliRunner().invoke(app, ["settings", "model.base"]).stdout
    assert re.search(r"model\.base +required", shown)


def test_what_is_refused_of_held_out_files_is_not_listed_of_them() -> None:
    of_files = [key.rpartition(".")[2] for key in ALL if key.startswith("data.held_out[].")]
    of_sources = [key.rpartition(".")[2] for key in ALL if key.startswith("data.sources[].")]
    assert [*of_files, "use_as"] == of_sources
    values = {"data": {"sources": [{"path": "b.jsonl"}], "held_out": [{"path": "a.jsonl", "use_as": "test"}]}}
    with pytest.raises(
        ConfigError, match=r"^mine\.yaml: data\.held_out\[0\]\.use_as: .*accepted: path, layout, format"
    ):
        checked(values | {"model": {"base": "a/b"}}, lambda _: "mine.yaml")


def test_a_section_is_shown_to_a_person_and_to_a_program() -> None:
    shown = CliRunner().invoke(app, ["settings", "gate"])
    assert shown.exit_code == 0
    assert re.search(r"gate\.guardrails +\[\{margin: 0\.05, metric: stopped\}\]", shown.stdout)
    assert "training." not in shown.stdout
    said = json.loads(CliRunner().invoke(app, ["settings", "gate", "--json"]).stdout)["settings"]
    assert [Setting(**each).key for each in said] == [key for key in ALL if key.startswith("gate.")]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("training.max_steps", ["training.max_steps"]),
        ("data.sources[0].path", ["data.sources[].path"]),
        ("until", ["until"]),
        ("gate.guardrails", ["gate.guardrails", "gate.guardrails[].metric", "gate.guardrails[].margin"]),
    ],
)
def test_a_dotted_key_shows_that_setting_and_what_is_below_it(name: str, keys: list[str]) -> None:
    assert [each.key for each in listed(name)] == keys


def test_several_names_are_shown_in_their_order() -> None:
    shown = CliRunner().invoke(app, ["settings", "training.epochs", "split.by"])
    assert re.findall("training.epochs|split.by", shown.stdout) == ["training.epochs", "split.by"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gates", "did you mean gate? accepted: data, model"),
        ("x", "accepted: data, model"),
        ("training.max_step", "did you mean training.max_steps?"),
        ("learning_rate", "did you mean training.learning_rate or preference.learning_rate or grpo.learning_rate?"),
        ("training.lr", "did you mean training.learning_rate?"),
        ("lerning_rate", "did you mean training.learning_rate or preference.learning_rate or grpo.learning_rate?"),
        ("lr", "did you mean training.learning_rate or preference.learning_rate or grpo.learning_rate?"),
        ("num_train_epochs", "did you mean training.epochs?"),
        ("training.x", "accepted: learning_rate, epochs, "),
    ],
)
def test_a_name_that_is_none_is_one_line_with_what_is_near(name: str, said: str) -> None:
    refused = CliRunner().invoke(app, ["settings", name])
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["settings"], ["settings", "data"], ["doctor"]])
def test_no_line_is_longer_than_the_terminal_is_wide(command: list[str]) -> None:
    shown = CliRunner(env={"COLUMNS": "60"}).invoke(app, command).stdout
    assert max(map(len, shown.splitlines())) <= 60
    if command[0] == "settings":
        assert all(key in shown for key in ALL if key.startswith("data.")), "no key is cut in two"
    wide = CliRunner().invoke(app, command).stdout
    assert 60 < max(map(len, wide.splitlines())) <= 120
