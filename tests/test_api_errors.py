"""A client of `tunewright api` can follow each of its errors: what is wrong, where, what is accepted, and no path."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from servers import free_port
from test_api import CHATS, HEADERS, KEY, PARAMETERS, Api, jsonl, running, write_template

from tunewright.cli.api import template
from tunewright.cli.api.curves import TrainingFollower
from tunewright.cli.api.sentences import for_client
from tunewright.cli.api.server import serve
from tunewright.cli.api.template import Template
from tunewright.cli.serve.server import Listening
from tunewright.errors import ConfigError
from tunewright.modeling import models


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Template:
    folder = tmp_path_factory.mktemp("team")
    return template.load(write_template(folder / "tiny.yaml", PARAMETERS), None, [], ["gpt-4o-mini"])


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, made: Template) -> Iterator[Api]:
    """One server for all; its first job stays at work, so that the others only wait."""
    with running(tmp_path_factory.mktemp("home") / "api", made) as api:
        api.comes_to(api.create(), "running")
        yield api


def refused(api: Api, method: str, path: str, body: Any = None) -> dict[str, Any]:
    answer = httpx.request(method, f"{api.url}{path}", content=json.dumps(body), headers=HEADERS)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ("nothere", "model.base=nothere: no such folder; accepted: a folder with safetensors, a hub id such as org/na"),
        ("package:nothere/a.gguf", "model.base=package:nothere/a.gguf: "),
        ("./empty", "model.base=.*empty: no config.json in it"),
    ],
)
def test_a_base_that_is_nowhere_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    file = write_template(tmp_path / "tiny.yaml", PARAMETERS | {"model": {"base": base}})
    with pytest.raises(ConfigError, match=sentence) as found:
        template.require_bases(template.load(file, None, [], []), print)
    assert found.value.exit_code == 2


def test_the_base_of_each_name_is_looked_for_and_no_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Any
) -> None:
    monkeypatch.setattr(models, "weights_digest", lambda _: pytest.fail("the weights were read"))
    file = write_template(tmp_path / "tiny.yaml", PARAMETERS | {"model": {"base": tiny_base.reference}})
    template.require_bases(template.load(file, None, [], ["gpt-4o-mini"]), print)
    with pytest.raises(ConfigError, match=r"model\.base=nothere: no such folder"):
        template.require_bases(template.load(file, None, [], ["gpt-4o-mini=nothere"]), print)


NO_ANSWER = [{"messages": chat["messages"][:-1]} for chat in CHATS]
UMLAUTS = [{"messages": [{"role": "user", "content": "Wo ist Köln?"}, {"role": "assistant", "content": "Am Rhein"}]}]
AS_JSON_LINES = "; upload it as JSON Lines in UTF-8: one JSON object on each line"


def lines_of(records: list[Any], encoding: str) -> bytes:
    return "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in records).encode(encoding)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (json.dumps(CHATS).encode(), f"is a JSON array{AS_JSON_LINES}"),
        (json.dumps(CHATS, indent=1).encode(), f"is a JSON array{AS_JSON_LINES}"),
        (b"[]", f"is a JSON array{AS_JSON_LINES}"),
        (jsonl(CHATS).decode().encode("utf-16"), f"the file is UTF-16; accepted: UTF-8{AS_JSON_LINES}"),
        (
            lines_of(UMLAUTS * 9, "latin-1"),
            "9 of 9 records cannot be used, accepted are at most 10 %: 9 bad_encoding, ",
        ),
        (b"\n".join(jsonl(CHATS).splitlines()[:3]).replace(b"\n", b"\n\n"), "2 of 5 records cannot be used, accepted "),
        (jsonl(NO_ANSWER), "72 of 72 examples have no assistant message at the end to train on, first line 1"),
        (
            jsonl([*CHATS[:20], *NO_ANSWER[20:40]]),
            "20 of 40 examples have no assistant message at the end to train on, first line 21; accepted are at most "
            "20 %",
        ),
        (jsonl(NO_ANSWER[:1]), "1 of 1 example has no assistant message at the end to train on, first line 1"),
        (jsonl(CHATS[:1]), "1 different prompt; accepted: 3 or more, since it is split into training, validation and "),
        (jsonl(CHATS[:1] * 50), "1 different prompt; accepted: 3 or more"),
        (b"PK\x03\x04" * 9, "the file is compressed in another format than gzip"),
    ],
)
def test_a_file_that_the_pipeline_would_refuse_is_refused_in_words_for_its_client(
    api: Api, content: bytes, sentence: str
) -> None:
    file = api.upload(content, "mine.jsonl")
    error = api.comes_to(api.create(training_file=file), "failed").error
    assert (error.code, error.param) == ("invalid_training_file", "training_file")
    assert error.message[: len(begin := f"mine.jsonl ({file}): {sentence}")] == begin
    assert not re.search(r"/|iconv|data\.|python|set format", error.message), error.message


def test_blank_lines_and_wrong_encodings_say_what_to_do(api: Api) -> None:
    blank = api.comes_to(api.create(training_file=api.upload(b"\n" + jsonl(CHATS[:8]))), "failed").error.message
    assert blank.endswith("accepted are at most 10 %: 1 blank_line (leave blank lines out), first line 1, empty")
    latin = api.upload(lines_of(UMLAUTS * 9, "latin-1"))
    assert api.comes_to(api.create(training_file=latin), "failed").error.message.endswith(AS_JSON_LINES)


def test_rows_without_an_answer_that_are_few_are_left_out_with_a_warning(api: Api) -> None:
    job = api.create(training_file=api.upload(jsonl([*CHATS[:30], NO_ANSWER[30]])))
    api.comes_to(job, "queued")
    (said,) = (each for each in api.said(job) if "left out" in each)
    assert said.endswith(
        "31 examples; 1 of 31 examples has no assistant message at the end to train on, first line 31: left out"
    )


def test_an_error_of_a_run_names_no_path_and_the_operator_gets_it(tmp_path: Path, made: Template) -> None:
    with running(tmp_path / "api", made) as api:
        job = api.create()
        path = api.files.path(api.files.get(job.training_file))
        said = f"data.sources[0]: {path}: 9 of 9 rows fit in no split; see {tmp_path}/home/stopped/split/ab/report.html"
        api.end(3, error=said)
        error = api.comes_to(job, "failed").error
        assert error.message == f"chats.jsonl ({job.training_file}): 9 of 9 rows fit in no split"
        assert any(said in line for line in api.told)


def test_a_sentence_for_a_client_has_no_path(api: Api, made: Template) -> None:
    said = (
        f"model.base={made.folder}/base: no such folder; accepted: org/name; {made.folder}/a b.json and /etc/x.y, 1/2"
    )
    expected = "model.base=base: no such folder; accepted: org/name; a b.json and x.y, 1/2"
    assert for_client(said, api.files, (), made.folder) == expected
    said = "registry.tracking_uri=sqlite:////srv/home/mlflow.db: MLflow refused: no"
    assert for_client(said, api.files, (), made.folder) == "MLflow's database: MLflow refused: no"


def test_a_home_that_no_job_may_read_is_refused_at_the_start(
    made: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_ROOTS", str(tmp_path / "data"))
    with pytest.raises(ConfigError, match=r"TUNEWRIGHT_HOME=.*: lies outside TUNEWRIGHT_ROOTS="):
        serve(made, os.environ, Listening("127.0.0.1", free_port(), KEY, 1), print)


@pytest.mark.parametrize(
    ("fields", "sentence", "param"),
    [
        ({"seed": 4_294_969_999}, "seed 4294969999: accepted: a whole number from 0 to 4294967295", "seed"),
        (
            {"method": {"type": "foo"}},
            'method.type: "foo" is no known method of training; accepted: sup',
            "method.type",
        ),
        ({"method": {"type": ["dpo"]}}, 'method.type: ["dpo"] is no known method of training; ', "method.type"),
        ({"method": {"supervised": {}}}, "method.type: is missing; accepted: supervised", "method.type"),
        (
            {"suffix": ""},
            'suffix "": accepted: text of 1 to 64 characters, with one of a-z or 0-9 among them',
            "suffix",
        ),
        ({"suffix": "a" * 65}, 'suffix "aaaaaaaa', "suffix"),
        ({"suffix": "\ud800"}, 'suffix "\\ud800": accepted: text of 1 to 64 characters', "suffix"),
        ({"metadata": {"suffix": 3}}, "metadata.suffix 3: accepted: up to 16 pairs of texts", "metadata"),
        (
            {"hyperparameters": {"n_epochs": 1_001}},
            "hyperparameters.n_epochs 1001: accepted: auto, or a whole number from 1 to 1000",
            "hyperparameters.n_epochs",
        ),
        (
            {"hyperparameters": {"batch_size": 1_000_001}},
            "hyperparameters.batch_size 1000001: accepted: auto, or a whole number from 1 to 1000000",
            "hyperparameters.batch_size",
        ),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate_multiplier": 101}}}},
            "method.supervised.hyperparameters.learning_rate_multiplier 101.0: accepted: auto, or a number above 0",
            "method.supervised.hyperparameters.learning_rate_multiplier",
        ),
        (
            {"model": "ft:gpt-4o-mini:tunewright:a:12345678"},
            'model "ft:gpt-4o-mini:tunewright:a:12345678": fine-tuning of a fine-tuned model is not supported; '
            "accepted: base, gpt-4o-mini",
            "model",
        ),
    ],
)
def test_a_field_is_refused_with_its_key_its_value_and_what_is_accepted(
    api: Api, fields: dict[str, Any], sentence: str, param: str
) -> None:
    error = refused(api, "POST", "/v1/fine_tuning/jobs", {"model": "base", "training_file": "file-none"} | fields)
    assert (error["message"][: len(sentence)], error["param"]) == (sentence, param)
    assert not re.search(r"should|valid|the job's", error["message"])


def test_a_chat_is_refused_in_the_same_words(api: Api) -> None:
    error = refused(api, "POST", "/v1/chat/completions", {"model": "a", "messages": "x"})
    assert (error["message"], error["param"]) == ('messages "x": accepted: a list', "messages")


def test_a_path_without_the_method_says_which_it_has_and_an_unknown_one_is_named(api: Api) -> None:
    answer = httpx.put(f"{api.url}/v1/files", headers=HEADERS)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, POST")
    assert answer.json()["error"]["message"] == 'PUT "/v1/files": accepted: GET, HEAD, POST'
    answer = httpx.get(f"{api.url}/v1/embeddings", headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, 'GET "/v1/embeddings": no such path')


def test_the_bases_are_listed_beside_the_models_and_answer_nothing(api: Api) -> None:
    assert [(each.id, each.owned_by) for each in api.client.models.list()] == [
        ("base", "system"),
        ("gpt-4o-mini", "system"),
    ]
    assert api.client.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
    with pytest.raises(openai.NotFoundError, match="'base' can be fine-tuned, but is not served; accepted: "):
        api.client.chat.completions.create(model="base", messages=[{"role": "user", "content": "Hello"}])


def test_an_upload_may_say_when_it_expires(api: Api) -> None:
    file = api.client.files.create(
        file=("a.jsonl", jsonl(CHATS)),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3_600},
    )
    assert file.expires_at is None


def test_a_step_is_one_event_also_where_its_evaluation_is_not_done_yet(tmp_path: Path) -> None:
    metrics, follower = tmp_path / "metrics.jsonl", TrainingFollower([])

    def steps(*points: dict[str, float]) -> list[tuple[int, bool]]:
        whole = [{"planned": 3, "time": 1.0, "epoch": 1.0} | point for point in points]
        metrics.write_text("".join(f"{json.dumps(each)}\n" for each in whole))
        return [(int(figures["step"]), "valid_loss" in figures) for _, figures in follower.read(metrics)]

    first, second, evaluated = {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5}
    assert steps(first) == []
    assert steps(first, second) == [(1, False)]
    assert steps(first, second, evaluated) == [(2, True)]
    assert steps(first, second, evaluated, {"step": 3, "loss": 0.5}) == []
