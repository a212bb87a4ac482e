"""Estimates of a training's cost before it runs: parameters, memory, tokens, time and disk of each method.

All of it is arithmetic on the base's headers, the settings and the rows (shapes, learning, memory, work, timing), so it
takes milliseconds; only calibration.py runs something.
"""

from tunewright.cost_model.case import BudgetCase, Ground, ground_of_render, trainings
from tunewright.cost_model.estimate import Estimate, before_training, estimate, remedies, shortage
from tunewright.cost_model.one_at_a_time import devices_of_run, of_run, on_devices

__all__ = [
    "BudgetCase",
    "Estimate",
    "Ground",
    "before_training",
    "devices_of_run",
    "estimate",
    "ground_of_render",
    "of_run",
    "on_devices",
    "remedies",
    "shortage",
    "trainings",
]
