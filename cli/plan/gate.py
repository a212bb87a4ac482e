"""Whether the gate's metrics fit the rows, as far as some of them tell before split has drawn the test rows."""

from collections.abc import Iterator, Sequence

from tunewright.artifacts import Artifact, Rows, Splits
from tunewright.config import Settings
from tunewright.cost_model import work
from tunewright.errors import ConfigError
from tunewright.flows.inputs import Inputs
from tunewright.metrics import AnswerShape
from tunewright.metrics.required import last_answer, misfit, wanted
from tunewright.tasks.ingest.sampling import Sample


def misfits(settings: Settings, read: Inputs, made: dict[str, Artifact | None], first: Sample | None) -> list[str]:
    """What to say of a metric that does not fit some of the rows; empty where all do, or where split has told already.

    Raises ConfigError where it fits none of them, so that no test row can be measured by it.
    """
    rows = made["ingest"]
    is_drawn = all(file.side not in ("test", "replay") for file in read.files)
    if isinstance(made.get("split"), Splits) or not is_drawn:
        return []
    conversations = first.conversations if first else []
    if isinstance(rows, Rows) and rows.num_rows:
        _, conversations = work.conversations_in(rows.path("rows.parquet"))
    answers = [said for each in conversations if (said := last_answer(each))]
    if not answers:
        return []
    which = f"the first {len(answers):,} rows" if len(answers) > 1 else "the first row"
    said = misfit(settings, answers, answers, read.schema, which)
    if said and any(_fits_none(name, answers, read.schema) for _, name in wanted(settings)):
        raise ConfigError(said)
    return [f"{said} (the run stops after split if this holds for the test rows)"] if said else []


def _fits_none(name: str, answers: Sequence[str], schema: str) -> bool:
    """Whether a metric that asks something of each answer by itself means nothing of any of these."""
    return name in ("json_valid", "json_field_f1", "numeric", "schema_valid") and all(_each(name, answers, schema))


def _each(name: str, answers: Sequence[str], schema: str) -> Iterator[bool]:
    return (bool(AnswerShape([answer], schema=schema).misfit(name)) for answer in dict.fromkeys(answers))
