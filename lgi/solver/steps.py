"""The damped Gauss-Newton step (Levenberg-Marquardt) of the solver and of :func:`lgi.invert`, for many at once.

A model of second derivatives is kept up by secants, a step is ``(model + damping * scale) step = -gradient``, and the
damping of each problem follows from how well the model has foretold its last step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lgi.metric.batching import eigh
from lgi.solver.rows import Rows, located

# Least size of an eigenvalue in the norm, in which a flat space has 2: where the model is flat, it foretells little.
_LEAST = 0.1


def factorised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors of symmetric matrices (c, f, f), and which of these are not positive definite (c,)."""
    size = matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(matrix.dtype).tiny)
    # Directions that the metric does not see would make the matrix singular.
    ridge = 1e-10 * size[:, None, None] * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(matrix + ridge)
    return factor, failed > 0


def solved(factor: Tensor, vector: Tensor) -> Tensor:
    """Solutions (c, f) of the systems whose matrices have the Cholesky factors (c, f, f)."""
    return torch.cholesky_solve(vector[..., None], factor)[..., 0]


def damped_step(matrix: Tensor, gradient: Tensor, safe: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Solutions (c, f) for damped models (c, f, f); where models ``bad`` (l,) have no minimum, ``safe(bad)``."""
    factor, indefinite = factorised(matrix)
    step = solved(factor, gradient)
    bad = located(indefinite)
    if len(bad):
        step[bad] = safe(bad)
    return step, indefinite


def secant(model: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """Models (c, f, f) that tell the change of the gradient along a step, by the symmetric matrix of rank one.

    It may be indefinite, as second derivatives may. Steps along which it would be large by division by almost 0 teach
    nothing (Conn, Gould & Toint, Mathematical Programming 50, 1991).
    """
    error = change - (model @ step[..., None])[..., 0]
    along = (error * step).sum(-1)
    size = torch.linalg.vector_norm(error, dim=-1) * torch.linalg.vector_norm(step, dim=-1)
    usable = error.isfinite().all(-1) & (along.abs() > 1e-6 * size)
    scale = torch.where(usable, 1 / along.where(usable, 1), 0)
    error = error.where(usable[:, None], 0)
    return model + scale[:, None, None] * error[:, :, None] * error[:, None, :]


def adapted(damping: Tensor, quality: Tensor) -> Tensor:
    """Damping after a step that has brought the part ``quality`` of the decrease that was foretold.

    Below 0.1 it hardly changes a step, and 0 lets the steps converge superlinearly.
    """
    less = torch.where(damping < 0.1, 0, damping / 4)
    more = (4 * damping).clamp_min(0.5)
    return torch.where(quality > 0.75, less, torch.where(quality > 0.25, damping, more))


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


def relative_eigh(matrix: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues (c, f) of matrices (c, f, f) relative to the norm's, and vectors (c, f, f) of norm 1."""
    half = torch.linalg.solve_triangular(norm.factor, matrix, upper=False)
    whole = torch.linalg.solve_triangular(norm.factor, half.mT, upper=False)
    values, vectors = eigh((whole + whole.mT) / 2)
    return values, torch.linalg.solve_triangular(norm.factor.mT, vectors, upper=True)


def flipped_step(matrix: Tensor, norm: Norm, damping: Tensor, gradient: Tensor) -> Tensor:
    """Solutions (c, f) for models (c, f, f) with the sign of their negative eigenvalues in the norm changed.

    Such a step leads down along directions of negative curvature, where Newton's leads up to the saddle.
    """
    values, vectors = relative_eigh(matrix, norm)
    size = values.abs().clamp_min(_LEAST) + 2 * damping[:, None]
    return (vectors @ ((vectors.mT @ gradient[..., None]) / size[..., None]))[..., 0]
