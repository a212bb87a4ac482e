"""The arguments of a script of TRL: those of SFTConfig, DPOConfig, KTOConfig or ORPOConfig, with those of ModelConfig,
ScriptArguments and PEFT's LoraConfig.

All in one mapping, as `trl sft --config` reads them, or each class under its name.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tunewright.accepted import shown
from tunewright.cli.imports import trl_preferences
from tunewright.cli.imports.axolotl import PATHS, dataset_path, jinja
from tunewright.cli.imports.rules import (
    DataSetEntry,
    Original,
    Table,
    Tool,
    Treatment,
    base_model,
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
from tunewright.cli.imports.trainer import (
    ANSWERS,
    FLASH,
    LOADED,
    NO_CODE,
    NO_TOKENS,
    PACKED,
    SEVERAL_DEVICES,
    TRAINER,
    adapter_init,
    batch,
    bits,
    dtype,
    only_off,
    target_modules,
)

MARKS = (
    "dataset_name",
    "use_peft",
    "assistant_only_loss",
    "completion_only_loss",
    "max_seq_length",
    "dataset_mixture",
    "dataset_mixer",
    "peft_type",
    "dataset_id_or_path",
    "max_seq_len",
    "seq_length",
    "peft_lora_r",
    "beta",
    "desirable_weight",
    "undesirable_weight",
    "max_prompt_length",
)
GROUPS = (
    *trl_preferences.CLASSES,
    *("ModelConfig", "ScriptArguments", "LoraConfig", "TrainingArguments", "DatasetMixtureConfig"),
    *("model_args", "script_args", "training_args", "lora_config", "peft_config", "bnb_config"),
)
DEFAULTS = {
    "per_device_train_batch_size": 8,
    "learning_rate": 2e-5,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
    "max_length": 1024,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "use_peft": False,
    "early_stopping_patience": None,
}
OF_PREFERENCES = {"learning_rate": 1e-6}  # the default of DPO, KTO and ORPO
OTHER_TRAINERS = {  # their arguments and classes
    **dict.fromkeys(("GRPOConfig", "grpo_config", "num_generations", "reward_funcs", "reward_weights"), "GRPO"),
    **dict.fromkeys(("num_iterations", "steps_per_generation", "generation_batch_size", "scale_rewards"), "GRPO"),
    **dict.fromkeys(("epsilon", "epsilon_high", "importance_sampling_level", "use_vllm", "vllm_mode"), "GRPO"),
    **dict.fromkeys(("mask_truncated_completions", "log_completions"), "GRPO"),
    **dict.fromkeys(("RLOOConfig", "rloo_k", "normalize_advantages", "reward_clip_range"), "RLOO"),
    **dict.fromkeys(("PPOConfig", "num_mini_batches", "num_ppo_epochs", "kl_coef"), "PPO"),
    **dict.fromkeys(("RewardConfig", "center_rewards_coefficient"), "a reward model"),
    "reward_model_path": "training on rewards",
    **dict.fromkeys(("CPOConfig", "cpo_alpha", "simpo_gamma"), "CPO or SimPO"),
}
OTHER_LOSSES = {
    **dict.fromkeys(("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"), "GRPO"),
    **dict.fromkeys(("simpo", "alphapo"), "CPO or SimPO"),
}
OWN_NAMES = ("dataset_id_or_path", "dataset_path")  # of data sets, in scripts that are often copied
BATCH = ("training.batch", "training.micro_batch")


def refused(original: Original) -> Iterator[tuple[str, str]]:
    """Keys that make it neither fine-tuning of text nor training on preferences, with what it is."""
    for key, what in OTHER_TRAINERS.items():
        if original.get(key) is not None:
            yield key, what
    given = original.get("loss_type")
    if isinstance(given, str) and given in OTHER_LOSSES:
        yield "loss_type", OTHER_LOSSES[given]
    yield from trl_preferences.refused(original)
    kind = original.get("peft_type")
    if kind not in {None, "LORA"}:
        yield "peft_type", f"{shown(kind)} is a method that is not offered"


def has_adapter(original: Original) -> bool:
    """Whether there is one: as use_peft says, or where LoraConfig is given."""
    return not is_off(original.get("use_peft")) or any(
        original.values.get(key) is not None for key in ("r", "peft_type")
    )


def method(_: Any, original: Original) -> Treatment:
    """Which weights are trained."""
    quantized = bits(original)
    if not has_adapter(original):
        if original.get("use_spectrum") or original.get("spectrum_config_path"):
            return carried({"method.kind": "spectrum"})
        if quantized:
            return lost("full trains no quantized weights; method.kind: qlora does", {"method.kind": "full"})
        return carried({"method.kind": "full"})
    if quantized:
        return carried({"method.kind": "qlora", "method.bits": quantized})
    return carried({"method.kind": "lora"})


def rows(value: Any, original: Original) -> Treatment:
    """The batch size, whose rows on a device are called batch_size in the first scripts of TRL."""
    usual = "per_device_train_batch_size"
    old = "batch_size" in original.values and usual not in original.values
    return batch(value, original, micro="batch_size" if old else usual)


def template(value: Any, _: Original) -> Treatment:
    """A chat template as text."""
    return lost("save the template as a file and name that in model.chat_template: the base's own is used")


def template_path(value: Any, original: Original) -> Treatment:
    """A Jinja file, or a tokenizer that has one."""
    if str(value).endswith((".jinja", ".jinja2", ".j2")):
        return jinja(value, original)
    return lost("save that tokenizer's template as a file and name it in model.chat_template: the base's own is used")


def longest(value: Any, _: Original) -> Treatment:
    """The most tokens of a row."""
    return carried({"model.max_length": value}, "longer rows are cut there; here model.on_long decides")


def test_share(value: Any, _: Original) -> Treatment:
    """Rows to evaluate on while training: the validation split here."""
    if is_number(value) and value >= 1:
        return lost("split.validation is a share of the rows, not their number: 0.1 is used")
    return carried({"split.validation": value})


def layers(_: Any, __: Original) -> Treatment:
    """Layers that get an adapter."""
    return lost("method.layers is the number of last layers; the adapter is on all of them")


def answers_only(value: Any, _: Original) -> Treatment:
    """Which tokens are trained."""
    return lost(ANSWERS) if is_off(value) else not_needed(ANSWERS)


def padding_free(value: Any, original: Original) -> Treatment:
    """Rows without padding, which training on preferences there has not, whatever it says."""
    if trl_preferences.told(original).command in trl_preferences.ON_PREFERENCES:
        return not_needed(PACKED)
    return only_off("compute.packing", PACKED).decide(value, original)


IN_SOURCES = by(lambda _value, _original: carried({}), "data.sources")
TABLE: Table = {
    **TRAINER,
    **trl_preferences.TABLE,
    **each(
        "model_name_or_path model_name model_id base_model_name_or_path",
        by(base_model, "model.base"),
    ),
    **each("model_revision base_model_revision", to("model.revision")),
    **each("dtype torch_dtype", by(dtype, "compute.precision")),
    **each("attn_implementation use_flash_attention_2", needless(FLASH)),
    **each("use_peft load_in_4bit load_in_8bit", by(method, "method.kind", "method.bits")),
    "use_spectrum": by(method, "method.kind"),
    "spectrum_config_path": by(
        lambda _, o: lost(
            "the base is measured itself; method.share is the share of trained weights", method(_, o).values
        ),
        "method.kind",
    ),
    **each("peft_type task_type lora_task_type", needless("LoRA on a causal model")),
    **each("r lora_r peft_lora_r", to("method.rank")),
    **each("lora_alpha peft_lora_alpha", to("method.alpha")),
    "lora_dropout": by(trl_preferences.dropout, "method.dropout"),
    **each("target_modules lora_target_modules", by(target_modules, "method.target")),
    "use_rslora": to("method.rslora"),
    "use_dora": to("method.dora"),
    "init_lora_weights": by(adapter_init, "method.init"),
    "loraplus_lr_ratio": to("method.lora_plus"),
    "layers_to_transform": by(layers),
    "bnb_4bit_quant_type": same_as("nf4", "so here", "4 bits are NF4"),
    **each(
        "use_bnb_nested_quant bnb_4bit_use_double_quant",
        same_as(True, "so here", "4 bits are NF4 with double quantization"),
    ),
    **each("bnb_4bit_quant_storage bnb_4bit_compute_dtype", needless("chosen with compute.precision")),
    "bias": same_as("none", "so here", "an adapter has no biases"),
    **each(
        "modules_to_save lora_modules_to_save trainable_token_indices lora_bias",
        missing("embeddings and biases are not trained beside an adapter"),
    ),
    **each(
        "exclude_modules layers_pattern rank_pattern alpha_pattern layer_replication target_parameters "
        "lora_target_parameters megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config "
        "velora_config alora_invocation_tokens use_qalora qalora_group_size monteclora_config use_bdlora arrow_config "
        "kasa_config",
        missing("an adapter is put on modules, all of one rank"),
    ),
    **each(
        "fan_in_fan_out auto_mapping peft_version revision inference_mode runtime_config ensure_weight_tying",
        needless("chosen with the adapter"),
    ),
    **each("max_length max_seq_length max_seq_len seq_length", by(longest, "model.max_length")),
    "truncation_mode": needless("rows are never truncated; model.on_long decides"),
    "chat_template_path": by(template_path, "model.chat_template"),
    "chat_template": by(template),
    "chat_template_kwargs": missing("the chat template is used as it is"),
    **each("completion_only_loss assistant_only_loss train_on_responses_only", by(answers_only)),
    **each(
        "dataset_name dataset_config dataset_configs dataset_train_split dataset_test_split dataset_splits", IN_SOURCES
    ),
    **each(
        "datasets dataset_mixture dataset_mixer train_file validation_file dataset_id_or_path dataset_path", IN_SOURCES
    ),
    "max_train_samples": by(
        lambda value, _: carried({"data.limit": value}, "those of the other splits count as well"), "data.limit"
    ),
    "log_with": needless("MLflow records every run"),
    "use_auth_token": TRAINER["hub_token"],
    "use_kernels": needless(FLASH),
    **each("batch_size per_device_train_batch_size gradient_accumulation_steps", by(rows, *BATCH)),
    "test_split_size": by(test_share, "split.validation"),
    "dataset_text_field": by(
        lambda value, _: (
            not_needed("rows are conversations")
            if value in {"text", "messages", ""}
            else lost("a column of whole texts has no answers; data.sources[].columns names fields")
        )
    ),
    "dataset_streaming": missing("data are read whole"),
    "streaming": missing("data are read whole"),
    **each(
        "dataset_num_proc dataset_batch_size dataset_kwargs shuffle_dataset preprocessing_num_workers", needless(LOADED)
    ),
    "packing": only_off("compute.packing", PACKED),
    "padding_free": by(padding_free, "compute.packing"),
    **each("packing_strategy eval_packing pad_to_multiple_of num_of_sequences chars_per_token", needless(PACKED)),
    **each("eos_token pad_token", missing(f"{NO_TOKENS}; an answer ends with the stop token of the template")),
    **each(
        "model_init_kwargs router_aux_loss_coef model_code_revision",
        missing("the base's configuration is used as it is"),
    ),
    "trust_remote_code": missing(NO_CODE),
    "activation_offloading": missing("activations are not offloaded"),
    "use_liger": TRAINER["use_liger_kernel"],
    "tokenizer_name_or_path": missing("the base's own tokenizer is used"),
    "ignore_bias_buffers": missing(SEVERAL_DEVICES),
    "system_prompt": missing("no system message is added: put it into the records"),
    **each("env config accelerate_config", missing("set variables of the environment where you start tunewright")),
    **each("callbacks benchmarks wandb_entity wandb_project wandb_run_group", needless("MLflow records every run")),
}


def whole(value: Any, _: Original) -> Treatment:
    """A share of a data set."""
    return not_needed("all rows are read") if value == 1 else lost("all rows are read; data.limit reads a sample")


def data_path(_: Any, item: Original) -> Treatment:
    """Files here, or a data set of the hub."""
    name = item.get("path") or item.get("id")
    return dataset_path(name, item.of({**item.values, "name": item.get("name") or item.get("config")}))


PATH = by(data_path, *PATHS)
DATASET: Table = {
    **each("path id name config split data_files", PATH),
    "data_dir": missing("all files of the split are read"),
    **each("weight fraction", by(whole)),
    "columns": needless("known fields are read"),
}


def entries(original: Original) -> Iterator[DataSetEntry]:
    """Each data set: of a list of them, or the one that is named."""
    mixture = original.get("dataset_mixture")
    listed = original.of(mixture) if isinstance(mixture, Mapping) else original
    if found := listed.entries("datasets"):
        key = "dataset_mixture.datasets" if listed is not original else "datasets"
        for i, item in enumerate(found):
            yield DataSetEntry(f"{key}[{i}]", DATASET, original.of(item))
        return
    mixer = original.get("dataset_mixer")
    if isinstance(mixer, Mapping):
        split = words(original.get("dataset_splits") or "train")[0]
        configs = [*(original.get("dataset_configs") or ()), *[None] * len(mixer)]
        for (name, share), config in zip(mixer.items(), configs, strict=False):
            item = {"path": name, "name": config, "split": split, "fraction": share}
            yield DataSetEntry("dataset_mixer", DATASET, original.of(item), is_made=True)
        return
    for key in OWN_NAMES:
        if original.get(key):
            item = {"path": original.get(key), "split": next(iter(words(original.get("dataset_splits"))), None)}
            yield DataSetEntry(key, DATASET, original.of(item), is_made=True)
    for key, use in (("train_file", ""), ("validation_file", "validation")):
        if original.get(key):
            yield DataSetEntry(key, DATASET, original.of({"path": original.get(key)}), use, is_made=True)
    if not original.get("dataset_name"):
        return
    config = original.get("dataset_config") or next(iter(original.get("dataset_configs") or ()), None)
    item = {"path": original.get("dataset_name"), "name": config}
    splits = [("dataset_train_split", ""), ("dataset_test_split", "validation")]
    if is_off(original.get("eval_strategy")) or not original.get("dataset_test_split"):
        splits.pop()  # which nothing would be evaluated on
    for key, use in splits:
        yield DataSetEntry("dataset_name", DATASET, original.of(item | {"split": original.get(key)}), use, is_made=True)


def completed(original: Original, _: Mapping[str, Any]) -> Iterator[tuple[str, Treatment]]:
    """Treatments of keys that are not given, where their defaults there have no counterpart."""
    if has_adapter(original) and not any(original.get(key) for key in ("lora_target_modules", "target_modules")):
        yield "lora_target_modules", lost("PEFT chooses modules by the architecture there; here all linear ones")
    yield from trl_preferences.completed(original)
    is_sft = trl_preferences.told(original).command == "sft"
    if is_sft and all(original.get(key) is None for key in ("assistant_only_loss", "completion_only_loss")):
        yield "assistant_only_loss", lost(f"conversations are trained whole there; here {ANSWERS}")


def own_defaults(original: Original) -> Mapping[str, Any]:
    """Defaults that are not those of SFT."""
    return OF_PREFERENCES if trl_preferences.told(original).command in trl_preferences.ON_PREFERENCES else {}


TOOL = Tool("trl", "TRL", TABLE, MARKS, refused, entries, GROUPS, DEFAULTS, completed, own_defaults)
