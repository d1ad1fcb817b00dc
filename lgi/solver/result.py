"""What :func:`lgi.shorten` returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from torch import Tensor

from lgi.spline import CubicBSpline


class Status(IntEnum):
    """How the search for a curve has ended."""

    CONVERGED = 0
    REFINABLE = 1
    COARSE = 2
    EXHAUSTED = 3
    LONGER = 4
    COINCIDENT = 5
    UNKNOWN = 6


CERTIFIED = (Status.CONVERGED, Status.REFINABLE, Status.COINCIDENT)
MESSAGES = {
    Status.CONVERGED: "converged",
    Status.REFINABLE: "converged with as many control points as allowed; more would shorten the curve further: raise "
    "n_control",
    Status.COARSE: "the projected gradient on the measuring grid stays above the tolerance: raise nodes or "
    "n_control, or use float64",
    Status.EXHAUSTED: "the iterations are used up: raise n_iterations",
    Status.LONGER: "no curve shorter than the straight line was found: raise n_control, or use other starts",
    Status.COINCIDENT: "the end points coincide",
    Status.UNKNOWN: "the length is not known to a thousandth or length_tolerance: use float64, or raise nodes",
}


@dataclass(frozen=True, kw_only=True)
class ShortenHistory:
    """Energies and lengths by iteration, on the grids that were optimised on.

    Attributes
    ----------
    energy, length : Tensor, shape (..., n)
        Of the best curve after each iteration; the last value is repeated once a curve is finished.
    """

    energy: Tensor
    length: Tensor


@dataclass(frozen=True, kw_only=True)
class ShortenResult:
    """Shorter curves and what is known about them. Lengths are in the units of the generator's output.

    Attributes
    ----------
    curve : CubicBSpline
        Batch of curves (...,) with common knots; curves that needed fewer control points have been given more, which
        does not change them.
    length, straight_length : Tensor, shape (...)
        Riemannian lengths of the curve and of the straight line, on the same measuring grid.
    improvement : Tensor, shape (...)
        ``(straight_length - length) / straight_length``, never negative; 0 where no shorter curve was found.
    energy : Tensor, shape (...)
        Path energy of the curve on the measuring grid.
    converged : Tensor of bool, shape (...)
        Whether ``residual <= tolerance``, and ``length_error`` at most a thousandth of the length or
        ``length_tolerance`` of it, whichever is more.
    residual : Tensor, shape (...)
        Relative projected gradient: ``sqrt(g^T N^-1 g / (4 E))``, with the gradient ``g`` of the energy with respect to
        the free control points, on the measuring grid, and ``N`` the matrix of the norm ``integral of |eta'|_M^2 dt``
        of variations. It depends neither on coordinates nor on scales; the energy is by about ``residual**2``,
        relatively, above that of the nearest stationary curve with as many control points.
    refinement_gain : Tensor, shape (...)
        Estimated relative shortening by more control points, from the gradient of the length with respect to them (for
        ``"lbfgs"`` that of the last refinement, for ``"gradient"`` unknown, infinite). A more even speed is no gain.
    speed_variation : Tensor, shape (...)
        Standard deviation of the speed along the curve over its mean; 0 for a geodesic.
    length_squared_over_energy : Tensor, shape (...)
        ``L^2 / E <= 1``, 1 for a geodesic; it is ``1 / (1 + speed_variation**2)``.
    length_error : Tensor, shape (...)
        Estimated quadrature error of ``length``, rounding included: the difference to the length on a coarser grid;
        with an embedding, at least the share of the highest mode of the decoded velocity.
    status : Tensor of int, shape (...)
        A :class:`Status`, of which ``message`` tells the meaning.
    n_iterations : Tensor, shape (...)
        Evaluations of the gradient after the first.
    n_control : Tensor, shape (...)
        Control points that the curve needed.
    n_rows : Tensor, shape (...)
        Cost in decoder rows: points, weighted by the measured cost of their derivatives relative to a forward pass,
        certificates and all starts included.
    n_minima : Tensor, shape (...)
        Distinct lengths (relative difference above 1e-3) among the converged curves from all starts.
    history : ShortenHistory
    """

    curve: CubicBSpline
    length: Tensor
    straight_length: Tensor
    improvement: Tensor
    energy: Tensor
    converged: Tensor
    residual: Tensor
    refinement_gain: Tensor
    speed_variation: Tensor
    length_squared_over_energy: Tensor
    length_error: Tensor
    status: Tensor
    n_iterations: Tensor
    n_control: Tensor
    n_rows: Tensor
    n_minima: Tensor
    history: ShortenHistory

    @property
    def message(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        """Why each curve ended, and what to do about it; array of str of shape (...)."""
        return np.array([MESSAGES[status] for status in Status])[self.status.cpu().numpy()]
