"""How the pipeline's stages are called: for real by Run, or looked up by Plan, in the order that flows/finetune.py has.

A call is `call(stage)(argument=value, ...)`, typed as the stage is. Both keep a Step for each, which is all that
reports need, and both end with Reached before the first stage after the last one asked for.
"""

from tunewright.flows.calls.calls import Reached, stages
from tunewright.flows.calls.plan import Plan
from tunewright.flows.calls.run import Run
from tunewright.flows.calls.step import Step, as_json

__all__ = ["Plan", "Reached", "Run", "Step", "as_json", "stages"]
