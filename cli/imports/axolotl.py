"""A configuration of Axolotl (YAML)."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tunewright.accepted import shown
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
    CHECKPOINTS,
    EVALUATED,
    FIXED,
    FLASH,
    LOADED,
    NO_CODE,
    NO_TOKENS,
    PACKED,
    RECORDED,
    SEVERAL_DEVICES,
    TRAINER,
    UPLOAD,
    adapter_init,
    batch_rules,
    bits,
    dtype,
    eval_strategy,
    max_steps,
    only_off,
    optimizer,
    schedule,
    target_modules,
)
from tunewright.flows.parameters import slug

ALPACA = (
    "type: alpaca writes prompts with this template; an input follows its instruction, where Axolotl has another first "
    "sentence and a heading ### Input:"
)
MARKS = ("base_model", "sequence_len", "micro_batch_size", "num_epochs", "datasets")
DEFAULTS = {
    "adapter": None,
    "num_epochs": 1.0,
    "micro_batch_size": 1,
    "sequence_len": 512,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.03,
    "excess_length_strategy": "drop",
    "early_stopping_patience": None,
}
TEMPLATES = {
    **{name: name for name in ("chatml", "llama3", "gemma", "alpaca")},
    **dict.fromkeys(("mistral_v1", "mistral_v2v3", "mistral_v3_tekken", "mistral"), "mistral"),
    **dict.fromkeys(("phi_3", "phi_35"), "phi3"),
}
FORMATS = {  # type of a data set -> layout, and our names of fields -> theirs
    "alpaca": ("alpaca", {}),
    "alpaca_chat": ("alpaca", {}),
    "alpaca_chat.load_qa": ("alpaca", {"instruction": "question", "output": "answer"}),
    "alpaca_chat.load_concise": ("alpaca", {}),
    "alpaca_w_system": ("alpaca", {}),
    "alpaca_w_system.load_open_orca": (
        "alpaca",
        {"system": "system_prompt", "instruction": "question", "output": "response"},
    ),
    "gpteacher": ("alpaca", {"output": "response"}),
    "jeopardy": ("alpaca", {"instruction": "question", "output": "answer"}),
    "metharme": ("prompt_completion", {"completion": "generation"}),
}
AS_TRAINER = (  # keys that mean what they mean to transformers' Trainer
    *("bf16", "fp16", "tf32", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("neftune_noise_alpha", "label_smoothing_factor", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "greater_is_better", "load_best_model_at_end"),
    *("group_by_length", "auto_find_batch_size", "warmup_steps", "metric_for_best_model", "eval_steps"),
)
OF_PAIRS = {"dpo": ("dpo", "sigmoid"), "ipo": ("dpo", "ipo"), "orpo": ("orpo",), "kto": ("kto",)}  # rl -> method, loss
LABELLED = {  # of kto, the second part of a data set's type -> the field with the prompt
    "argilla": "instruction",
    "argilla_chat": "instruction",
    "intel": "question",
    "default": "prompt",
    "prompt_pairs": "prompt",
    "ultra": "prompt",
}
PAIRS = {  # the second part of a data set's type -> our names of fields -> theirs
    "default": {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
    "argilla": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    "argilla_chat": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    "icr": {"prompt": "input", "chosen": "chosen", "rejected": "rejected"},
    "intel": {"prompt": "question", "chosen": "chosen", "rejected": "rejected"},
    "prompt_pairs": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    "ultra": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
}
ADAPTERS = {None: "full", "": "full", False: "full", "lora": "lora", "qlora": "qlora"}
RL = "its rl"  # of a data set, what its rows are for: dpo, ipo, orpo, kto, or nothing
PLAIN_TEXT = ("completion", "pretrain", "pretraining")
OURS = {"user", "assistant", "human", "gpt", "system", "developer"}  # roles that are read


def refused(original: Original) -> Iterator[tuple[str, str]]:
    """Keys that make it no supervised fine-tuning of text, with what it is."""
    if not is_off(original.get("rl")) and original.get("rl") not in OF_PAIRS:
        yield "rl", f"{shown(original.get('rl'))} is training on preferences or rewards"
    for key in ("reward_model", "process_reward_model"):
        if not is_off(original.get(key)):
            yield key, "a reward model"
    if original.get("pretraining_dataset"):
        yield "pretraining_dataset", "pretraining"
    for key in ("processor_type", "image_size"):
        if original.get(key):
            yield key, "multimodal training"
    if original.get("adapter") not in ADAPTERS:
        yield "adapter", f"{shown(original.get('adapter'))} is a method that is not offered"
    for i, item in enumerate(original.entries("datasets")):
        kind = item.get("type")
        if isinstance(kind, str) and re.split("[.:]", kind)[0] in PLAIN_TEXT:
            yield f"datasets[{i}].type", f"{shown(kind)} is pretraining on plain text"


def objective(value: Any, _: Original) -> Treatment:
    """Training on preference pairs."""
    if is_off(value):
        return not_needed("supervised fine-tuning, as here")
    return carried(dict(zip(("preference.method", "preference.loss"), OF_PAIRS[value], strict=False)))


def of_pairs(target: str, *kinds: str) -> KeyRule:
    """A number of training on preference pairs, of these kinds."""

    def decide(value: Any, original: Original) -> Treatment:
        has_it = original.get("rl") in kinds
        return carried({target: value}) if has_it else not_needed(f"of rl: {' or '.join(kinds)}")

    return by(decide, target)


def method(_: Any, original: Original) -> Treatment:
    """Which weights are trained, from the adapter, the bits of the base, and plugins."""
    quantized = bits(original) or _bits_of_peft(original)
    if is_off(original.get("adapter")):
        has_spectrum = any("spectrum" in str(plugin).lower() for plugin in original.get("plugins") or ())
        return carried({"method.kind": "spectrum" if has_spectrum else "full"})
    if quantized:
        return carried({"method.kind": "qlora", "method.bits": quantized})
    return carried({"method.kind": original.get("adapter")})


def _bits_of_peft(original: Original) -> int | None:
    peft = original.get("peft")
    kind = peft.get("weight_dtype") if isinstance(peft, dict) else None
    return {"int4": 4, "nf4": 4, "int8": 8}.get(kind or "")


def peft(value: Any, original: Original) -> Treatment:
    """A section of PEFT's, of which the bits count."""
    if isinstance(value, dict) and value.keys() <= {"backend", "weight_dtype", "group_size"}:
        return method(value, original)
    return lost("of this section only weight_dtype is read", method(value, original).values)


def plugins(value: Any, original: Original) -> Treatment:
    """Plugins, some of which are built in here."""
    known = {"liger": "", "cutcrossentropy": "", "spectrum": ""}
    names = [str(name).rpartition(".")[2].lower().removesuffix("plugin") for name in words(value)]
    if others := [name for name in names if name not in known]:
        return lost(f"not offered: {', '.join(others)}", method(value, original).values)
    if "spectrum" in names:
        return method(value, original)
    return not_needed("liger is used where it is installed, and the output layer computes answer tokens only")


def validation(value: Any, original: Original) -> Treatment:
    """A share of the rows, or their number."""
    if original.get("test_datasets"):
        return not_needed("test_datasets are the validation split")
    if is_off(value):
        return lost("a validation split is always drawn, since it selects the best step: 0.1 of the rows")
    if is_number(value) and value >= 1:
        return lost("split.validation is a share of the rows, not their number: 0.1 is used")
    return carried({"split.validation": value})


def evals_per_epoch(value: Any, _: Original) -> Treatment:
    """Evaluations in an epoch, of which there are two here."""
    if value == 2:
        return not_needed("two here as well")
    return lost("there are two evaluations an epoch; training.evaluate_every sets their steps")


def too_long(value: Any, _: Original) -> Treatment:
    """Rows longer than sequence_len: dropped, cut, or an error."""
    names = {"drop": "quarantine", "raise": "error"}
    return carried({"model.on_long": names[value]}) if value in names else lost("rows are never truncated")


def template(value: Any, original: Original) -> Treatment:
    """A chat template by name, or as Jinja."""
    if value == "tokenizer_default":
        return not_needed("the base's own template is used")
    if str(value).startswith("tokenizer_default_fallback_"):
        return not_needed("the base's own template is used; for a base without one, set model.chat_template")
    if value == "jinja":
        return not_needed("chat_template_jinja has it")
    if isinstance(value, str) and value in TEMPLATES:
        return carried({"model.chat_template": TEMPLATES[value]})
    return lost("the base's own template is used; model.chat_template names others, or a Jinja file")


def jinja(value: Any, original: Original) -> Treatment:
    """A chat template as a file, or as text."""
    if isinstance(value, str) and "{" not in value and "\n" not in value:
        return carried({"model.chat_template": original.places.named(value)[0]})
    return lost("save the template as a file and name that in model.chat_template")


def layers(value: Any, _: Original) -> Treatment:
    """Layers that get an adapter."""
    return lost("method.layers is the number of last layers; the adapter is on all of them")


def linear(value: Any, _: Original) -> Treatment:
    """Adapters on all linear modules."""
    return not_needed("lora_target_modules decides") if is_off(value) else carried({"method.target": "all-linear"})


def modules(value: Any, original: Original) -> Treatment:
    """Adapters on modules by name."""
    if not is_off(original.get("lora_target_linear")):
        return not_needed("lora_target_linear decides")
    return target_modules(value, original)


def experiment(value: Any, _: Original) -> Treatment:
    """The experiment in MLflow, which has the name of the registered model here."""
    return carried({"registry.name": slug(str(value))}) if slug(str(value)) else lost("no letter that a name can have")


TABLE: Table = {
    "base_model": by(base_model, "model.base"),
    **each("revision_of_model model_revision", to("model.revision")),
    "sequence_len": to("model.max_length"),
    "excess_length_strategy": by(too_long, "model.on_long"),
    "chat_template": by(template, "model.chat_template"),
    "chat_template_jinja": by(jinja, "model.chat_template"),
    **each("adapter load_in_4bit load_in_8bit", by(method, "method.kind", "method.bits")),
    "peft": by(peft, "method.kind", "method.bits"),
    "plugins": by(plugins, "method.kind", "method.bits"),
    "spectrum_top_fraction": to("method.share"),
    "spectrum_model_name": needless("the base is measured itself"),
    "lora_r": to("method.rank"),
    "lora_alpha": to("method.alpha"),
    "lora_dropout": to("method.dropout"),
    "lora_target_linear": by(linear, "method.target"),
    "lora_target_modules": by(modules, "method.target"),
    "peft_layers_to_transform": by(layers),
    "peft_use_rslora": to("method.rslora"),
    "peft_use_dora": to("method.dora"),
    "peft_init_lora_weights": by(adapter_init, "method.init"),
    "loraplus_lr_ratio": to("method.lora_plus"),
    "max_steps": by(max_steps, "training.max_steps"),
    "num_epochs": to("training.epochs"),
    **batch_rules("micro_batch_size", "batch_size"),
    **{key: TRAINER[key] for key in AS_TRAINER},
    "learning_rate": to("training.learning_rate"),
    "lr_scheduler": by(schedule, "training.schedule", "training.warmup"),
    "warmup_ratio": to("training.warmup"),
    "optimizer": by(optimizer, "compute.optimizer"),
    "early_stopping_patience": to("training.patience"),
    "seed": to("training.seed"),
    "evals_per_epoch": by(evals_per_epoch),
    **each("eval_strategy evaluation_strategy", by(eval_strategy)),
    "val_set_size": by(validation, "split.validation"),
    "adam_eps": same_as(1e-8, "1e-8 here as well", FIXED),
    "bfloat16": by(lambda value, o: not_needed("off there as well") if is_off(value) else dtype("bfloat16", o)),
    **each("float16 fp8", missing("compute.precision has bfloat16 and float32")),
    "float32": needless("compute.precision decides"),
    "torch_dtype": by(dtype, "compute.precision"),
    "sample_packing": only_off("compute.packing", PACKED),
    **each(
        "eval_sample_packing pad_to_sequence_len sample_packing_group_size sample_packing_bin_size batch_flattening "
        "sample_packing_sequentially sample_pack_sequentially multipack_real_batches sample_packing_eff_est "
        "total_num_tokens total_supervised_tokens sample_packing_mp_start_method max_packed_sequence_len",
        needless(PACKED),
    ),
    **each(
        "flash_attention sdp_attention xformers_attention eager_attention flex_attention attention", needless(FLASH)
    ),
    "attn_implementation": needless(FLASH),
    **each(
        "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp flash_optimum "
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel cut_cross_entropy chunked_cross_entropy "
        "chunked_cross_entropy_num_chunks unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o "
        "unsloth_rms_norm unsloth_rope use_kernels tiled_mlp liger_rope liger_rms_norm liger_layer_norm liger_swiglu "
        "liger_glu_activation liger_cross_entropy liger_fused_linear_cross_entropy flex_attn_compile_kwargs "
        "gemma4_hybrid_attn_impl liger_rms_norm_gated fused_attn_kernel use_scattermoe experts_implementation "
        "moe_bnb_fast moe_dequant_chunk_size",
        needless("kernels are chosen by themselves, and the result stays the same"),
    ),
    **each("activation_offloading lora_on_cpu", missing("activations and adapters are not offloaded")),
    **each(
        "low_cpu_mem_usage max_memory gpu_memory_limit device_map gc_steps device experimental_skip_move_to_device "
        "qlora_sharded_model_loading",
        needless("memory is planned by tunewright plan"),
    ),
    "train_on_inputs": by(lambda value, _: not_needed(ANSWERS) if is_off(value) else lost(ANSWERS)),
    "datasets": by(lambda _value, _original: carried({}), "data.sources", "model.chat_template"),
    "test_datasets": by(lambda _value, _original: carried({}), "data.sources"),
    **each(
        "dataset_prepared_path push_dataset_to_hub dataset_processes dataset_keep_in_memory shuffle_merged_datasets "
        "dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor dataloader_drop_last "
        "remove_unused_columns skip_prepare_dataset preprocess_iterable is_preprocess dataset_num_proc "
        "shuffle_before_merging_datasets min_sample_len",
        needless(LOADED),
    ),
    **each("dataset_exact_deduplication exact_deduplication", needless("exact and near-duplicates are removed always")),
    **each("dataset_shard_num dataset_shard_idx", missing("all rows are read; data.limit reads a sample")),
    "streaming": missing("data are read whole"),
    "curriculum_sampling": missing("rows are drawn in another order in each epoch"),
    "default_system_message": missing("no system message is added: put it into the records"),
    **each("eot_tokens train_on_eos train_on_eot", needless("an answer ends with the stop token of the template")),
    **each(
        "model_type type_of_model tokenizer_type tokenizer_use_fast tokenizer_legacy is_falcon_derived_model "
        "is_llama_derived_model is_mistral_derived_model is_qwen_derived_model cls_model_config base_model_config "
        "base_model_ignore_patterns tokenizer_save_jinja_files embeddings_skip_upcast",
        needless("read from the base's own files"),
    ),
    **each(
        "tokenizer_config tokenizer_use_mistral_common processor_kwargs", missing("the base's own tokenizer is used")
    ),
    "special_tokens": missing(NO_TOKENS),
    **each(
        "tokens added_tokens_overrides resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings "
        "fix_untrained_tokens",
        missing(f"embeddings are not trained beside an adapter; {NO_TOKENS}"),
    ),
    **each(
        "lora_modules_to_save peft_trainable_token_indices embedding_lr embedding_lr_scale loraplus_lr_embedding",
        missing("embeddings are not trained beside an adapter"),
    ),
    "trust_remote_code": missing(NO_CODE),
    **each(
        "overrides_of_model_config model_config overrides_of_model_kwargs model_kwargs rope_scaling",
        missing("the base's configuration is used as it is"),
    ),
    **each("gptq gptq_groupsize gptq_model_v1 gptq_disable_exllama", missing("a base quantized by GPTQ is not read")),
    "quantize_moe_experts": missing("experts are trained with method.kind: full alone"),
    **each("bnb_config_kwargs model_quantization_config", missing("4 bits are NF4 with double quantization")),
    **each("lora_model_dir peft_model_dir", missing("an adapter is not trained further: it begins anew")),
    **each(
        "lora_fan_in_fan_out peft_fan_in_fan_out peft_autocast_adapter_dtype peft_ensure_weight_tying merge_lora "
        "merge_method",
        needless("chosen with the adapter"),
    ),
    **each(
        "lora_target_parameters peft_layers_pattern peft_layer_replication", missing("an adapter is put on modules")
    ),
    **each(
        "relora relora_steps relora_warmup_steps relora_anneal_steps relora_prune_ratio relora_prune_method "
        "relora_cpu_offload jagged_restart_steps lisa_n_layers lisa_step_interval lisa_layers_attribute",
        missing("a method that is not offered (ReLoRA, LISA)"),
    ),
    "unfrozen_parameters": missing("full trains all weights; method.kind: spectrum trains a share"),
    **each(
        "optim_args optim_target_modules adam_beta3 adam_epsilon2 torchdistx_path", missing("AdamW has no arguments")
    ),
    **each(
        "lr_scheduler_kwargs lr_quadratic_warmup cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor lr_groups",
        missing("the schedule has no arguments here"),
    ),
    **each("use_dft use_eaft eaft_alpha eaft_k noisy_embedding_alpha", missing("the loss is the plain cross-entropy")),
    **each("qat quantization llmcompressor", missing("weights are not quantized in or after training")),
    **each(
        "use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks s2_attention",
        missing("contexts are not extended"),
    ),
    **each(
        "deepspeed fsdp fsdp_config fsdp_version fsdp_final_state_dict_type ddp ddp_timeout ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_find_unused_parameters local_rank world_size sequence_parallel_degree "
        "context_parallel_size tensor_parallel_size dp_shard_size dp_replicate_size expert_parallel_size "
        "expert_parallel_enabled "
        "heads_k_stride ring_attn_func accelerator_config use_ray ray_run_name ray_num_workers resources_per_worker "
        "n_gpu",
        missing(f"{SEVERAL_DEVICES}; --devices N multiplies the batch"),
    ),
    **each(
        "output_dir save_steps saves_per_epoch save_strategy save_total_limit save_only_model save_safetensors "
        "save_first_step resume_from_checkpoint auto_resume_from_checkpoints overwrite_output_dir",
        needless(CHECKPOINTS),
    ),
    **each(
        "wandb_project wandb_entity wandb_watch wandb_name wandb_log_model wandb_run_id wandb_mode wandb_run_name "
        "use_wandb use_tensorboard use_mlflow mlflow_run_name hf_mlflow_log_artifacts use_comet comet_api_key "
        "comet_workspace comet_project_name comet_experiment_key comet_mode comet_online comet_experiment_config "
        "use_otel_metrics otel_metrics_host otel_metrics_port use_trackio trackio_project_name trackio_run_name "
        "logging_steps include_tokens_per_second profiler_steps profiler_steps_start debug include_tkps",
        needless(RECORDED),
    ),
    "strict": needless("unknown settings are refused always"),
    "mlflow_tracking_uri": to("registry.tracking_uri"),
    "mlflow_experiment_name": by(experiment, "registry.name"),
    **each("hub_model_id hub_strategy hub_revision", missing(UPLOAD)),
    "hf_use_auth_token": needless("a token of the hub is set in the environment (HF_TOKEN)"),
    **each(
        "eval_batch_size eval_table_size eval_max_new_tokens eval_table_max_new_tokens do_causal_lm_eval "
        "eval_causal_lm_metrics generate_samples num_generation_samples generation_max_new_tokens",
        needless(f"{EVALUATED}, and answers are scored on test rows"),
    ),
    **each(
        "do_bench_eval bench_dataset bench_split lm_eval_tasks",
        missing("lm_eval.tasks runs tasks of lm-evaluation-harness"),
    ),
    **each("loss_watchdog_threshold loss_watchdog_patience", needless("a training that diverges is reported")),
    "rl": by(objective, "preference.method", "preference.loss"),
    **each("rl_beta dpo_beta", of_pairs("preference.beta", "dpo", "ipo", "kto")),
    "kto_desirable_weight": of_pairs("preference.desirable_weight", "kto"),
    "kto_undesirable_weight": of_pairs("preference.undesirable_weight", "kto"),
    "orpo_alpha": of_pairs("preference.beta", "orpo"),
    "rpo_alpha": of_pairs("preference.sft_weight", "dpo", "ipo"),
    "dpo_label_smoothing": missing("preference.label_smoothing goes with the losses robust and exo_pair"),
    **each("dpo_use_weighting dpo_padding_free dpo_norm_loss", missing("the loss is TRL's")),
    "dpo_use_logits_to_keep": needless("only answer positions are scored"),
    **each("precompute_ref_log_probs precompute_ref_batch_size", needless("the reference is computed once always")),
    **each("reward_model process_reward_model pretraining_dataset", needless("off there")),
    **each("gradio_title gradio_share gradio_server_name gradio_server_port", needless("tunewright predict answers")),
}


def dataset_path(value: Any, item: Original) -> Treatment:
    """Files here, or a data set of the hub."""
    files = words(item.get("data_files")) if item.get("data_files") else []
    if files and (str(value) in {"json", "csv", "parquet", "arrow"} or item.places.found(str(value))):
        folder = Path(str(value)) if item.places.found(str(value)) else Path()
        found = [item.places.named(file, Path() if item.places.found(file) else folder) for file in files]
        return carried({"data.sources[].path": [path for path, _ in found]}, next((s for _, s in found if s), ""))
    path, said = item.places.source(str(value), str(item.get("name") or ""), str(item.get("split") or ""))
    if not path:
        return lost(said)
    values = {"data.sources[].path": path}
    if item.get("split") and (found := item.places.found(str(value))) and found.is_dir() and "*" not in path:
        values["data.sources[].split"] = str(item.get("split"))
    return carried(values, said or ("all files of the split are read" if files else ""))


def dataset_type(value: Any, item: Original) -> Treatment:
    """The format of the records: their layout, and names of fields."""
    if item.get(RL):
        return _pairs(value, item)
    if isinstance(value, dict):
        fields = {name: value.get(f"field_{name}") for name in ("system", "instruction", "input", "output")}
        columns = {name: theirs for name, theirs in fields.items() if theirs and theirs != name}
        more = sorted(key for key, each in value.items() if each and not key.startswith("field_"))
        why = f"{', '.join(more)}: the chat template words the prompt" if more else ""
        return _layout("alpaca", columns, why)
    name = str(value)
    if name == "chat_template" or name.startswith("chat_template."):
        return messages(item)
    if name.startswith("sharegpt"):
        theirs = item.get("field_messages") or "conversations"
        return _layout("sharegpt", {} if theirs == "conversations" else {"conversations": theirs})
    known = FORMATS.get(name) or FORMATS.get(name.partition(":")[0]) or FORMATS.get(name.partition(".")[0])
    if known is None:
        near = get_close_matches(name, FORMATS, 1)
        hint = f"a typing error? the type {near[0]} is known; " if near else ""
        return lost(f"{hint}the layout is detected by the fields; data.sources[].columns names them")
    return _layout(*known)


def _pairs(value: Any, item: Original) -> Treatment:
    """Preference pairs or labelled answers, by the names of their fields."""
    if item.get(RL) == "kto":
        return _labelled(value, item)
    if isinstance(value, dict):
        found = {name: value.get(f"field_{name}") for name in ("system", "prompt", "chosen", "rejected")}
        return _layout("preference", {name: field for name, field in found.items() if field and field != name})
    names = PAIRS.get(str(value).rpartition(".")[2])
    if names is None:
        return lost("the layout is detected by the fields; data.sources[].columns names them")
    given = {name: item.get(f"field_{name}") or theirs for name, theirs in names.items()}
    return _layout("preference", {name: field for name, field in given.items() if field != name})


def _labelled(value: Any, item: Original) -> Treatment:
    """Answers with labels, by the names of their fields."""
    prompt = LABELLED.get(str(value).rpartition(".")[2])
    given, prompt = (value, "prompt") if isinstance(value, dict) else (item, prompt)
    if not prompt:
        return lost("the layout is detected by the fields; data.sources[].columns names them")
    names = {"prompt": prompt, "completion": "completion", "label": "label", "system": ""}
    found = {name: given.get(f"field_{name}") or theirs for name, theirs in names.items()}
    columns = {name: field for name, field in found.items() if field and (field != name or name == "label")}
    return _layout("prompt_completion", columns)


def _layout(layout: str, columns: dict[str, str], differs: str = "") -> Treatment:
    values: dict[str, Any] = {"data.sources[].layout": layout}
    return carried(values | ({"data.sources[].columns": columns} if columns else {}), differs)


def messages(item: Original) -> Treatment:
    """Turns as a list, by the names of the list and of what each turn has."""
    mapped = item.get("message_property_mappings")
    mapped = mapped if isinstance(mapped, dict) else {}
    role = mapped.get("role") or item.get("message_field_role") or "role"
    content = mapped.get("content") or item.get("message_field_content") or "content"
    theirs = item.get("field_messages") or "messages"
    names = {("role", "content"): ("messages", "messages"), ("from", "value"): ("sharegpt", "conversations")}
    if (role, content) not in names:
        return lost(f"turns have {role} and {content}; here role and content, or from and value")
    layout, ours = names[role, content]
    columns = {ours: theirs, "tools": item.get("field_tools") or "tools"}
    return _layout(layout, {name: str(field) for name, field in columns.items() if field != name})


def part_of_messages(_: Any, item: Original) -> Treatment:
    """A key that the layout is read from."""
    if item.get(RL):
        return dataset_type(item.get("type"), item)
    return (
        messages(item)
        if str(item.get("type")).startswith(("chat_template", "sharegpt"))
        else lost("read with type: chat_template alone")
    )


def roles(value: Any, _: Original) -> Treatment:
    """Names of roles."""
    theirs = {str(name) for names in value.values() for name in words(names)} if isinstance(value, dict) else {"?"}
    if others := sorted(theirs - OURS):
        return lost(f"records with these roles are quarantined: {', '.join(others)}")
    return not_needed("these roles are known")


def data_format(value: Any, item: Original) -> Treatment:
    """The format of a file, which its ending tells."""
    if value == "text":
        return lost("plain text has no answers")
    return (
        not_needed("told by the file's ending")
        if Path(str(item.get("path"))).suffix
        else carried({"data.sources[].format": {"json": "jsonl"}.get(str(value), value)})
    )


def trained_roles(value: Any, _: Original) -> Treatment:
    """Roles whose turns are trained."""
    return not_needed(ANSWERS) if words(value) in (["assistant"], ["gpt"]) else lost(ANSWERS)


PATHS = ("data.sources[].path", "data.sources[].split")
MESSAGES: KeyRule = by(part_of_messages, "data.sources[].layout", "data.sources[].columns")
DATASET: Table = {
    **each("path data_files", by(lambda _, item: dataset_path(item.get("path"), item), *PATHS)),
    "type": by(dataset_type, "data.sources[].layout", "data.sources[].columns"),
    **each(
        "field_chosen field_rejected field_prompt field_completion field_label",
        by(lambda _, item: dataset_type(item.get("type"), item), "data.sources[].layout", "data.sources[].columns"),
    ),
    **each("field_messages message_property_mappings message_field_role message_field_content field_tools", MESSAGES),
    **each("name split", by(lambda _, item: dataset_path(item.get("path"), item), *PATHS)),
    "revision": to("data.sources[].revision"),
    "ds_type": by(data_format, "data.sources[].format"),
    "roles": by(roles),
    "roles_to_train": by(trained_roles),
    "train_on_eos": needless("an answer ends with the stop token of the template"),
    "train_on_eot": needless("an answer ends with the stop token of the template"),
    "conversation": needless("the chat template is that of the model"),
    "chat_template": missing("one template is for all rows: model.chat_template"),
    "chat_template_jinja": missing("one template is for all rows: model.chat_template"),
    **each(
        "message_field_training message_field_training_detail",
        missing("weight: 0 in a message leaves its answer out of training"),
    ),
    **each("shards shards_idx preprocess_shards", missing("all rows are read; data.limit reads a sample")),
    **each(
        "field_thinking template_thinking_key split_thinking",
        missing("reasoning is read from reasoning_content, and model.reasoning says whether it is trained"),
    ),
    "field_system": missing("a system message is one of the messages"),
    **each(
        "field_human field_model field input_format input_transform", missing("data.sources[].columns names fields")
    ),
    "drop_system_message": missing("system messages are kept"),
    "trust_remote_code": missing(NO_CODE),
}


def entries(original: Original) -> Iterator[DataSetEntry]:
    """Each data set."""
    for key, use in (("datasets", ""), ("test_datasets", "validation")):
        for i, item in enumerate(original.entries(key)):
            used_for = {RL: "" if is_off(original.get("rl")) else str(original.get("rl"))}
            yield DataSetEntry(f"{key}[{i}]", DATASET, original.of(item, used_for), use)


def completed(original: Original, values: Mapping[str, Any]) -> Iterator[tuple[str, Treatment]]:
    """Treatments that follow from several keys at once."""
    kinds = {str(item.get("type")) for item in original.entries("datasets")}
    if kinds == {"alpaca"} and "model.chat_template" not in values:
        yield "datasets", carried({"model.chat_template": "alpaca"}, ALPACA)
    elif "alpaca" in kinds:
        yield "datasets", carried({}, "type: alpaca has its own prompt template; here all rows share one chat template")


TOOL = Tool("axolotl", "Axolotl", TABLE, MARKS, refused, entries, defaults=DEFAULTS, completed=completed)
