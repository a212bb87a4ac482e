"""The trainer process: SFTTrainer on rows that are tokenized already, with early stopping and sealed checkpoints.

It is started by tasks/train.py as `python -m tasks.trainer JOB`, writes what happens to files beside the job, and ends
with one of the exit codes below; only FINISHED means that training reached its planned end.
"""

import ctypes
import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks import checkpoints
from tasks.artifacts import IGNORED
from tasks.config import Method, Training

FINISHED, FAILED, INTERRUPTED, OUT_OF_MEMORY = 0, 1, 75, 77
PR_SET_PDEATHSIG = 1
FIGURES = ("loss", "grad_norm", "learning_rate", "epoch", "eval_loss")


class Job(BaseModel):
    """All that the trainer is told; the file lies in the folder that it works in."""

    model_config = ConfigDict(frozen=True)

    weights: Path
    reference: str
    train: Path
    validation: Path
    pad_token_id: int
    method: Method
    training: Training
    micro_batch: int


def main(job_file: Path) -> int:
    """Runs the job and returns the exit code."""
    _end_with_parent()
    folder = job_file.parent
    job = Job.model_validate_json(job_file.read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(job.training.threads or _physical_cores())
    try:
        return train(job, folder)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return _failed(folder, error, OUT_OF_MEMORY)
    except RuntimeError as error:  # the CPU allocator has no type of its own
        return _failed(folder, error, OUT_OF_MEMORY if "can't allocate memory" in str(error) else FAILED)
    except (OSError, ValueError, FloatingPointError) as error:
        return _failed(folder, error, FAILED)


def train(job: Job, folder: Path) -> int:
    """Trains to the planned end, or to an early stop, and writes model/ and summary.json into `folder`."""
    import datasets
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer, EarlyStoppingCallback, set_seed
    from trl.trainer.sft_config import SFTConfig

    from tasks import batches, methods

    training = job.training
    rows, validation = (
        datasets.Dataset(pq.read_table(file, columns=["input_ids", "labels"])) for file in (job.train, job.validation)
    )
    set_seed(training.seed)
    model = methods.load_trainable(job.weights, job.method)
    longest = max(len(ids) for side in (rows, validation) for ids in side["input_ids"])
    obstacle = "training.speed=plain" if training.speed == "plain" else batches.can_share(model, longest)
    layout = obstacle or "shared prefix"
    if not obstacle:
        model.set_attn_implementation(batches.ATTENTION)

    steps_an_epoch = math.ceil(len(rows) / training.batch)
    every = min(training.evaluate_every or math.ceil(steps_an_epoch / 2), _planned(training, steps_an_epoch))
    resumed = checkpoints.newest_valid(folder / "checkpoints")
    record = Record(folder, checkpoints.steps(resumed) if resumed else 0)
    stopping = [EarlyStoppingCallback(training.patience)] if training.patience else []
    trainer = _trainer_class()(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "checkpoints"),
            per_device_train_batch_size=job.micro_batch,
            per_device_eval_batch_size=job.micro_batch,
            gradient_accumulation_steps=training.batch // job.micro_batch,
            learning_rate=training.learning_rate,
            num_train_epochs=training.epochs,
            max_steps=training.max_steps or -1,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            seed=training.seed,
            bf16=methods.has_bfloat16(),
            gradient_checkpointing=False,
            eval_strategy="steps",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every,
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            restore_callback_states_from_checkpoint=True,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            use_cpu=not _has_gpu(),
        ),
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=AutoTokenizer.from_pretrained(job.weights, local_files_only=True),
        data_collator=(lambda group: batches.plain_batch(group, job.pad_token_id))
        if obstacle
        else batches.shared_batch,
        callbacks=[_recorder(record), *stopping],
    )
    learning, total = methods.trained_share(model)
    record.start(layout=layout, learning_parameters=learning, parameters=total)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    state = trainer.state
    before_the_end = state.global_step < state.max_steps
    if record.interrupted and before_the_end:
        return INTERRUPTED
    save(trainer.model, folder / "model", job.reference)
    summary = {
        "steps": state.global_step,
        "planned_steps": state.max_steps,
        "best_step": state.best_global_step,
        "best_validation_loss": state.best_metric,
        "stopped_early": before_the_end,
        "layout": layout,
        "learning_parameters": learning,
        "parameters": total,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return FINISHED


def save(model: Any, folder: Path, reference: str) -> None:
    """Writes the adapter, or all weights as bfloat16, with a config that names the base as the user did.

    Equal weights give equal bytes: sets are sorted, and no path of this machine is kept.
    """
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    if not hasattr(model, "peft_config"):
        model.to(torch.bfloat16).save_pretrained(folder)
        return
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    adapter = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": reference, "revision": None}
    adapter = {name: sorted(value) if isinstance(value, list) else value for name, value in adapter.items()}
    file.write_text(json.dumps(adapter, indent=2, sort_keys=True), encoding="utf-8")


class Record:
    """What the parent reads while training runs: status.json and metrics.jsonl, one line a step."""

    def __init__(self, folder: Path, resumed_from: int) -> None:
        self.folder = folder
        self.resumed_from = resumed_from
        self.interrupted = False
        signal.signal(signal.SIGTERM, self._interrupt)
        metrics = folder / "metrics.jsonl"
        # What was logged after the checkpoint happens again.
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
        whole = (line for line in lines if line.endswith("\n"))
        metrics.write_text("".join(line for line in whole if json.loads(line)["step"] <= resumed_from), "utf-8")

    def _interrupt(self, *_: Any) -> None:
        self.interrupted = True

    def start(self, **facts: Any) -> None:
        """Says how the run is laid out, before the first step."""
        status = {"resumed_from": self.resumed_from, **facts}
        (self.folder / "status.json").write_text(json.dumps(status), encoding="utf-8")

    def line(self, step: int, planned: int, logs: dict[str, float]) -> None:
        """Appends one step's figures; raises FloatingPointError where the loss is not a number."""
        loss = logs.get("loss", logs.get("eval_loss", 0.0))
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step}: a lower training.learning_rate may help")
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "planned": planned, "time": time.time(), **logs}) + "\n")


def _recorder(record: Record) -> Any:
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            kept = {name: value for name, value in (logs or {}).items() if name in FIGURES}
            if "loss" in kept or "eval_loss" in kept:
                record.line(state.global_step, state.max_steps, kept)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            checkpoints.seal(Path(args.output_dir, f"{checkpoints.PREFIX}{state.global_step}"))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if record.interrupted:
                control.should_save = control.should_training_stop = True

    return Recorder()


def _trainer_class() -> Any:
    import numpy as np
    import torch
    from transformers.trainer_utils import EvalLoopOutput
    from trl.trainer.sft_trainer import SFTTrainer

    from tasks.batches import answer_loss

    class AnswerTrainer(SFTTrainer):
        """SFTTrainer with our batches: labels are shifted by the collator, and only labelled positions are scored."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._loss_shifts_labels = False  # the count of labels divides the loss: count them all

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            return answer_loss(model, inputs, num_items_in_batch)

        @torch.no_grad()
        def evaluation_loop(
            self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **__: Any
        ) -> EvalLoopOutput:
            """The mean loss over all labelled tokens; transformers would take the mean of the batches' means."""
            model: Any = self.model_wrapped
            model.eval()
            total, num_items = torch.zeros((), dtype=torch.float64), 0
            for batch in dataloader:
                batch = self._prepare_inputs(batch)
                with self.compute_loss_context_manager():
                    total += answer_loss(model, batch, 1).double().cpu()
                num_items += int(batch["labels"].ne(IGNORED).sum())
            metrics = {f"{metric_key_prefix}_loss": (total / num_items).item()}
            return EvalLoopOutput(np.empty(0), label_ids=None, metrics=metrics, num_samples=num_items)

    return AnswerTrainer


def _planned(training: Training, steps_an_epoch: int) -> int:
    return training.max_steps or math.ceil(training.epochs * steps_an_epoch)


def _physical_cores() -> int:
    import psutil

    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _end_with_parent() -> None:
    """Asks the kernel to end this process when its parent dies, however it dies: no orphan keeps the device."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _failed(folder: Path, error: BaseException, code: int) -> int:
    message = " ".join(str(error).split())[:500]
    (folder / "error.json").write_text(json.dumps({"type": type(error).__name__, "message": message}), "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
