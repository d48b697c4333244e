"""What every spec is made of."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def _require_name(text: str) -> str:
    """What a `pattern` would refuse, in words in place of the expression."""
    if not re.fullmatch(_NAME, text):
        rule = "letters, digits, '.', '_' and '-', beginning with a letter or digit; 64 at most"
        raise ValueError(f"a name is made of {rule}")
    return text


Name = Annotated[
    str, AfterValidator(_require_name), Field(json_schema_extra={"pattern": f"^{_NAME}$"}, examples=["nct-entropy"])
]
Text = Annotated[str, Field(max_length=4096)]
"""Without a constraint pydantic lets half a surrogate pair through, which can be neither stored nor sent."""
StoredText = Annotated[Text, Field(pattern=r"^[^\x00]*$")]
"""Postgres has no NUL, neither in the JSON of a spec nor in the labels that it gives."""
Range = tuple[float, float]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Spec(BaseModel):
    """A frozen piece of a spec. Unknown keys are refused: a typo must not become a default. So are NaN and infinity:
    no magnitude means anything there, and JSON cannot store them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
