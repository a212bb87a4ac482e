"""SFTTrainer with our batches and our loss."""

from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer

from tunewright import compat
from tunewright.modeling.batches import answer_loss, num_labels
from tunewright.modeling.methods.optimizer import lora_plus_optimizer


class AnswerTrainer(SFTTrainer):
    """SFTTrainer whose batch is all of an optimizer step: {"micro_batches": [...]}, one after another on the device.

    The loss is divided by the labels of the whole step, so that the update is the same however its rows are cut.
    """

    def __init__(self, *, lora_plus: float | None = None, **rest: Any) -> None:
        self.lora_plus = lora_plus
        super().__init__(**rest)
        # TRL rounds the adapter of a packed base to bfloat16 at the start, and a resumed one would be float32.
        trained: Any = self.model
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of the arguments, with a learning rate of its own for an adapter's B matrices by LoRA+."""
        if self.optimizer is None and self.lora_plus:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = lora_plus_optimizer(self.model, self.lora_plus, kind, options)
        return super().create_optimizer(model)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of each micro batch; the mean loss over all labels of the step."""
        model.train()
        num_items = sum(map(num_labels, inputs["micro_batches"]))
        total = torch.zeros((), device=self.args.device)
        for batch in inputs["micro_batches"]:
            loss = self._loss(model, batch, num_items)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over all labels of the micro batches."""
        num_items = sum(map(num_labels, inputs["micro_batches"]))
        return sum(self._loss(model, batch, num_items) for batch in inputs["micro_batches"])

    def _loss(self, model: Any, batch: Any, num_items: int) -> torch.Tensor:
        batch = self._prepare_inputs(batch)
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            return answer_loss(compat.forward_in_autocast(model), batch, num_items)

    @torch.no_grad()
    def evaluation_loop(self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> EvalLoopOutput:
        """The mean loss over all labelled tokens; transformers would take the mean of the batches' means."""
        model: Any = self.model_wrapped
        model.eval()
        total, num_items = 0.0, 0
        for inputs in dataloader:
            for batch in inputs["micro_batches"]:
                total += self._loss(model, batch, 1).item()
                num_items += num_labels(batch)
        metrics = {f"{metric_key_prefix}_loss": total / max(1, num_items)}
        return EvalLoopOutput(np.empty(0), label_ids=None, metrics=metrics, num_samples=num_items)
