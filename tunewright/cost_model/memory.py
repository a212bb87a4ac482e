"""The memory that training takes at its peak, part by part, from the model's shape and the settings.

Every figure is counted from what the trainer's code keeps, tensor by tensor; a test holds the activations against the
tensors that autograd really saves. N is a number of parameters, and a size is 2 bytes in bfloat16 and 4 in float32.

- weights: N x size; of qlora's layers 4.127 bits (NF4, and its constants quantized again: arXiv 2305.14314, section 3)
  or a byte, and in the main memory the file as well that they were packed from, which stays mapped. What learns is
  float32, beside a bfloat16 copy that autocast keeps for the backward pass.
- gradients: 4 bytes, of what learns. They come as the activations go, so that on a GPU the peak has the larger of the
  two, unless a step has several micro-batches.
- optimizer: AdamW's two moments, 4 bytes each, or a byte each and a constant for every 256; an embedding's always 4.
- activations: what the backward pass reads, per token and layer; the gradients that it passes down through one layer's
  MLP; with qlora, a matrix that is unpacked to multiply.
- logits: of labelled positions only: they and their gradient, and two pieces of PIECE positions in float32. Where the
  head learns, its gradient comes next, while all activations are there. Those of general rows that are kept near the
  base are there twice.
- runtime: the libraries, or a GPU's context.

Of several devices these are the bytes of each. DDP sums gradients in buckets, a copy of them. FSDP2 shards weights,
gradients and moments, but for two layers and the embeddings, which are gathered to be computed. ZeRO 3 shards the same,
and ZeRO 2 gradients and moments; DeepSpeed has what learns in the type of the other weights, with a float32 copy beside
the moments, and buckets for sums and gathered weights. Offloaded from a GPU, what is sharded is in the main memory.

A CPU's allocator, glibc's, keeps freed blocks of less than 32 MB in its heap as holes that others seldom fill. As
measured, an eighth more than the activations is resident, and half of the smaller of activations and gradients does not
find its place in what the larger leaves. With MALLOC_MMAP_THRESHOLD_=65536 it is as on a GPU, at the price of speed.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel

from tunewright.config import Method
from tunewright.cost_model.learning import Learning, directions, learning
from tunewright.cost_model.shapes import Matrix, ModelShape
from tunewright.modeling.compute import BUCKET, Chosen, Device

FLOAT = 4
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # bytes a weight
ADAMW = {"adamw": 8.0, "adamw_8bit": 2 + 2 * 4 / 256, "paged_adamw_8bit": 2 + 2 * 4 / 256}  # bytes a parameter
EMBEDDING_ADAMW = 8.0  # of an embedding, whatever the others take: transformers leaves its moments in float32
PIECE = 256  # tunewright/modeling/batches/__init__.py
SCORES = 2**23  # tunewright/modeling/batches/attention.py
# A trainer process without its model: on a CPU what torch, transformers, TRL, PEFT and bitsandbytes have resident, and
# on a GPU its context and the kernels that are loaded.
RUNTIME = {"cpu": 660_000_000, "cuda": 600_000_000}
HOLES = {"cpu": (1 / 8, 1 / 2), "cuda": (0, 0)}  # shares of the activations, and of what takes turns with the other


class Load(NamedTuple):
    """The tokens of one micro-batch on the device."""

    tokens: int  # that are computed: padding counts, and what rows share counts once where it is computed once
    scored: int  # labelled positions
    groups: tuple[tuple[int, int], ...]  # of rows that attend side by side: how many, and the tokens of the longest
    prefix: int = 0  # tokens that all rows begin with and that are computed once
    anchored: int = 0  # of the labelled positions, those of general rows that are kept near the base
    is_masked: bool = False  # rows that are padded in the batch itself
    is_whole_step: bool = True  # otherwise gradients of the step's other micro-batches are there as well

    @property
    def apart(self) -> int:
        """Tokens of the rows as they attend, padded and without the prefix."""
        return sum(rows * (longest - self.prefix) for rows, longest in self.groups)

    @property
    def behind(self) -> int:
        """The same with the prefix before each row."""
        return sum(rows * longest for rows, longest in self.groups)

    @property
    def seen(self) -> int:
        """Numbers of the attention matrices of one head."""
        return sum(rows * (longest - self.prefix) * longest for rows, longest in self.groups)


class Memory(BaseModel, frozen=True):
    """Bytes, part by part."""

    kind: Literal["cpu", "cuda"]
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int
    is_whole_step: bool

    @property
    def parts(self) -> dict[str, int]:
        """The parts by name."""
        return self.model_dump(exclude={"kind", "is_whole_step"})

    @property
    def peak(self) -> int:
        """The most bytes at once."""
        both = self.activations + self.activations * HOLES[self.kind][0] + self.logits, self.gradients
        moving = max(both) + self._apart if self.is_whole_step else sum(both)
        return self.weights + self.adapter + self.optimizer + self.runtime + int(moving)

    @property
    def holes(self) -> int:
        """Freed blocks that the allocator keeps, in the peak besides the parts."""
        return int(self.activations * HOLES[self.kind][0] + self._apart)

    @property
    def _apart(self) -> float:
        """The bytes of activations or gradients that find no place in what the larger of them leaves."""
        heap, apart = HOLES[self.kind]
        return apart * min(self.activations * (1 + heap) + self.logits, self.gradients) if self.is_whole_step else 0.0


def memory(
    shape: ModelShape, method: Method, chosen: Chosen, load: Load, kind: Literal["cpu", "cuda"] = "cpu"
) -> Memory:
    """Estimate the memory for training a model of this shape on a device of this kind."""
    what = learning(shape, method)
    size = _size(chosen)
    weights = _weights(shape, method, what, size)
    if method.kind == "qlora" and kind == "cpu":
        weights += shape.num_linear * 2  # as tunewright/modeling/models.py has the base's file, in bfloat16
    copies = what.num_learning * size if size < FLOAT else 0
    adapter = what.num_learning * FLOAT if what.is_adapter else 0
    if method.init in ("pissa", "olora") and kind == "cpu":
        adapter *= 2  # as it began, to be taken out again when it is saved: in the main memory
    if method.kind == "osf":
        adapter += FLOAT * sum(_as_it_began(matrix, method) for matrix in what.matrices)
    gradients, moments = what.num_learning * FLOAT, _moments(shape, method, chosen, what)
    if chosen.zero:
        copies, moments = 0, moments + what.num_learning * FLOAT
        smaller = what.num_learning * (FLOAT - size)
        adapter, weights = (adapter - smaller, weights) if what.is_adapter else (adapter, weights - smaller)
    is_moved = chosen.offload and kind == "cuda"
    if chosen.sharded:
        gathered = 2 * weights // (shape.num_layers + 1) + shape.num_embedding * size
        gathered += 2 * BUCKET * size if chosen.zero else 0
        weights = min(weights, (0 if is_moved else weights // chosen.devices) + gathered)
        adapter = 0 if is_moved else adapter // chosen.devices
    if chosen.sharded or chosen.zero:
        gradients, moments = (0 if is_moved else part // chosen.devices for part in (gradients, moments))
    elif chosen.devices > 1:
        gradients *= 2
    gradients += BUCKET * FLOAT if chosen.zero else 0
    passed = load.tokens * size * (3 * shape.intermediate + 2 * shape.hidden)
    unpacked = max(matrix.size for matrix in shape.matrices) * size if method.kind == "qlora" else 0
    return Memory(
        kind=kind,
        weights=weights,
        adapter=adapter,
        gradients=gradients,
        optimizer=moments,
        activations=copies + unpacked + passed + activations(shape, method, chosen, load, what, kind),
        logits=_logits(shape, method, size, load.scored + load.anchored),
        runtime=RUNTIME[kind],
        is_whole_step=load.is_whole_step,
    )


def _as_it_began(matrix: Matrix, method: Method) -> int:
    """Numbers of osf that do not learn: the directions before training, and the others of a matrix that is no square.

    PEFT projects gradients by them.
    """
    number, sizes = directions(matrix, method), (matrix.inputs, matrix.outputs)
    others = (min(sizes) - number) * max(sizes) if matrix.inputs != matrix.outputs else 0
    return number * (sum(sizes) + 1) + others


def _moments(shape: ModelShape, method: Method, chosen: Chosen, what: Learning) -> int:
    embedding = shape.num_embedding if method.kind == "full" else 0
    return int((what.num_learning - embedding) * ADAMW[chosen.optimizer] + embedding * EMBEDDING_ADAMW)


def evaluation_bytes(shape: ModelShape, method: Method, device: Device) -> int:
    """Return the bytes that evaluation and serving load: the base dequantized, and the adapter, without rows."""
    what = learning(shape, method)
    size = 2 if device.has_bfloat16 else FLOAT
    beside = what.num_learning * FLOAT if what.is_adapter and method.kind != "osf" else 0
    return shape.num_parameters * size + beside + RUNTIME[device.kind]


def _logits(shape: ModelShape, method: Method, size: int, scored: int) -> int:
    scoring = shape.vocabulary * (2 * size * scored + 2 * FLOAT * min(scored, PIECE))
    if method.kind != "full":
        return scoring
    return max(scoring, shape.vocabulary * size * scored + shape.num_embedding * (size + FLOAT))


def _size(chosen: Chosen) -> int:
    return 2 if chosen.precision == "bfloat16" else FLOAT


def _weights(shape: ModelShape, method: Method, what: Learning, size: int) -> int:
    rest = shape.num_parameters - shape.num_linear
    if method.kind == "qlora":
        return int(shape.num_linear * (NF4 if method.bits == 4 else 1) + rest * size)
    frozen = shape.num_parameters - (0 if what.is_adapter else what.num_learning)
    return frozen * size + (shape.num_parameters - frozen) * FLOAT


def activations(
    shape: ModelShape, method: Method, chosen: Chosen, load: Load, what: Learning, kind: Literal["cpu", "cuda"] = "cpu"
) -> int:
    """Estimate the bytes that the layers keep for the backward pass.

    With checkpointing that is each layer's input, and all of one layer while it is computed again. The norm after the
    last layer keeps as much as the first norm would, which keeps nothing where its input has no gradient.
    """
    stream = FLOAT if method.kind == "full" else _size(chosen)  # of the residual stream
    attended = _attention(shape, chosen, load, kind)
    reached = range(what.first_layer, shape.num_layers)
    layers = [attended + _layer(shape, method, chosen, load, what, number) for number in reached]
    if chosen.checkpointing:
        return max(layers) + shape.num_layers * load.tokens * shape.hidden * stream
    return sum(layers) + (load.tokens * _norm(shape, method, chosen) if method.kind == "full" else 0)


def _layer(shape: ModelShape, method: Method, chosen: Chosen, load: Load, what: Learning, number: int) -> int:
    """A layer without its attention."""
    size = _size(chosen)
    learns = [matrix for matrix in what.matrices if matrix.layer == number]
    mlp = shape.intermediate * size * (3 if shape.is_gated else 1)  # gate, activated gate and up, which are multiplied
    a_token = 2 * _norm(shape, method, chosen) + mlp
    copies = 0
    if method.kind == "osf":  # both products of the directions as they are and as they began, and autocast's copies
        a_token += size * sum(2 * directions(matrix, method) for matrix in learns)
        copies = sum(directions(matrix, method) * (matrix.inputs + matrix.outputs) for matrix in learns)
        copies *= size * (1 if size < FLOAT else 2)
    elif what.is_adapter:
        a_token += size * method.rank * len(learns)
    a_token += size * _inputs(method, chosen, learns)
    kept = load.tokens * a_token + copies
    if method.dora:  # both products of each module, and the identity that shows PEFT its adapter as a matrix
        kept += size * sum(load.tokens * 2 * matrix.outputs + matrix.inputs**2 for matrix in learns)
    return kept


def _norm(shape: ModelShape, method: Method, chosen: Chosen) -> int:
    """Bytes a token that a norm keeps: its input in float32 and one deviation; its output where its weight learns.

    The trainer's own (tasks/train/trainer/preparing.py) keeps its output alone, in the precision of the rest.
    """
    if method.kind == "full":
        return shape.hidden * FLOAT * 2 + FLOAT
    return shape.hidden * (_size(chosen) if chosen.fused else FLOAT) + FLOAT


def _inputs(method: Method, chosen: Chosen, learns: Sequence[Matrix]) -> int:
    """Numbers that are kept of the inputs of what learns in a layer, a token.

    Modules that read one tensor keep it once. Where autocast makes a copy of it for each, each keeps its own; with
    dropout its own and the mask. Attention keeps its output anyway.
    """
    if method.kind in ("lora", "qlora") and method.dropout:
        return sum(2 * matrix.inputs for matrix in learns)
    is_cast = method.kind == "full" and chosen.precision == "bfloat16"
    kept = {matrix.name if is_cast else matrix.reads: matrix.inputs for matrix in learns}
    return sum(inputs for source, inputs in kept.items() if source not in ("attended", "o_proj"))


def _attention(shape: ModelShape, chosen: Chosen, load: Load, kind: Literal["cpu", "cuda"]) -> int:
    """Queries, keys, values, what is attended to, and the softmax's denominators; of eager the weights as well.

    With a mask transformers, and on a GPU ours too, repeats keys and values for each head of the queries, and torch
    makes of it one of numbers.
    """
    size = _size(chosen)
    wide, narrow = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    if chosen.attention == "eager":
        a_weight = FLOAT + (size if size < FLOAT else 0)  # the softmax is float32
        return load.behind * size * 4 * wide + load.seen * shape.heads * a_weight
    if chosen.layout in ("padded", "flash"):
        repeated = wide if load.is_masked else narrow
        mask = load.seen * size if load.is_masked else 0
        return load.tokens * (size * 2 * (wide + repeated) + shape.heads * FLOAT) + mask
    # Rows are laid side by side, behind what they share.
    whole = load.tokens * size * (2 * (wide + narrow) if load.prefix else wide)
    if kind == "cpu" and size < FLOAT and load.seen * shape.heads <= SCORES:
        return whole + size * (load.apart * wide + 2 * load.behind * narrow + load.seen * shape.heads)
    repeated = wide if load.prefix and kind == "cuda" else narrow
    mask = size * sum((longest - load.prefix) * longest for _, longest in load.groups) if load.prefix else 0
    beside = size * 2 * (load.apart * wide + load.behind * repeated) + load.apart * shape.heads * FLOAT
    return whole + beside + mask


def disk_bytes(shape: ModelShape, method: Method, chosen: Chosen) -> int:
    """Return the peak disk use of training: four checkpoints while one is written, and the model twice.

    A checkpoint has the trainable parameters, or all weights if it is no adapter, and the optimizer's moments.
    """
    what = learning(shape, method)
    weights = what.num_learning * FLOAT if what.is_adapter else _weights(shape, method, what, _size(chosen))
    model = what.num_learning * FLOAT if what.is_adapter else shape.num_parameters * 2
    if method.kind == "osf":
        model = sum(matrix.size for matrix in what.matrices) * 2
    if method.init in ("pissa", "olora"):
        model *= 2  # saved as the difference of two
    return int(4 * (weights + _moments(shape, method, chosen, what)) + 2 * model)
