"""Exact similarity of prompts: texts become hashed sets of shingles, and a join finds every pair above a threshold.

folding.py reads Arrow messages, hashing.py cuts and hashes them, prompts.py says what of a row is compared, sets.py
finds what is similar by the joins in join.py, the rarest items first, each with the rows that have it
(postings.py, which also joins some rows with some others, for who asks that again and again), engine.py says where: on
all cores, or on a Ray cluster (cluster.py, spread.py). semantic.py compares by an embedding model (embedding.py)
instead.
"""
