"""How training went: its curves as one page, and warnings in plain words."""

from tasks.curves.advice import TrainingWarning, warnings
from tasks.curves.page import picture, write_page
from tasks.curves.reading import Curves, read

__all__ = ["Curves", "TrainingWarning", "picture", "read", "warnings", "write_page"]
