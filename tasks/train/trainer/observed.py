"""AnswerTrainer whose steps are watched, which goes on from a checkpoint, and whose evaluations can be interrupted.

An evaluation scores answers as well, where training.best_by asks for it.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import EvalLoopOutput

from tunewright.config import Training
from tunewright.tasks.train.trainer import checkpoints, copies, ranks, record
from tunewright.tasks.train.trainer.answer_trainer import AnswerTrainer
from tunewright.tasks.train.trainer.record import STATE, keep_evaluation
from tunewright.tasks.train.trainer.watch import Row, Scores, Watch


class ObservedTrainer(AnswerTrainer):
    """AnswerTrainer that tells a Watch of its steps, and goes to the end of training from wherever it was left."""

    def __init__(
        self,
        *,
        training: Training,
        planned: int,
        measures_start: bool,
        watch: Watch,
        is_interrupted: Callable[[], bool],
        scores: Scores | None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.training, self.watch, self.is_interrupted, self.scores = training, watch, is_interrupted, scores
        self.planned, self.measures_start = planned, measures_start
        watch.alone = self._alone

    def go_on(self, checkpoint: Path | None) -> record.ValidationResult | None:
        """Trains to the planned end or an early stop, and loads the best weights; the best, or None if interrupted.

        transformers resumes a run that had reached its end with one more step, which is why it is asked only where
        there is something to do.
        """
        if checkpoint and self._catch_up(checkpoint):
            return None
        if not checkpoint or not self._is_done():
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not self._is_done():
            return None
        best = record.best(self._evaluations(), self.training)
        if best is None:
            raise ValueError("training ended without an evaluation")
        copies.on_each(at_best := checkpoints.at(Path(str(self.args.output_dir)), best.step))
        self.load(at_best)
        return best

    def train(self, *args: Any, resume_from_checkpoint: Any = None, **rest: Any) -> Any:
        """Trains; before the first step the validation rows are measured where that is to be compared with."""
        if self.measures_start and resume_from_checkpoint is None:
            self.wrapped()
            self.state.max_steps, self.state.epoch = self.planned, 0.0
            self.evaluate()
            if self.is_interrupted():
                return None
        return super().train(*args, resume_from_checkpoint=resume_from_checkpoint, **rest)

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        """With what the objective measured in the step."""
        super().log(logs | self.figures() if "loss" in logs else logs, *rest, **more)

    def _evaluations(self) -> list[record.ValidationResult]:
        return record.evaluations(self.state.log_history, self.training)

    def _is_due(self) -> bool:
        step, seen = self.state.global_step, self._evaluations()
        due = step % self.state.eval_steps == 0 or step >= self.state.max_steps
        return due and not (seen and seen[-1].step == step)

    def _is_done(self) -> bool:
        at_end = self.state.global_step >= self.state.max_steps and not self._is_due()
        return at_end or record.is_exhausted(self._evaluations(), self.training)

    def _catch_up(self, checkpoint: Path) -> bool:
        """Takes up the checkpoint's state, with the evaluation that an interruption left out; whether interrupted."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        if self._is_due():
            self.wrapped()  # it multiplies in the precision of training
            self.load(checkpoint)
            self.evaluate()
            if self.is_interrupted():
                return True
            if ranks.own() == 0:
                keep_evaluation(checkpoint.parent, self.state, self.training)
            ranks.wait()
            copies.on_each(checkpoint, STATE)  # which train() reads
        return False

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One step, whose loss is looked at before the weights change."""
        drawn = inputs.pop("drawn")
        loss = super().training_step(model, inputs, num_items_in_batch)
        step = self.state.global_step + 1
        self.watch.step(drawn.rows, loss.item(), step)
        if self.is_deepspeed_enabled:
            model.step()
            if self.accelerator.optimizer_step_was_skipped:
                self.watch.fail("the gradient is NaN or infinite", step)
        return loss

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **rest: Any
    ) -> EvalLoopOutput:
        """With training.best_by beside the loss. Interrupted, it ends at once and measures nothing.

        It draws no random numbers of training's, so that it may be done again.
        """
        with torch.random.fork_rng():
            batches = self._until_interrupted(dataloader)
            output = super().evaluation_loop(batches, *args, metric_key_prefix=metric_key_prefix, **rest)
        metrics = output.metrics or {}
        if self.scores and not self.is_interrupted():
            model: Any = self.model
            model.eval()
            with self.compute_loss_context_manager():
                metrics[f"{metric_key_prefix}_{self.scores.metric}"] = self.scores(model, self.is_interrupted)
        return output._replace(metrics={} if self.is_interrupted() else metrics)

    def _until_interrupted(self, batches: Iterable[Any]) -> Iterable[Any]:
        return _UntilInterrupted(batches, self.is_interrupted)

    @torch.no_grad()
    def _alone(self, row: Row) -> float:
        """The loss of one row, in nats per label."""
        model: Any = self.model
        model.eval()
        loss = self.compute_loss(model, self.data_collator([dict(row)]))
        model.train()
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the last ones stay whole until a backward pass, and the update would not reach them
        return ranks.total(loss.item())


class _UntilInterrupted:
    """The micro-batches of steps, each alone, as often as they are gone through; none after an interruption."""

    def __init__(self, batches: Iterable[Any], is_interrupted: Callable[[], bool]) -> None:
        self.batches, self.is_interrupted = batches, is_interrupted

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            for micro_batch in batch["micro_batches"]:
                if self.is_interrupted():
                    return
                yield {"micro_batches": [micro_batch]}
