"""`Limits`: the range of a number that a user may set, and the text that describes it."""

from __future__ import annotations

from dataclasses import dataclass

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel

from apr_plugin import options


@dataclass(frozen=True)
class Limits:
    """A range of numbers."""

    least: float
    most: float
    whole: bool = False
    """Whether fractions are refused."""
    above: bool = False
    """Whether `least` itself is refused."""
    none: bool = False
    """Whether there may be no number at all."""
    also: tuple[float, ...] = ()
    """Values that are allowed outside the range."""
    words: str = ""
    """What those values mean."""

    def read(self, value: object) -> float:
        """The number in a value of any type; `nan` if there is none."""
        return options.as_whole(value) if self.whole else options.as_number(value)

    def hold(self, value: object) -> bool:
        """Whether the value is a number within the limits."""
        if value is None:
            return self.none
        number = self.read(value)
        return number in self.also or (
            (self.least < number if self.above else self.least <= number) and number <= self.most
        )

    def __str__(self) -> str:
        kind, low, high = "a whole number" if self.whole else "a number", _plainly(self.least), _plainly(self.most)
        span = f"{kind} above {low} and at most {high}" if self.above else f"{kind} from {low} to {high}"
        return ", ".join(filter(None, [span, self.words, "or none" if self.none else ""]))


def _plainly(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def limits_of(model: type[BaseModel], field: str) -> Limits | None:
    """The limits that a field of a model has; `None` if it is not a number with a range."""
    info = model.model_fields[field]
    found = {type(bound): bound for bound in info.metadata}
    if Le not in found:
        return None
    least = found[Gt].gt if Gt in found else found[Ge].ge
    return Limits(
        least,
        found[Le].le,
        whole=info.annotation in (int, int | None),
        above=Gt in found,
        none=info.annotation in (int | None, float | None),
    )
