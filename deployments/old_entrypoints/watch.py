"""The flow of tunewright.flows.watch, under its old name."""

from tunewright.flows.watch import watch as watch
