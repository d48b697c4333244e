"""What every spec is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["nct-entropy"])]
Range = tuple[float, float]


class Spec(BaseModel):
    """A frozen piece of a spec. Unknown keys are refused: a typo must not become a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
