"""The flow of tunewright.flows.finetune, under its old name."""

from tunewright.flows.finetune import finetune

__all__ = ["finetune"]
