"""A vLLM server draws the answers of a training on rewards with the adapter as it is; here a stand-in does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSplits
from trained import in_this_process
from vllm_stand_in import StandIn, vllm_stand_in

from tunewright.artifacts import Adapter, Base, Tokens
from tunewright.config import Compute, Grpo, Method, Model, Settings, Training
from tunewright.errors import ConfigError
from tunewright.generation import vllm_server
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
    monkeypatch.setattr(vllm_server.time, "sleep", lambda seconds: None)
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
        ({"statuses": [200, *[503] * 99]}, r"completions answers 503 "),
        ({"url": "http://127.0.0.1:9/v1"}, r"^compute\.vllm=http://127\.0\.0\.1:9/v1: ConnectError"),
    ],
)
def test_a_server_that_does_not_answer_as_it_should_is_one_error(
    fault: dict[str, Any], said: str, tokens: Tokens, tiny_base: Base, server: StandIn
) -> None:
    for name, value in fault.items():
        setattr(server, name, value)
    with pytest.raises(ConfigError, match=said):
        trained(tokens, tiny_base, server)


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
