"""Variants of one training, compared on the validation rows; the test rows stay sealed.

course.py ends those that are behind, ranking.py says which is the best and which are not told apart from it, page.py
shows it.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from tunewright.comparison.course import Course, Study
from tunewright.comparison.page import markdown, notes, row, write_page
from tunewright.comparison.ranking import Ranked, rank, sentence
from tunewright.comparison.trials import Trial
from tunewright.config import home
from tunewright.store.cache_key import hash_of

__all__ = ["Course", "Ranked", "Study", "Trial", "VariantComparison", "markdown", "notes", "of", "row"]


class VariantComparison(BaseModel, frozen=True):
    """Result of a comparison, in `<home>/comparisons/<name>/<key>/`: comparison.json and report.html."""

    key: str  # of its variants, their seeds and what was made of them
    ranked: tuple[Ranked, ...]
    sentence: str
    folder: Path
    link: str = ""  # to MLflow


def of(trials: Sequence[Trial], name: str) -> VariantComparison:
    """The comparison of these trials of a pipeline, with its files."""
    key = hash_of([(trial.variant, trial.seed, trial.folder and trial.folder.name) for trial in trials])[:12]
    ranked = rank(trials)
    found = VariantComparison(
        key=key, ranked=ranked, sentence=sentence(ranked), folder=home() / "comparisons" / name / key
    )
    found.folder.mkdir(parents=True, exist_ok=True)
    (found.folder / "comparison.json").write_text(found.model_dump_json(indent=1, exclude={"folder"}), encoding="utf-8")
    write_page(found.folder / "report.html", ranked, found.sentence)
    return found
