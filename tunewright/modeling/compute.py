"""Choose how to train on a device: one pure choice, each part with its reason in words.

What compute leaves open is decided here, what it asks for is granted or refused with one line; nothing of it changes
what is learned but for rounding. `training.speed: plain` decides against everything that is left open.
"""

import importlib.util
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field

from tunewright.config import Compute, Method, Training
from tunewright.errors import ConfigError
from tunewright.machine import memory_bytes
from tunewright.modeling import architecture
from tunewright.modeling.micro_batching import Layout
from tunewright.reports.pages import counted

# liger-kernel 0.8 has kernels for their norms, rotary embeddings and SwiGLU.
LIGER = frozenset(("granite", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"))
# What configurations call their sizes: most, then GPT-2 and those after it, then MPT.
HIDDEN = ("hidden_size", "n_embd", "d_model")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
INNER = ("intermediate_size", "n_inner")
RESIDENT_SHARE = 0.6  # of a device's memory, for the weights and one row's activations

ZERO: dict[str, Literal[2, 3]] = {"zero2": 2, "zero3": 3}  # strategies of DeepSpeed -> the stage
BUCKET = 50_000_000  # numbers that DeepSpeed sums over the ranks at once, and half of those that it puts together

T = TypeVar("T")


class Device(BaseModel, frozen=True):
    """The device of a training."""

    kind: Literal["cpu", "cuda"] = "cpu"
    name: str = "cpu"
    has_bfloat16: bool = False  # and multiplies it faster than float32
    memory_bytes: int = 0
    has_flash_attention: bool = False
    has_liger: bool = False
    has_deepspeed: bool = Field(default_factory=lambda: importlib.util.find_spec("deepspeed") is not None)
    count: int | None = None  # how many GPUs there are, where that is known


class DdpMemory(BaseModel, frozen=True):
    """Bytes on each device: the estimated peak if each holds the whole model, and what a training may fill."""

    peak: int
    room: int

    @property
    def fits(self) -> bool:
        """Whether no weights have to be sharded."""
        return self.peak <= self.room


class Chosen(BaseModel, frozen=True):
    """The chosen options; `because` has the reason of each that was left to automatic choice."""

    precision: Literal["bfloat16", "float32"]
    shared_prefix: bool
    packing: bool
    checkpointing: bool
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    liger: bool
    compile: bool
    fused: bool  # adapters and norms in fewer passes on a CPU
    devices: int = 1
    sharded: bool = False  # the weights, gradients and optimizer states over the devices
    zero: Literal[0, 2, 3] = 0  # the stage of DeepSpeed's ZeRO; 0 is DDP, or FSDP2 if it is sharded
    offload: bool = False  # optimizer states, and weights that are sharded, in the main memory
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
    because: dict[str, str]

    @property
    def layout(self) -> Layout:
        """Return the layout of the rows of a micro-batch: see tunewright/modeling/batches."""
        if self.packing and self.attention == "flash_attention_2":
            return "flash"
        if self.shared_prefix:
            return "shared"
        return "packed" if self.packing else "padded"


def device_here() -> Device:
    """The first GPU, or else this machine's processors."""
    import torch

    if not torch.cuda.is_available():
        return Device(has_bfloat16=cpu_has_bfloat16(), memory_bytes=memory_bytes())
    properties = torch.cuda.get_device_properties(0)
    return Device(
        kind="cuda",
        name=properties.name,
        has_bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
        memory_bytes=properties.total_memory,
        has_flash_attention=importlib.util.find_spec("flash_attn") is not None and properties.major >= 8,
        has_liger=importlib.util.find_spec("liger_kernel") is not None,
        count=torch.cuda.device_count(),
    )


def cpu_has_bfloat16() -> bool:
    """Whether this machine's processors multiply bfloat16 faster than float32."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="ascii", errors="replace") if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose(
    config: Any,
    method: Method,
    training: Training,
    compute: Compute,
    longest: int,
    device: Device,
    ddp: DdpMemory | None = None,
) -> Chosen:
    """Choose the compute options. `config` is the base's transformers config, `longest` the most tokens of a row.

    `ddp` is the cost model's estimate, by which compute.strategy=auto decides; without one a rough formula does. Raises
    ConfigError if an option that the settings name is impossible.
    """
    choice = _Choice(config.get_text_config(), method, compute, longest, device, plain=training.speed == "plain")
    precision = choice.precision()
    attention = choice.attention(precision)
    shared_prefix = choice.shared_prefix(attention)
    sharded = choice.sharded(precision, ddp)
    return Chosen(
        precision=precision,
        attention=attention,
        shared_prefix=shared_prefix,
        packing=choice.packing(attention, shared_prefix),
        checkpointing=choice.checkpointing(precision, sharded=sharded),
        liger=choice.liger(),
        compile=choice.compile(attention),
        fused=choice.fused(precision),
        optimizer=choice.optimizer(sharded=sharded),
        devices=compute.num_ranks,
        sharded=sharded,
        zero=choice.zero(),
        offload=choice.offload(),
        because=choice.because,
    )


class _Choice:
    """One method a part; each notes its reason where the part was left open."""

    def __init__(
        self, config: Any, method: Method, compute: Compute, longest: int, device: Device, *, plain: bool
    ) -> None:
        self.config, self.method, self.compute, self.device = config, method, compute, device
        self.longest, self.plain = longest, plain
        self.because: dict[str, str] = {}
        self.found = architecture.of(config, longest)
        if self.found.refused:
            raise ConfigError(f"model.base: {self.found.refused}")

    def precision(self) -> Literal["bfloat16", "float32"]:
        if self.compute.precision != "auto":
            return self.compute.precision
        if self.plain:
            return self._because("precision", "float32", "training.speed=plain")
        if self.device.has_bfloat16:
            return self._because("precision", "bfloat16", f"{self.device.name} has fast bfloat16")
        return self._because("precision", "float32", f"{self.device.name} has no fast bfloat16")

    def attention(self, precision: str) -> Literal["sdpa", "eager", "flash_attention_2"]:
        asked = self.compute.attention
        if asked == "flash_attention_2":
            if not self.device.has_flash_attention:
                raise ConfigError(
                    f"compute.attention={asked}: needs a GPU of compute capability 8.0 or more and the package "
                    f"flash-attn; the device is {self.device.name}; accepted: sdpa"
                )
            if precision != "bfloat16":
                raise ConfigError(f"compute.attention={asked}: needs bfloat16, not compute.precision={precision}")
        kind = self.config.model_type
        if asked == "sdpa" and self.found.attention != asked:
            raise ConfigError(f"compute.attention=sdpa: models of type {kind} do not support it; accepted: eager")
        if asked != "auto":
            return asked
        if self._flash_pays(precision):
            why = f"attention dominates in a row of {self.longest} tokens, and compute.shared_prefix is false"
            return self._because("attention", "flash_attention_2", why)
        if self.found.attention == "eager":
            return self._because("attention", "eager", f"models of type {kind} have no other exact one")
        why = (
            "training.speed=plain"
            if self.plain
            else "works with shared prefixes and packing, and is as fast as the alternatives at this row length"
        )
        return self._because("attention", "sdpa", why)

    def _flash_pays(self, precision: str) -> bool:
        wanted = self.compute.shared_prefix is False and self.compute.packing is not False and self.longest > 2_048
        able = self.device.has_flash_attention and precision == "bfloat16" and not self._not_isolated()
        return wanted and able and not self.plain

    def shared_prefix(self, attention: str) -> bool:
        obstacle = self._obstacle(attention) or self.found.shared_prefix
        if self.compute.packing is False:
            obstacle = obstacle or "a shared prefix needs packing, and compute.packing is false"
        return self._switch("shared_prefix", obstacle, "the prefix that rows share is computed once")

    def packing(self, attention: str, shared_prefix: bool) -> bool:
        if shared_prefix:
            if self.compute.packing is None:
                self.because["packing"] = "a shared prefix needs packing"
            return True
        flash = attention == "flash_attention_2"
        obstacle = self._not_isolated() if flash else self._obstacle(attention) or self.found.packing
        return self._switch("packing", obstacle, "no padding is computed")

    def _not_isolated(self) -> str:
        """Why rows cannot lie in one sequence whatever the attention: something else may carry over; or empty.

        FlashAttention has a sliding window of its own, so no window counts.
        """
        return architecture.of(self.config).packing

    def _obstacle(self, attention: str) -> str:
        """Why our attention cannot take the place of that of the model; empty where that is sdpa."""
        if attention == "sdpa" or (self.compute.attention == "auto" and self.found.packing):
            return ""  # or it is said why it is not
        return f"compute.attention is {attention}"

    def sharded(self, precision: str, ddp: DdpMemory | None) -> bool:
        asked, devices = self.compute.strategy, self.compute.devices
        if self.device.count and devices > self.device.count:
            raise ConfigError(f"compute.devices={devices}: this machine has {counted(self.device.count, 'GPU')}")
        if self.compute.num_ranks == 1:
            if asked != "auto":
                raise ConfigError(
                    f"compute.strategy={asked}: there is one device; set compute.devices, or leave it out"
                )
            return False
        obstacle = self._not_sharded()
        if asked in {"fsdp", *ZERO} and obstacle:
            raise ConfigError(f"compute.strategy={asked}: {obstacle}; accepted: ddp")
        if asked != "auto":
            return asked in {"fsdp", "zero3"}
        if ddp:
            fits = ddp.fits
            why = f"with ddp it takes about {ddp.peak / 1e9:.1f} GB at peak, and {ddp.room / 1e9:.1f} GB may be filled"
        else:
            fits, why = self._fits(precision)
        why = f"{why} on each device" if fits or not obstacle else obstacle
        return self._because("sharded", not fits and not obstacle, why)

    def _not_sharded(self) -> str:
        """Why the model cannot be sharded; or empty."""
        if self.method.init in {"pissa", "olora"}:
            return f"what method.init={self.method.init} takes out of the base is not sharded with it"
        if self.method.kind == "osf":
            return "method.kind=osf takes main directions out of gradients that are whole"
        if self.method.kind == "qlora" and self.method.bits == 8 and self.compute.strategy != "zero2":
            return "method.bits=8 keeps scales beside its weights, which are not sharded with them"
        if "8bit" in self.compute.optimizer:
            return f"compute.optimizer={self.compute.optimizer} keeps states that cannot be sharded"
        return ""

    def zero(self) -> Literal[0, 2, 3]:
        asked = self.compute.strategy
        if asked in ZERO and not self.device.has_deepspeed:
            raise ConfigError(
                f"compute.strategy={asked}: DeepSpeed is not installed; pip install 'tunewright[deepspeed]', or fsdp"
            )
        return ZERO.get(asked, 0)

    def offload(self) -> bool:
        if self.compute.offload and self.compute.strategy not in ZERO:
            raise ConfigError(
                f"compute.offload=true: compute.strategy={self.compute.strategy} keeps all on the devices; accepted: "
                f"false, or compute.strategy={' or '.join(ZERO)}"
            )
        return self.compute.offload

    def checkpointing(self, precision: str, *, sharded: bool) -> bool:
        if self.compute.checkpointing is not None:
            return self.compute.checkpointing
        if self.plain:
            return self._because("checkpointing", False, "training.speed=plain")
        fits, why = self._fits(precision, self.compute.num_ranks if sharded else 1)
        return self._because("checkpointing", not fits, "the weights and a row fit without it" if fits else why)

    def _fits(self, precision: str, ranks: int = 1) -> tuple[bool, str]:
        """Whether a device has room for the weights, sharded over so many, and a row; and how much they take of it."""
        needed, there = (
            _resident_bytes(self.config, self.method, precision, self.longest, ranks),
            self.device.memory_bytes,
        )
        said = f"the weights and the longest row take about {needed / 1e9:.1f} GB of {there / 1e9:.1f} GB"
        return needed <= RESIDENT_SHARE * there, said

    def liger(self) -> bool:
        obstacle = ""
        if self.device.kind != "cuda":
            obstacle = "its kernels need a GPU"
        elif not self.device.has_liger:
            obstacle = "the package liger-kernel is not installed"
        elif self.config.model_type not in LIGER:
            obstacle = f"it has no kernels for models of type {self.config.model_type}"
        return self._switch("liger", obstacle, "fused norms, rotary embeddings and SwiGLU")

    def compile(self, attention: str) -> bool:
        obstacle = "compute.attention is flash_attention_2" if attention == "flash_attention_2" else ""
        if self.method.kind == "qlora":
            obstacle = "quantized layers break the graph"
        return self._switch("compile", obstacle, "")

    def fused(self, precision: str) -> bool:
        if self.plain:
            return self._because("fused", False, "training.speed=plain")
        useful = self.device.kind == "cpu" and precision == "bfloat16" and not self.compute.compile
        why = "fused kernels for adapters and norms" if useful else "it is faster only on a CPU in bfloat16"
        return self._because("fused", useful, why)

    def optimizer(self, *, sharded: bool) -> Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]:
        if self.compute.optimizer != "auto":
            return self.compute.optimizer
        if self.method.kind == "qlora" and self.device.kind == "cuda" and not self.plain and not sharded:
            return self._because("optimizer", "paged_adamw_8bit", "it saves GPU memory, and peaks move to host memory")
        return self._because("optimizer", "adamw", "training.speed=plain" if self.plain else "the default")

    def _switch(self, field: str, obstacle: str, reason: str) -> bool:
        """Off where there is an obstacle; raises ConfigError if it was asked for then."""
        asked: bool | None = getattr(self.compute, field)
        if asked and obstacle:
            raise ConfigError(f"compute.{field}=true: {obstacle}; accepted: false, or leave it out")
        if asked is not None:
            return asked
        if self.plain:
            return self._because(field, False, "training.speed=plain")
        return self._because(field, not obstacle, obstacle or reason)

    def _because(self, field: str, value: T, reason: str) -> T:
        self.because[field] = reason
        return value


def _resident_bytes(config: Any, method: Method, precision: str, tokens: int, ranks: int = 1) -> float:
    """Roughly what the weights, sharded over the ranks, and one row's activations take: an order of magnitude."""
    hidden, layers = _size(config, *HIDDEN), _size(config, *LAYERS)
    inner = _size(config, *INNER) or 4 * hidden
    parameters = layers * (4 * hidden * hidden + 3 * hidden * inner) + _size(config, "vocab_size") * hidden
    size = 2 if precision == "bfloat16" else 4
    weights = {
        "qlora": method.bits / 8,
        "lora": size,
        "spectrum": size + 16 * method.share,
        "osf": size
        + 2 * 20 * method.share,  # the directions of a square weight are two matrices, each there as it began
        "full": 16,
    }[method.kind]
    return parameters * weights / ranks + tokens * layers * size * (10 * hidden + 5 * inner)


def _size(config: Any, *names: str) -> int:
    """The first of these fields that the configuration has; 0 if none."""
    return next((size for name in names if (size := getattr(config, name, None))), 0)
