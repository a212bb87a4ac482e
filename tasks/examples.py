"""A prompt as a candidate: the base with training rows as examples before each question. Nothing is trained.

few_shot: the same examples before each question, chosen on validation rows, as those of the contender few_shot.
retrieval: the training rows most similar to each question, by words or by embeddings, as for the contender retrieval.
The examples lie where a training leaves its weights, in model/, as texts; for retrieval these are all training rows,
and beside them lies the static model that compares them, where words do not.
"""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from tunewright.artifacts import Base, PromptExamples, Splits, Tokens
from tunewright.artifacts.payloads import Contract
from tunewright.config import PromptContender
from tunewright.cost_model import on_devices
from tunewright.errors import ConfigError, DataError
from tunewright.modeling.chat import shown
from tunewright.serving import EMBEDDING, EXAMPLES
from tunewright.similarity import embedding as embeddings
from tunewright.store.stage import stage
from tunewright.tasks.prompt import Asking, chosen_search, few_shot


def room(tokens: Tokens, max_new_tokens: int) -> int:
    """The tokens of the longest answer, and of the longest reference of the test rows if that has more."""
    rows = pq.read_table(tokens.path("test.parquet"), columns=["input_ids", "prompt_length"]).to_pylist()
    return max(max_new_tokens, *(len(row["input_ids"]) - row["prompt_length"] for row in rows))


@stage("shots={shots}", libraries=("torch", "transformers", "tokenizers", "jinja2", "numpy", "pyarrow"))
def examples(
    folder: Path,
    splits: Splits,
    tokens: Tokens,
    base: Base,
    kind: PromptContender,
    shots: int,
    max_new_tokens: int,
    embedding_model: str = "",
    embedding: str = "",
) -> PromptExamples:
    """At most so many training rows, as an answer of `max_new_tokens` leaves room for them, and the contract.

    For retrieval all of them, of which `shots` stand before a question. `embedding` tells the content of
    `embedding_model`, and is empty where rows are compared by their words alone. Raises ConfigError where the base
    cannot be asked so.
    """
    asking = Asking(base, splits, tokens, max_new_tokens)
    try:
        with on_devices():
            if kind == "retrieval":
                model = embeddings.load_model(embedding_model) if embedding else None
                by, _, search = chosen_search(asking, shots, model)
                chosen = [*range(len(asking.pool.rows))]
            else:
                (chosen, *_), search = few_shot(asking, shots)
                by = None
    except DataError as error:
        raise ConfigError(f"method.kind={kind}: the base cannot be asked with examples: {error}") from error
    prompt = {
        "base": base.weights_digest,  # that they were chosen for
        "row_ids": asking.pool.ids(chosen),
        "opening": asking.pool.opening,
        "room": room(tokens, max_new_tokens),
        "nearest": shots if kind == "retrieval" else None,
        "compares_answers": True,
        "examples": [list(shown(each)) for each in asking.examples(chosen)],
    }
    (folder / "model").mkdir()
    text = json.dumps(prompt, ensure_ascii=False, indent=1)
    (folder / "model" / EXAMPLES).write_text(f"{text}\n", encoding="utf-8")
    if by == "embedding":
        embeddings.copy(embedding_model, folder / "model" / EMBEDDING)
    (folder / "prompts.json").write_text(json.dumps({kind: search}, indent=1) + "\n", encoding="utf-8")
    shutil.copy(tokens.path(Contract.FILE), folder)
    return PromptExamples(kind=kind, num_examples=len(chosen), chosen=search["chosen"])
