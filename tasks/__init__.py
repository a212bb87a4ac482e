"""The stages: one module each, pure functions on top and the one public task at the bottom."""
