"""Training itself: what is given to SFTTrainer, and what is kept of it."""

import math
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoTokenizer, set_seed
from trl.trainer.sft_config import SFTConfig

from tunewright.artifacts.payloads import TrainingSummary
from tunewright.modeling import compute, methods, micro_batching
from tunewright.modeling.batches import Collator
from tunewright.tasks.train.trainer import FINISHED, INTERRUPTED, Job, checkpoints
from tunewright.tasks.train.trainer.observed import ObservedTrainer
from tunewright.tasks.train.trainer.preparing import prepare
from tunewright.tasks.train.trainer.record import Record, Recorder
from tunewright.tasks.train.trainer.saving import save
from tunewright.tasks.train.trainer.scores import Scores
from tunewright.tasks.train.trainer.watch import Watch, with_rows

SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}


def fit(job: Job, folder: Path) -> int:
    """Trains to the planned end, or to an early stop, and writes model/ and summary.json into `folder`."""
    training = job.training
    sides = [pq.read_table(file, columns=["row_id", "input_ids", "labels"]) for file in (job.train, job.validation)]
    longest = max(pc.max(pc.list_value_length(side["input_ids"])).as_py() for side in sides)  # pyright: ignore
    rows, validation = map(datasets.Dataset, sides)
    set_seed(training.seed)
    config = AutoConfig.from_pretrained(job.weights, local_files_only=True)
    device = compute.device_here()
    chosen = compute.choose(config, job.method, training, job.compute, longest, device)
    examples = rows["input_ids"] if job.method.init == "eva" else None  # lists only of the rows that are taken
    model = methods.load_trainable(job.weights, job.method, chosen, job.modules, examples)
    prepare(model, chosen)

    steps_an_epoch = math.ceil(len(rows) / training.batch)
    planned = training.max_steps or math.ceil(training.epochs * steps_an_epoch)
    every = min(training.evaluate_every or math.ceil(steps_an_epoch / 2), planned)
    resumed, skipped = checkpoints.newest_valid(folder / "checkpoints")
    record = Record(folder, checkpoints.steps(resumed) if resumed else 0, skipped)
    watch = Watch(record.losses)
    tokenizer = AutoTokenizer.from_pretrained(job.weights, local_files_only=True)
    scores = None
    if training.best_by != "loss":
        scores = Scores(job.validation, tokenizer, job.stop_token_ids, training.best_by, job.micro_batch)
    trainer = ObservedTrainer(
        training=training,
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
            max_steps=training.max_steps or -1,
            lr_scheduler_type=SCHEDULERS[training.schedule],
            warmup_steps=training.warmup,
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
        ),
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=with_rows(
            Collator(
                chosen.layout,
                job.pad_token_id,
                job.micro_batch,
                job.compute.max_tokens,
                micro_batching.group_cost(device.kind, compiled=chosen.compile),
            )
        ),
        callbacks=[Recorder(record, watch, training)],
    )
    learning, total = methods.trained_share(model)
    record.start(
        evaluate_every=every,
        device=device.name,
        chosen=chosen.model_dump(),
        learning_parameters=learning,
        parameters=total,
        max_steps=training.max_steps,
        method=job.method.kind,
    )
    best = trainer.go_on(resumed)
    if best is None:
        return INTERRUPTED
    tuned: Any = trainer.model
    if hasattr(config, "use_cache"):
        tuned.config.use_cache = config.use_cache  # which the trainer turned off
    save(tuned, folder / "model", job.reference, chosen.precision)
    state = trainer.state
    TrainingSummary(
        steps=state.global_step,
        planned_steps=state.max_steps,
        best_step=best.step,
        best_by=training.best_by,
        best_value=best.value,
        best_validation_loss=next(
            entry["eval_loss"] for entry in state.log_history if entry["step"] == best.step and "eval_loss" in entry
        ),
        stopped_early=state.global_step < state.max_steps,
        chosen=chosen.model_dump(),
        learning_parameters=learning,
        parameters=total,
        skipped_checkpoints=tuple(record.skipped),
    ).save(folder)
    return FINISHED
