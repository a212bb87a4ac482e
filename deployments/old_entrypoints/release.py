"""The flow of tunewright.flows.release, under its old name."""

from tunewright.flows.release import approval

__all__ = ["approval"]
