"""An adapter of PEFT's: where it goes, what it starts from, and what it is when it is saved.

PiSSA and OLoRA move the base's main directions from its weights into the adapter. On the untouched base such an adapter
answers wrongly, so what it began as is kept, and saving makes a plain adapter of the difference (trainer.fit). Here the
adapter begins in float32 whatever the base is in; PEFT would round it to the base's type after it was taken out.

EVA begins with the main directions of the activations on training rows (arXiv 2410.07170). PEFT looks at batches, again
and again, until the directions settle; it would go on forever where they do not. Every module keeps the rank that was
asked for (the paper's rho = 1), so that a plan's figures hold.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.tuners_utils import BaseTunerLayer

from tunewright.config import Method
from tunewright.modeling import architecture
from tunewright.modeling.methods.modules import targets

TOKENS = 8_192  # of the training rows, taken evenly: enough for the directions to settle
PATIENCE = 400  # batches, until we say that they do not settle

Batch = dict[str, torch.Tensor]


def begin(model: Any, examples: Sequence[Sequence[int]]) -> None:
    """Gives the model's adapter its first weights from the activations on `examples`, rows of token ids.

    Raises ValueError where these are too few, or too much alike, to tell the directions.
    """
    config = model.peft_config["default"]
    data = batches(examples, config.r)
    seen = 0

    def forward(model: Any, batch: Batch) -> Any:
        nonlocal seen
        seen += 1
        if seen > PATIENCE:
            raise ValueError(
                f"method.init=eva: {config.r} directions did not converge in {PATIENCE} batches of training rows; "
                "lower method.rank, or set method.init=default"
            )
        return model(**batch, use_cache=False, logits_to_keep=1)

    # Each rank looks at all of the rows: gathered from the ranks they would count several times.
    options: dict[str, Any] = {"gather_distributed_inputs": False, "show_progress_bar": False}
    initialize_lora_eva_weights(model, data, forward_fn=forward, **options)


def batches(examples: Sequence[Sequence[int]], rank: int) -> list[Batch]:
    """Padded batches, each of many times as many tokens as there are directions to find."""
    step = max(1, sum(map(len, examples)) // TOKENS)
    wanted, groups, group = 16 * rank, [], []
    for row in examples[::step]:
        group.append(row)
        if sum(map(len, group)) >= wanted:
            groups.append(group)
            group = []
    if not groups:
        raise ValueError(
            f"method.init=eva: the training rows have fewer than the {wanted} tokens that method.rank={rank} needs; "
            "lower it, or set method.init=default"
        )
    return [_padded(group) for group in groups]


def _padded(group: Sequence[Sequence[int]]) -> Batch:
    width = max(map(len, group))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in group])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in group])
    return {"input_ids": ids, "attention_mask": mask}


PISSA = "pissa_niter_16"  # iterations of a fast decomposition: seconds instead of hours, and as good by PEFT's account
BEGAN_AS = "adapter_began_as"  # the attribute of the model that keeps an adapter which was taken out of its weights


def add_adapter(
    model: Any,
    method: Method,
    precision: torch.dtype,
    examples: Sequence[Sequence[int]] | None,
    begins_as: Path | None = None,
) -> Any:
    """The model with an adapter that learns, in float32, and everything else frozen; `precision` is multiplied in.

    The adapter is the one in the folder `begins_as`, if there is one, and else a new one.
    """
    if begins_as is None:
        model = _with_new(model, method, examples)
    else:
        model = PeftModel.from_pretrained(model, begins_as, is_trainable=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # Under autocast the small adapter weights are cast to bfloat16; PEFT would cast every activation to float32.
    for module in model.modules() if precision != torch.float32 else ():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # pyright: ignore[reportAttributeAccessIssue]
    return model


def _with_new(model: Any, method: Method, examples: Sequence[Sequence[int]] | None) -> Any:
    from_activations = method.init == "eva"
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets(model, method, architecture.of(model.config).unreached),
        use_rslora=method.rslora,
        use_dora=method.dora,
        init_lora_weights="eva" if from_activations else True,
        eva_config=EvaConfig(rho=1.0, use_label_mask=False) if from_activations else None,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    if from_activations:
        begin(model, examples or [])
        config.init_lora_weights, config.eva_config = True, None  # loaded, it is an adapter like any other
    if method.init in {"pissa", "olora"}:
        _take_out(model, method)
    return model


def _take_out(model: Any, method: Method) -> None:
    """Moves the main directions of each adapted weight into the adapter, and keeps what the adapter then is."""
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        base: Any = layer.get_base_layer()
        largest = min(base.weight.shape)
        if method.rank > largest:
            raise ValueError(
                f"method.rank={method.rank}: method.init={method.init} allows at most {largest}, the size of {name}"
            )
        if method.init == "pissa":
            layer.pissa_init("default", PISSA)
        else:
            layer.olora_init("default")
    began_as = {name: tensor.to("cpu", copy=True) for name, tensor in get_peft_model_state_dict(model).items()}
    setattr(model, BEGAN_AS, began_as)


def lora_plus_optimizer(model: Any, ratio: float, optimizer: type, options: dict[str, Any]) -> Any:
    """Return such an optimizer, with `ratio` times the learning rate for the B matrices (LoRA+, arXiv 2402.12354).

    `options` are the class's own, its learning rate `lr` among them, as transformers has them for each optimizer.
    """
    rest = {name: value for name, value in options.items() if name != "lr"}
    return create_loraplus_optimizer(model, optimizer, lr=options["lr"], loraplus_lr_ratio=ratio, **rest)
