"""SFTTrainer with our batches and our losses, on one device or several."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer

from tunewright import compat
from tunewright.errors import TunewrightError
from tunewright.modeling.methods.adapter import lora_plus_optimizer
from tunewright.modeling.objectives import MARGIN, AnswerObjective, LabelObjective, Objective
from tunewright.tasks.train.trainer import ranks, zero


class AnswerTrainer(SFTTrainer):
    """SFTTrainer whose batch is all of an optimizer step: {"micro_batches": [...]}, one after another on the device.

    The loss is divided by the labels, or pairs, of the whole step, so that the update is the same however its rows are
    cut, and shared out to ranks.
    """

    def __init__(self, *, lora_plus: float | None = None, objective: Objective | None = None, **rest: Any) -> None:
        self.lora_plus = lora_plus
        self.objective = objective or AnswerObjective()
        model: Any = rest["model"]
        if isinstance(model, PeftModel):
            model.create_or_update_model_card = lambda output_dir: None
        learning = [(each, each.data.float()) for each in model.parameters() if each.requires_grad]
        with compat.sharding_without_gpu():
            super().__init__(**rest)
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise TunewrightError(
                "compute.strategy=fsdp: accelerate does not shard the model on these devices; accepted: ddp"
            )
        if self.is_fsdp_enabled and self.args.bf16:  # gradients are summed over the ranks in float32
            plugin: Any = self.accelerator.state.fsdp_plugin
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
        for parameter, as_it_was in learning:  # TRL rounds the adapter of a packed base to bfloat16
            parameter.data = as_it_was.to(parameter.device)

    def get_train_dataloader(self) -> Any:
        """All rows of each step, of which the collator takes this rank's micro-batches."""
        return compat.whole_batches(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As in training."""
        return compat.whole_batches(super().get_eval_dataloader(eval_dataset))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of the arguments, with a learning rate of its own for an adapter's B matrices by LoRA+."""
        if self.optimizer is None and self.lora_plus:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = lora_plus_optimizer(self.model, self.lora_plus, kind, options)
        return super().create_optimizer(model)

    def wrapped(self) -> Any:
        """The model as it trains, which train() does not wrap a second time."""
        model: Any = self.model
        # FSDP shards the model in place, with the parameters of its optimizer.
        is_wrapped = self.optimizer is not None if self.is_fsdp_enabled else self.model_wrapped is not model
        if is_wrapped:
            return self.model_wrapped
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self.model_wrapped, self.optimizer = self.accelerator.prepare(model, self.create_optimizer())
        else:
            self.model_wrapped = self.accelerator.prepare(model)
        if self.is_fsdp_enabled:
            self.model = self.model_wrapped
        return self.model_wrapped

    def train(self, *args: Any, **rest: Any) -> Any:
        """Trains; the engine of DeepSpeed that there may be is ended before, so that it gets another one."""
        if self.is_deepspeed_enabled:
            self.model_wrapped = self.model
        return super().train(*args, **rest)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of each micro-batch; the mean loss over all items of the step."""
        model.train()
        self._estimate(model, inputs["micro_batches"])
        num_items = [*map(ranks.total, self._sizes(inputs["micro_batches"]))]
        total = torch.zeros((), device=self.args.device)
        *before, last = inputs["micro_batches"]
        with nullcontext() if self.is_fsdp_enabled else self.accelerator.no_sync(model):
            for batch in before:
                total += self._backward(model, batch, num_items)
        total += self._backward(model, last, num_items, is_last=True)
        return total if ranks.number() == 1 else total.fill_(ranks.total(total.item()))

    def _sizes(self, batches: Sequence[Any]) -> list[float]:
        """The items of each term of the loss, of all micro-batches."""
        return [sum(sizes) for sizes in zip(*map(self.objective.sizes, batches), strict=True)]

    def _backward(self, model: Any, batch: Any, num_items: Sequence[float], *, is_last: bool = False) -> torch.Tensor:
        loss: Any = sum(self._terms(model, batch, num_items))
        scaled = loss * ranks.number()  # the gradients that are applied are the mean of the ranks'
        if self.is_deepspeed_enabled:  # accelerate would change the weights as well
            model.set_gradient_accumulation_boundary(is_last)
            model.backward(scaled)
        else:
            self.accelerator.backward(scaled)
        return loss.detach()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over all items of the micro-batches."""
        self._estimate(model, inputs["micro_batches"])
        num_items = self._sizes(inputs["micro_batches"])
        return sum(term for batch in inputs["micro_batches"] for term in self._terms(model, batch, num_items))

    def _terms(self, model: Any, batch: Any, num_items: Sequence[float]) -> Sequence[torch.Tensor]:
        batch = self._prepare_inputs(batch)
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            return self.objective.terms(compat.forward_in_autocast(model), batch, num_items)

    @torch.no_grad()
    def _estimate(self, model: Any, batches: Iterable[Any]) -> None:
        """Estimates the KL divergence that a loss on labels needs, from all micro-batches before the first loss."""
        if not isinstance(self.objective, LabelObjective):
            return
        total, number = 0.0, 0
        for batch in batches:
            batch: Any = self._prepare_inputs(batch)
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                of_batch = self.objective.divergence(compat.forward_in_autocast(model), batch)
            total, number = total + of_batch[0], number + of_batch[1]
        self.objective.kl = max(0.0, ranks.total(total) / max(1, ranks.total(number)))

    @torch.no_grad()
    def measured(self, batch: Any, measure: Callable[[Any, Any], Any]) -> Any:
        """The `measure` of the model and a batch, before training begins."""
        model = self.wrapped()
        model.eval()
        batch = self._prepare_inputs(batch)
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            return measure(compat.forward_in_autocast(model), batch)

    def learned(self) -> dict[str, torch.Tensor] | None:
        """The tensors that learned, put together at the first rank; None where each rank has all of them."""
        model: Any = self.model
        if self.is_deepspeed_enabled:
            return zero.learned(model)
        if not self.is_fsdp_enabled:
            return None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        found: dict[str, Any] = get_model_state_dict(model, options=options)
        named = dict(model.named_parameters())  # tied weights once; torch leaves out a frozen one by one of its names
        tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - named.keys()
        return {name: tensor for name, tensor in found.items() if name not in tied}

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None, as of the adapter's: each checkpoint would have one, which nobody reads; an export has its own."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights of a checkpoint; DeepSpeed's are with the optimizer's states."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)

    def load(self, checkpoint: Path) -> None:
        """Loads the weights of a checkpoint into the model, which is wrapped then."""
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(self.wrapped(), str(checkpoint), load_module_strict=False)
        else:
            self._load_from_checkpoint(str(checkpoint))

    @torch.no_grad()
    def evaluation_loop(self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> EvalLoopOutput:
        """The mean loss over all labelled tokens, or pairs; transformers would take the mean of the batches' means."""
        model: Any = self.model_wrapped
        rows: Any = self.eval_dataset
        model.eval()
        totals, sizes = list[float](), list[float]()
        self.objective.figures()  # of training steps
        self._estimate(model, (batch for inputs in dataloader for batch in inputs["micro_batches"]))
        for inputs in dataloader:
            for batch in inputs["micro_batches"]:
                own = self.objective.sizes(batch)
                terms = [term.item() for term in self._terms(model, batch, [1.0] * len(own))]
                totals = [a + b for a, b in zip_longest(totals, terms, fillvalue=0.0)]
                sizes = [a + b for a, b in zip_longest(sizes, own, fillvalue=0.0)]
        totals, sizes = [*map(ranks.total, totals)], [*map(ranks.total, sizes)]
        loss = sum(total / max(1, size) for total, size in zip(totals, sizes, strict=False))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {"loss": loss, **self.figures()}.items()}
        return EvalLoopOutput(np.empty(0), label_ids=None, metrics=metrics, num_samples=len(rows))

    def figures(self) -> dict[str, float]:
        """The means of what the objective measured beside the loss since the last call, over all ranks.

        The margin is the difference of the mean rewards. A figure of which there was none to measure is left out.
        """
        found = {name: (ranks.total(a), ranks.total(b)) for name, (a, b) in self.objective.figures().items()}
        means = {name: total / number for name, (total, number) in found.items() if number}
        if {"reward_chosen", "reward_rejected"} <= means.keys():
            means[MARGIN] = means["reward_chosen"] - means["reward_rejected"]
        return means
