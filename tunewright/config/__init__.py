"""Every knob of the pipeline: one frozen section a stage, each a parameter of the flow.

Sections are flat with plain literal defaults, since that is what Prefect's form can show. A field's description is what
the form shows beside it, so bounds are said in words there as well. A file has the sections of a part of the pipeline.
"""

from tunewright.config.data import Checks, Data, Dedupe, Expectation, Layout, RecordFiles, Repair, Side, Source, Split
from tunewright.config.environment import (
    NO_TELEMETRY,
    READ_ONLY_DATABASE,
    device_locks,
    home,
    judge_key,
    make_home,
    mlflow_artifacts,
    mlflow_database,
    prefect_database,
    prepare_environment,
    quiet_libraries,
    ray_address,
    refused_database,
    refused_home,
    require_no_other_home,
)
from tunewright.config.evaluation import Evaluation, Judge, LmEval, PromptContender
from tunewright.config.gate import Gate, Guardrail, Registry
from tunewright.config.metrics import CANNOT_DECIDE, METRICS, Metric
from tunewright.config.operation import Operation
from tunewright.config.places import called_in, from_folder, from_here, or_meant, working_in
from tunewright.config.section import CommaSeparated, LocalPath, Section
from tunewright.config.settings import STAGES, Settings, Stage
from tunewright.config.training import Compute, Method, Model, Training
