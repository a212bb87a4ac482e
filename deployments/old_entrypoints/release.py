"""The flow of tunewright.flows.release, under its old name."""

from tunewright.flows.release import approval as approval
