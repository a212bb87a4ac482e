"""Settings of the evaluation: the contenders, their metrics, lm-eval's tasks, and the judge."""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tunewright.config.outside import HTTP_URL, require_no_secret
from tunewright.config.section import LocalPath, Section
from tunewright.config.training import PromptContender

Metric = Literal[
    "exact_match",
    "normalized_match",
    "token_f1",
    "chrf",
    "rouge_l",
    "bleu",
    "accuracy",
    "macro_f1",
    "unparseable",
    "json_field_f1",
    "json_valid",
    "schema_valid",
    "numeric",
    "tool_call",
    "tool_name",
    "tool_arguments",
    "needless_call",
    "tool_schema",
    "preference_accuracy",
    "preference_margin",
    "perplexity",
    "stopped",
    "length_ratio",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
OWN_METRIC = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
WITH_EACH_ANSWER = ("stopped", "perplexity")  # can be told of all answers, whatever else is measured
CANNOT_DECIDE: dict[str, str] = {
    "macro_f1": "is one score of all rows, but the paired decision needs a score per row; accuracy has one",
    "preference_margin": "has no upper end, so a few rows can decide; preference_accuracy counts each row once",
    "length_ratio": "is best at 1, so neither higher nor lower is better",
}


def _module_and_class(name: str) -> str:
    if not re.fullmatch(OWN_METRIC, name):
        raise PydanticCustomError("own_metric", "module:Class")
    return name


OwnMetric = Annotated[str, AfterValidator(_module_and_class), Field(json_schema_extra={"pattern": OWN_METRIC})]


def cannot_decide(metric: str) -> str:
    """Why a metric cannot decide, as a sentence; empty where it can."""
    return f"{metric} {CANNOT_DECIDE[metric]}" if metric in CANNOT_DECIDE else ""


def deciding(metric: str) -> str:
    """The metric. Raises ValueError where it cannot decide."""
    if why := cannot_decide(metric):
        raise ValueError(why)
    return metric


def require_in_range(metric: str, key: str, by: float) -> None:
    """Raises ValueError where no two scores of a metric differ by more than this.

    A score is from 0 to 1 but for perplexity, whose rows are in nats per token, and what a team's own metric says.
    """
    if by >= 1 and metric in {"auto", *METRICS} - {"perplexity"}:
        scores = "scores of the metric that auto chooses" if metric == "auto" else f"scores of {metric}"
        raise ValueError(f"{key}={by:g} is out of range: {scores} are from 0 to 1; accepted: below 1")


API_NAME = r"^[A-Za-z0-9][\w.-]*$"  # a part of MLflow's metric names
OTHER_CONTENDERS = {"base", "candidate", "champion", "constant", "few_shot", "retrieval", "documents"}
LEAST_LIMIT = 32  # tokens that max_new_tokens: auto leaves an answer, also of a base that says more than the label


class ApiModel(Section):
    """A model behind an OpenAI-compatible API that answers test rows too, as few_shot does; it decides nothing."""

    url: str = Field(
        pattern=HTTP_URL,
        description="Base URL of the API, such as https://api.example.com/v1, that gets test rows and some training "
        "rows. Its key is looked up by its host in TUNEWRIGHT_API_KEYS",
    )
    model: str = Field(min_length=1, description="Name of the model at that URL")
    name: str | None = Field(
        default=None,
        pattern=API_NAME,
        description="Name of the contender in reports; empty takes the model's name, without what is before a slash",
    )
    input_price: float | None = Field(
        default=None,
        ge=0,
        description="Price of a million input tokens, in any currency, which is that of evaluation.api_budget",
    )
    output_price: float | None = Field(default=None, ge=0, description="Price of a million output tokens")
    parameters: dict[str, Any] = Field(
        default={},
        description="Other fields of each request, such as {max_completion_tokens: 500}; null leaves out one that is "
        "sent by itself: temperature (0) and max_tokens",
    )

    @field_validator("url")
    @classmethod
    def _url_holds_no_secret(cls, url: str) -> str:
        return require_no_secret(url, "TUNEWRIGHT_API_KEYS")

    @field_validator("parameters")
    @classmethod
    def _parameters_are_others(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        if taken := parameters.keys() & {"messages", "model", "n", "stream", "tools"}:
            raise ValueError(f"parameters.{min(taken)} is set by the evaluation; accepted: other fields of a request")
        return parameters

    @model_validator(mode="after")
    def _both_prices_or_none(self) -> Self:
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("input_price and output_price are set together, or neither")
        return self

    @property
    def contender(self) -> str:
        """The name of the contender."""
        return self.name or re.sub(r"[^\w.-]", "-", self.model.rstrip("/").rpartition("/")[2]) or "api"

    def price(self, input_tokens: float, output_tokens: float) -> float | None:
        """The price of so many tokens; None where none is set."""
        if self.input_price is None or self.output_price is None:
            return None
        return (self.input_price * input_tokens + self.output_price * output_tokens) / 1e6


class Evaluation(Section):
    """Settings of the answers and their scores; every contender answers the same rows greedily."""

    metrics: tuple[Literal["auto", Metric] | OwnMetric, ...] = Field(
        default=("auto",),
        min_length=1,
        description="Metrics: auto chooses those that fit the reference answers (tool calls, labels, JSON, numbers, "
        f"short or long texts); by name there are {', '.join(METRICS)}; module:Class is your own "
        "evaluate.Metric, beside the file or on PYTHONPATH",
    )
    json_schema: Annotated[str | None, LocalPath()] = Field(
        default=None,
        min_length=1,
        description="File with the JSON Schema for answers, for the metric schema_valid; empty has none",
    )
    max_new_tokens: int | Literal["auto"] = Field(
        default="auto",
        description="Maximum number of tokens in an answer, at least 1; auto has room for the longest answer of the "
        "data: 32, 64, 128 and so on, up to model.max_length",
    )
    batch: int = Field(default=64, ge=1, description="Batch size of generation, in rows")
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="Precision in which contenders answer the test rows, general tasks and lm-eval's tasks; a "
        "registered version is served in it too; auto is bfloat16 if the hardware multiplies it faster",
    )
    contenders: tuple[PromptContender, ...] = Field(
        default=("few_shot", "retrieval"),
        description="Prompted baselines besides base and champion: few_shot is the base with fixed examples from the "
        "training rows, retrieval the base with the most similar ones; may be empty",
    )
    documents: Annotated[tuple[str, ...], LocalPath()] = Field(
        default=(),
        description="Your documents: text or Markdown files in UTF-8, or globs; the contender documents is the base "
        "with the passages most similar to the question before it; empty: no such contender",
    )
    shots: int = Field(default=8, ge=1, le=64, description="Maximum number of in-context examples in a prompt, 1 to 64")
    api_models: tuple[ApiModel, ...] = Field(
        default=(),
        description="Models behind OpenAI-compatible APIs that answer the test rows too, with the few-shot examples; "
        "the verdict compares them with the candidate and does not depend on them",
    )
    api_budget: float | None = Field(
        default=None,
        gt=0,
        description="Maximum cost of a run's requests to each of api_models, above 0, in the currency of their prices: "
        "a model answers as many test rows as that pays for; empty sets no limit",
    )
    complete: bool = Field(
        default=False,
        description="Have the prompted baselines and api_models answer all test rows; false ends each once its "
        "comparison with the candidate is settled",
    )
    forgetting: bool = Field(
        default=True,
        description="Evaluate base and candidate on a built-in suite of general tasks and texts too, to measure "
        "forgetting",
    )
    divergence: bool = Field(
        default=True,
        description="With preference.method or grpo.rewards: measure the KL divergence of the candidate from the model "
        "before that training, on its answers to test rows",
    )

    @property
    def limit(self) -> int:
        """The most tokens of an answer, where it is a number."""
        assert self.max_new_tokens != "auto", "resolved() comes first"
        return self.max_new_tokens

    @property
    def has_prompted(self) -> bool:
        """Whether there are contenders that are only prompted."""
        return bool(self.contenders or self.documents or self.api_models)

    @property
    def has_examples(self) -> bool:
        """Whether a contender is asked with training rows as examples."""
        return bool(self.contenders or self.api_models)

    def resolved(self, longest_answer: int, max_length: int, *, has_bfloat16: bool) -> Self:
        """Replace each auto on which answers depend, where the longest answer has so many tokens, on such hardware.

        max_new_tokens is a power of two, so one more row seldom changes what all contenders answered under.
        """
        found: dict[str, Any] = {}
        if self.max_new_tokens == "auto":
            room = max(LEAST_LIMIT, 1 << (longest_answer - 1).bit_length())
            found["max_new_tokens"] = min(room, max_length)
        if self.precision == "auto":
            found["precision"] = "bfloat16" if has_bfloat16 else "float32"
        return self.model_copy(update=found)

    @model_validator(mode="after")
    def _an_answer_has_a_token(self) -> Self:
        if self.max_new_tokens != "auto" and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} is less than 1")
        return self

    @model_validator(mode="after")
    def _each_has_an_effect(self) -> Self:
        if self.complete and not self.has_prompted:
            raise ValueError("complete=true has no effect; accepted with contenders=few_shot, retrieval")
        names = [each.contender for each in self.api_models]
        for name in names:
            if names.count(name) > 1 or name in OTHER_CONTENDERS:
                raise ValueError(f"api_models: two contenders would be called {name}; accepted: another name for one")
        unpriced = [each.contender for each in self.api_models if each.input_price is None]
        if self.api_budget is not None and (unpriced or not self.api_models):
            missing = f"input_price and output_price of {unpriced[0]}" if unpriced else "api_models"
            raise ValueError(f"api_budget={self.api_budget:g} needs {missing}")
        if self.json_schema and not {"auto", "schema_valid"} & {*self.metrics}:
            raise ValueError(f"json_schema={self.json_schema} has no effect; accepted with metrics=schema_valid, auto")
        return self


class LmEval(Section):
    """Tasks of EleutherAI's lm-evaluation-harness for base and candidate, beside the built-in suite."""

    tasks: tuple[str, ...] = Field(
        default=(), description="Names of tasks or groups; needs the extra lm-eval; empty runs none"
    )
    include_path: Annotated[str | None, LocalPath()] = Field(
        default=None,
        min_length=1,
        description="Folder with your own tasks as lm-eval YAML files, which can run code; or empty",
    )
    limit: int | None = Field(
        default=100,
        ge=1,
        description="Maximum number of documents of each task, the first ones; at least 1, empty takes all",
    )
    chat_template: bool = Field(
        default=False, description="Use the model's chat template; false prompts as lm-eval does by default"
    )

    @model_validator(mode="after")
    def _there_are_tasks(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in fields if getattr(self, name) != fields[name].default]
        if idle and not self.tasks:
            raise ValueError(
                f"{', '.join(idle)} would have no effect; accepted with lm_eval.tasks, such as [hellaswag]"
            )
        return self


class Judge(Section):
    """LLM as a judge: compares each pair of answers in both orders; it is never part of the decision."""

    url: str | None = Field(
        default=None,
        pattern=HTTP_URL,
        description="Base URL of an OpenAI-compatible API, such as http://localhost:8000/v1, that gets the prompts and "
        "answers of test rows; empty uses no judge. Put its key in TUNEWRIGHT_JUDGE_KEY and its host in "
        "TUNEWRIGHT_JUDGE_HOSTS",
    )
    model: str | None = Field(default=None, min_length=1, description="Name of the judge model at that URL")
    rows: int = Field(
        default=100,
        ge=1,
        description="Number of test rows to judge; each row takes two requests against the base, and two against the "
        "champion if there is one",
    )

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
