"""Records of many curves: one row a curve in every field."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor


def located(chosen: Any) -> Any:
    """Rows (l,) of a mask (c,): a GPU must be waited for once, and not at each use of the mask."""
    return chosen.nonzero()[:, 0] if isinstance(chosen, Tensor) and chosen.dtype == torch.bool else chosen


class Rows:
    """Base of dataclasses whose fields are tensors, or records again, with one row a curve; or None."""

    def __getitem__(self, chosen: Any) -> Self:
        """Record of the curves that a tensor would be indexed by."""
        part, chosen = copy(self), located(chosen)
        for name, x in vars(self).items():
            setattr(part, name, None if x is None else x[chosen])
        return part

    def __setitem__(self, chosen: Any, other: Rows) -> None:
        """Replace what ``other`` knows of some curves."""
        chosen = located(chosen)
        for name, x in vars(other).items():
            if x is not None:
                getattr(self, name)[chosen] = x

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The curves of several records, one after the other; all know the same fields."""
        if len(parts) == 1:
            return parts[0]
        whole = copy(parts[0])
        for name, x in vars(parts[0]).items():
            pieces = [getattr(part, name) for part in parts]
            if x is not None:
                setattr(whole, name, type(x).joined(pieces) if isinstance(x, Rows) else torch.cat(pieces))
        return whole
