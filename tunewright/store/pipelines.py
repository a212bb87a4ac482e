"""Which artifacts are a pipeline's own: those that its runs asked for, whether they were made for it or found.

Artifacts are known by what they are made of and shared by all pipelines of a home, so none of them says whose it is. A
pipeline is known by registry.name, as its versions of the data and its models are. An empty file
`<home>/pipelines/<name>/<call>/<key>` stands for a key that a run asked for, its time for when one did last.
"""

from pathlib import Path

from tunewright import config


def note(name: str, call: str, key: str) -> None:
    """Keeps that a run of the pipeline `name` asked for a key; `call` is a stage, and of what: "evaluate base"."""
    mark = _place(name, call) / key
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def keys(name: str, call: str) -> list[str]:
    """The keys that runs of the pipeline asked for in this call, the last one first."""
    marks = {mark: mark.stat().st_mtime_ns for mark in _place(name, call).glob("*")}
    return [mark.name for mark in sorted(marks, key=lambda mark: marks[mark], reverse=True)]


def asked() -> dict[str, tuple[int, float]]:
    """All keys of all pipelines: how many others the same call asked for since, and when this one was asked for last.

    Of a key that several calls asked for it is the fewest, and the latest.
    """
    found: dict[str, tuple[int, float]] = {}
    for call in (config.home() / "pipelines").glob("*/*/"):
        times = sorted(((mark.stat().st_mtime, mark.name) for mark in call.iterdir()), reverse=True)
        for place, (when, key) in enumerate(times):
            before, earlier = found.get(key, (place, when))
            found[key] = min(place, before), max(when, earlier)
    return found


def forget(key: str) -> None:
    """Removes what says that runs asked for a key, whose artifact was removed."""
    for mark in (config.home() / "pipelines").glob(f"*/*/{key}"):
        mark.unlink(missing_ok=True)


def _place(name: str, call: str) -> Path:
    return config.home() / "pipelines" / name / call
