"""Every knob of the pipeline: one frozen section a stage, each a parameter of the flow.

Sections are flat with plain literal defaults, since that is what Prefect's form can show. A field's description is what
the form shows beside it, so bounds are said in words there as well. A file has the sections of a part of the pipeline.
"""

from tunewright.config.data import Checks, Data, Dedupe, Expectation, Layout, RecordFiles, Repair, Source, Split, Use
from tunewright.config.environment import (
    NO_TELEMETRY,
    READ_ONLY_DATABASE,
    api_key,
    as_called,
    called_in,
    device_locks,
    from_folder,
    from_here,
    gguf_converter,
    home,
    judge_key,
    make_home,
    mlflow_artifacts,
    mlflow_database,
    of_home,
    or_meant,
    prefect_database,
    prepare_environment,
    quiet_libraries,
    ray_address,
    refused_database,
    refused_home,
    rendezvous,
    require_no_other_home,
    require_room,
    signing_password,
    store,
    working_in,
)
from tunewright.config.evaluation import CANNOT_DECIDE, METRICS, Evaluation, Judge, LmEval, Metric
from tunewright.config.gate import Gate, Guardrail, Registry
from tunewright.config.grpo import Grpo
from tunewright.config.preference import Preference
from tunewright.config.section import CommaSeparated, LocalPath, Section
from tunewright.config.settings import HIGHEST_PRIORITY, STAGES, Operation, Settings, Stage
from tunewright.config.training import (
    CHECKPOINT_MINUTES,
    METHODS,
    USED_BY,
    Compute,
    Method,
    Model,
    PromptContender,
    Training,
)
