"""The private parts of libraries are as this project takes them to be."""

import asyncio
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogWorker
from prefect.states import exception_to_crashed_state
from trained import WITH_DEEPSPEED

from tunewright import compat
from tunewright.artifacts import Base
from tunewright.compat import suspending_as
from tunewright.flows.watch import STOPPED
from tunewright.modeling.models import load_model


@WITH_DEEPSPEED
def test_deepspeed_would_compile_sums_over_ranks_on_a_cpu_unless_it_is_told() -> None:
    from accelerate import PartialState

    deepspeed: Any = importlib.import_module("deepspeed")
    assert "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__
    assert callable(PartialState._reset_state)


def test_accelerate_shards_without_a_gpu_only_where_it_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two processes on a CPU would each have the whole model, and no test of FSDP would be one."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
    from accelerate.state import AcceleratorState

    def has_sharding() -> bool:
        AcceleratorState._reset_state()
        monkeypatch.setattr(PartialState, "_shared_state", {})
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = "MULTI_CPU"  # as in one of several processes
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        is_sharded = Accelerator(cpu=True, mixed_precision="bf16", fsdp_plugin=plugin).is_fsdp2
        AcceleratorState._reset_state()
        return is_sharded and getattr(plugin.mixed_precision_policy, "param_dtype", None) == torch.bfloat16

    assert not has_sharding()
    with compat.sharding_without_gpu():
        assert has_sharding()
    assert not has_sharding()


def test_a_partitioned_model_answers_without_the_inference_mode() -> None:
    """Weights that are put together within would be of no use in the next step of its training."""
    model = torch.nn.Linear(2, 2)
    with compat.without_gradients(model):
        assert torch.is_inference_mode_enabled()
    model.weight.ds_id = 0  # pyright: ignore[reportAttributeAccessIssue] as DeepSpeed marks it
    with compat.without_gradients(model):
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()


def test_a_suspended_run_says_why_it_waits_within_and_nothing_afterwards() -> None:
    flow_runs: Any = importlib.import_module("prefect.flow_runs")
    with suspending_as("a person decides"):
        state = flow_runs.Suspended(pause_key="budget", timeout_seconds=5)
    assert (state.name, state.message, state.state_details.pause_key) == ("Suspended", "a person decides", "budget")
    assert flow_runs.Suspended().message is None


def test_a_model_attends_by_another_attention_within_and_by_its_own_again(tiny_base: Base) -> None:
    model = load_model(tiny_base)
    own = compat.attention_of(model)
    with compat.attending_by(model, "eager"):
        assert compat.attention_of(model) == "eager" != own
    with compat.attending_by(model, ""):
        assert compat.attention_of(model) == own
    assert compat.attention_of(model) == own


def test_a_class_says_whether_it_computes_by_torchs_attention() -> None:
    assert compat.supports_sdpa({"model_type": "llama"})
    assert not compat.supports_sdpa({"model_type": "mamba"})


def test_the_forward_that_accelerate_wraps_is_kept_and_gives_logits_in_half_precision() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    layer = torch.nn.Linear(2, 2)
    assert compat.forward_in_autocast(layer) is layer
    AcceleratorState._reset_state(reset_partial_state=True)  # of a training of another test
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    wrapped: Any = accelerator.prepare_model(layer)
    with accelerator.autocast():
        assert wrapped(torch.ones(1, 2)).dtype == torch.float32
        assert compat.forward_in_autocast(wrapped)(torch.ones(1, 2)).dtype == torch.bfloat16
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_sampler_that_accelerate_shards_gives_every_batch_as_it_is_where_it_is_told_so() -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

    batches = BatchSampler(SequentialSampler(range(7)), batch_size=2, drop_last=False)
    rows: Any = [*range(7)]
    sharded: Any = DataLoader(rows, batch_sampler=BatchSamplerShard(batches, num_processes=3, process_index=1))
    assert list(sharded.batch_sampler) == [[2, 3], [1, 2]], "its own, and one that makes up the number"
    assert list(compat.whole_batches(sharded).batch_sampler) == list(batches) == [[0, 1], [2, 3], [4, 5], [6]]
    alone = DataLoader(rows, batch_sampler=batches)
    assert compat.whole_batches(alone) is alone


def test_attention_on_a_cpu_gives_the_logarithm_of_its_sums() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, columns, 8) for columns in (3, 5, 5))
    bias = torch.zeros(1, 1, 3, 5).masked_fill_(torch.ones(3, 5).triu(3).bool(), float("-inf")).repeat(1, 2, 1, 1)
    weighted, total = compat.attention_with_sums(query, key, value, bias)
    scores = query @ key.transpose(2, 3) + bias
    assert torch.allclose(weighted, scores.softmax(-1) @ value, atol=1e-5)
    assert torch.allclose(total, scores.logsumexp(-1), atol=1e-5)


def test_mlflow_forgets_a_database_and_deletes_a_run(mlflow_database: Path, tmp_path: Path) -> None:
    from mlflow.entities import RunStatus
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    uri = f"sqlite:///{shutil.copy(mlflow_database, tmp_path)}"
    store: Any = SqlAlchemyStore(uri, str(tmp_path))
    run_id = store.create_run("0", "user", 0, [], "run").info.run_id
    store.update_run_info(run_id, RunStatus.FINISHED, 5, None)
    compat.reopen_run(SimpleNamespace(_tracking_client=SimpleNamespace(store=store)), run_id, "again")
    info = store.get_run(run_id).info
    assert (info.run_name, info.status, info.end_time) == ("again", "RUNNING", 0)
    compat.delete_run(store, run_id)
    with pytest.raises(MlflowException, match=run_id):
        store.get_run(run_id)
    engine = store.engine
    compat.forget_engine(uri)
    assert SqlAlchemyStore(uri, str(tmp_path)).engine is not engine


def test_prefect_says_in_this_log_what_it_cannot_send() -> None:
    class Seen(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            said.append(record.getMessage())
            return False

    from prefect._internal.concurrency.services import logger  # pyright: ignore[reportPrivateImportUsage]

    said: list[str] = []
    seen = Seen()
    compat.filter_log_of_sending(seen)
    logger.error("cannot send")
    logger.removeFilter(seen)
    assert said == ["cannot send"]


def test_prefect_sends_events_and_logs_by_the_methods_that_are_replaced() -> None:
    async def drop(*_: Any) -> None:
        """Sends nothing."""

    workers: Any = ((EventsWorker, "_handle"), (APILogWorker, "_handle_batch"))
    before = [getattr(worker, method) for worker, method in workers]
    assert all(map(inspect.iscoroutinefunction, before))
    try:
        compat.replace_sending(drop)
        assert [getattr(worker, method) for worker, method in workers] == [drop, drop]
    finally:
        for (worker, method), sent in zip(workers, before, strict=True):
            setattr(worker, method, sent)


def test_the_event_after_a_state_without_an_event_or_of_an_earlier_server_waits_for_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.server.models import events
    from prefect.server.schemas.states import State, StateType

    source = inspect.getsource(events.flow_run_state_change_event)
    assert "follows=initial_state_id if _timing_is_tight(occurred, initial_state) else None" in source
    monkeypatch.setattr(events, "_timing_is_tight", events._timing_is_tight)
    now = datetime.now(UTC)
    scheduled, pending = (State(type=kind, timestamp=now) for kind in (StateType.SCHEDULED, StateType.PENDING))  # pyright: ignore[reportArgumentType]
    assert [events._timing_is_tight(now, each) for each in (scheduled, pending)] == [True, True]
    compat.tell_first_states_at_once()
    # Pending's event came to the server before this one: a restarted server would wait for it.
    assert [events._timing_is_tight(now, each) for each in (scheduled, pending, None)] == [False, False, False]
    now = datetime.now(UTC)
    since = [State(type=kind, timestamp=now) for kind in (StateType.SCHEDULED, StateType.PENDING)]  # pyright: ignore[reportArgumentType]
    assert [events._timing_is_tight(now, each) for each in since] == [False, True]


def test_a_model_with_a_state_says_so_as_serving_reads_it() -> None:
    from transformers import LlamaForCausalLM, MambaForCausalLM

    classes: Any = (MambaForCausalLM, LlamaForCausalLM)
    assert [getattr(kind, "_is_stateful", False) for kind in classes] == [True, False]


def test_prefects_clients_send_each_request_within_a_block() -> None:
    from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient

    @contextmanager
    def noted(host: str) -> Iterator[None]:
        hosts.append(host)
        yield

    hosts: list[str] = []
    clients: Any = (PrefectHttpxSyncClient, PrefectHttpxAsyncClient)
    before = [client._send_with_retry for client in clients]
    answer = httpx.MockTransport(lambda _: httpx.Response(200, json={}))
    try:
        compat.send_within(noted)
        with PrefectHttpxSyncClient(transport=answer) as client:
            client.get("http://one/")
        asyncio.run(_get(PrefectHttpxAsyncClient(transport=answer), "http://two/"))
    finally:
        for client, sent in zip(clients, before, strict=True):
            client._send_with_retry = sent
    assert hosts == ["one", "two"]


async def _get(client: httpx.AsyncClient, address: str) -> None:
    async with client:
        await client.get(address)


@pytest.mark.parametrize("ended_by", [TerminationSignal(signal=signal.SIGTERM), KeyboardInterrupt()])
def test_prefect_says_of_a_run_that_was_stopped_what_the_watcher_looks_for(ended_by: BaseException) -> None:
    state = asyncio.run(exception_to_crashed_state(ended_by))
    assert (state.message or "").startswith(STOPPED)


def test_a_library_is_imported_without_a_package_that_is_there_again_afterwards() -> None:
    sys.modules.pop("colorsys", None)
    with compat.importing_without("colorsys", "json"):
        assert importlib.util.find_spec("colorsys") is None
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
        assert importlib.import_module("json") is json, "what was imported before stays"
    assert importlib.import_module("colorsys").rgb_to_hsv


def test_bitsandbytes_and_trl_are_imported_without_what_takes_a_second() -> None:
    program = """
import importlib.metadata, json, sys, torch
from tunewright import compat
compiled, listed = torch.compile, importlib.metadata.packages_distributions
compat.import_bitsandbytes()
compat.import_trl()
import bitsandbytes.functional as F
from trl.import_utils import PACKAGE_DISTRIBUTION_MAPPING, _is_package_available
found = ["bitsandbytes" in sys.modules, "torch._inductor.compile_fx" in sys.modules]
restored = [torch.compile is compiled, importlib.metadata.packages_distributions is listed]
versions = [_is_package_available(name, return_version=True)[1] for name in ("peft", "a_module_that_is_not_there")]
weights = torch.linspace(-1, 1, 128)
quantized, state = F.quantize_4bit(weights, quant_type="nf4")
back = F.dequantize_4bit(quantized, state)
print(json.dumps([found, restored, dict(PACKAGE_DISTRIBUTION_MAPPING), versions, float((back - weights).abs().max())]))
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    found, restored, listed, versions, error = json.loads(said.splitlines()[-1])
    assert found == [True, False]
    assert restored == [True, True]
    assert listed == {}  # as nothing was read
    assert versions == [importlib.metadata.version("peft"), "N/A"]
    assert 0 < error < 0.2
