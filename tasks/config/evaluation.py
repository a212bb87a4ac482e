"""What the contenders are asked, and who else is asked about their answers."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.config.metrics import Metric, OwnMetric
from tasks.config.outside import require_no_secret
from tasks.config.section import Local, Section

PromptContender = Literal["few_shot", "retrieval"]


class Evaluation(Section):
    """How the test rows are answered and scored; every contender answers the same rows greedily."""

    metrics: tuple[Literal["auto", Metric] | OwnMetric, ...] = Field(
        default=("auto",),
        min_length=1,
        description="What is measured, by name; auto is what fits the answers of the data: labels, JSON, numbers, "
        "short or long texts; module:Class is an evaluate.Metric of your own, beside the file or on PYTHONPATH",
    )
    json_schema: Annotated[str | None, Local()] = Field(
        default=None, min_length=1, description="A file with the JSON Schema that each answer must satisfy; or empty"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="The most tokens of one answer")
    batch: int = Field(default=16, ge=1, description="Rows answered at once")
    contenders: tuple[PromptContender, ...] = Field(
        default=("few_shot", "retrieval"),
        description="What the candidate is compared with besides base and champion: the base with the same training "
        "rows before each question (few_shot), or with those that are most like it (retrieval); may be empty",
    )
    shots: int = Field(default=8, ge=1, le=64, description="Training rows before a question at most, 1 to 64")
    forgetting: bool = Field(
        default=True,
        description="Base and candidate also do general tasks and read general texts, a built-in suite, so that what "
        "was forgotten shows",
    )

    @model_validator(mode="after")
    def _shots_are_asked_with(self) -> Self:
        if not self.contenders and self.shots != type(self).model_fields["shots"].default:
            raise ValueError(f"shots={self.shots} would do nothing; accepted with contenders=few_shot, retrieval")
        return self

    @model_validator(mode="after")
    def _schema_is_looked_at(self) -> Self:
        if self.json_schema and not {"auto", "schema_valid"} & {*self.metrics}:
            raise ValueError(
                f"json_schema={self.json_schema} would do nothing; accepted with metrics=schema_valid, auto"
            )
        return self


class LmEval(Section):
    """Tasks of EleutherAI's lm-evaluation-harness that base and candidate do, beside the built-in suite."""

    tasks: tuple[str, ...] = Field(
        default=(), description="Their names or those of groups, of the extra lm-eval; empty does none"
    )
    include_path: Annotated[str | None, Local()] = Field(
        default=None,
        min_length=1,
        description="A folder with tasks of your own, as lm-eval's YAML files, which can run code; or empty",
    )
    limit: int | None = Field(
        default=100, ge=1, description="Of each task the first so many documents; at least 1, empty takes all"
    )
    chat_template: bool = Field(
        default=False, description="Ask in the model's chat template; without it as lm-eval does by default"
    )

    @model_validator(mode="after")
    def _there_are_tasks(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in fields if getattr(self, name) != fields[name].default]
        if idle and not self.tasks:
            raise ValueError(f"{', '.join(idle)} would do nothing; accepted with lm_eval.tasks, such as [hellaswag]")
        return self


class Judge(Section):
    """A second opinion by another model, asked about each pair of answers in both orders; it decides nothing."""

    url: str | None = Field(
        default=None,
        pattern="^https?://[^ ]+$",
        description="Base address of an OpenAI-compatible API, such as http://localhost:8000/v1, which prompts and "
        "answers of test rows are sent to; empty asks nobody. Its key is in TUNEWRIGHT_JUDGE_KEY, and "
        "TUNEWRIGHT_JUDGE_HOSTS names the hosts that it is sent to",
    )
    model: str | None = Field(default=None, min_length=1, description="The name of the model there")
    rows: int = Field(default=100, ge=1, description="Test rows to ask about, each twice for base and champion")

    @field_validator("url")
    @classmethod
    def _url_holds_no_secret(cls, url: str | None) -> str | None:
        return url and require_no_secret(url, "TUNEWRIGHT_JUDGE_KEY")

    @model_validator(mode="after")
    def _model_has_a_place(self) -> Self:
        if (self.url is None) != (self.model is None):
            there, missing = ("url", "model") if self.url else ("model", "url")
            raise ValueError(f"{there}={getattr(self, there)} needs {missing} as well")
        return self
