"""Arguments that are refused, in the words that all public doors share."""

from collections.abc import Collection
from numbers import Integral
from typing import Any

from torch import Tensor


class NotFiniteError(ValueError):
    """A generator gives NaN or infinity, or a metric comes out so. One pair of many may be left out for it."""


def describe(x: Any) -> str:
    """What was given, for a message."""
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


def at_least(least: float, **settings: float | None) -> None:
    """Refuse settings below their least value, by name; None is none."""
    for name, value in settings.items():
        # Not `value < least`, which NaN would pass.
        if value is not None and not value >= least:
            raise ValueError(f"expected {name} to be at least {least}, got {value}")


def whole(least: int, **settings: Any) -> None:
    """Refuse settings that are no whole numbers, or below their least value, by name; None is none."""
    for name, value in settings.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise ValueError(f"expected {name} to be a whole number, got {value!r}")
    at_least(least, **settings)


def one_of(allowed: Collection[str], **choices: object) -> None:
    """Refuse choices that are not among those allowed, by name."""
    for name, value in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
