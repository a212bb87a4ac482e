"""What all sections share."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """What all sections share: frozen, closed to unknown keys, strict about lossy types."""

    # What is wrong may be a secret, so pydantic's own message does not repeat it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
