"""The suite that validates rows and the whole set: the built-in one, with the changes of the deployment file.

A deployment file names an expectation to give it another severity or other arguments, or names a Great Expectations
class of its own; everything it does not name stays as BUILT_IN has it:

    checks:
      expectations:
        - {name: length_out_of_bounds, arguments: {max_answer_chars: 4000}}
        - {name: secrets, severity: critical}
        - {name: data_checks.tickets.ExpectTicketNumber, arguments: {column: prompt}}

Severities: critical stops the run, warning quarantines the rows that fail (of the set as a whole it is a finding),
info only reports, skip leaves the expectation out. expectations.py says what each name means in terms of columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tunewright.accepted import accepted, did_you_mean, meant, shown
from tunewright.config import Expectation
from tunewright.config.data import Severity


class SuiteError(ValueError):
    """The suite cannot be made of these changes; the message is the key, the value and what is accepted."""

    def __init__(self, key: str, said: str) -> None:
        super().__init__(f"{key}{said}")
        self.key = key  # such as checks.expectations[2].name


class Arguments(BaseModel):
    """The arguments of an expectation: none, unless a subclass says which."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LengthArguments(Arguments):
    """Arguments of length_out_of_bounds, in characters."""

    max_prompt_chars: int = Field(default=20_000, ge=1, description="Characters in all turns before the last answer")
    min_answer_chars: int = Field(default=1, ge=0, description="Of each answer")
    max_answer_chars: int = Field(default=20_000, ge=1, description="Of each answer")

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        if self.min_answer_chars > self.max_answer_chars:
            raise ValueError(
                f"min_answer_chars={self.min_answer_chars} is more than max_answer_chars={self.max_answer_chars}"
            )
        return self


def _known_language(code: str) -> str:
    from tunewright.data_checks.language import codes

    if code in codes():
        return code
    near = [plain] if (plain := code.lower().replace("_", "-").partition("-")[0]) in codes() else []
    raise ValueError(f"is no detectable language; {meant(near)}accepted: ISO 639 codes, such as en, de or zh")


def _known_kind(name: Literal["secrets", "personal_data"]) -> AfterValidator:
    def known(kind: str) -> str:
        from tunewright.privacy import personal, secrets

        kinds = secrets.kinds() if name == "secrets" else personal.KINDS
        if kind not in kinds:
            raise ValueError(f"is no kind of {name}; {did_you_mean(kind, kinds)}")
        return kind

    return AfterValidator(known)


class Languages(Arguments):
    """Arguments of language."""

    # YAML has lists where we have tuples: not strict, though each item is still held to be text
    languages: tuple[Annotated[str, AfterValidator(_known_language)], ...] = Field(
        default=(), strict=False, description="Accepted ISO 639 codes, such as en"
    )
    min_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Without languages: accept those with at least this share of the texts, and the most frequent one",
    )


class Secrets(Arguments):
    """Arguments of secrets."""

    kinds: tuple[Annotated[str, _known_kind("secrets")], ...] = Field(
        default=(), strict=False, description="Kinds to report; empty is all"
    )


class PersonalData(Arguments):
    """Arguments of personal_data."""

    kinds: tuple[Annotated[str, _known_kind("personal_data")], ...] = Field(
        default=(), strict=False, description="Kinds to report; empty is all"
    )


class ConflictingAnswersArguments(Arguments):
    """Arguments of conflicting_answers."""

    max_answers: int = Field(default=1, ge=1, description="Maximum number of different answers to one prompt")


class JsonAnswers(Arguments):
    """Arguments of no_json_answer."""

    min_share: float = Field(
        default=0.9, gt=0, le=1, description="Share of JSON among the answers from which on the others are reported"
    )


class SourceBalance(Arguments):
    """Arguments of source_balance, which needs several sources."""

    max_share: float = Field(default=0.9, ge=0, le=1, description="Largest allowed share of the rows")


class LabelBalance(Arguments):
    """Arguments of label_balance, which needs answers from a closed set of labels."""

    max_share: float = Field(default=0.8, ge=0, le=1, description="Largest allowed share of the rows")
    min_rows: int = Field(default=10, ge=1, description="Smallest allowed number of rows")


class LengthBias(Arguments):
    """Arguments of length_bias, which needs preference pairs."""

    max_share: float = Field(
        default=0.8,
        ge=0.5,
        le=1,
        description="Largest allowed share of pairs whose chosen answer is the longer one, or the shorter one",
    )


class Duplicates(Arguments):
    """Arguments of duplicate_rows."""

    max_share: float = Field(
        default=0.2, ge=0, le=1, description="Largest allowed share of rows that equal an earlier one"
    )


class DriftArguments(Arguments):
    """Arguments of length_drift, language_drift, source_drift and label_drift."""

    max_psi: float = Field(
        default=0.25,
        gt=0,
        description="Largest allowed population stability index: 0.1 is a small shift, 0.25 a large one",
    )


class RowsChangedArguments(Arguments):
    """Arguments of rows_changed, which needs an accepted version."""

    max_share: float = Field(
        default=0.5, ge=0, description="Largest allowed share of rows added and removed since that version"
    )


@dataclass(frozen=True)
class BuiltIn:
    """A built-in expectation as it is where nothing is changed."""

    severity: Severity
    arguments: type[Arguments] = Arguments
    of_set: bool = False  # validates the set as a whole, which has no rows to quarantine


BUILT_IN: dict[str, BuiltIn] = {
    "roles_out_of_order": BuiltIn("warning"),
    "last_not_assistant": BuiltIn("warning"),
    "empty_prompt": BuiltIn("warning"),
    "empty_answer": BuiltIn("warning"),
    "empty_rejected": BuiltIn("warning"),
    "identical_pair": BuiltIn("warning"),
    "placeholder_answer": BuiltIn("warning"),
    "length_out_of_bounds": BuiltIn("warning", LengthArguments),
    "special_token": BuiltIn("warning"),
    "replacement_character": BuiltIn("warning"),
    "mojibake": BuiltIn("info"),
    "decomposed_characters": BuiltIn("info"),
    "language": BuiltIn("info", Languages),
    "secrets": BuiltIn("info", Secrets),
    "personal_data": BuiltIn("info", PersonalData),
    "refusal": BuiltIn("info"),
    "cut_off_answer": BuiltIn("info"),
    "no_json_answer": BuiltIn("info", JsonAnswers),
    "conflicting_answers": BuiltIn("info", ConflictingAnswersArguments),
    "rejected_elsewhere": BuiltIn("warning"),
    "label_spelling": BuiltIn("info"),
    "source_balance": BuiltIn("info", SourceBalance, of_set=True),
    "label_balance": BuiltIn("info", LabelBalance, of_set=True),
    "length_bias": BuiltIn("warning", LengthBias, of_set=True),
    "duplicate_rows": BuiltIn("info", Duplicates, of_set=True),
    "length_drift": BuiltIn("info", DriftArguments, of_set=True),
    "language_drift": BuiltIn("info", DriftArguments, of_set=True),
    "source_drift": BuiltIn("info", DriftArguments, of_set=True),
    "label_drift": BuiltIn("info", DriftArguments, of_set=True),
    "rows_changed": BuiltIn("info", RowsChangedArguments, of_set=True),
}


@dataclass(frozen=True)
class Entry:
    """One expectation of the suite: a built-in with its arguments, or a class of the team's with what to give it."""

    name: str
    severity: Severity
    arguments: Arguments | dict[str, Any]
    key: str = ""  # where a deployment file names it: checks.expectations[2]

    @property
    def own(self) -> bool:
        """Whether the expectation is a class of the team's."""
        return isinstance(self.arguments, dict)

    @property
    def given(self) -> dict[str, Any]:
        """The arguments by name, defaults included."""
        return self.arguments if isinstance(self.arguments, dict) else self.arguments.model_dump(mode="json")


def suite(changes: Sequence[Expectation]) -> list[Entry]:
    """The built-in expectations in their order, changed, then those of the team's own; without what is skipped.

    Raises SuiteError for a name, a severity or an argument that is not accepted.
    """
    entries = {name: Entry(name, built_in.severity, built_in.arguments()) for name, built_in in BUILT_IN.items()}
    own: list[Entry] = []
    for position, change in enumerate(changes):
        key = f"checks.expectations[{position}]"
        if "." in change.name:  # module.Class
            own.append(Entry(change.name, change.severity or "warning", dict(change.arguments), key))
            continue
        if change.name not in entries:
            known = did_you_mean(change.name, entries)
            raise SuiteError(
                f"{key}.name", f"={change.name} is not an expectation; {known}, or module.Class of your own"
            )
        if first := entries[change.name].key:
            raise SuiteError(f"{key}.name", f"={change.name} is named in {first} too; accepted: once")
        severity = change.severity or BUILT_IN[change.name].severity
        entries[change.name] = Entry(change.name, severity, _arguments(change, f"{key}.arguments"), key)
    return [entry for entry in (*entries.values(), *own) if entry.severity != "skip"]


def _arguments(change: Expectation, key: str) -> Arguments:
    known = BUILT_IN[change.name].arguments
    if unknown := next((name for name in change.arguments if name not in known.model_fields), None):
        said = f" is not an argument of {change.name}; {did_you_mean(unknown, known.model_fields)}"
        none = f" is not accepted: {change.name} has no arguments"
        raise SuiteError(f"{key}.{unknown}", said if known.model_fields else none)
    try:
        return known.model_validate(change.arguments)
    except ValidationError as error:
        raise _refusals([_refusal(key, each, known) for each in error.errors(include_url=False)], key) from error


def _refusals(refused: Sequence[SuiteError], key: str) -> SuiteError:
    """The first of them, in one line with the others that accept the same: each language that is none, say."""
    first = refused[0]
    said, accepts, what = str(first).partition("accepted: ")
    alike = [str(each).removeprefix(key).partition("accepted: ")[0] for each in refused[1:] if str(each).endswith(what)]
    if not accepts or not alike:
        return first
    whole = "also ".join([said, *alike]) + accepts + what
    return SuiteError(first.key, whole.removeprefix(first.key))


def _refusal(key: str, error: ErrorDetails, known: type[Arguments]) -> SuiteError:
    location, reason = error["loc"], error.get("ctx", {}).get("error")
    if not location:  # its arguments contradict each other
        return SuiteError(key, f": {reason}")
    at = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    if reason:
        return SuiteError(f"{key}{at}", f"={error['input']} {reason}")
    found = known.model_fields[str(location[0])]
    said = f"={shown(error['input'])}; accepted: {accepted(error, found)} ({found.description})"
    return SuiteError(f"{key}{at}", said)
