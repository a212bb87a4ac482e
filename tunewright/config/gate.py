"""Settings of the decision and of the registry."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AliasChoices, Field, field_validator, model_validator

from tunewright.config.evaluation import Metric, OwnMetric, deciding, require_in_range
from tunewright.config.outside import require_no_secret
from tunewright.config.section import Section

GENERAL_TASKS = 0.1  # of gate.general_tasks, where auto has one


class Guardrail(Section):
    """A metric that must not get worse."""

    metric: Annotated[Metric | OwnMetric, AfterValidator(deciding)] = Field(
        default="stopped", description="A metric with a score for each row, such as stopped, json_valid or token_f1"
    )
    margin: float = Field(
        default=0.05,
        gt=0,
        description="Largest allowed loss against base and champion, in the metric's unit",
    )

    @model_validator(mode="after")
    def _margin_is_in_range(self) -> Self:
        require_in_range(self.metric, "margin", self.margin)
        return self


def spending(confidence: float, alpha_share: float) -> float:
    """Return the confidence of a test that spends this share of alpha = 1 - confidence, 0 to 1."""
    return 1 - alpha_share * (1 - confidence)


class Gate(Section):
    """Conditions under which a candidate replaces the champion."""

    metric: Annotated[Literal["auto", Metric] | OwnMetric, AfterValidator(deciding)] = Field(
        default="auto",
        description="The metric of the decision; auto is the first that fits the answers: "
        "tool_call for tool calls, exact_match for labels, json_field_f1, numeric, token_f1 for short texts, and for "
        "long ones chrf, or preference_accuracy if all have a rejected answer",
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        description="Required improvement over base and champion, in the metric's unit: below 1 if its scores "
        "are from 0 to 1",
    )
    at_least: float | None = Field(
        default=None,
        ge=0,
        description="Score that the candidate has to beat at confidence gate.confidence, in the metric's unit, such as "
        "0.8; if lower is better, it has to stay below; empty: no such requirement",
    )
    tolerance: float = Field(
        default=0.02,
        gt=0,
        description="Non-inferiority tolerance against the prompted baselines, in the metric's unit; above 0",
    )
    guardrails: tuple[Guardrail, ...] = Field(
        default=(Guardrail(),),
        description="Metrics that must not get worse on the same rows, and by how much; may be empty",
    )
    general_tasks: float | Literal["auto"] | None = Field(
        default="auto",
        description="With evaluation.forgetting: largest allowed drop in accuracy on general tasks, from the base to "
        "the candidate, above 0 to 1; auto: 0.1 if the reference answers are long texts, otherwise no limit; empty: "
        "no limit",
    )
    general_loss: float | None = Field(
        default=0.5,
        gt=0,
        description="With evaluation.forgetting: largest allowed rise in loss on general texts, from the base to the "
        "candidate, in nats per token; empty: no limit",
    )
    lm_eval: float | None = Field(
        default=0.1,
        gt=0,
        le=1,
        description="With lm_eval.tasks: largest allowed drop in the mean score over all documents, from the base to "
        "the candidate, above 0 to 1; empty: no limit",
    )
    confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="Confidence that no candidate is promoted without being better, over all uses of the test rows; "
        "the first use may err with half of the chance that this leaves, and later ones with less, so each single test "
        "has a higher confidence than this; above 0.5 and below 1",
    )
    max_test_set_uses: int = Field(
        default=20,
        validation_alias=AliasChoices("max_test_set_uses", "looks"),  # its name before, accepted for one release
        ge=1,
        description="Warn when more than this many candidates were tested on the same test rows, since after so many "
        "only larger gains can be shown; at least 1",
    )
    rotate: bool = Field(
        default=False,
        description="After gate.max_test_set_uses uses of the same test rows, draw new test rows from the data, with "
        "another split.seed; refused with a test set of your own (use_as: test) and with split.by=time",
    )

    approval: bool = Field(
        default=False,
        description="Require approval by a person before the alias moves: in Prefect's UI or by tunewright "
        "release approve",
    )

    @field_validator("general_tasks")
    @classmethod
    def _is_a_share(cls, margin: float | str | None) -> float | str | None:
        if isinstance(margin, float) and not 0 < margin <= 1:
            raise ValueError(f"{margin} is not a share; accepted: auto, or above 0 up to 1")
        return margin

    @model_validator(mode="after")
    def _each_can_be_decided(self) -> Self:
        for key in ("margin", "tolerance", "at_least"):
            require_in_range(self.metric, key, getattr(self, key) or 0.0)
        guarded = [each.metric for each in self.guardrails]
        if twice := [metric for metric in guarded if guarded.count(metric) > 1]:
            raise ValueError(f"guardrails: duplicate metric {twice[0]}; accepted: each metric once")
        return self

    def spending(self, alpha_share: float) -> Self:
        """Return the gate of one use of the test rows: with the confidence that spends this share of alpha, 0 to 1."""
        return self.model_copy(update={"confidence": spending(self.confidence, alpha_share)})

    def decides_by(self, automatic: str) -> str:
        """Return the metric that decides; `automatic` is the one that fits the answers."""
        return automatic if self.metric == "auto" else self.metric

    def general_margins(self, *, is_prose: bool) -> dict[str, float | None]:
        """Return the largest accepted loss in each general metric; None where the metric decides nothing."""
        of_tasks = (GENERAL_TASKS if is_prose else None) if self.general_tasks == "auto" else self.general_tasks
        return {"general_tasks": of_tasks, "general_loss": self.general_loss, "lm_eval": self.lm_eval}


TRACKING = re.compile(r"https?://.|(sqlite|postgresql|mysql|mssql)(\+\w+)?://.|databricks(://|$)")  # no store of files


class Registry(Section):
    """Place of the run and the model in MLflow."""

    name: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9_-]{0,99})?$",
        description="Name of the experiment, the model and the data's versions: lower-case letters, digits, dash, "
        "underscore; empty takes the deployment's name",
    )
    alias: str = Field(
        default="champion",
        pattern=r"^[a-z][a-z0-9_-]{0,49}$",
        description="Alias of the best version: lower-case letters, digits, dash, underscore; not "
        "latest, and not v with a number",
    )
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow's address, such as http://localhost:5000; default: MLFLOW_TRACKING_URI, or without it a "
        "database in the home folder, as with an empty text",
    )
    curve_points: int = Field(
        default=1000,
        ge=10,
        description="Maximum number of points of each training curve sent to MLflow, at least 10, with first, "
        "last, lowest and highest; metrics.jsonl has all",
    )

    @field_validator("tracking_uri")
    @classmethod
    def _uri_is_of_mlflow_and_holds_no_secret(cls, uri: str | None) -> str | None:
        said = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
        of_database = "what its driver reads, such as PGPASSWORD, in the environment"
        if uri and require_no_secret(uri, said if uri.startswith("http") else of_database) and not TRACKING.match(uri):
            raise ValueError(
                f"{uri!r:.200} is not an address of MLflow that is read here; accepted: a server, such as "
                "http://localhost:5000 (or https, databricks), or a database, such as sqlite:////srv/mlflow.db (or "
                "postgresql, mysql, mssql); for the database in the home, leave it empty"
            )
        return uri

    @model_validator(mode="after")
    def _alias_is_free(self) -> Self:
        if self.alias == "latest" or (self.alias[0] == "v" and self.alias[1:].isdigit()):
            raise ValueError(f"alias={self.alias} is reserved by MLflow; accepted: any other, such as champion")
        return self
