"""Settings of the operation: events that start a deployment's runs, and notifications."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tunewright.config.section import Section

Told = Literal["failure", "rejection", "approval", "promotion"]


class Operation(Section):
    """Triggers and notifications; tunewright deploy sets them up. No effect on a run's result."""

    watch: int | None = Field(
        default=None,
        ge=20,
        le=86_400,
        description="Poll interval in seconds, 20 to 86400: start a run if data.sources or data.held_out "
        "changed, or if the last run crashed; empty does not poll",
    )
    start_on: Literal["changed", "drift"] = Field(
        default="changed",
        description="What a change starts: changed starts a run; drift starts the data stages, and the rest only if a "
        "drift expectation fails or there is no version yet",
    )
    notify: tuple[str, ...] = Field(
        default=(),
        description="Notification blocks of the Prefect server, each as type/name: slack-webhook/ops",
    )
    notify_on: tuple[Told, ...] = Field(
        default=("failure", "rejection", "approval"),
        description="Events to notify of: failure (failed, crashed), rejection (kept, inconclusive, invalid), approval "
        "(a person must approve), promotion",
    )
    keep_versions: int = Field(
        default=30,
        ge=2,
        description="Number of newest data versions whose split assignments are kept, at least 2; older "
        "versions keep one line in the history",
    )

    @field_validator("notify")
    @classmethod
    def _names_blocks(cls, notify: tuple[str, ...]) -> tuple[str, ...]:
        for each in notify:
            if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", each):
                raise ValueError(
                    f"{each[:60]!a} is not a Prefect block; accepted: type/name, such as slack-webhook/ops"
                )
        return notify

    @model_validator(mode="after")
    def _each_does_something(self) -> Self:
        if self.start_on == "drift" and self.watch is None:
            raise ValueError(
                "start_on=drift has no effect without watch; set operation.watch to a poll interval in seconds"
            )
        if self.notify_on != type(self).model_fields["notify_on"].default and not self.notify:
            raise ValueError("notify_on has no effect without notify; set operation.notify to notification blocks")
        if self.notify and not self.notify_on:
            raise ValueError("notify has no effect with an empty notify_on; set one, such as failure")
        return self
