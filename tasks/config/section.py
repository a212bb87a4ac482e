"""What all sections share."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Local:
    """Marks a setting that may be a path, relative to the deployment file; `or_name` where it may be a name as well."""

    or_name: bool = False


class Section(BaseModel):
    """What all sections share: frozen, closed to unknown keys, strict about lossy types."""

    # What is wrong may be a secret, so pydantic's own message does not repeat it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
