"""What starts runs of a deployment, and who is told of them."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.config.section import Section

Told = Literal["failure", "rejection", "approval", "promotion"]


class Operation(Section):
    """What starts runs by itself and who is told; tunewright deploy sets it up, and a run's result is the same."""

    watch: int | None = Field(
        default=None,
        ge=20,
        le=86_400,
        description="Look at the files of data.sources and data.held_out each so many seconds, 20 to 86400, and start "
        "a run when they have changed, or when the last one crashed; empty leaves that to schedules",
    )
    start_on: Literal["changed", "drift"] = Field(
        default="changed",
        description="What a change of the watched files starts: changed is a run; drift only the data stages, and the "
        "rest where the data differ from the last version as an expectation of drift finds, or there is no version yet",
    )
    notify: tuple[str, ...] = Field(
        default=(),
        description="Notification blocks of the Prefect server that are told of runs, each as type/name: "
        "slack-webhook/ops",
    )
    notify_on: tuple[Told, ...] = Field(
        default=("failure", "rejection", "approval"),
        description="What they are told of: failure (failed, crashed), rejection (kept, inconclusive, invalid), "
        "approval (a person has to say yes), promotion",
    )
    keep_versions: int = Field(
        default=30,
        ge=2,
        description="Of so many of the newest versions of the data it stays known which row is on which split, at "
        "least 2; of older ones the history keeps a line",
    )

    @field_validator("notify")
    @classmethod
    def _names_blocks(cls, notify: tuple[str, ...]) -> tuple[str, ...]:
        for each in notify:
            if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", each):
                raise ValueError(
                    f"{each[:60]!a} is no block of a Prefect server; accepted is its type and its name, such as "
                    "slack-webhook/ops"
                )
        return notify

    @model_validator(mode="after")
    def _each_does_something(self) -> Self:
        if self.start_on == "drift" and self.watch is None:
            raise ValueError("start_on=drift does nothing without watch, the seconds between two looks at the files")
        if self.notify_on != type(self).model_fields["notify_on"].default and not self.notify:
            raise ValueError("notify_on does nothing without notify, the blocks that are told")
        if self.notify and not self.notify_on:
            raise ValueError("notify does nothing with an empty notify_on; name one, such as failure")
        return self
