"""The arguments of transformers' Trainer: LLaMA-Factory and TRL take them under these names, and Axolotl some."""

import math
from functools import partial
from typing import Any

from tunewright.cli.imports.rules import (
    KeyRule,
    Original,
    Table,
    Treatment,
    by,
    carried,
    each,
    is_number,
    is_off,
    lost,
    missing,
    needless,
    not_needed,
    same_as,
    to,
    words,
)

CHECKPOINTS = "checkpoints are kept and removed by themselves"
RECORDED = "MLflow records every run, and the run every step"
LOADED = "the pipeline reads and prepares the data by itself"
EVALUATED = "the validation rows are evaluated in batches of their own"
SEVERAL_DEVICES = "several GPUs of a machine train by compute.devices and compute.strategy (DDP, FSDP2, DeepSpeed)"
UPLOAD = "a run uploads nothing to the hub; tunewright export --push does"
FIXED = "a setting of AdamW that is fixed here"
ANSWERS = "the loss covers answer tokens only, always"
NO_TOKENS = "the tokens of the base's tokenizer are used as they are"
NO_CODE = "code that comes with a model or data set is never run"
FLASH = "compute.attention: auto takes FlashAttention where it pays"
PACKED = "rows are packed wherever that is exact, and attend only to themselves"

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant_with_warmup": "constant"}
OPTIMIZERS = {
    **dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_torch_xla"), "adamw"),
    **dict.fromkeys(("adamw_hf", "adamw_apex_fused"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit", "ao_adamw_8bit"), "adamw_8bit"),
    "paged_adamw_8bit": "paged_adamw_8bit",
}
INITS = {True: "default", "true": "default", "pissa": "pissa", "olora": "olora", "eva": "eva"}


def batch(_: Any, original: Original, *, micro: str, total: str = "") -> Treatment:
    """Rows of one optimizer step: those of one device, times the accumulated steps, times the devices."""
    rows: Any = original.get(micro) or 1
    steps: Any = original.get("gradient_accumulation_steps") or 1
    given: Any = original.values.get(total)
    whole: Any = given if is_number(given) else rows * steps
    if not all(is_number(number) and number == int(number) for number in (rows, whole)):
        return lost("no whole number of rows: training.batch stays at its default")
    values = {"training.batch": int(whole) * original.devices}
    if rows < values["training.batch"]:
        values["training.micro_batch"] = int(rows)
    packed = original.get("packing") or original.get("sample_packing") or original.get("neat_packing")
    return carried(values, "a batch counts packed sequences there, and rows here" if packed else "")


def batch_rules(micro: str, total: str = "") -> dict[str, KeyRule]:
    """The rules of all keys that the batch size is made of."""
    rule = by(partial(batch, micro=micro, total=total), "training.batch", "training.micro_batch")
    return dict.fromkeys(filter(None, (micro, "gradient_accumulation_steps", total)), rule)


def schedule(value: Any, _: Original) -> Treatment:
    """A learning-rate schedule; `constant` has no warm-up there."""
    if value == "constant":
        return carried({"training.schedule": "constant", "training.warmup": 0.0})
    if value in SCHEDULES:
        return carried({"training.schedule": SCHEDULES[value]})
    return lost("cosine is used; the others here are linear and constant")


def warmup_steps(value: Any, original: Original) -> Treatment:
    """A number of steps, which is a share only where the number of all steps is known; below 1 it is one already."""
    if not is_number(value):
        return lost("no number: training.warmup stays at its default")
    ratio = original.get("warmup_ratio")
    if value == 0 and ratio:
        return not_needed("warmup_ratio decides")
    if 0 <= value < 1:
        return carried({"training.warmup": float(value)})
    planned = original.get("max_steps")
    if is_number(planned) and value < planned:
        return carried({"training.warmup": round(value / planned, 6)})
    return lost("training.warmup is a share of all steps, whose number depends on the data: 0.05 is used")


def max_steps(value: Any, _: Original) -> Treatment:
    """A number of steps, which decides before the epochs; -1 is none."""
    if is_number(value) and value <= 0:
        return not_needed("epochs decide")
    return carried({"training.max_steps": value})


def eval_steps(value: Any, original: Original) -> Treatment:
    """A number of steps between evaluations, or below 1 a share of all of them."""
    strategy = original.get("eval_strategy") or original.get("evaluation_strategy")
    if strategy in {False, "no", "epoch"}:
        return not_needed("eval_strategy decides")
    if is_number(value) and value >= 1:
        return carried({"training.evaluate_every": int(value)})
    planned = original.get("max_steps")
    if is_number(value) and is_number(planned) and value > 0 < planned:
        return carried({"training.evaluate_every": math.ceil(value * planned)})
    return lost("training.evaluate_every is a number of steps; empty evaluates twice an epoch")


def eval_strategy(value: Any, _: Original) -> Treatment:
    """When to evaluate; here it is always done, since it selects the best step."""
    if value in {False, "no", "epoch"}:
        return not_needed("evaluated twice an epoch, since that selects the best step")
    return not_needed("evaluated every training.evaluate_every steps")


def best_by(value: Any, _: Original) -> Treatment:
    """The metric of the best step."""
    if value in {"loss", "eval_loss"}:
        return carried({"training.best_by": "loss"})
    return lost("the best step is selected by loss; training.best_by has exact_match, token_f1 and chrf too")


def optimizer(value: Any, _: Original) -> Treatment:
    """AdamW, plain or in 8 bits."""
    if value in OPTIMIZERS:
        return carried({"compute.optimizer": OPTIMIZERS[value]})
    if value in {"paged_adamw_32bit", "paged_adamw"}:
        return lost("AdamW in 32 bits is not paged here: plain AdamW is used", {"compute.optimizer": "adamw"})
    return lost("AdamW is used; compute.optimizer has it in 8 bits too")


def bf16(value: Any, original: Original) -> Treatment:
    """Matrix products in bfloat16, which `auto` leaves to the hardware."""
    if value == "auto":
        return carried({"compute.precision": "auto"})
    if not is_off(value):
        return carried({"compute.precision": "bfloat16"})
    half = ("fp16", "float16", "bfloat16", "fp8", "pure_bf16")
    if any(not is_off(original.get(key)) for key in half) or original.get("bf16") == "auto":
        return not_needed("another precision is given")
    return carried({"compute.precision": "float32"})


def dtype(value: Any, _: Original) -> Treatment:
    """The precision of the loaded weights."""
    name = str(value).removeprefix("torch.")
    if name == "bfloat16":
        return carried({"compute.precision": "bfloat16"})
    if name in {"auto", "float32"}:
        return not_needed("compute.precision decides")
    return lost("float16 is not offered: compute.precision: auto takes bfloat16 where the hardware has it")


def checkpointing(value: Any, _: Original) -> Treatment:
    """Gradient checkpointing, without offloading."""
    if isinstance(value, bool):
        return carried({"compute.checkpointing": value})
    return lost("activations are not offloaded", {"compute.checkpointing": True})


def auto_batch(value: Any, _: Original) -> Treatment:
    """Find a batch size that fits: here the micro-batch is estimated."""
    return not_needed("off there as well") if is_off(value) else carried({"training.micro_batch": "auto"})


def only_off(target: str, why: str) -> KeyRule:
    """A switch that is automatic here: only off is worth saying."""
    return by(lambda value, _: carried({target: False}) if is_off(value) else not_needed(why), target)


def only_on(target: str) -> KeyRule:
    """A switch that is off here by default."""
    return by(lambda value, _: not_needed("off here as well") if is_off(value) else carried({target: True}), target)


def adapter_init(value: Any, _: Original) -> Treatment:
    """How the matrices of an adapter start."""
    name = "pissa" if str(value).startswith("pissa") else value
    if isinstance(name, str | bool) and name in INITS:
        return carried({"method.init": INITS[name]})
    return lost("the adapter starts as usual; method.init has pissa, olora and eva")


def target_modules(value: Any, _: Original) -> Treatment:
    """Names of modules, or all linear ones."""
    names = words(value)
    if names in (["all-linear"], ["all"], ["all_linear"]):
        return carried({"method.target": "all-linear"})
    return carried({"method.target": ", ".join(names)})


def seed(value: Any, original: Original) -> Treatment:
    """Either of the two seeds."""
    if original.get("seed") not in {None, value}:
        return lost("one seed is for the adapter and the order of the rows: seed is used")
    return carried({"training.seed": value})


def bits(original: Original) -> int | None:
    """The bits of the quantized base, or None."""
    if not is_off(original.get("load_in_4bit")):
        return 4
    return None if is_off(original.get("load_in_8bit")) else 8


TRAINER: Table = {
    "max_steps": by(max_steps, "training.max_steps"),
    "num_train_epochs": to("training.epochs"),
    **batch_rules("per_device_train_batch_size"),
    "auto_find_batch_size": by(auto_batch, "training.micro_batch"),
    "learning_rate": to("training.learning_rate"),
    "lr_scheduler_type": by(schedule, "training.schedule", "training.warmup"),
    "lr_scheduler_kwargs": missing("the schedule has no arguments here"),
    "warmup_steps": by(warmup_steps, "training.warmup"),
    "warmup_ratio": to("training.warmup"),
    "optim": by(optimizer, "compute.optimizer"),
    **each("optim_args optim_target_modules", missing("the optimizer has no arguments here")),
    "weight_decay": same_as(0, "0 here as well", "weight decay is 0 here"),
    "adam_beta1": same_as(0.9, "0.9 here as well", FIXED),
    "adam_beta2": same_as(0.999, "0.999 here as well", FIXED),
    "adam_epsilon": same_as(1e-8, "1e-8 here as well", FIXED),
    "max_grad_norm": same_as(1.0, "1 here as well", "gradients are clipped to a norm of 1 here"),
    "label_smoothing_factor": missing("labels are not smoothed"),
    "neftune_noise_alpha": missing("no noise is added to embeddings (NEFTune)"),
    "seed": by(seed, "training.seed"),
    "data_seed": by(seed, "training.seed"),
    "full_determinism": needless("a training on a CPU is repeated byte for byte"),
    "bf16": by(bf16, "compute.precision"),
    "fp16": missing("float16 is not offered: compute.precision: auto takes bfloat16 where the hardware has it"),
    **each("bf16_full_eval fp16_full_eval half_precision_backend fp16_opt_level fp16_backend", needless(EVALUATED)),
    "tf32": needless("compute.precision decides on matrix products"),
    "gradient_checkpointing": by(checkpointing, "compute.checkpointing"),
    "activation_checkpointing": by(checkpointing, "compute.checkpointing"),
    **each(
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs gradient_checkpointing_use_reentrant",
        needless("chosen with compute.checkpointing"),
    ),
    "torch_compile": only_on("compute.compile"),
    **each(
        "torch_compile_backend torch_compile_mode jit_mode_eval torchdynamo", needless("chosen with compute.compile")
    ),
    "use_liger_kernel": only_off("compute.liger", "used where it is installed"),
    "liger_kernel_config": needless("chosen with compute.liger"),
    "eval_steps": by(eval_steps, "training.evaluate_every"),
    **each("eval_strategy evaluation_strategy", by(eval_strategy)),
    "eval_delay": missing("evaluations begin with the training"),
    "metric_for_best_model": by(best_by, "training.best_by"),
    "greater_is_better": needless("known of training.best_by"),
    "load_best_model_at_end": needless("the best step is always the one that is kept"),
    "early_stopping_patience": to("training.patience"),
    "train_sampling_strategy": needless("rows are drawn anew in each epoch, and no padding is computed"),
    **each("group_by_length length_column_name sortish_sampler", needless("rows are packed without padding")),
    **each(
        "per_device_eval_batch_size per_gpu_eval_batch_size eval_accumulation_steps eval_on_start include_for_metrics "
        "eval_do_concat_batches eval_use_gather_object batch_eval_metrics prediction_loss_only do_eval label_names "
        "include_inputs_for_metrics predict_with_generate generation_max_length generation_num_beams generation_config",
        needless(EVALUATED),
    ),
    **each(
        "output_dir overwrite_output_dir save_strategy save_steps save_total_limit save_only_model save_safetensors "
        "save_on_each_node resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint "
        "enable_jit_checkpoint",
        needless(CHECKPOINTS),
    ),
    "do_train": needless("a run always trains"),
    **each(
        "logging_dir logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_on_each_node "
        "log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id "
        "trackio_static_space_id include_num_input_tokens_seen include_tokens_per_second skip_memory_metrics debug",
        needless(RECORDED),
    ),
    **each(
        "push_to_hub hub_model_id hub_model_revision hub_revision hub_strategy hub_private_repo hub_always_push "
        "push_to_hub_model_id push_to_hub_organization push_to_hub_token",
        missing(UPLOAD),
    ),
    "hub_token": needless("a token of the hub is set in the environment (HF_TOKEN)"),
    **each(
        "dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
        "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order remove_unused_columns",
        needless(LOADED),
    ),
    **each(
        "deepspeed fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap parallelism_config "
        "accelerator_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
        "ddp_backend ddp_timeout tp_size local_rank average_tokens_across_devices",
        missing(SEVERAL_DEVICES),
    ),
    **each("use_cpu no_cuda use_mps_device", needless("the first GPUs are used where there are some, else the CPU")),
    **each("use_cache torch_empty_cache_steps", needless("memory is planned by tunewright plan")),
    "do_predict": missing("tunewright predict answers a file"),
}
