"""A vLLM server draws the answers of a training on rewards with the adapter as it is; here a stand-in does."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSplits
from trained import in_this_process
from vllm_stand_in import StandIn, vllm_stand_in

from tunewright import json_api
from tunewright.artifacts import Adapter, Base, Tokens
from tunewright.config import Compute, Grpo, Method, Model, Settings, Training
from tunewright.errors import ApiError, ConfigError, is_transient
from tunewright.generation import vllm_server
from tunewright.generation.rows import Answer
from tunewright.generation.vllm_server import VllmServer
from tunewright.tasks.reinforce import reinforce
from tunewright.tasks.render import render
from tunewright.tasks.train import stage as train_stage

GRPO = Grpo(rewards={"chrf": 1.0}, group=4, batch=2, max_new_tokens=6, learning_rate=0.01, max_steps=4)
SCHEDULE = GRPO.schedule(Training(batch=4, evaluate_every=4, patience=None))
SMALL = Method(rank=2, alpha=4)


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    rows = [[f"the question number {i}", f"yes, the answer is the {i % 3} again"] for i in range(18)]
    return render.fn(make_splits(rows[:12], rows[12:15], rows[15:]), tiny_base, Model(base="tiny", max_length=256))


@pytest.fixture
def server(tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(train_stage, "_attempt", in_this_process)
    monkeypatch.setattr(json_api.time, "sleep", lambda seconds: None)
    with vllm_stand_in(tiny_base) as served:
        yield served


def trained(tokens: Tokens, base: Base, server: StandIn, grpo: Grpo = GRPO) -> Adapter:
    compute = Compute(threads=1, vllm=server.url, precision="float32")
    return reinforce.fn(tokens, base, SMALL, grpo, SCHEDULE, compute)


@pytest.mark.parametrize("iterations", [1, 2])
def test_each_draw_is_of_the_adapter_as_it_is(
    iterations: int, tokens: Tokens, tiny_base: Base, server: StandIn
) -> None:
    grpo = Grpo.model_validate(GRPO.model_dump() | {"iterations": iterations})
    server.statuses = [503, 200, 500]
    made = trained(tokens, tiny_base, server, grpo)
    lines = [json.loads(line) for line in made.path("metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 4
    gaps = [line["vllm_gap"] for line in steps]
    assert max(gaps[::iterations]) < 1e-4, "the server has the weights that the step begins with"
    loaded = [request["lora_name"] for path, request in server.requests if path == "load_lora_adapter"]
    assert len({*loaded}) == 4 / iterations
    assert {*server.models} == {loaded[-1]}, "those before it were unloaded"
    asked = [request for path, request in server.requests if path == "completions"]
    assert len({request["seed"] for request in asked}) == 2 * 4 / iterations
    assert all(request["n"] == 4 and request["top_k"] == 0 and request["repetition_penalty"] == 1 for request in asked)
    if iterations == 1:
        assert any(line["reward_std"] > 0 for line in steps)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            {"gap": 2.0},
            r"^compute\.vllm: the server's log-likelihoods of its answers are 2 nats per token from the model",
        ),
        (
            {"statuses": [404]},
            r"load_lora_adapter answers 404 .*; accepted: a vLLM server of model\.base with --enable-",
        ),
    ],
)
def test_a_server_that_does_not_answer_as_it_should_is_one_error(
    fault: dict[str, Any], said: str, tokens: Tokens, tiny_base: Base, server: StandIn
) -> None:
    for name, value in fault.items():
        setattr(server, name, value)
    with pytest.raises(ConfigError, match=said):
        trained(tokens, tiny_base, server)


def test_a_server_that_is_away_is_transient_and_the_next_attempt_resumes(
    tokens: Tokens, tiny_base: Base, server: StandIn
) -> None:
    away = [200] * 6 + [503] * 99  # two draws, each of which loads an adapter and asks for two prompts
    server.statuses = away
    with pytest.raises(ApiError, match=r"^compute\.vllm=http\S+: no answer after 5 attempts: 503 ") as error:
        trained(tokens, tiny_base, server)
    assert is_transient(error.value)
    server.statuses, server.models = [], {}  # as after a restart
    server.requests.clear()
    made = trained(tokens, tiny_base, server)
    lines = [json.loads(line) for line in made.path("metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_a_server_without_the_adapter_before_is_asked_on(tokens: Tokens, tiny_base: Base, server: StandIn) -> None:
    server.statuses = [200] * 4 + [404]  # a load, two prompts, a load, and the first unload
    assert trained(tokens, tiny_base, server)


def test_a_server_away_from_the_start_is_one_error(tokens: Tokens, tiny_base: Base, server: StandIn) -> None:
    server.url = "http://127.0.0.1:9/v1"
    with pytest.raises(
        ApiError, match=r"^compute\.vllm=http://127\.0\.0\.1:9/v1/\w+: no answer .*ConnectError.* --ena"
    ):
        trained(tokens, tiny_base, server)


def test_the_trainer_shows_life_while_it_waits_for_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "BEAT", 0.01)
    answered, beats = threading.Event(), list[int]()

    def answer(*_: Any) -> list[Answer]:
        assert answered.wait(60)
        return [Answer([1], [1])]

    def beat(done: int) -> None:
        beats.append(done)
        if len(beats) == 3:
            answered.set()

    monkeypatch.setattr(VllmServer, "_ask", answer)
    server = VllmServer("http://localhost:9/v1", tmp_path, stops=[0], max_new_tokens=4)
    assert len(server.draw([Answer([1], [1])] * 2, ["a", "b"], 1, beat)) == 2
    assert beats[:3] == [0, 0, 0] and beats[-1] == 2


@pytest.mark.parametrize(
    ("sections", "accepted"),
    [
        ({"grpo": {}}, "grpo.rewards"),
        ({"method": {"kind": "full"}}, "method.kind=lora"),
        ({"method": {"dora": True}}, "method.dora=false"),
        ({"method": {"init": "pissa"}}, "method.init=default"),
        ({"grpo": {"rewards": {"chrf": 1}, "temperature": 0.7}}, "grpo.temperature=1"),
        ({"compute": {"vllm": "http://localhost:8000/v1", "devices": 2}}, "compute.devices=1"),
        ({"compute": {"vllm": "http://user:secret@localhost/v1"}}, "it is asked without a key"),
    ],
)
def test_settings_that_a_server_cannot_draw_with_are_refused(sections: dict[str, Any], accepted: str) -> None:
    whole = {
        "data": {"sources": [{"path": "a.jsonl"}]},
        "model": {"base": "org/name"},
        "grpo": {"rewards": {"chrf": 1}},
        "compute": {"vllm": "http://localhost:8000/v1"},
    }
    assert Settings.model_validate(whole).compute.vllm
    with pytest.raises(ValueError, match=accepted) as error:
        Settings.model_validate(whole | sections)
    assert "secret" not in str(error.value).replace("asked without", "")
