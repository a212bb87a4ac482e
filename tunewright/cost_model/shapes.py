"""The shape of a model, from its files' headers alone: how many parameters, in which matrices; no weight is read."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from tunewright.cost_model import gguf
from tunewright.machine import bounded
from tunewright.modeling import headers
from tunewright.serving import package_file

MAX_SHOWN = 40  # characters of a value in an error
EMBEDDING = ("embed_tokens", "wte", "embed_in", "word_embeddings")
HEAD = ("lm_head", "embed_out")
# What one layer computes from the same input: a projection's name says which.
INPUTS = {
    "attention": ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "in_proj_qkv"),
    "attended": ("o_proj", "out_proj", "dense", "c_proj"),
    "mlp": ("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h"),
    "inner": ("down_proj", "fc2", "dense_4h_to_h"),
}

# Of a mixture: the experts, one by one or in one tensor, and the router, which transformers loads as no linear modules.
EXPERTS = re.compile(
    r"\.experts(?:\.|$)|\.(?:mlp|block_sparse_moe)\.(?:gate|router)$|\.block_sparse_moe\.\w+_linear$"
    r"|\.ffn_(?:\w+_exps|gate_inp)$"
)
NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
NEEDED = ("hidden_size", "num_attention_heads", "vocab_size")
CONV1D = ("gpt2", "openai-gpt")  # whose files have each matrix transposed: [inputs, outputs]


class NoShape(ValueError):
    """The files do not tell a shape that the arithmetic here knows."""


class Matrix(NamedTuple):
    """A linear module of a layer."""

    layer: int
    name: str  # without the layers': q_proj
    outputs: int
    inputs: int
    path: str = ""  # of the module in the file: model.layers.0.self_attn.q_proj

    @property
    def size(self) -> int:
        """Its number of weights."""
        return self.outputs * self.inputs

    @property
    def reads(self) -> str:
        """Which of a layer's tensors it multiplies, a key of INPUTS; its own name where it is not known."""
        return next((source for source, names in INPUTS.items() if self.name in names), self.name)


class ModelShape(BaseModel, frozen=True):
    """The dimensions of an architecture that determine its memory and its FLOPs."""

    kind: str  # model_type: llama, qwen2
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool  # the head is the embedding's matrix
    matrices: tuple[Matrix, ...]  # the linear modules of the layers, layer by layer
    num_others: int  # parameters of norms and biases
    num_expert: int = 0  # weights of a mixture's experts and its routers, which are no linear modules when loaded
    expert_share: float = 0.0  # of them, that one token goes through

    @cached_property
    def num_layers(self) -> int:
        """The number of layers."""
        return 1 + max(matrix.layer for matrix in self.matrices)

    @cached_property
    def num_linear(self) -> int:
        """Weights of the layers' linear modules."""
        return sum(matrix.size for matrix in self.matrices)

    @property
    def num_embedding(self) -> int:
        """Weights of the embedding; the head has as many."""
        return self.vocabulary * self.hidden

    @property
    def num_parameters(self) -> int:
        """All parameters; a tied head is not counted twice."""
        embedding = self.num_embedding * (1 if self.tied else 2)
        return self.num_linear + self.num_expert + embedding + self.num_others

    @property
    def is_gated(self) -> bool:
        """Whether the layers' MLP multiplies an activated projection by another, as SwiGLU does."""
        return self.num_expert > 0 or any(matrix.name in ("gate_proj", "gate_up_proj") for matrix in self.matrices)

    @property
    def config(self) -> "Config":
        """The configuration that modeling/compute.py reads, as transformers names its fields."""
        return Config(
            {
                "model_type": self.kind,
                "hidden_size": self.hidden,
                "intermediate_size": self.intermediate,
                "num_hidden_layers": self.num_layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "vocab_size": self.vocabulary,
            }
        )


class Config:
    """A config.json by attributes, without the seconds that transformers' import takes."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None

    def get_text_config(self) -> "Config":
        """The language model's part of it."""
        return Config(self.fields["text_config"]) if "text_config" in self.fields else self


def config_in(weights: Path) -> Config:
    """The config.json of a folder of weights."""
    return Config(json.loads((weights / "config.json").read_text(encoding="utf-8")))


def shape_in(weights: Path) -> ModelShape:
    """The shape of the model in a folder of safetensors with its config.json.

    Raises NoShape where there are no layers of linear modules to be found, ValueError where a file was cut.
    """
    tensors = [item for file in sorted(weights.glob("*.safetensors")) for item in headers.tensors_in(file)]
    return shape_of(config_in(weights).get_text_config().fields, tensors, str(weights))


def shape_of_gguf(file: Path) -> ModelShape:
    """The shape of the model in a GGUF file. Raises NoShape where its header cannot be read within limits."""
    try:
        config, tensors = bounded.call(gguf.read_header, str(file))
    except bounded.Unreadable as error:
        raise NoShape(f"{file}: its header {error}; accepted: a whole GGUF file") from error
    return shape_of(config, tensors, str(file))


def shape_at(reference: str, revision: str | None) -> ModelShape | None:
    """The shape of the base that the settings name, as far as it is on this machine; None where it is not."""
    if reference.startswith("package:"):
        return shape_of_gguf(package_file(reference))
    folder = folder_of(reference, revision)
    return shape_in(folder) if any(folder.glob("*.safetensors")) else None


def config_at(reference: str, revision: str | None) -> Config:
    """The config.json of a base that is on this machine; of a GGUF file what its header says."""
    if reference.startswith("package:"):
        return shape_of_gguf(package_file(reference)).config
    return config_in(folder_of(reference, revision))


def folder_of(reference: str, revision: str | None) -> Path:
    """The folder of a base, in the hub's cache if it is there."""
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(reference, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else folder


def shape_of(config: Mapping[str, Any], tensors: Iterable[tuple[str, Sequence[int]]], where: str) -> ModelShape:
    """The shape of a model with these fields of config.json and these tensors; errors name `where`. Raises NoShape."""
    config = _with_common_names(config)
    matrices, num_others, num_expert, has_head = [], 0, 0, False
    for name, shape in tensors:
        layer = re.search(r"(?:layers|h|blocks|blk)\.(\d{1,9})\.", name)
        path = name.removesuffix(".weight")
        module = path.rpartition(".")[2]
        if layer and EXPERTS.search(path):
            num_expert += math.prod(shape)
        elif layer and len(shape) == 2:
            outputs, inputs = shape[::-1] if config.get("model_type") in CONV1D else shape
            matrices.append(Matrix(int(layer[1]), module, outputs, inputs, path))
        elif module in HEAD:
            has_head = True
        elif module not in EMBEDDING or len(shape) != 2:
            num_others += math.prod(shape)
    if matrices and max(matrix.layer for matrix in matrices) >= len(matrices):
        raise NoShape(
            f"{where} has tensors of layer {max(matrices).layer}, but only {len(matrices)} matrices in its layers"
        )
    if not matrices:
        raise NoShape(f"{where} has no layers of linear modules")
    if missing := [name for name in NEEDED if not config.get(name)]:
        raise NoShape(f"{where} has no {missing[0]} in its config, which the estimate needs")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    num_experts = next((config[name] for name in NUM_EXPERTS if config.get(name)), 1)
    try:
        return ModelShape(
            kind=config.get("model_type", ""),
            hidden=hidden,
            intermediate=_intermediate(config, hidden, is_mixture=num_expert > 0),
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or hidden // heads,
            vocabulary=config["vocab_size"],
            tied=not has_head and config.get("tie_word_embeddings", True),
            matrices=tuple(sorted(matrices)),
            num_others=num_others,
            num_expert=num_expert,
            expert_share=_experts_of_a_token(config) / num_experts if num_expert else 0.0,
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise NoShape(
            f"{where}: {fault['loc'][0]} is {str(fault['input'])[:MAX_SHOWN]!r}, not a number that the estimate can use"
        ) from None


def _with_common_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, with the names that most classes have beside those of its own, such as GPT-2's n_embd."""
    if all(config.get(name) for name in NEEDED):
        return config
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type", "")
    own_names = CONFIG_MAPPING[kind].attribute_map if kind in CONFIG_MAPPING else {}
    return {**config, **{name: config[own] for name, own in own_names.items() if own in config}}


def _intermediate(config: Mapping[str, Any], hidden: int, *, is_mixture: bool) -> int:
    """The width of the MLP for one token: of a mixture the experts that it goes through, and what all go through."""
    width = config.get("intermediate_size") or 4 * hidden
    if not is_mixture:
        return width
    if config.get("model_type") not in ("mixtral", "olmoe"):  # which have their experts' in intermediate_size
        width = config.get("moe_intermediate_size") or width
    return width * _experts_of_a_token(config) + (config.get("shared_expert_intermediate_size") or 0)


def _experts_of_a_token(config: Mapping[str, Any]) -> int:
    return config.get("num_experts_per_tok") or 1
