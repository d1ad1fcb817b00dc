"""The norm of a curve's variations, in which its energy has a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lgi.solver.rows import Rows
from lgi.solver.steps import factorised, solved


@dataclass(eq=False)
class Norm(Rows):
    """``|eta|^2 = integral of |eta'|_M^2 dt = x^T N x`` of variations ``eta`` with coefficients ``x`` (c, f)."""

    matrix: Tensor  # (c, f, f), N
    factor: Tensor  # its Cholesky factor, made once and used at every iteration

    @classmethod
    def of(cls, matrix: Tensor) -> Norm:
        """Factorise matrices (c, f, f)."""
        return cls(matrix, factorised(matrix)[0])

    def residual(self, live: Tensor | slice, gradient: Tensor, energy: Tensor) -> Tensor:
        """Relative projected gradient ``sqrt(g^T N^-1 g / (4 E))`` (l,) of the curves ``live``."""
        squared = (gradient * solved(self.factor[live], gradient)).sum(-1).clamp_min(0)
        return (squared / (4 * energy).clamp_min(torch.finfo(energy.dtype).tiny)).sqrt()
