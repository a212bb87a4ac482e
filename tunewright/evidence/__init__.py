"""The evidence of a version: what it was made of, by digests, what its verdict was decided on, and checks of both.

bundle.py writes it into the MLflow run of the decision, and verify.py checks it later, without a network.
"""
