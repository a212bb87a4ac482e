"""Training: stage.py is the stage, which starts the process in trainer/ and sees that it goes on.

The stage is not in this file: the trainer's process would import Prefect with it.
"""
