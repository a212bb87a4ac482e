"""Targets of what comes with a base: its chat template, its headers, and its folder as `plan` and `render` read it."""

import json
import math
import struct
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fuzz_inputs as inputs
from fuzz_target import Target, home, refusal
from hypothesis import strategies as st

from tunewright.artifacts import Base
from tunewright.cost_model import shapes
from tunewright.errors import TunewrightError
from tunewright.machine import bounded
from tunewright.modeling import headers, models
from tunewright.modeling.chat import Chat, Tokenized, tokenize

SECONDS = 1.0  # of processor time for a template, so that one without end is soon over

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PIECES = (
    *("{% for message in messages %}", "{% endfor %}", "{% if add_generation_prompt %}", "{% endif %}", "<|im_start|>"),
    *("{{ message.content }}", "{{ message['role'] }}", "{{ messages[-1].content }}", "{{ eos_token }}", "<|im_end|>"),
    *(
        "{{ raise_exception('a\\nb\\ud800') }}",
        "{{ strftime_now('%Y') }}",
        "{{ '\\ud800' }}",
        "{{ '\\0\\r' }}",
        "{{ 1/0 }}",
    ),
    *("{{ 'a' * 10**9 }}", "{{ range(10**12) | sum }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    *(
        "{{ messages | tojson }}",
        "{{ ''.__class__.mro() }}",
        "{% include 'a' %}",
        "{{ 10**100000 }}",
        "\u2028",
        "\x1b[2J",
    ),
    *("{% generation %}", "{% endgeneration %}", "{{ loop.index }}", "{% set ns = namespace(a=1) %}", "{{ ns.b.c }}"),
    *("{{ messages.append(messages[0]) }}", "{{ lipsum(n=3) }}", "{{ '%s' % 10**5 }}", "{{ -}}", "{#", "{% raw %}"),
)
CONVERSATIONS = (
    [{"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": " blank"},
        {"role": "user", "content": "<|im_end|>?"},
        {"role": "assistant", "content": ""},
    ],
    [{"role": "assistant", "content": "naïve 😀"}],
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 263,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "sliding_window": None,
    "torch_dtype": "float32",
}
SHAPES = {
    "model.embed_tokens.weight": (263, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
    "model.norm.weight": (8,),
}


def _header() -> dict[str, Any]:
    header, at = dict[str, Any](), 0
    for name, shape in SHAPES.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": [*shape], "data_offsets": [at, end]}
        at = end
    return header


HEADER = _header()


def _safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(4 * sum(map(math.prod, SHAPES.values())))


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _gguf(sizes: dict[str, Any], tensors: list[tuple[str, list[int]]]) -> bytes:
    settings = [_text("general.architecture"), struct.pack("<I", 8), _text("llama")]
    for name, size in sizes.items():
        settings += [_text(f"llama.{name}"), struct.pack("<IQ", 10, size % 2**64)]
    settings += [_text("tokenizer.ggml.tokens"), struct.pack("<IIQ", 9, 8, 2), _text("a"), _text("b")]
    settings += [_text("tokenizer.ggml.scores"), struct.pack("<IIQ2f", 9, 6, 2, 0.5, 1)]
    said = [
        _text(name)
        + struct.pack(f"<I{len(shape)}Q", len(shape), *(length % 2**64 for length in shape))
        + struct.pack("<IQ", 0, 0)
        for name, shape in tensors
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(sizes) + 3) + b"".join([*settings, *said])


GGUF_SIZES = {"embedding_length": 8, "feed_forward_length": 16, "attention.head_count": 2, "attention.head_count_kv": 1}
GGUF_TENSORS = st.lists(
    st.tuples(
        st.sampled_from(("token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight"))
        | st.sampled_from(
            ("blk.0.ffn_gate_exps.weight", f"blk.{'9' * 5_000}.attn_q.weight", "blk.².attn_q.weight", "")
        ),
        st.lists(st.integers(0, 2**64) | st.just(8), max_size=3) | st.just([8, 263]),
    ),
    max_size=5,
)
GGUF = inputs.faulty(
    st.builds(
        _gguf,
        st.fixed_dictionaries({name: st.just(size) | st.integers(0, 2**64) for name, size in GGUF_SIZES.items()})
        | st.just(GGUF_SIZES),
        GGUF_TENSORS.map(lambda tensors: [("token_embd.weight", [8, 263]), ("blk.0.attn_q.weight", [8, 8]), *tensors]),
    )
)


@cache
def chat_tokenizer() -> Any:
    """A tokenizer of bytes with the special tokens of CHATML."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE(vocab={token: id_ for id_, token in enumerate([*special, *alphabet])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=special[0], eos_token=special[1])


@cache
def _files() -> dict[str, bytes]:
    """The files of a base, by their names."""
    with home() as folder:
        chat_tokenizer().save_pretrained(folder)
        written = {file.name: file.read_bytes() for file in folder.iterdir()}
    written["config.json"] = inputs.as_json(CONFIG)
    written["generation_config.json"] = inputs.as_json({"eos_token_id": [1], "bos_token_id": 0, "do_sample": False})
    written["special_tokens_map.json"] = inputs.as_json({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    written["chat_template.jinja"] = CHATML.encode()
    written["model.safetensors"] = _safetensors(inputs.as_json(HEADER))
    return written


def _conversations(chat: Chat) -> str:
    """Each conversation is tokens with as many labels, or refused in one line."""
    tokenized = tokenize(chat, CONVERSATIONS, last_only=False)
    assert len(tokenized) == len(CONVERSATIONS)
    for each in tokenized:
        if isinstance(each, Tokenized):
            assert len(each.input_ids) == len(each.labels) >= each.prompt_length
        else:
            assert len(each.detail.splitlines()) == 1, f"several lines: {each.detail!r}"
    reasons = {each.reason for each in tokenized if not isinstance(each, Tokenized)}
    return "" if any(isinstance(each, Tokenized) for each in tokenized) else ", ".join(sorted(reasons))


def template(content: bytes) -> str:
    """A chat template says how conversations are written, or is refused."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = content.decode("utf-8", "replace")
    with home() as folder, patch.object(bounded, "SECONDS", SECONDS):
        try:
            return _conversations(Chat(tokenizer, folder))
        except TunewrightError as error:
            return refusal(error)


def safetensors(content: bytes) -> str:
    """A file of weights has the sizes that config.json says, and a shape that a budget can be made of."""
    with home() as folder:
        (folder / "model.safetensors").write_bytes(content)
        (folder / "config.json").write_bytes(inputs.as_json(CONFIG))
        try:
            headers.check_config(CONFIG, folder)
            shape = shapes.shape_in(folder)
        except ValueError as error:
            return refusal(error)
        assert shape.matrices
    return ""


def gguf(content: bytes) -> str:
    """A GGUF file's header is a shape."""
    with home() as folder:
        (folder / "a.gguf").write_bytes(content)
        try:
            shape = shapes.shape_of_gguf(folder / "a.gguf")
        except shapes.NoShape as error:
            return refusal(error)
        assert shape.hidden > 0
        assert shape.heads > 0
    return ""


def base(content: bytes) -> str:
    """A base's folder of which one file was altered: the first line names it, the rest is its content."""
    name, _, altered = content.partition(b"\n")
    files = _files()
    with home() as outside, patch.object(bounded, "SECONDS", SECONDS):
        folder = Path(outside) / "base"
        folder.mkdir()
        for each, usual in files.items():
            (folder / each).write_bytes(altered if each.encode() == name else usual)
        try:
            digest = models.identity(str(folder))
            shapes.shape_at(str(folder), None)
            made = Base(folder=folder, reference=str(folder), revision=None, location=Path(), weights_digest=digest)
            return _conversations(Chat(models.load_tokenizer(made), folder))
        except (TunewrightError, shapes.NoShape) as error:
            return refusal(error)


@st.composite
def _bases(draw: st.DrawFn) -> bytes:
    files = _files()
    name = draw(st.sampled_from(sorted(files)))
    if name.endswith(".json"):
        kinds = ("mistral", "gpt2", "mamba", "gemma2", "qwen3_moe", "t5")
        valid = json.loads(files[name])
        if name == "config.json" and draw(st.booleans()):
            valid |= {"model_type": draw(st.sampled_from(kinds))}
        content = draw(inputs.json_files(valid))
    elif name.endswith(".jinja"):
        content = draw(TEMPLATES)
    else:
        content = draw(SAFETENSORS)
    return name.encode() + b"\n" + content


SAFETENSORS = inputs.faulty(
    (st.just(HEADER) | inputs.altered_once(HEADER) | inputs.altered(HEADER)).map(inputs.as_json).map(_safetensors)
)
TEMPLATES = inputs.faulty(
    st.just(CHATML.encode())
    | st.lists(st.sampled_from(PIECES) | st.just(CHATML), max_size=8).map(
        lambda pieces: "".join(pieces).encode("utf-8", "surrogatepass")
    )
)

MODEL_TARGETS: dict[str, Target] = {
    "template": Target(TEMPLATES, template, ("transformers", "tokenizers")),
    "safetensors": Target(SAFETENSORS, safetensors, ("safetensors.numpy",)),
    "gguf": Target(GGUF, gguf),
    "base": Target(
        _bases(), base, ("torch", "transformers.models.llama.modeling_llama", "tunewright.modeling.architecture.checks")
    ),
}
