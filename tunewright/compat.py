"""Every private part of a library that this project reaches; tests/test_compat.py fails where a library changes one.

Libraries are imported in the functions: this module lies below all others.
"""

import contextlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from starlette.applications import Starlette

STOPPED = "Execution was aborted by a"  # so begins what Prefect says of "a termination signal", "an interrupt signal"
STOPPED_EARLY = "Process exited with status code: -15."  # the same, of a run that could not yet say so itself


def tell_first_states_at_once() -> None:
    """Let this process's Prefect server act on a run's next state without a delay where no event came of the last one.

    The event of a state waits up to 15 minutes for that of the state before. The scheduler enters the state Scheduled
    without an event, and the events of states from before this process began came to the server that ran then.
    """
    from datetime import UTC, datetime

    from prefect.client.schemas.objects import StateType
    from prefect.server.models import events

    is_tight, began = events._timing_is_tight, datetime.now(UTC)

    def follows(occurred: Any, initial_state: Any) -> bool:
        has_event = initial_state and initial_state.type != StateType.SCHEDULED and initial_state.timestamp > began
        return bool(has_event) and is_tight(occurred, initial_state)

    events._timing_is_tight = follows


@contextlib.contextmanager
def suspending_as(message: str) -> Iterator[None]:
    """Have the state of a flow run that is suspended in the block say `message`; by itself it says nothing."""
    from functools import partial
    from unittest.mock import patch

    from prefect.states import Suspended

    with patch("prefect.flow_runs.Suspended", partial(Suspended, message=message)):
        yield


def import_bitsandbytes() -> None:
    """Import bitsandbytes without torch's compiler, which takes a second: a function is compiled at its first call."""
    import functools
    import sys
    from unittest.mock import patch

    import torch

    compiled = torch.compile

    def later(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        @functools.cache
        def at_first_call() -> Callable[..., Any]:
            return compiled(function, **options)

        return functools.wraps(function)(lambda *args, **kwargs: at_first_call()(*args, **kwargs))

    if "bitsandbytes" not in sys.modules and importlib.util.find_spec("bitsandbytes"):
        with patch.object(torch, "compile", later):
            importlib.import_module("bitsandbytes")


def import_trl() -> None:
    """Import TRL without a list of all packages, which takes a second: each is taken to be named as its module is."""
    from unittest.mock import patch

    class Names(dict[str, list[str]]):
        def __missing__(self, module: str) -> list[str]:
            return [module]

    with patch.object(importlib.metadata, "packages_distributions", Names):
        importlib.import_module("trl.import_utils")


@contextlib.contextmanager
def importing_without(*packages: str) -> Iterator[None]:
    """Libraries that are imported within do without the packages, as where these are not installed.

    With them, accelerate imports what SageMaker needs and transformers what finds objects in pictures: 0.7 s.
    """
    left_out = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(left_out))  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        yield
    finally:
        for name in left_out:
            del sys.modules[name]


def attention_of(model: Any) -> str:
    """The name of the attention that a model of transformers computes by now."""
    return model.config._attn_implementation


@contextlib.contextmanager
def attending_by(model: Any, name: str) -> Iterator[None]:
    """Computes by the attention of this name within; by the model's own where the name is empty."""
    before = attention_of(model)
    if name:
        model.set_attn_implementation(name)
    try:
        yield
    finally:
        if name:
            model.set_attn_implementation(before)


def supports_sdpa(fields: dict[str, Any]) -> bool:
    """Whether the class of a config.json says that it computes by torch's attention, without a model of it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(**fields))]  # pyright: ignore[reportAttributeAccessIssue]
    return kind._supports_sdpa


def forward_in_autocast(model: Any) -> Callable[..., Any]:
    """The forward that accelerate wrapped: its own makes the logits float32 after its autocast, twice as large.

    A model of several ranks has to be called as a whole: within the call it takes the place of accelerate's.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    if not isinstance(model, DistributedDataParallel | FSDPModule):
        return getattr(model, "_original_forward", model)
    whole: Any = model
    inner: Any = getattr(model, "module", model)
    wrapped = inner.forward

    def forward(*args: Any, **options: Any) -> Any:
        inner.forward = getattr(inner, "_original_forward", wrapped)
        try:
            return whole(*args, **options)
        finally:
            inner.forward = wrapped  # which answers are generated by

    return forward


def join_by_deepspeed() -> None:
    """Has DeepSpeed, and accelerate by it, use the connection that this rank has, also without a GPU.

    There DeepSpeed would compile sums over the ranks of its own, which take minutes and may not end; gloo has them.
    """
    import os

    import torch
    from accelerate import PartialState

    deepspeed: Any = importlib.import_module("deepspeed")  # an extra, so that type checkers may not find it
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState._reset_state()
    PartialState(backend=None if torch.cuda.is_available() else "gloo")


def is_sharded(model: Any) -> bool:
    """Whether a rank has a part of a model's weights, by FSDP2 or by ZeRO 3 of DeepSpeed."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule) or any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def without_gradients(model: Any) -> contextlib.AbstractContextManager[object]:
    """torch's inference mode; not of a sharded model, which trains with weights that it put together within."""
    import torch

    return torch.no_grad() if is_sharded(model) else torch.inference_mode()


def whole_batches(dataloader: Any) -> Any:
    """A dataloader that accelerate prepared, which gives every rank every batch as it is, and not each to one rank."""
    sampler = dataloader.batch_sampler
    if hasattr(sampler, "num_processes"):
        sampler.num_processes, sampler.process_index, sampler.even_batches = 1, 0, False
    return dataloader


def attention_with_sums(
    query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", bias: "torch.Tensor | None"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """torch's attention on a CPU, unscaled: [a, heads, queries, size], and the log of the sums [a, heads, queries].

    The public scaled_dot_product_attention is the same there and keeps the sums to itself.
    """
    import torch

    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=bias, scale=1.0)


SERVED = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/health"}


class _Built(Exception):
    """The app is there, and its server is not wanted."""

    def __init__(self, app: "Starlette") -> None:
        self.app = app


def app_of_transformers(model: str) -> "Starlette":
    """The app of `transformers serve` for a model at a path, which it loads, without its server, which asks for no key.

    It has the paths of SERVED alone: others load and unload models.
    """
    from transformers.cli.serve import Serve
    from transformers.cli.serving import server

    def build(*arguments: Any, **options: Any) -> None:
        raise _Built(original(*arguments, **options))

    original, server.build_server = server.build_server, build
    try:
        Serve(force_model=model, log_level="error", port=-1)  # a port that no server can have
    except _Built as built:
        built.app.router.routes = [each for each in built.app.routes if getattr(each, "path", "") in SERVED]
        return built.app
    finally:
        server.build_server = original
    raise AssertionError("Serve() returned without building the app")


def forget_engine(uri: str) -> None:
    """Drops MLflow's connections to a database, which it keeps by its address."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore._engine_map.pop(uri, None)


def reopen_run(client: Any, run_id: str, name: str | None) -> None:
    """Has a run of MLflow go on, under another name if one is given, and without an end: 0, as None would leave it."""
    from mlflow.entities import RunStatus

    client._tracking_client.store.update_run_info(run_id, RunStatus.RUNNING, 0, name)


def delete_run(store: Any, run_id: str) -> None:
    """Removes a run from MLflow's database, as `mlflow gc` does, which deletes whole experiments besides."""
    store._hard_delete_run(run_id)


def filter_log_of_sending(one: logging.Filter | Callable[[logging.LogRecord], bool]) -> None:
    """Puts a filter on the log in which Prefect says that events and logs cannot be sent."""
    logging.getLogger("prefect._internal.concurrency").addFilter(one)


def send_within(noted: Callable[[str], contextlib.AbstractContextManager[None]]) -> None:
    """Has all of Prefect's clients send each request, and each retry of it, within `noted(host)`."""
    from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient

    plain: Any = PrefectHttpxSyncClient
    concurrent: Any = PrefectHttpxAsyncClient
    retry, retry_concurrently = plain._send_with_retry, concurrent._send_with_retry

    def send_plainly(client: Any, *, request: Any, send: Callable[..., Any], **options: Any) -> Any:
        def sent(*args: Any, **kwargs: Any) -> Any:
            with noted(request.url.host):
                return send(*args, **kwargs)

        return retry(client, request=request, send=sent, **options)

    async def send_concurrently(client: Any, *, request: Any, send: Callable[..., Any], **options: Any) -> Any:
        async def sent(*args: Any, **kwargs: Any) -> Any:
            with noted(request.url.host):
                return await send(*args, **kwargs)

        return await retry_concurrently(client, request=request, send=sent, **options)

    plain._send_with_retry, concurrent._send_with_retry = send_plainly, send_concurrently


def replace_sending(send: Callable[..., Any]) -> None:
    """Has `send` in place of how Prefect sends events and logs of this process."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    workers: Any = ((EventsWorker, "_handle"), (APILogWorker, "_handle_batch"))
    for worker, method in workers:
        setattr(worker, method, send)


@contextlib.contextmanager
def sharding_without_gpu() -> Iterator[None]:
    """Has accelerate, within, shard models by FSDP2 over processes without a GPU, where it would copy them (DDP)."""
    from unittest.mock import patch

    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    init = AcceleratorState.__init__

    def sharded(state: Any, *given: Any, fsdp_plugin: Any = None, **others: Any) -> None:
        init(state, *given, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None and state.distributed_type == DistributedType.MULTI_CPU:
            if state._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(state._mixed_precision)
            state.fsdp_plugin, state.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    with patch.object(AcceleratorState, "__init__", sharded):
        yield
