"""Batched cubic B-splines: the curves of the paper's Appendix A.

A curve is ``C(t) = sum_i N_{i,4}(t) P_i`` with control points ``P_i`` in latent space and a clamped knot vector ``T``.
All curves of a batch share one knot vector, so that evaluating thousands of them is one matrix product with the basis
matrix, which :func:`basis` computes once for each pair of knots and parameters.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lgi.checks import describe, whole

DEGREE = 3
"""Degree of the curves; the paper needs two derivatives and calls this order 4 (App. A)."""


def uniform_knots(n_control: int) -> Tensor:
    """Clamped knots ``(0, 0, 0, 0, 1/s, ..., (s-1)/s, 1, 1, 1, 1)`` with ``s = n_control - 3`` equal spans (App. A).

    Parameters
    ----------
    n_control : int
        Number of control points, at least 4.

    Returns
    -------
    Tensor, shape (n_control + 4,)
        float64, on the CPU.

    Raises
    ------
    ValueError
        If ``n_control`` is no whole number, or below 4.
    """
    whole(0, n_control=n_control)
    if n_control < DEGREE + 1:
        raise ValueError(f"a cubic B-spline needs at least {DEGREE + 1} control points, got {n_control}")
    inner = torch.linspace(0, 1, n_control - DEGREE + 1, dtype=torch.float64)
    return torch.cat([inner.new_zeros(DEGREE), inner, inner.new_ones(DEGREE)])


def basis(knots: Tensor, t: Tensor, order: int = 0, *, dtype: torch.dtype = torch.float64) -> Tensor:
    r"""Basis matrix of the cubic B-spline, or of one of its derivatives.

    ``B[k, i] = d^r N_{i,4}(t_k) / dt^r``, so that ``B @ control_points`` is the curve (``r = 0``) or its derivative.
    ``N_{i,1}(t) = 1`` for ``T_i <= t < T_{i+1}``, the last non-empty span being closed at ``t = 1``, and
    ``N_{i,k}(t) = (t - T_i) / (T_{i+k-1} - T_i) N_{i,k-1}(t) + (T_{i+k} - t) / (T_{i+k} - T_{i+1}) N_{i+1,k-1}(t)``
    (App. A).

    Parameters
    ----------
    knots : Tensor, shape (n_control + 4,)
        Clamped knot vector: non-decreasing, four zeros, inner knots, four ones.
    t : Tensor, shape (n_t,)
        Parameters in [0, 1].
    order : int
        Order ``r`` of the derivative; 0 is the curve itself. Above 3 the matrix is zero.
    dtype : torch.dtype
        Of the result; the recursion itself always runs in float64.

    Returns
    -------
    Tensor, shape (n_t, n_control)
        On the device of ``t``. It is cached and shared: do not change it in place.

    Raises
    ------
    ValueError
        If ``t`` is not one-dimensional, not floating point, outside [0, 1] or requires a gradient, if ``order`` is
        negative, or if ``knots`` is not a clamped knot vector.

    Notes
    -----
    The paper's formula with both sides of a span closed sums to 2 on an inner knot; half open, the basis sums to 1
    everywhere. At an inner knot a discontinuous derivative takes its right-hand value, as in scipy.
    """
    whole(0, order=order)
    return _cached_basis(_knots_key(knots), _parameters_key(t), order, dtype, t.device)


def _knots_key(knots: Tensor) -> tuple[float, ...]:
    """Check a knot vector and return it as a hashable value."""
    if not isinstance(knots, Tensor) or knots.ndim != 1 or not knots.is_floating_point():
        raise ValueError(f"expected knots as a floating-point vector, got {_describe(knots)}")
    return _checked_knots(tuple(knots.tolist()))


# A solver asks for the same few knot vectors again and again.
@lru_cache(maxsize=256)
def _checked_knots(key: tuple[float, ...]) -> tuple[float, ...]:
    n_end = DEGREE + 1
    if len(key) < 2 * n_end:
        raise ValueError(f"expected at least {2 * n_end} knots (4 control points), got {len(key)}")
    inner = key[n_end:-n_end]
    if key[:n_end] != (0.0,) * n_end or key[-n_end:] != (1.0,) * n_end or not all(0 < u < 1 for u in inner):
        raise ValueError(f"expected clamped knots: four zeros, inner knots in ]0, 1[, four ones; got {list(key)}")
    if any(a > b for a, b in pairwise(inner)):
        raise ValueError(f"expected non-decreasing knots, got inner knots {list(inner)}")
    if any(inner.count(u) > DEGREE for u in inner):
        raise ValueError(f"an inner knot repeated more than {DEGREE} times tears the curve, got {list(inner)}")
    return key


def _parameters_key(t: Tensor) -> bytes:
    """Check the parameters and return them as a hashable value."""
    if not isinstance(t, Tensor) or t.ndim != 1 or not t.is_floating_point():
        raise ValueError(f"expected t as a floating-point vector (n_t,), got {_describe(t)}")
    if t.requires_grad:
        raise ValueError("t requires a gradient, which the cached basis cannot give; use `derivative` instead")
    values: npt.NDArray[np.float64] = t.to("cpu", torch.float64).numpy()
    # Negated, so that NaN is refused too.
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"expected t in [0, 1], got values from {values.min()} to {values.max()}: rescale or clamp t")
    return values.tobytes()


def _describe(x: object) -> str:
    return describe(x) + ": use torch.as_tensor(..., dtype=torch.float32)" * (not isinstance(x, Tensor))


# A solver uses a handful of grids for each of some 20 knot vectors; 256 nodes x 20 control points take 40 kB an entry.
@lru_cache(maxsize=256)
def _cached_basis(knots: tuple[float, ...], t: bytes, order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    n_control = len(knots) - DEGREE - 1
    # A tensor first made under inference mode could never be used in autograd again, whoever asks next.
    with torch.inference_mode(False), torch.no_grad():
        T = torch.tensor(knots, dtype=torch.float64)
        x = torch.from_numpy(np.ndarray(len(t) // 8, np.float64, t).copy())
        if order > DEGREE:
            return torch.zeros(len(x), n_control, dtype=dtype, device=device)
        # Right-closed at 1: the last non-empty span takes t = 1.
        span = torch.searchsorted(T, x, right=True).clamp(max=n_control) - 1
        N = torch.nn.functional.one_hot(span, len(knots) - 1).to(torch.float64)
        for k in range(2, DEGREE - order + 2):
            width = T[k - 1 :] - T[: 1 - k]
            # 0 / 0 is 0 in the recursion: a basis function over an empty span vanishes.
            inverse = torch.where(width > 0, 1 / width, 0.0)
            rising = (x[:, None] - T[: 1 - k]) * inverse
            falling = (T[k - 1 :] - x[:, None]) * inverse
            N = rising[:, :-1] * N[:, :-1] + falling[:, 1:] * N[:, 1:]
        # Each derivative raises the order by one: N'_{i,k} = (k-1) (N_{i,k-1} / (T_{i+k-1} - T_i) - N_{i+1,k-1} / ...).
        for k in range(DEGREE - order + 2, DEGREE + 2):
            width = T[k - 1 :] - T[: 1 - k]
            scaled = N * torch.where(width > 0, (k - 1) / width, 0.0)
            N = scaled[:, :-1] - scaled[:, 1:]
        return N.to(device=device, dtype=dtype)


class CubicBSpline:
    r"""A batch of clamped cubic B-spline curves, ``C(t) = sum_i N_{i,4}(t) P_i`` for t in [0, 1] (App. A).

    Differentiable in the control points. ``C(0)`` and ``C(1)`` are the first and the last control point.

    Parameters
    ----------
    control_points : Tensor, shape (..., n_control, d)
        Floating point, ``n_control >= 4``. Kept as given: never copied, never changed.
    knots : Tensor, shape (n_control + 4,), optional
        Clamped knot vector shared by all curves; equal spans by default.

    Attributes
    ----------
    control_points : Tensor, shape (..., n_control, d)
    knots : Tensor, shape (n_control + 4,)
        float64, on the CPU, whatever the control points are.

    Raises
    ------
    ValueError
        If the control points are not floating point, too few or without a dimension, or the knots do not fit.
    """

    def __init__(self, control_points: Tensor, knots: Tensor | None = None) -> None:
        if not isinstance(control_points, Tensor) or control_points.ndim < 2 or not control_points.is_floating_point():
            raise ValueError(f"expected floating-point points (..., n_control, d), got {_describe(control_points)}")
        n_control = control_points.shape[-2]
        knots = uniform_knots(n_control) if knots is None else knots
        if len(_knots_key(knots)) != n_control + DEGREE + 1:
            raise ValueError(
                f"expected {n_control + DEGREE + 1} knots for control_points (..., n_control, d) of shape "
                f"{tuple(control_points.shape)}, got {len(knots)}"
            )
        self.control_points = control_points
        self.knots = knots.detach().to("cpu", torch.float64, copy=True)

    @classmethod
    def line(cls, start: Tensor, end: Tensor, n_control: int = 4) -> Self:
        """Straight line ``start + t (end - start)``, run through at constant speed.

        Parameters
        ----------
        start, end : Tensor, shape (..., d)
            End points; leading dimensions are broadcast.
        n_control : int
            Number of control points, at least 4, of which ``n_control - 2`` are free in an optimisation (the paper
            starts with two, section 2.1).

        Returns
        -------
        CubicBSpline
            With control points at the Greville abscissae ``(T_{i+1} + T_{i+2} + T_{i+3}) / 3``, where a spline
            reproduces linear functions.

        Raises
        ------
        ValueError
            If the end points differ in their last dimension, dtype or device, or ``n_control`` is below 4.
        """
        tensors = isinstance(start, Tensor) and isinstance(end, Tensor) and start.is_floating_point() and start.ndim > 0
        if not tensors or (start.shape[-1:], start.dtype, start.device) != (end.shape[-1:], end.dtype, end.device):
            raise ValueError(
                "expected floating-point end points (..., d) with the same d, dtype and device, got start "
                f"as {_describe(start)}, end as {_describe(end)}"
            )
        knots = uniform_knots(n_control)
        fraction = knots.unfold(0, DEGREE, 1)[1:-1].mean(-1).to(start)[:, None]
        # A weighted mean, not start + t (end - start): both ends are met exactly.
        return cls((1 - fraction) * start[..., None, :] + fraction * end[..., None, :], knots)

    @property
    def n_control(self) -> int:
        """Number of control points of each curve."""
        return self.control_points.shape[-2]

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the control points and of every value of the curve."""
        return self.control_points.dtype

    @property
    def device(self) -> torch.device:
        """Device of the control points and of every value of the curve."""
        return self.control_points.device

    def __call__(self, t: Tensor) -> Tensor:
        """Points on the curves.

        Parameters
        ----------
        t : Tensor, shape (n_t,)
            Parameters in [0, 1], of any floating-point type and device.

        Returns
        -------
        Tensor, shape (..., n_t, d)

        Raises
        ------
        ValueError
            If ``t`` is not a vector of floating-point numbers in [0, 1].
        """
        return self.derivative(t, order=0)

    def derivative(self, t: Tensor, order: int = 1) -> Tensor:
        """Derivative ``d^r C(t) / dt^r`` of the curves.

        Parameters
        ----------
        t : Tensor, shape (n_t,)
            Parameters in [0, 1], of any floating-point type and device.
        order : int
            Order ``r`` of the derivative; 0 gives the points. The third one is piecewise constant.

        Returns
        -------
        Tensor, shape (..., n_t, d)

        Raises
        ------
        ValueError
            If ``t`` is not a vector of floating-point numbers in [0, 1] or ``order`` is negative.
        """
        return basis(self.knots, t, order, dtype=self.dtype).to(self.device) @ self.control_points

    def insert_knot(self, u: float | None = None) -> CubicBSpline:
        """Same curves with one more control point (Boehm's insertion).

        ``P_i <- (1 - a_i) P_{i-1} + a_i P_i`` with ``a_i = (u - T_i) / (T_{i+3} - T_i)`` (App. A).

        Parameters
        ----------
        u : float, optional
            New knot in ]0, 1[; by default the middle of the largest knot interval, the first of equals.

        Returns
        -------
        CubicBSpline
            A new object; differentiable in the control points of this one.

        Raises
        ------
        ValueError
            If ``u`` is not inside ]0, 1[ or is already a knot of multiplicity 3.
        """
        T = self.knots
        if u is None:
            j = int(T.diff().argmax())
            u = float(T[j] + T[j + 1]) / 2
        if not 0 < u < 1:
            raise ValueError(f"expected a new knot inside ]0, 1[, got {u}")
        j = int(torch.searchsorted(T, u, right=True))
        width = T[DEGREE:] - T[:-DEGREE]
        # Control points left of those that u touches stay (a = 1), those right of them move one place up (a = 0).
        a = torch.where(width > 0, (u - T[:-DEGREE]) / width, 1.0).clamp(0, 1)[: self.n_control + 1]
        a[j:] = 0
        a = a.to(self.control_points)[:, None]
        P = self.control_points
        left = torch.cat([P[..., :1, :], P], dim=-2)
        right = torch.cat([P, P[..., -1:, :]], dim=-2)
        return CubicBSpline((1 - a) * left + a * right, torch.cat([T[:j], T.new_tensor([u]), T[j:]]))

    def __repr__(self) -> str:
        shape = tuple(self.control_points.shape)
        return f"CubicBSpline(control_points {shape}, {self.dtype}, {len(self.knots)} knots)"
