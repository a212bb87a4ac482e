"""The flow of tunewright.flows.finetune, under its old name."""

from tunewright.flows.finetune import finetune as finetune
