"""Whether the gate's metrics fit the rows, as far as some of them tell before split has drawn the test rows."""

from tunewright.artifacts import Artifact, Rows, Splits
from tunewright.config import Settings
from tunewright.cost_model import work
from tunewright.errors import ConfigError
from tunewright.flows.inputs import Inputs
from tunewright.metrics import AnswerShape
from tunewright.metrics.shape import last_answer, misfit, wanted
from tunewright.tasks.ingest.sampling import Sample
from tunewright.tools.conversation import is_undesirable, rejected_of, tools_of


def misfits(settings: Settings, read: Inputs, made: dict[str, Artifact | None], first: Sample | None) -> list[str]:
    """Return the warning for a metric that does not fit some of the rows, or [] if all fit or split has reported it.

    Raises ConfigError if a metric fits none of the rows, as then no test row can be scored with it.
    """
    rows = made["ingest"]
    is_drawn = all(file.use_as not in ("test", "replay") for file in read.files)
    if isinstance(made.get("split"), Splits) or not is_drawn:
        return []
    conversations = first.conversations if first else []
    if isinstance(rows, Rows) and rows.num_rows:
        _, conversations = work.conversations_in(rows.path("rows.parquet"))
    conversations = [each for each in conversations if not is_undesirable(each)]
    answers = [said for each in conversations if (said := last_answer(each))]
    if not answers:
        return []
    which = f"the first {len(answers):,} rows" if len(answers) > 1 else "the first row"
    has_tools = any(map(tools_of, conversations))
    num_pairs = sum(rejected_of(each) is not None for each in conversations)
    said = misfit(settings, answers, answers, read.schema, which, has_tools=has_tools, num_pairs=num_pairs)
    by_itself = {"json_valid", "json_field_f1", "numeric", "schema_valid"} & {name for _, name in wanted(settings)}
    each = [AnswerShape([answer], schema=read.schema) for answer in dict.fromkeys(answers)]
    if said and any(all(shape.misfit(name) for shape in each) for name in by_itself):
        raise ConfigError(said)
    return [f"{said} (the run stops after split if this holds for the test rows)"] if said else []
