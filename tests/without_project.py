"""Another user's machine: a process there cannot import the project, and knows nothing of its home."""

import os
import sys
from pathlib import Path

HIDDEN = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
class Hidden:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "tunewright":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden)
"""


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process of a user whose empty home folder is `folder`."""
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "sitecustomize.py").write_text(HIDDEN)
    ours = ("TUNEWRIGHT", "HF_HUB", "MLFLOW", "PREFECT")
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow calls uvicorn by its name
    return theirs | {"HOME": str(folder), "PATH": path, "PYTHONPATH": str(folder / "site")}
