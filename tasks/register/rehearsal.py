"""The proof that a version answers as it was measured: loaded from the registry and asked what the candidate was asked.

What was asked and answered is kept beside the version in MLflow, so that it can be rehearsed again, on any machine that
has its base, whenever the alias is to move to it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import pyarrow.parquet as pq

from tasks.errors import TunewrightError
from tasks.register.candidate import Candidate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REHEARSED = 8  # rows that a version has to answer as the candidate did
FILE = "answers/rehearsal.json"  # among the artifacts of the version's run


class Asked(TypedDict):
    """A test row and the candidate's answer to it."""

    row_id: str
    messages: list[dict[str, str]]  # without the reference
    answer: str


def rehearse(client: "MlflowClient", candidate: Candidate, version: "ModelVersion") -> None:
    """Rehearses the version of a candidate, and keeps what it was asked. Raises TunewrightError as `again` does."""
    recorded = pq.read_table(candidate.own_answers.path("answers.parquet"), columns=["row_id", "answer"])
    recorded = recorded.slice(0, REHEARSED).to_pylist()
    ids = [row["row_id"] for row in recorded]
    rows = pq.read_table(candidate.splits.path("test.parquet"), filters=[("row_id", "in", ids)]).to_pylist()
    messages = {row["row_id"]: row["messages"][:-1] for row in rows}
    asked = [Asked(row_id=row["row_id"], messages=messages[row["row_id"]], answer=row["answer"]) for row in recorded]
    _rehearse(version, asked)
    client.log_dict(str(version.run_id), {"rows": asked}, FILE)


def again(client: "MlflowClient", version: "ModelVersion") -> int:
    """Rehearses a version that was registered before, and returns on how many rows.

    Raises TunewrightError where it cannot be loaded here, or, with the row and both answers, where it says something
    else.
    """
    from mlflow.artifacts import load_dict

    name = f"models:/{version.name}/{version.version}"
    kept = [file.path for file in client.list_artifacts(str(version.run_id), FILE.partition("/")[0])]
    if FILE not in kept:
        raise TunewrightError(
            f"{name}: what it answered when it was measured is not in MLflow ({FILE} of run {version.run_id}); run its "
            "pipeline again, which keeps it"
        )
    asked: list[Asked] = load_dict(f"runs:/{version.run_id}/{FILE}")["rows"]
    try:
        _rehearse(version, asked)
    except (OSError, ValueError) as error:  # such as a base that is not on this machine, or is another one
        raise TunewrightError(f"{name} cannot be loaded here, where it has to be once more: {error}") from error
    return len(asked)


def _rehearse(version: "ModelVersion", asked: Sequence[Asked]) -> None:
    import torch
    from mlflow.pyfunc import load_model

    loaded = load_model(f"models:/{version.name}/{version.version}")
    tokenizer = loaded.unwrap_python_model().tokenizer
    said = loaded.predict([{"messages": row["messages"]} for row in asked])
    others = [
        (row, answer)
        for row, answer in zip(asked, said, strict=True)
        if _spelled(tokenizer, answer) != _spelled(tokenizer, row["answer"])
    ]
    # In bfloat16, which a GPU computes in, a near tie falls one way or the other with what else is in the batch.
    if len(others) > (len(asked) // 4 if torch.cuda.is_available() else 0):
        row, after = others[0]
        raise TunewrightError(
            f"models:/{version.name}/{version.version} is not the model that was measured: {len(others)} of "
            f"{len(asked)} test rows are answered otherwise; row {row['row_id'][:12]} was answered "
            f"{row['answer'][:200]!r}, and after reloading {after[:200]!r}; the alias did not move"
        )


def _spelled(tokenizer: Any, text: str) -> str:
    """A text as this tokenizer gives it back; some give other spaces than they were given."""
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True)
