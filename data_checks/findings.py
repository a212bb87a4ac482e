"""Prompts that are answered in more than one way, found by hashes."""

import pandas as pd


def num_answers(frame: pd.DataFrame) -> pd.Series:
    """For each row how many different answers its prompt has among the rows of `frame`; null without a prompt."""
    pairs = frame[["prompt_hash", "answer_hash"]].dropna().drop_duplicates()
    return frame["prompt_hash"].map(pairs["prompt_hash"].value_counts()).astype("Int64")


def answers_by_prompt(frame: pd.DataFrame, most: int) -> list[list[int]]:
    """Return for each of the first `most` prompts in `frame` one row's index label per different answer."""
    firsts = frame.drop_duplicates(["prompt_hash", "answer_hash"])
    prompts = firsts["prompt_hash"].drop_duplicates().head(most)
    return [firsts.index[firsts["prompt_hash"].eq(prompt)].tolist() for prompt in prompts]
