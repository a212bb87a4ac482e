"""How training went: its curves as one page, and warnings in plain words."""

from tunewright.reports.curves.advice import TrainingWarning, is_falling, warnings
from tunewright.reports.curves.page import picture, write_page
from tunewright.reports.curves.reading import Curves, no_warnings, read

__all__ = ["Curves", "TrainingWarning", "is_falling", "no_warnings", "picture", "read", "warnings", "write_page"]
