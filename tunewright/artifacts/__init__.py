"""Records that the stages pass on: small, frozen, with an artifact's folder, its counts and its content hash.

Every stage's folder holds a manifest.json written last (store/caching.py); the files named here are its content.
A row table has the columns row_id, source, file, line, group and messages; ROW_SCHEMA says their types.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from tunewright.config.evaluation import ApiModel

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

ROW_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),  # sha256 of the canonical JSON of the messages, and of all that `chat` has
        ("source", pa.string()),  # the row's own `source` field, or the file's name
        ("file", pa.string()),
        ("line", pa.int64()),  # counted from 1; for an array or Parquet the number of the record
        ("byte", pa.int64()),  # where the record begins in the file, unpacked; null where a file has no such place
        ("group", pa.string()),  # rows of one group stay in one split; null where there is none
        ("time", pa.string()),  # ISO 8601 in UTC, so that text order is time order; null where there is none
        ("use_as", pa.string()),  # of the source's settings, also replay; null where split decides
        ("repairs", pa.string()),  # what was repaired in its texts, such as "mojibake, nfc"; null for nothing
        ("messages", MESSAGES),  # a call is text of its message here
        (
            "chat",
            pa.string(),
        ),  # JSON of tools, messages and a rejected answer where messages do not say all
    ]
)


def no_replay() -> pc.Expression:
    """Filters a row table to the rows that are not general ones mixed in.

    Made where it is needed: its list makes Arrow import pandas, which the start of a run need not wait for.
    """
    return ~pc.field("use_as").isin(["replay"])


QUARANTINE_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("byte", pa.int64()),
        ("row_id", pa.string()),  # null where it never became a row
        ("reason", pa.string()),  # a code, such as bad_json
        ("detail", pa.string()),  # one sentence for a person
        ("text", pa.string()),  # the beginning of what stood there, at most 500 characters
    ]
)

FINDINGS_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("finding", pa.string()),  # name of an expectation that quarantines nothing, such as personal_data
        ("detail", pa.string()),  # one sentence for a person
    ]
)

HELD_OUT_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("text", pa.string()),  # what a record of an evaluation file says, all its texts joined by line breaks
        ("asked", pa.int32()),  # of its lines the first that are its question; null where that cannot be told
        ("answered", pa.int32()),  # of its lines the last that are its answer, as far as that is known
    ]
)

REMOVED_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("reason", pa.string()),  # exact_duplicate, near_duplicate or semantic_duplicate
        ("partner_row_id", pa.string()),  # the kept row that it repeats
        ("partner_file", pa.string()),
        ("partner_line", pa.int64()),
        ("similarity", pa.float64()),  # exact Jaccard of the compared keys, 1.0 for an exact duplicate; or the cosine
        ("text", pa.string()),
    ]
)

SPLIT_SCHEMA = ROW_SCHEMA.append(pa.field("cluster", pa.int64()))  # near duplicates and groups share one

# For the next version of the data: each row's split, or the one that it returns to where it is quarantined.
ASSIGNMENTS_FILE = "sides.parquet"  # homes and backups have it and its column `side` by these names
ASSIGNMENTS_SCHEMA = pa.schema([("row_id", pa.string()), ("side", pa.string()), ("because", pa.string())])

UNDESIRABLE = "undesirable_{}.parquet"  # of a split: rows whose answer nobody wants, as TOKEN_SCHEMA
IGNORED = -100  # the label of a token that is not trained, to every loss of PyTorch's

TOKEN_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("cluster", pa.int64()),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),  # input_ids where the token is trained, IGNORED elsewhere, not shifted
        ("prompt_length", pa.int32()),  # tokens before the last answer: input_ids[:prompt_length] is what is asked
        ("reference", pa.string()),  # the text of the last answer
        ("replay", pa.bool_()),  # whether it is a general row that was mixed in, whose answer says nothing of the task
        ("tools", pa.string()),  # JSON of the definitions of its tools; null without any
        ("rejected_ids", pa.list_(pa.int32())),  # of a preference pair the rejected answer with its stop token, or null
        ("rejected", pa.string()),  # its text
    ]
)

GENERAL_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("metric", pa.string()),  # general_tasks, general_loss or lm_eval
        ("part", pa.string()),  # the kind of task, a text's language, or lm_eval/ and the task of lm-eval
        ("prompt", pa.string()),  # or the text
        ("answer", pa.string()),  # empty of a text
        ("score", pa.float64()),  # 1 where a task is done right; of a text its loss in nats per token
    ]
)


TRAIN_MORE = "; try more "  # begins the advice in a warning about training that wants more of it
SELDOM = 0.5  # agreement of a judge with itself, under which the order of the answers says more than they do
GUESSING = 0.9  # of the loss of guessing; a model that knows no more than how frequent tokens are is at about 0.7
GENERAL_SAID = {
    "general_tasks": "general tasks correct {} -> {}",
    "general_loss": "loss on general texts {} -> {} nats/token",
    "lm_eval": "lm-eval score {} -> {}",
}


class Artifact(BaseModel, frozen=True):
    """One stage's output: `<home>/artifacts/<stage>/<key>/`. `digest` depends on the content alone."""

    stage: str = ""
    key: str = ""
    folder: Path = Path()
    digest: str = ""
    waited_seconds: float = 0.0  # for a device that another had, while it was made
    earlier_seconds: float = 0.0  # of attempts before the one that made it, whose work it resumed
    warned: tuple[str, ...] = ()  # that the stage logged, and that each run which finds it in the cache repeats

    def path(self, name: str) -> Path:
        """The file or folder `name` of this artifact."""
        return self.folder / name


class Base(Artifact, frozen=True):
    """The base model: `weights` is a folder with safetensors, config and tokenizer that transformers reads offline."""

    reference: str
    revision: str | None
    location: Path  # of the weights; a relative one lies inside the artifact
    weights_digest: str  # empty in a plan, where it is still to be made
    quick_digest: str = ""  # the same, with the size of the weights in place of their content
    special_tokens: tuple[str, ...] = ()  # that text must not contain: they would become control tokens
    chat_template: str = ""  # the text of model.chat_template; empty where the base's own counts

    @property
    def weights(self) -> Path:
        """The folder with the weights."""
        return self.folder / self.location


class Rows(Artifact, frozen=True):
    """ingest: rows.parquet (ROW_SCHEMA), quarantine.parquet (QUARANTINE_SCHEMA), held_out.parquet (HELD_OUT_SCHEMA)."""

    num_read: int
    num_rows: int
    num_quarantined: int
    reasons: dict[str, int]
    detected: dict[str, str]  # file -> "jsonl, alpaca"
    repaired: dict[str, int] = {}  # repair -> rows in which it changed something
    num_held_out: int = 0
    num_general: int = 0  # rows that rehearse made; num_rows has them, num_read has not
    given: dict[str, str] = {}  # file -> use_as of its source
    globs: dict[str, str] = {}  # file -> the glob that names it, of those that one does


class Rehearsed(Rows, frozen=True):
    """rehearse: the tables of ingest, with the base's answers to general prompts as replay rows behind the others."""


class CheckedRows(Artifact, frozen=True):
    """check: rows.parquet, quarantine.parquet, findings.parquet, profile.json, results.json and report.html."""

    num_rows: int
    num_quarantined: int
    reasons: dict[str, int]
    findings: dict[str, int]


class UniqueRows(Artifact, frozen=True):
    """dedupe: rows.parquet, removed.parquet (REMOVED_SCHEMA), boilerplate.json and report.html."""

    num_rows: int
    num_removed: int
    reasons: dict[str, int]
    boilerplate: tuple[str, ...]


class Splits(Artifact, frozen=True):
    """split: train, validation, test.parquet (SPLIT_SCHEMA), quarantine, sides.parquet, proof.json."""

    num_train: int
    num_validation: int
    num_test: int
    num_clusters: int
    num_quarantined: int = 0
    reasons: dict[str, int] = {}
    findings: dict[str, int] = {}
    largest_similarity: float  # between rows of two splits, or the floor below which no pair was compared
    random_leak_share: float  # of test rows that a random split of the same sizes would have leaked
    num_replay: int = 0  # of the training rows
    undesirable: tuple[int, ...] = (0, 0, 0)  # rows of train, validation and test with an undesirable answer


class Tokens(Artifact, frozen=True):
    """render: train, validation and test.parquet (TOKEN_SCHEMA), contract.json, quarantine.parquet and report.html.

    Rows with an undesirable answer are in files of their own, UNDESIRABLE; no number but their own counts them.
    """

    num_train: int
    num_validation: int
    num_test: int
    num_quarantined: int
    reasons: dict[str, int]
    num_trained_tokens: int
    longest: int
    longest_answer: int = 0  # the last one of a row, with its stop token; rows for replay left out
    num_replay: int = 0  # of the training rows
    num_pairs: int = 0  # of the training rows, that have a rejected answer
    num_validation_pairs: int = 0
    num_test_pairs: int = 0
    num_undesirable: int = 0  # rows with an undesirable answer that may train
    num_validation_undesirable: int = 0
    num_test_clusters: int = 0  # of the test rows that are left, independent of each other
    num_test_undesirable: int = 0  # which nobody is asked: a wrong answer is no reference
    reasoning: Literal["trained", "masked", "dropped"] = "trained"  # as it was rendered

    @property
    def sum_undesirable(self) -> int:
        """The rows with an undesirable answer, of all splits."""
        return self.num_undesirable + self.num_validation_undesirable + self.num_test_undesirable

    @property
    def num_labelled(self) -> tuple[int, int]:
        """The training and validation answers that are desirable or undesirable; a pair has one of each."""
        return (
            self.num_train - self.num_replay + self.num_pairs + self.num_undesirable,
            self.num_validation + self.num_validation_pairs + self.num_validation_undesirable,
        )


class SuspectedRow(NamedTuple):
    """A training row whose answer is likely wrong, and what a model answers that was trained without it."""

    file: str
    line: int
    reference: str  # masked, on one line
    answer: str  # likewise


class LabelErrors(Artifact, frozen=True):
    """label_errors: label_errors.parquet (LABEL_ERRORS_SCHEMA of the stage, the likeliest first) and report.html."""

    num_folds: int
    num_rows: int
    num_same: int  # that got the given answer
    num_likely: int
    named: tuple[SuspectedRow, ...]  # the first of those
    unlearned: tuple[str, ...] = ()  # "10 of the 17 rows with 'liability'", of labels most of whose rows are likely

    def says(self) -> list[str]:
        """Describe it in a sentence or two, and the first rows in a line each."""
        from tunewright.reports.pages import counted, percent

        same = percent(self.num_same / self.num_rows)
        said = f"{self.num_likely:,} of {counted(self.num_rows, 'training row')} are likely label errors"
        said += f" (cross-validation with {self.num_folds} folds, in which {same} got the given answer)"
        if self.unlearned:
            said += f"; among them are {', '.join(self.unlearned)}: too few for the models to learn, or most are wrong"
        lines = [f"{row.file}:{row.line}: {row.reference}, where the model answers {row.answer}" for row in self.named]
        more = f"; the first {len(lines)}" if self.num_likely > len(lines) else ""
        return [f"{said}{more}{':' if lines else '.'}", *lines]


class Scan(Artifact, frozen=True):
    """scan: scan.json (module -> SNR), chosen.json (the modules that learn) and report.html."""

    num_modules: int
    chosen: tuple[str, ...]


class Adapter(Artifact, frozen=True):
    """train: model/ (adapter or full weights), contract.json, metrics.jsonl, summary.json and curves.html."""

    method: str
    preference: str = ""  # preference.method, of a training on preference pairs or labelled answers
    rewards: tuple[str, ...] = ()  # the reward functions, of a training on rewards
    steps: int
    best_step: int
    best_by: str
    best_value: float  # of best_by, at the best step
    best_validation_loss: float  # at the best step; of a training on rewards the negative mean reward
    stopped_early: bool
    warnings: tuple[str, ...] = ()  # in plain words
    train_seconds: float
    began_as: str = ""  # the version of the registered model whose weights it began with; empty where the base's

    @property
    def section(self) -> Literal["training", "preference", "grpo"]:
        """The section of the settings of its steps."""
        return "grpo" if self.rewards else "preference" if self.preference else "training"

    @property
    def in_words(self) -> str:
        """Such as "preference training (dpo)"; empty of a training on answers."""
        if self.rewards:
            return f"training on rewards ({', '.join(self.rewards)})"
        return f"preference training ({self.preference})" if self.preference else ""

    @property
    def says_validation(self) -> str:
        """The measures of the validation rows at the best step: "validation loss 0.1234, exact_match 0.8"."""
        if self.rewards:
            return f"validation reward {self.best_value:.4g}"
        metric = "" if self.best_by == "loss" else f", {self.best_by} {self.best_value:.4g}"
        return f"validation loss {self.best_validation_loss:.4g}{metric}"


class PromptExamples(Artifact, frozen=True):
    """examples: model/examples.json, the prompt of a candidate that is the base with it, and contract.json.

    prompts.json has what was tried on validation rows.
    """

    kind: Literal["few_shot", "retrieval"] = "few_shot"
    num_examples: int  # for retrieval all that the prompt draws from
    chosen: str  # what was chosen, and why, in words

    @property
    def method(self) -> str:
        """The kind of method, as an adapter has it."""
        return self.kind

    @property
    def file(self) -> Path:
        """The examples, as a version has them."""
        return self.path("model/examples.json")

    def says(self) -> str:
        """Describe the candidate in a sentence."""
        return f"Nothing was trained: the candidate is the base with a {self.in_words} of {self.chosen}."

    @property
    def in_words(self) -> str:
        """The prompt, in words."""
        return "retrieval prompt" if self.kind == "retrieval" else "few-shot prompt"


class Prepended(Artifact, frozen=True):
    """prepend: test.parquet, the test rows as TOKEN_SCHEMA, each with the examples of a contender before it."""

    contender: str
    num_shortened: int  # test rows whose prompt had to leave out examples


class Prompts(Artifact, frozen=True):
    """prompt: few_shot.parquet, retrieval.parquet, documents.parquet, as far as asked for: test rows as TOKEN_SCHEMA.

    prompts.json has the shots of each row by their ids, what was tried on validation rows, and what was chosen.
    """

    chosen: dict[str, str]  # contender -> what was chosen, and why, in words; without those that are left out
    num_shortened: dict[str, int]  # contender -> test rows whose prompt had to leave out shots
    left_out: tuple[str, ...] = ()  # contenders whose prompts have room for no shot: they would be the base again


class Contender(BaseModel, frozen=True):
    """Something that answers the test rows: a base, and the tuned weights or the prompts that make the best of it."""

    name: str  # base, few_shot, retrieval, documents, champion or candidate
    base: Base
    prompts: Path | None = None  # the test rows as they are asked, where they are asked otherwise (TOKEN_SCHEMA)
    prompts_digest: str = ""
    model: Path | None = None  # the model/ folder of train or examples, or that of a registered version
    model_digest: str = ""
    version: str = ""  # of the registered model, for the champion
    api: ApiModel | None = None  # the model that `prompts` are sent to: messages.jsonl of prompt


class ApiUse(BaseModel, frozen=True):
    """The tokens, time and price of the answers of a model behind an API."""

    model: str
    url: str
    input_tokens: int
    output_tokens: int
    seconds: float  # of a reply, the median
    price: float | None = None  # of a thousand answers; None without prices


def part_of_rows(num_rows: int, num_unanswered: int) -> str:
    """Such as "75 of 300", where a contender was ended before it had answered all test rows; otherwise empty."""
    return f"{num_rows:,} of {num_rows + num_unanswered:,}" if num_unanswered else ""


class Answers(Artifact, frozen=True):
    """evaluate: answers.parquet (one line an answered test row) and scores.json, of one contender."""

    contender: str
    num_rows: int
    num_unanswered: int = 0  # test rows that it did not answer, since it was ended before
    alpha_share: float = 1.0  # of what its comparison may err by; interim analyses have spent the rest
    scores: dict[str, float]
    metric: str = ""  # the one that decides where gate.metric is auto: the first that fits; empty where none can
    measured: str = ""  # in words: what the references are, what is measured, and what is left out and why
    precision: str = ""  # of the weights that answered, such as float32
    not_measured: dict[str, str] = {}  # a metric that was asked for -> why it would mean nothing
    faults: tuple[str, ...] = ()  # references at which no answer can be right: "2 of 90 references are not JSON, ..."
    untrained: str = ""  # "9 of 180 references have one of 3 labels that no training row has, ..."
    max_new_tokens: int | None = None  # that an answer may have; None in records of versions that did not keep it
    num_prompt_tokens: int | None = None  # of the prompts of these rows; None where that was not kept
    is_prose: bool = False  # whether the references are long texts, and no labels, JSON, numbers or phrases
    api: ApiUse | None = None  # of a model behind an API, which the decision does not depend on

    @property
    def in_part(self) -> str:
        """The test rows that it answered, where these are not all; otherwise empty."""
        return part_of_rows(self.num_rows, self.num_unanswered)


class EndingRule(BaseModel, frozen=True):
    """When a contender that is only prompted need not answer more test rows: its comparison with the candidate."""

    candidate: Answers
    metric: str  # gate.metric
    tolerance: float  # gate.tolerance
    confidence: float  # of each test of this use of the test rows


class General(Artifact, frozen=True):
    """forgetting and lm_eval: general.parquet (GENERAL_SCHEMA) and general.json, of one contender."""

    contender: str
    scores: dict[str, float]  # of each metric and part; general_tasks: share done right, general_loss: nats per token
    uniform_loss: float | None = None  # of guessing each token with equal probability; None of lm_eval

    @property
    def knows_nothing(self) -> bool:
        """Whether the loss on general texts is near that of guessing, so that there is nothing to forget."""
        loss = self.scores.get("general_loss")
        return loss is not None and self.uniform_loss is not None and loss >= GUESSING * self.uniform_loss


class Divergence(Artifact, frozen=True):
    """divergence: kl.parquet, a line for each test row (KL_SCHEMA of the stage)."""

    per_token: tuple[float, float, float]  # low, mean and high of the KL divergence, in nats per token
    per_answer: float  # nats, the mean of all answers
    num_rows: int
    reference: str  # such as "the model after SFT"

    def says(self) -> str:
        """Describe it in a sentence."""
        from tunewright.reports.pages import counted, interval, number

        low, _, high = self.per_token
        digits = next((each for each in range(2, 7) if number(low, each) != number(high, each)), 2)
        measured = interval(self.per_token, signed=False, digits=digits)
        return (
            f"KL divergence of the candidate from {self.reference}: {measured} nats per "
            f"token, {number(self.per_answer)} an answer, on its own answers to {counted(self.num_rows, 'test row')}"
        )


class Judged(Artifact, frozen=True):
    """judge: judged.parquet (one line a test row and opponent) and judged.json."""

    model: str
    num_rows: int
    preferred: dict[str, tuple[float, float, float]]  # opponent -> (low, mean, high) of the candidate's share of rows
    agreement: dict[str, float]  # opponent -> share of rows in which both orders of the answers had the same reply
    unreadable: dict[str, float]  # opponent -> share of rows with a reply that says nothing

    def says(self) -> list[str]:
        """Describe the judge's preference, one sentence per opponent."""
        from tunewright.reports.pages import counted, percent  # with jinja2, which most commands have no use for

        return [
            f"The judge {self.model} prefers the candidate to the {name} in {percent(mean)} "
            f"[{percent(low)}, {percent(high)}] of {counted(self.num_rows, 'test row')}, ties count half; "
            "prompted in both orders it agrees with itself in "
            f"{percent(self.agreement[name])}"
            + (", too rarely to rely on" if self.agreement[name] < SELDOM else "")
            + (f", and {percent(self.unreadable[name])} of its replies are unreadable" if self.unreadable[name] else "")
            for name, (low, mean, high) in self.preferred.items()
        ]


WAITING = "Waiting for approval"  # begins the sentence of a verdict that a person has to approve


class Verdict(Artifact, frozen=True):
    """decide: verdict.json. Intervals are of the paired difference candidate - opponent, in the metric's unit."""

    decision: str  # promote, keep, inconclusive or invalid
    because: str = ""  # of keep: worse, too low, regression or prompting is enough
    sentence: str
    gain: str = ""  # of the comparison that decided, or that was the closest, and against whom
    metric: str
    differences: dict[str, tuple[float, float, float]]  # opponent -> (low, mean, high)
    intervals: dict[str, tuple[float, float, float]]  # contender -> (low, mean, high) of its own score
    guardrails: dict[str, tuple[float, float, float]] = {}  # "stopped/base" -> (low, mean, high)
    guardrail_power: dict[str, float] = {}  # "stopped/base" -> chance to show that it holds if nothing got worse
    general: dict[str, dict[str, float]] = {}  # base and candidate -> what they made of general tasks and texts
    beside: tuple[str, ...] = ()  # a sentence for each model behind an API, which the decision does not depend on
    confidence: float | None = None  # of each test of this use of the test rows; None in earlier records
    rows_needed: int | None
    smallest_visible: float | None = (
        None  # gain of the metric detectable at 80 % power, where it is the hardest to show
    )
    visible_against: str = ""  # the opponent of that gain; empty in earlier records
    test_set_uses: int = 0  # of these rows; counted after the stage, so it is no part of its key
    warnings: tuple[str, ...] = ()  # of answers that were cut off and, from the flow, of many test-set uses

    @property
    def in_words(self) -> str:
        """Such as "promote" or "keep: regression"."""
        because = "not better" if self.because == "worse" else self.because  # a tie is not better, and not worse
        return f"{self.decision}: {because}" if because else self.decision

    def says_uses(self) -> str:
        """Say how many decisions used the test rows, and the level of the tests of this one."""
        from tunewright.reports.pages import counted  # with jinja2, which most commands have no use for

        said = f"These test rows were used for {counted(self.test_set_uses, 'decision')} so far"
        if self.confidence is None:
            return said
        level = f"{1 - self.confidence:.2g}".removeprefix("0")
        return (
            f"{said}; each comparison of this one was tested at a one-sided level of at most {level}, so that "
            "gate.confidence holds for all of them together"
        )

    def says_forgotten(self) -> list[str]:
        """Describe the base's and the candidate's scores on general tasks and texts in a sentence, if there are any."""
        if not self.general:
            return []
        base, candidate = self.general["base"], self.general["candidate"]
        changes = [
            f"{said.format(f'{base[name]:.2f}', f'{candidate[name]:.2f}')} ({self._says_use(name, base[name])})"
            for name, said in GENERAL_SAID.items()
            if name in base
        ]
        return [", ".join(changes)]

    def _says_use(self, metric: str, of_base: float) -> str:
        """Say whether a result on general tasks or texts was used as a guardrail, and the power of this test."""
        from tunewright.reports.pages import estimated_power

        guardrail = f"{metric}/base"
        if guardrail not in self.guardrails:
            return "not used in the decision"
        if of_base == 0 and metric == "general_tasks":
            return "a guardrail that cannot fail: the base solves none of the tasks"
        power = self.guardrail_power.get(guardrail)  # None in earlier records
        return "a guardrail" if power is None else f"a guardrail; {estimated_power(power)} if nothing is forgotten"


def shown(verdict: str) -> str:
    """Return a verdict in the words of people: "not promoted: regression" for "keep: regression"."""
    return re.sub(r"^keep\b", "not promoted", verdict)


class RunArtifacts(BaseModel, frozen=True):
    """All artifacts of a run up to its verdict, for the verdict page and MLflow."""

    name: str  # of the pipeline
    rows: Rows  # of ingest
    rehearsed: Rehearsed | None = None  # the same with general rows, where training.keep_general adds some
    checked: CheckedRows
    unique: UniqueRows
    splits: Splits
    tokens: Tokens
    base: Base
    adapter: Adapter | PromptExamples  # of the last training; the examples where nothing is trained
    before: tuple[Adapter, ...] = ()  # the trainings before it, in their order
    answers: tuple[Answers, ...]
    verdict: Verdict
    test_set_uses: int  # the verdict's, for the key, since it is counted after the stage
    warnings: tuple[str, ...]  # the same
    approval: bool  # whether a person decides on the alias of what is promoted
    general: tuple[General, ...] = ()
    prompts: Prompts | None = None  # of the contenders that are the base with a prompt
    judged: Judged | None = None
    divergence: Divergence | None = None  # of preference training, or training on rewards

    @property
    def all_rows(self) -> Rows:
        """The rows that check was given."""
        return self.rehearsed or self.rows

    @property
    def trainings(self) -> tuple[Adapter, ...]:
        """The trainings, the first one first; none of a few-shot prompt."""
        return (*self.before, self.adapter) if isinstance(self.adapter, Adapter) else ()

    @property
    def counted_verdict(self) -> Verdict:
        """The verdict with what was counted after its stage."""
        return self.verdict.model_copy(update={"test_set_uses": self.test_set_uses, "warnings": self.warnings})


class VerdictPage(Artifact, frozen=True):
    """verdict_page: report.html and suggestions.json."""

    num_rows: int  # test rows that it shows with their answers
    suggestions: tuple[str, ...]  # what to try next, each with the figures that it stands on
    is_gentler: bool = False  # whether it is among them to train more gently

    def without_opposite(self, warning: str) -> str:
        """A warning about training, without its advice to train more where the page advises to train more gently."""
        return warning.partition(TRAIN_MORE)[0] if self.is_gentler else warning


class Registered(Artifact, frozen=True):
    """register: model.json. What is said of alias and approval is as it stood when it was looked at last."""

    name: str
    version: str
    alias: str  # empty where another version carries it, or none
    uri: str
    run_id: str  # of this decision
    version_run_id: str = ""  # of the decision that made the version, which may be an earlier one on the same candidate
    experiment_id: str
    tracking_uri: str | None  # None for the database in the home folder, wherever that lies
    current_version: str = ""  # the version that carries the alias, empty for none
    approval: str = ""  # tunewright/registry/alias_state.py says what; empty where no person decides or decided
    stands: str = ""  # the verdict with that, in a sentence
    asked: str = ""  # where a person is asked in Prefect's UI
    superseded: tuple[str, ...] = ()  # versions that had waited for a person until this one was promoted
    is_known: bool = False  # the same decision on the same candidate was registered before its artifacts were deleted
