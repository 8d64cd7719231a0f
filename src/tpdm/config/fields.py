"""Types of recipe values (ranges, paths), and the base class of recipe sections."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from tpdm.core.errors import ConfigError
from tpdm.core.io import expand


def _no_boolean(value: object) -> object:
    # YAML reads yes and off as booleans, which Python would take for 1 and 0.
    if isinstance(value, bool):
        raise ValueError(f"is {value}, a boolean. It must be a number. Write a number")
    return value


def expanded(place: str) -> str:
    """``tpdm.core.io.expand``, with an error that pydantic collects."""
    try:
        return expand(place)
    except ConfigError as error:
        raise ValueError(str(error).rstrip(".")) from None


Text = Annotated[str, Field(min_length=1)]
Location = Annotated[Text, AfterValidator(expanded)]
Real = Annotated[float, BeforeValidator(_no_boolean)]
Whole = Annotated[int, BeforeValidator(_no_boolean)]
Count = Annotated[Whole, Field(ge=0)]
Positive = Annotated[Whole, Field(ge=1)]
NonNegative = Annotated[Real, Field(ge=0)]
Above0 = Annotated[Real, Field(gt=0)]
Below1 = Annotated[Real, Field(ge=0, lt=1)]
Gamma = Annotated[Real, Field(gt=0, lt=1)]


class Part:
    """Base of recipe sections: unknown keys, NaN and infinity are refused."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)
