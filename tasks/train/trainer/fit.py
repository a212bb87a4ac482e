"""Training itself: what is given to SFTTrainer, and what is kept of it.

The tuned weights are files that answer as the trained model did: equal weights give equal bytes. Three forms: an
adapter, which is always a plain one of the untouched base; the tensors that learned (spectrum, osf), which are laid
over the base; and all weights. The first two need the very base that they were trained on, which serving.py finds by
its digest: a file of a quarter of the weights, beside one that is there already, is smaller and as safe.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from transformers import AutoConfig, AutoTokenizer, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl.trainer.sft_config import SFTConfig

from tunewright.artifacts import training_log
from tunewright.artifacts.payloads import TrainingSummary
from tunewright.errors import ConfigError
from tunewright.generation.vllm_server import VllmServer
from tunewright.metrics.rewards import Rewards
from tunewright.modeling import compute, methods, micro_batching
from tunewright.modeling.anchor import AnchoredCollator
from tunewright.modeling.batches import Collator
from tunewright.modeling.groups import DrawnCollator
from tunewright.modeling.methods import osf
from tunewright.modeling.methods.adapter import BEGAN_AS
from tunewright.modeling.objectives import (
    AnchoredObjective,
    AnswerObjective,
    LabelObjective,
    Objective,
    PairObjective,
    RewardObjective,
)
from tunewright.modeling.preferences import PairCollator
from tunewright.modeling.unpaired import LabelledCollator
from tunewright.serving import TRAINED, context_length
from tunewright.tasks.train.trainer import FINISHED, INTERRUPTED, Job, checkpoints, copies, ranks, reference, zero
from tunewright.tasks.train.trainer.drawing import Drawing, RewardTrainer
from tunewright.tasks.train.trainer.observed import ObservedTrainer
from tunewright.tasks.train.trainer.preparing import prepare
from tunewright.tasks.train.trainer.record import Record, Recorder, start_as_good
from tunewright.tasks.train.trainer.rows import longest_of, part_of, prompts_in, rows_in
from tunewright.tasks.train.trainer.watch import Scores, Watch, with_rows

SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
SHARDING = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}  # each rank writes its part of a checkpoint
OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}


def fit(job: Job, folder: Path) -> int:
    """Trains to the planned end, or to an early stop, and writes model/ and summary.json into `folder`."""
    training = job.training
    read = partial(rows_in, preference=job.preference, tells_general=training.anchor > 0)
    splits = [part_of(read(job.train), training.share), read(job.validation)]
    tokenizer = AutoTokenizer.from_pretrained(job.weights, local_files_only=True)
    if tokenizer.pad_token_id not in (
        None,
        job.pad_token_id,
    ):  # which Trainer would write into the config
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(job.pad_token_id)
    drawing = _drawing(job, tokenizer, folder) if job.grpo else None
    longest = drawing.longest if drawing else max(map(longest_of, splits))
    config = AutoConfig.from_pretrained(job.weights, local_files_only=True)
    if drawing and (reads := context_length(config.to_dict())) and longest > reads:
        raise ConfigError(_too_long(drawing, reads))
    rows, validation = map(datasets.Dataset, splits)
    set_seed(training.seed)
    device = compute.device_here()
    resumed, skipped = ranks.from_first(lambda: checkpoints.newest_valid(folder / "checkpoints"))
    if resumed:
        copies.on_each(resumed := folder / "checkpoints" / resumed.name)
    settings = checkpoints.resumable(job.compute, resumed) if resumed else job.compute
    chosen = compute.choose(config, job.method, training, settings, longest, device, job.ddp)
    examples = rows["input_ids"] if job.method.init == "eva" else None  # lists only of the rows that are taken
    model = methods.load_trainable(job.weights, job.method, chosen, job.modules, examples, job.begins_as)
    learning, total = methods.trained_share(model)
    prepare(model, chosen)

    on_same = job.grpo.iterations if job.grpo else 1  # steps that learn from the same answers
    steps_an_epoch = math.ceil(len(drawing.train if drawing else rows) / training.batch) * on_same
    planned = training.max_steps or math.ceil(training.epochs * steps_an_epoch)
    every = training.evaluate_every or math.ceil(steps_an_epoch / 2)
    every = min(math.ceil(every / on_same) * on_same, planned)
    record = Record(folder, checkpoints.steps(resumed) if resumed else 0, skipped)
    watch = Watch(record.losses, job.section)
    scores = None
    if training.best_by != "loss":
        scores = Scores(job.validation, tokenizer, job.stop_token_ids, training.best_by, job.micro_batch)
    a_group = micro_batching.group_cost(device.kind, compiled=chosen.compile)
    cutting = (job.micro_batch, job.compute.max_tokens, a_group, ranks.own(), ranks.number())
    collator = _kind_of_collator(job)(chosen.layout, job.pad_token_id, *cutting)
    if drawing and isinstance(collator, DrawnCollator):
        drawing.beat = record.beat
        trainer_of = partial(RewardTrainer, drawing=drawing, collator=collator, folder=folder)
    else:
        trainer_of = partial(ObservedTrainer, data_collator=with_rows(collator))
    is_fsdp = chosen.sharded and not chosen.zero
    deepspeed = zero.joined(chosen, model) if chosen.zero else {}
    trainer = trainer_of(
        training=training,
        planned=planned,
        measures_start=job.measures_start,
        objective=_objective(job),
        lora_plus=job.method.lora_plus,
        watch=watch,
        is_interrupted=record.is_interrupted,
        scores=scores,
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "checkpoints"),
            per_device_train_batch_size=training.batch,
            per_device_eval_batch_size=training.batch,
            learning_rate=training.learning_rate,
            num_train_epochs=training.epochs,
            max_steps=planned if drawing else training.max_steps or -1,
            lr_scheduler_type=SCHEDULERS[training.schedule],
            # Of a step it would be the whole step, whose rate is 0.
            warmup_steps=training.warmup if training.warmup * planned >= 1 else 0,
            optim=OPTIMIZERS[chosen.optimizer],
            seed=training.seed,
            bf16=chosen.precision == "bfloat16",
            gradient_checkpointing=chosen.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            eval_strategy="steps",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            router_aux_loss_coef=0.0,  # TRL would turn it on, and into the config of the tuned model
            use_cpu=not torch.cuda.is_available(),
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
            fsdp=True if is_fsdp else None,  # pyright: ignore[reportArgumentType] as its help has it
            fsdp_config=SHARDING if is_fsdp else None,
            **deepspeed,
        ),
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[Recorder(record, watch, training, job.checkpoint_minutes)],
    )
    unset_hf_deepspeed_config()  # by which transformers would shard other models that are loaded as well
    if job.preference and job.preference.needs_reference:
        of_pairs = PairCollator(chosen.layout, job.pad_token_id, *cutting)
        pairs = reference.added(folder, trainer, of_pairs, (rows, validation), record.beat)
        trainer.train_dataset, trainer.eval_dataset = pairs
    if isinstance(collator, AnchoredCollator):
        trainer.train_dataset = reference.anchored(folder, trainer, collator, rows, record.beat)
    record.start(
        evaluate_every=every,
        device=device.name,
        chosen=chosen.model_dump(),
        learning_parameters=learning,
        parameters=total,
        max_steps=training.max_steps,
        method=job.method.kind,
        preference=job.preference.method if job.preference else "",
    )
    best = trainer.go_on(resumed)
    if best is None:
        return INTERRUPTED
    learned = trainer.learned()
    if ranks.own() > 0:
        return FINISHED
    tuned: Any = trainer.model
    lines = training_log.read(folder / training_log.FILE)
    if began := start_as_good(lines, best, training):
        best, learned = began, None
        set_seed(training.seed)
        tuned = methods.load_trainable(job.weights, job.method, chosen, job.modules, examples, job.begins_as)
    if hasattr(config, "use_cache"):
        tuned.config.use_cache = config.use_cache  # which the trainer turned off
    save(tuned, folder / "model", job.reference, chosen.precision, learned)
    state = trainer.state
    TrainingSummary(
        steps=state.global_step,
        planned_steps=state.max_steps,
        best_step=best.step,
        best_by="reward" if drawing else training.best_by,
        best_value=-best.value if drawing else best.value,
        best_validation_loss=best.value if drawing else _loss_at(best.step, lines),
        stopped_early=state.global_step < state.max_steps,
        chosen=chosen.model_dump(),
        learning_parameters=learning,
        parameters=total,
        skipped_checkpoints=tuple(record.skipped),
    ).save(folder)
    return FINISHED


def _too_long(drawing: Drawing, reads: int) -> str:
    most, prompt = drawing.settings.max_new_tokens, drawing.longest - drawing.settings.max_new_tokens
    accepted = f"at most {reads - prompt}" if prompt < reads else "a lower model.max_length"
    return f"grpo.max_new_tokens={most}: a prompt has {prompt} tokens, and the base reads {reads}; accepted: {accepted}"


def _loss_at(step: int, history: Sequence[Mapping[str, Any]]) -> float:
    return next(entry["eval_loss"] for entry in history if entry["step"] == step and "eval_loss" in entry)


def _objective(job: Job) -> Objective:
    if job.grpo:
        return RewardObjective(job.grpo, is_served=bool(job.compute.vllm))
    if job.preference:
        return (LabelObjective if job.preference.learns_labels else PairObjective)(job.preference)
    return AnchoredObjective(job.training.anchor) if job.training.anchor else AnswerObjective()


def _kind_of_collator(job: Job) -> type[Collator]:
    if job.grpo:
        return DrawnCollator
    if job.preference:
        return LabelledCollator if job.preference.learns_labels else PairCollator
    return AnchoredCollator if job.training.anchor else Collator


def _drawing(job: Job, tokenizer: Any, folder: Path) -> Drawing:
    assert job.grpo
    server = None
    if job.compute.vllm:
        most = job.grpo.max_new_tokens
        server = VllmServer(job.compute.vllm, folder / "served", stops=job.stop_token_ids, max_new_tokens=most)
    return Drawing(
        job.grpo,
        Rewards(job.grpo.rewards, job.json_schema),
        [prompts_in(job.train, job.training.share), prompts_in(job.validation)],
        tokenizer=tokenizer,
        stops=job.stop_token_ids,
        seed=job.training.seed,
        batch=job.micro_batch,
        server=server,
    )


def save(
    model: Any,
    folder: Path,
    reference: str,
    precision: Literal["bfloat16", "float32"],
    learned: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes what `model` learned to `folder`; weights of the base itself in the precision that they multiplied in.

    `learned` are its tensors where the model is sharded. An adapter's config names the base as the user did, its sets
    are sorted, and no path of this machine is kept.
    """
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    if osf.is_osf(model):
        model = osf.merged(model)
    if hasattr(model, "peft_config"):
        _save_adapter(model, folder, reference, learned)
        return
    model.to(getattr(torch, precision))
    if learned is not None:
        learned = {name: tensor.to(getattr(torch, precision)) for name, tensor in learned.items()}
    if all(parameter.requires_grad for parameter in model.parameters()):
        model.save_pretrained(folder, state_dict=learned)
        return
    from safetensors.torch import save_file

    folder.mkdir()
    if learned is None:
        learned = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_file(learned, folder / TRAINED, metadata={"format": "pt"})


def _save_adapter(model: Any, folder: Path, reference: str, learned: dict[str, torch.Tensor] | None) -> None:
    began_as = getattr(model, BEGAN_AS, None)
    if began_as is None:
        model.save_pretrained(folder, state_dict=learned)
    else:  # a plain adapter of twice the rank: what it has become, minus what it was taken out of the base as
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory() as place:
            (initial := Path(place, "initial")).mkdir()
            save_file(began_as, initial / "adapter_model.safetensors", metadata={"format": "pt"})
            model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(initial))
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    adapter = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": reference, "revision": None}
    adapter = {name: sorted(value) if isinstance(value, list) else value for name, value in adapter.items()}
    file.write_text(json.dumps(adapter, indent=2, sort_keys=True), encoding="utf-8")
