"""A training configuration of LLaMA-Factory (YAML or JSON), with the dataset_info.json that describes its data sets."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunewright.accepted import did_you_mean, shown
from tunewright.cli.imports import reading
from tunewright.cli.imports.rules import (
    DataSetEntry,
    KeyRule,
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
    EVALUATED,
    FLASH,
    LOADED,
    NO_CODE,
    NO_TOKENS,
    PACKED,
    RECORDED,
    SEVERAL_DEVICES,
    TRAINER,
    UPLOAD,
    dtype,
    only_off,
    target_modules,
)

MARKS = ("finetuning_type", "stage", "cutoff_len", "template", "dataset_dir")
DEFAULTS = {
    "finetuning_type": "lora",
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-5,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
    "cutoff_len": 2048,
    "lora_rank": 8,
    "early_stopping_steps": None,
}
STAGES = {"pt": "pretraining", "rm": "a reward model", "ppo": "PPO"}
LOSSES = ("sigmoid", "hinge", "ipo", "orpo")  # of stage dpo, that are offered
TEMPLATES = {
    **{name: name for name in ("llama3", "chatml", "gemma", "mistral", "alpaca")},
    **dict.fromkeys(("gemma2", "gemma3"), "gemma"),
    **dict.fromkeys(("phi", "phi3"), "phi3"),
}
BASES = ("default", "empty", "vanilla", "")  # templates that format next to nothing
MEDIA = ("images", "videos", "audios")
PAIRS = ("ranking", "chosen", "rejected")
INFO = "dataset_info.json"
FOLDER = "its folder"  # of the file of a data set, which is told no other way


def refused(original: Original) -> Iterator[tuple[str, str]]:
    """Keys that make it no supervised fine-tuning of text, with what it is."""
    stage = original.get("stage")
    if stage not in {None, "sft", "dpo", "kto"}:
        yield "stage", f"{shown(stage)} is {STAGES.get(str(stage), 'none that is offered')}"
    if original.get("finetuning_type") not in {"lora", "full"}:
        yield "finetuning_type", f"{shown(original.get('finetuning_type'))} is a method that is not offered"
    if stage == "dpo" and original.get("pref_loss") not in {None, *LOSSES}:
        yield "pref_loss", f"{shown(original.get('pref_loss'))} is a loss that is not offered"
    for entry in entries(original):
        columns = entry.values.get("columns")
        keys = {*entry.values.values, *(columns if isinstance(columns, dict) else {})}
        if found := [key for key in MEDIA if key in keys]:
            yield entry.key, f"{found[0]}: multimodal training"
        if "kto_tag" in keys and stage != "kto":
            yield entry.key, "kto_tag: labelled answers, which need stage: kto"
        if stage == "kto" and "kto_tag" not in keys:
            yield entry.key, "no kto_tag: stage kto needs labelled answers"
        found = [key for key in PAIRS if key in keys and entry.values.get(key) is not False]
        if found and stage != "dpo":
            yield entry.key, f"{found[0]}: preference pairs, which need stage: dpo"
        if stage == "dpo" and not found:
            yield entry.key, "no ranking: stage dpo needs preference pairs"


def method(_: Any, original: Original) -> Treatment:
    """Which weights are trained."""
    if original.get("finetuning_type") == "full":
        return carried({"method.kind": "full"})
    bits = original.get("quantization_bit")
    if bits in {4, 8}:
        return carried({"method.kind": "qlora", "method.bits": bits})
    if is_off(bits):
        return carried({"method.kind": "lora"})
    return lost("a base is quantized to 4 or 8 bits", {"method.kind": "lora"})


def objective(_: Any, original: Original) -> Treatment:
    """The method and loss of preference training."""
    if original.get("stage") == "kto":
        return carried({"preference.method": "kto"})
    if original.get("stage") != "dpo":
        return not_needed("supervised fine-tuning, as here")
    loss = original.get("pref_loss") or "sigmoid"
    if loss == "orpo":
        return carried({"preference.method": "orpo"})
    return carried({"preference.method": "dpo", "preference.loss": loss})


def added_sft(value: Any, original: Original) -> Treatment:
    """The weight of the loss on chosen answers that is added."""
    if original.get("stage") == "kto" and not is_off(value):
        return lost("kto adds no loss on desirable answers; SFT comes before it with preference.after_sft")
    has_it = original.get("stage") == "dpo"
    return carried({"preference.sft_weight": value}) if has_it else not_needed("of stage: dpo")


def of_stage(target: str, *stages: str) -> KeyRule:
    """A number of these stages."""

    def decide(value: Any, original: Original) -> Treatment:
        has_it = original.get("stage") in stages
        return carried({target: value}) if has_it else not_needed(f"of stage: {' or '.join(stages)}")

    return by(decide, target)


def template(value: Any, _: Original) -> Treatment:
    """A chat template by its name there."""
    if value in BASES:
        return lost("the base's own template is used; model.chat_template: plain formats least")
    if isinstance(value, str) and value in TEMPLATES:
        return carried({"model.chat_template": TEMPLATES[value]})
    return lost("the base's own template is used; model.chat_template names others, or a Jinja file")


def validation(value: Any, _: Original) -> Treatment:
    """A share of the rows, or their number."""
    if is_off(value):
        return lost("a validation split is always drawn, since it selects the best step: 0.1 of the rows")
    if is_number(value) and value >= 1:
        return lost("split.validation is a share of the rows, not their number: 0.1 is used")
    return carried({"split.validation": value})


def samples(value: Any, original: Original) -> Treatment:
    """The first records of each data set; here a sample of all of them."""
    if sum(len(_names(original, key)) for key in ("dataset", "eval_dataset")) > 1:
        return lost("it limits each data set; data.limit reads a sample of all of them together")
    return carried({"data.limit": value}, "the first records there, here a sample")


def alpha(_: Any, original: Original) -> Treatment:
    """Twice the rank, where nothing is given."""
    given, rank = original.values.get("lora_alpha"), original.get("lora_rank")
    return carried({"method.alpha": given or 2 * rank})


def pissa(value: Any, _: Original) -> Treatment:
    """The start of an adapter."""
    return not_needed("off there as well") if is_off(value) else carried({"method.init": "pissa"})


def no_checkpointing(value: Any, _: Original) -> Treatment:
    """Gradient checkpointing turned off."""
    return carried({"compute.checkpointing": is_off(value)})


def rank(value: Any, original: Original) -> Treatment:
    """The rank, and by it the scaling where that is not given."""
    return carried({"method.rank": value, **alpha(None, original).values})


TABLE: Table = {
    **TRAINER,
    "model_name_or_path": by(base_model, "model.base"),
    "model_revision": to("model.revision"),
    "cutoff_len": by(
        lambda value, _: carried({"model.max_length": value}, "longer rows are cut there; here model.on_long decides"),
        "model.max_length",
    ),
    "template": by(template, "model.chat_template"),
    **each("finetuning_type quantization_bit", by(method, "method.kind", "method.bits")),
    "quantization_method": same_as("bitsandbytes", "so here", "a base is quantized by bitsandbytes"),
    "quantization_type": same_as("nf4", "so here", "4 bits are NF4"),
    "double_quantization": same_as(True, "so here", "4 bits are NF4 with double quantization"),
    "quantization_device_map": needless("memory is planned by tunewright plan"),
    "lora_alpha": by(alpha, "method.alpha"),
    "lora_rank": by(rank, "method.rank", "method.alpha"),
    "lora_dropout": to("method.dropout"),
    "lora_target": by(target_modules, "method.target"),
    "use_rslora": to("method.rslora"),
    "use_dora": to("method.dora"),
    "loraplus_lr_ratio": to("method.lora_plus"),
    "pissa_init": by(pissa, "method.init"),
    **each("pissa_iter pissa_convert", needless("the saved adapter is one of the unmodified base, always")),
    **each("additional_target loraplus_lr_embedding", missing("embeddings are not trained beside an adapter")),
    **each(
        "adapter_name_or_path adapter_folder create_new_adapter",
        missing("an adapter is not trained further: it begins anew"),
    ),
    **each("stage pref_loss", by(objective, "preference.method", "preference.loss")),
    "pref_beta": of_stage("preference.beta", "dpo", "kto"),
    "pref_ftx": by(added_sft, "preference.sft_weight"),
    "kto_chosen_weight": of_stage("preference.desirable_weight", "kto"),
    "kto_rejected_weight": of_stage("preference.undesirable_weight", "kto"),
    "dpo_label_smoothing": missing("preference.label_smoothing goes with the losses robust and exo_pair"),
    **each("ref_model ref_model_adapters", missing("the reference is the model before its first step")),
    **each("dataset eval_dataset dataset_dir", by(lambda _value, _original: carried({}), "data.sources")),
    "media_dir": missing("rows are text"),
    "val_size": by(validation, "split.validation"),
    "max_samples": by(samples, "data.limit"),
    "train_on_prompt": by(lambda value, _: not_needed(ANSWERS) if is_off(value) else lost(ANSWERS)),
    "mask_history": missing("every answer of a conversation is trained, not the last alone"),
    "mix_strategy": same_as("concat", "so here", "data sets are read one after the other"),
    "interleave_probs": missing("data sets are read one after the other"),
    **each("packing neat_packing", only_off("compute.packing", PACKED)),
    "ignore_pad_token_for_loss": needless("no padding is trained"),
    "pad_to_multiple_of": needless(PACKED),
    **each("streaming buffer_size", missing("data are read whole")),
    **each(
        "overwrite_cache preprocessing_batch_size preprocessing_num_workers tokenized_path cache_dir "
        "data_shared_file_system",
        needless(LOADED),
    ),
    **each("tool_format default_system", missing("rows are made of role and content alone")),
    **each("enable_thinking reasoning_effort preserve_thinking", missing("the chat template is used as it is")),
    **each("eval_num_beams eval_on_each_dataset compute_accuracy", needless(f"{EVALUATED}, and answers on test rows")),
    **each("flash_attn attn", needless(FLASH)),
    **each(
        "use_unsloth use_unsloth_gc use_v1_kernels use_reentrant_gc upcast_layernorm upcast_lmhead_output use_kv_cache "
        "low_cpu_mem_usage print_param_status enable_cce",
        needless("kernels are chosen by themselves, and the result stays the same"),
    ),
    "enable_liger_kernel": TRAINER["use_liger_kernel"],
    "disable_gradient_checkpointing": by(no_checkpointing, "compute.checkpointing"),
    "pure_bf16": by(
        lambda value, o: not_needed("off there as well") if is_off(value) else dtype("bfloat16", o), "compute.precision"
    ),
    **each("fp8 fp8_backend fp8_enable_fsdp_float8_all_gather", missing("compute.precision has bfloat16 and float32")),
    "early_stopping_steps": to("training.patience"),
    "disable_shuffling": missing("rows are drawn in another order in each epoch"),
    **each("plot_loss include_effective_tokens_per_second include_mfu", needless(RECORDED)),
    **each(
        "rope_scaling shift_attn mixture_of_depths moe_aux_loss_coef",
        missing("the base's configuration is used as it is"),
    ),
    "train_from_scratch": missing("training starts from the base's weights"),
    **each(
        "resize_vocab add_tokens add_special_tokens new_special_tokens_config init_special_tokens "
        "split_special_tokens freeze_original_embeddings",
        missing(NO_TOKENS),
    ),
    **each("use_fast_tokenizer infer_dtype infer_backend offload_folder", needless("read from the base's own files")),
    "trust_remote_code": missing(NO_CODE),
    **each(
        "hf_hub_token ms_hub_token om_hub_token", needless("a token of the hub is set in the environment (HF_TOKEN)")
    ),
    **each(
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules use_llama_pro",
        missing("a method that is not offered (freeze); method.layers takes the last layers"),
    ),
    **each("module_dropout oft_rank oft_block_size oft_target", missing("a method that is not offered (OFT)")),
    **each(
        "use_galore galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise "
        "use_apollo apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type "
        "apollo_scale_type apollo_layerwise apollo_scale_front use_badam badam_mode badam_start_block "
        "badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose use_adam_mini "
        "use_muon",
        missing("AdamW is used; compute.optimizer has it in 8 bits too"),
    ),
    **each(
        "use_dft_loss use_eaft_loss eaft_alpha use_asft_loss asft_alpha", missing("the loss is the plain cross-entropy")
    ),
    **each("use_mca use_kt kt_optimize_rule cpu_infer chunk_size mode use_ray", missing(SEVERAL_DEVICES)),
    **each(
        "ray_run_name ray_storage_path ray_storage_filesystem ray_num_workers resources_per_worker placement_strategy "
        "ray_init_kwargs",
        missing(f"{SEVERAL_DEVICES}; --devices N multiplies the batch"),
    ),
    **each(
        "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir "
        "swanlab_lark_webhook_url swanlab_lark_secret",
        needless(RECORDED),
    ),
    **each(
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
        "export_quantization_nsamples export_quantization_maxlen export_legacy_format",
        needless("tunewright export writes a folder"),
    ),
    "export_hub_model_id": missing(UPLOAD),
    **each(
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels "
        "video_fps video_maxlen use_audio_in_video audio_sampling_rate freeze_vision_tower "
        "freeze_multi_modal_projector freeze_language_model",
        needless("rows are text"),
    ),
    **each(
        "pref_bco_weight "
        "simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards "
        "ref_model_quantization_bit reward_model reward_model_adapters "
        "reward_model_quantization_bit reward_model_type ld_alpha",
        needless("of preference training, which this is none of"),
    ),
    **each(
        "do_sample temperature top_p top_k num_beams max_length repetition_penalty length_penalty skip_special_tokens "
        "vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config",
        needless("answers are decoded greedily"),
    ),
    "max_new_tokens": to("evaluation.max_new_tokens"),
}


def place(_: Any, item: Original) -> Treatment:
    """A file of the folder, or a data set of the hub."""
    if hub := item.get("hf_hub_url"):
        path, said = item.places.source(str(hub), str(item.get("subset") or ""), str(item.get("split") or ""))
        return carried({"data.sources[].path": path}, said) if path else lost(said)
    if file := item.get("file_name"):
        path, said = item.places.named(str(file), Path(str(item.get(FOLDER) or "")))
        return carried({"data.sources[].path": path}, said)
    return lost("neither a file nor a data set of the Hugging Face Hub; name a copy in data.sources")


def layout(_: Any, item: Original) -> Treatment:
    """The layout, and names of fields."""
    columns = item.get("columns")
    columns = columns if isinstance(columns, Mapping) else {}
    if item.get("ranking"):
        return _pairs(item, columns)
    label = {"label": columns["kto_tag"]} if columns.get("kto_tag") else {}
    if item.get("formatting") in {None, "alpaca"}:
        names = {"instruction": "prompt", "input": "query", "output": "response"}
        names |= {name: name for name in ("history", "system", "tools")}
        found = {ours: columns[theirs] for ours, theirs in names.items() if columns.get(theirs, ours) != ours}
        return _layout("alpaca", found | label)
    tags = item.get("tags")
    tags = tags if isinstance(tags, Mapping) else {}
    turn = (tags.get("role_tag", "from"), tags.get("content_tag", "value"))
    roles = {tags.get("user_tag", "human"), tags.get("assistant_tag", "gpt")}
    known = {("role", "content"): ("messages", {"user", "assistant"}), ("from", "value"): ("sharegpt", None)}
    if turn not in known or not roles <= (known[turn][1] or {"user", "assistant", "human", "gpt"}):
        return lost("turns have other keys or roles than here: role and content, or from and value")
    ours = "messages" if turn == ("role", "content") else "conversations"
    theirs = columns.get("messages", "conversations")
    found = {} if theirs == ours else {ours: theirs}
    found |= {"system": columns["system"]} if columns.get("system", "system") != "system" else {}
    found |= {"tools": columns["tools"]} if columns.get("tools", "tools") != "tools" else {}
    return _layout(known[turn][0], found | label)


def _pairs(item: Original, columns: Mapping[str, Any]) -> Treatment:
    """Preference pairs, by the names of their fields."""
    if item.get("formatting") in {None, "alpaca"}:
        names = {"instruction": "prompt", "input": "query"} | {name: name for name in ("history", "system", "tools")}
    else:
        names = {"conversations": "messages", "system": "system", "tools": "tools"}
    names |= {"chosen": "chosen", "rejected": "rejected"}
    found = {ours: columns[theirs] for ours, theirs in names.items() if columns.get(theirs, ours) != ours}
    return _layout("preference", found)


def _layout(name: str, columns: dict[str, Any]) -> Treatment:
    values: dict[str, Any] = {"data.sources[].layout": name}
    return carried(values | ({"data.sources[].columns": columns} if columns else {}))


DATASET: Table = {
    **each("hf_hub_url file_name subset split", by(place, "data.sources[].path")),
    **each("ms_hub_url om_hub_url script_url cloud_file_name", by(place, "data.sources[].path")),
    **each("formatting columns tags", by(layout, "data.sources[].layout", "data.sources[].columns")),
    "revision": to("data.sources[].revision"),
    "folder": missing("all files of the split are read"),
    "num_samples": missing("all rows are read; data.limit reads a sample"),
    "ranking": by(layout, "data.sources[].layout", "data.sources[].columns"),
    "load_from": needless("told by the path"),
}


def entries(original: Original) -> Iterator[DataSetEntry]:
    """Each data set, as dataset_info.json describes it. Raises ValueError where it does not."""
    wanted = [
        (name, use) for key, use in (("dataset", ""), ("eval_dataset", "validation")) for name in _names(original, key)
    ]
    folder = str(original.get("dataset_dir") or "data")
    if folder == "ONLINE":
        for name, use in wanted:
            yield DataSetEntry(f"dataset {name}", DATASET, original.of({"hf_hub_url": name}), use)
        return
    if not wanted:
        return
    info, within = _info(original, folder)
    for name, use in wanted:
        described = info.get(name)
        if not isinstance(described, dict):
            raise ValueError(f"dataset: {shown(name)} is not in {INFO}; {did_you_mean(name, info)}")
        item = {key: None if value in ("", None) else value for key, value in described.items()}
        yield DataSetEntry(f"{INFO} {name}", DATASET, original.of(item, {FOLDER: str(within)}), use)


def _names(original: Original, key: str) -> list[str]:
    return [name for name in words(original.get(key)) if name] if original.get(key) else []


def _info(original: Original, folder: str) -> tuple[dict[str, Any], Path]:
    """The description of the data sets, and its folder: dataset_dir, or that of the configuration."""
    places = original.places
    looked = [places.here / folder, places.configuration / folder, places.configuration]
    found = next((each for each in looked if (each / INFO).is_file()), None)
    if found is None or folder.startswith("REMOTE:"):
        raise ValueError(
            f"dataset: {shown(original.get('dataset'))}: there is no {INFO} in {folder} here or beside the "
            "configuration; accepted: a copy in one of them"
        )
    value = reading.parse(found / INFO).value
    if not isinstance(value, dict):
        raise ValueError(f"{found / INFO}: {shown(json.dumps(value))} is refused; accepted: an object of data sets")
    return value, found


TOOL = Tool("llama-factory", "LLaMA-Factory", TABLE, MARKS, refused, entries, defaults=DEFAULTS)
