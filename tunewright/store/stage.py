"""A stage: a function that writes files into a folder becomes a Prefect task that is cached and retried on its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from prefect import Task, task

from tunewright.artifacts import Artifact
from tunewright.errors import RETRIES, RETRY_SECONDS, is_retried
from tunewright.store.caching import Cached, cached

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)


def stage(
    run_name: str,
    *,
    libraries: tuple[str, ...] = (),
    volatile: tuple[str, ...] = (),
    unkeyed: tuple[str, ...] = (),
    lost: Callable[[Any], str] | None = None,
) -> Callable[[Callable[Concatenate[Path, P], A]], Task[P, A]]:
    """Make a function a stage of the function's name; its first argument, the folder, is not an argument of the stage.

    `run_name` is what Prefect calls a run of it, with arguments in braces. The others are those of `cached`.
    """

    def decorate(build: Callable[Concatenate[Path, P], A]) -> Task[P, A]:
        of_task = task(
            name=build.__name__,
            task_run_name=f"{build.__name__} {run_name}",
            retries=RETRIES,
            retry_delay_seconds=RETRY_SECONDS,
            retry_condition_fn=is_retried,
        )
        return of_task(cached(libraries=libraries, volatile=volatile, unkeyed=unkeyed, lost=lost)(build))

    return decorate


def cached_part(stage: Task[P, A]) -> Cached[P, A]:
    """The function of a stage, to call it without Prefect or to look it up."""
    return cast("Cached[P, A]", stage.fn)
