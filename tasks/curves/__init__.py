"""How training went: its curves as one page, and warnings in plain words."""

from tasks.curves.advice import TrainingWarning, is_falling, warnings
from tasks.curves.page import picture, write_page
from tasks.curves.reading import Curves, read

__all__ = ["Curves", "TrainingWarning", "is_falling", "picture", "read", "warnings", "write_page"]
