"""Length and energy of curves: the speed at the nodes of a quadrature (eq. 1, section 2.1)."""

import math
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lgi.checks import describe
from lgi.metric.base import Metric, check_metric, square_root
from lgi.metric.batching import check_ends


class Curve(Protocol):
    """A curve in latent space, as `lgi.CubicBSpline` is one.

    It may also have ``knots`` (the parameters between which it is smooth), ``dtype`` and ``device`` (of its points).
    """

    def __call__(self, t: Tensor, /) -> Tensor:
        """Points (..., n_t, d) for ``t`` (n_t,) in [0, 1]."""

    def derivative(self, t: Tensor, /) -> Tensor:
        """Velocities (..., n_t, d)."""


def curve_length(metric: Metric, curve: Curve | Tensor, n_t: int = 256) -> Tensor:
    """Riemannian length of curves, ``integral of |g'(t)| dt`` over [0, 1] (eq. 1).

    Parameters
    ----------
    metric : Metric
    curve : curve, or Tensor of shape (..., n, d)
        Anything with ``curve(t)`` and ``curve.derivative(t)``, such as `lgi.CubicBSpline`; or the points of a path that
        is piecewise linear in latent space, each piece taking the same time.
    n_t : int
        Number of quadrature nodes, at least one a span.

    Returns
    -------
    Tensor, shape (...)
        Differentiable in what the curve is made of.

    Raises
    ------
    ValueError
        If ``n_t`` is not an integer of at least 1, or the metric cannot be evaluated along the curve.
    TypeError
        If ``metric`` is not a metric or ``curve`` neither a curve nor a tensor.

    Notes
    -----
    Composite Gauss-Legendre quadrature. The nodes are shared out evenly among the spans between distinct knots, where
    the integrand is as smooth as the metric, and a span with more than 64 is cut into equal pieces: relative error 1e-8
    and below with 256 nodes on smooth curves, and no node on a knot. The pieces of a path of points are its spans, in
    each of which the velocity is constant. Length and energy share their nodes and weights (which sum to 1), so that
    ``L^2 <= E`` holds for the sums by Cauchy-Schwarz.
    """
    squared_speed, weights = _along(metric, curve, n_t)
    return square_root(squared_speed) @ weights


def curve_energy(metric: Metric, curve: Curve | Tensor, n_t: int = 256) -> Tensor:
    """Path energy of curves, ``integral of |g'(t)|^2 dt`` over [0, 1], without a factor 1/2 (section 2.1).

    Parameters
    ----------
    metric : Metric
    curve : curve, or Tensor of shape (..., n, d)
        As for :func:`curve_length`.
    n_t : int
        Number of quadrature nodes, at least one a span.

    Returns
    -------
    Tensor, shape (...)
        At least the squared :func:`curve_length`; equal at constant speed. Differentiable in what the curve is made of.

    Raises
    ------
    ValueError
        If ``n_t`` is not an integer of at least 1, or the metric cannot be evaluated along the curve.
    TypeError
        If ``metric`` is not a metric or ``curve`` neither a curve nor a tensor.
    """
    squared_speed, weights = _along(metric, curve, n_t)
    return squared_speed @ weights


class Polyline:
    """Piecewise linear curve through points (..., n, d), each piece taking the same time."""

    def __init__(self, points: Tensor) -> None:
        if points.ndim < 2 or points.shape[-2] < 2 or not points.is_floating_point():
            raise ValueError(f"expected a path of floating-point points (..., n >= 2, d), got {describe(points)}")
        self.points = points
        self.dtype = points.dtype
        self.device = points.device
        self.knots = torch.linspace(0, 1, points.shape[-2], dtype=torch.float64)

    def __call__(self, t: Tensor) -> Tensor:
        """Points (..., n_t, d) at ``t (n_t,)``."""
        place = t * (len(self.knots) - 1)
        piece = place.long().clamp(max=len(self.knots) - 2)
        return torch.lerp(self.points[..., piece, :], self.points[..., piece + 1, :], (place - piece)[:, None])

    def derivative(self, t: Tensor) -> Tensor:
        """Velocities (..., n_t, d) at ``t (n_t,)``; at a corner that of the piece after it."""
        n_pieces = len(self.knots) - 1
        return n_pieces * self.points.diff(dim=-2)[..., (t * n_pieces).long().clamp(max=n_pieces - 1), :]


class Slerp:
    """Spherical interpolation between points (..., d); made by :func:`slerp`."""

    def __init__(self, start: Tensor, end: Tensor) -> None:
        check_ends(start, end)
        self.start, self.end = start[..., None, :], end[..., None, :]
        self.dtype = start.dtype
        self.device = start.device
        a, b = (torch.nn.functional.normalize(x.double(), dim=-1, eps=1e-300) for x in (self.start, self.end))
        apart, together = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (a - b, a + b))
        if bool((apart.square() + together.square() < 3).any()):  # 4 of two unit vectors
            raise ValueError("an end point is the origin, to which no direction leads: move it")
        if bool((opposite := together < torch.finfo(start.dtype).eps ** 0.5).any()):
            raise ValueError(f"{int(opposite.sum())} pairs are opposite, between which no arc is shortest: move one")
        self.angle = 2 * torch.atan2(apart, together)

    def __call__(self, t: Tensor) -> Tensor:
        """Points (..., n_t, d) at ``t (n_t,)``."""

        def share(t: Tensor) -> Tensor:
            # sin(t angle) / sin(angle), also where the angle is 0.
            return t * torch.sinc(t * self.angle / math.pi) / torch.sinc(self.angle / math.pi)

        return self._mean(share, t, 1)

    def derivative(self, t: Tensor) -> Tensor:
        """Velocities (..., n_t, d) at ``t (n_t,)``."""
        return self._mean(lambda t: (t * self.angle).cos() / torch.sinc(self.angle / math.pi), t, -1)

    def _mean(self, share: Callable[[Tensor], Tensor], t: Tensor, sign: int) -> Tensor:
        t = t.double()[:, None]
        return sign * share(1 - t).to(self.dtype) * self.start + share(t).to(self.dtype) * self.end


def slerp(start: Tensor, end: Tensor) -> Slerp:
    """Spherical interpolation, with which users of GANs compare straight lines.

    ``g(t) = (sin((1 - t) a) start + sin(t a) end) / sin(a)`` with the angle ``a`` between start and end: at equal norms
    the arc of a circle around the origin.

    Parameters
    ----------
    start, end : Tensor, shape (..., d)

    Returns
    -------
    curve
        For :func:`curve_length`, :func:`lgi.certify` and others: ``curve(t)`` and ``curve.derivative(t)`` of shape
        (..., n_t, d) for ``t`` (n_t,) in [0, 1].

    Raises
    ------
    ValueError
        If the points differ in shape or dtype, lie opposite to each other, or at the origin.

    References
    ----------
    Shoemake (1985); White, "Sampling generative networks" (2016).
    """
    return Slerp(start, end)


def as_curve(curve: Curve | Tensor) -> Curve:
    """The curve itself, or the path through points (..., n, d)."""
    curve = Polyline(curve) if isinstance(curve, Tensor) else curve
    if not callable(curve) or not hasattr(curve, "derivative"):
        raise TypeError(
            f"expected a curve, such as lgi.CubicBSpline, or a tensor of points (..., n, d), got {describe(curve)}: "
            "use torch.as_tensor for points"
        )
    return curve


def _along(metric: Metric, curve: Curve | Tensor, n_t: int) -> tuple[Tensor, Tensor]:
    """Squared speed (..., n_t) at the quadrature nodes, and the weights (n_t,)."""
    check_metric(metric)
    curve = as_curve(curve)
    t, weights = _nodes(curve, n_t)
    return metric.squared_speed(curve(t), curve.derivative(t)), weights


def _nodes(curve: Curve, n_t: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on the spans of a curve, in its dtype and on its device."""
    if not isinstance(n_t, int | np.integer) or n_t < 1:
        raise ValueError(f"expected n_t, the number of quadrature nodes, as an integer of at least 1, got n_t = {n_t}")
    knots = getattr(curve, "knots", None)
    dtype, device = getattr(curve, "dtype", None) or torch.get_default_dtype(), getattr(curve, "device", None)
    t, weights = _gauss_legendre((0.0, 1.0) if knots is None else tuple(knots.unique().tolist()), int(n_t))
    return t.to(device, dtype), weights.to(device, dtype)


# Nodes of one rule. They come from an eigenproblem of that size: 1 ms for 64 nodes, and 12.8 GB for 40,000. On straight
# lines between codes of VAE1, rules of 16 to 256 nodes are as exact as each other for the same number in all.
_MOST_NODES = 64


# 4 kB an entry of 256 nodes; beside each other, a call or two for every knot vector of the curves at hand.
@lru_cache(maxsize=64)
def _gauss_legendre(knots: tuple[float, ...], n_t: int) -> tuple[Tensor, Tensor]:
    """Composite Gauss-Legendre nodes and weights (float64, CPU) with ``n_t`` nodes in all, at least one a span."""
    t, weights = [], []
    for (start, end), n_span in zip(pairwise(knots), _shares(n_t, len(knots) - 1), strict=True):
        pieces = _shares(n_span, math.ceil(n_span / _MOST_NODES))
        for (a, b), n in zip(pairwise(np.linspace(start, end, len(pieces) + 1)), pieces, strict=True):
            x, w = _rule(n)
            t.append((a + b) / 2 + (b - a) / 2 * x)
            weights.append((b - a) / 2 * w)
    total = np.concatenate(weights)
    with torch.inference_mode(False):
        return torch.tensor(np.concatenate(t)), torch.tensor(total / total.sum())


def _shares(n: int, n_parts: int) -> list[int]:
    """Split ``n`` evenly among parts, at least one each."""
    return [max(1, n * (i + 1) // n_parts - n * i // n_parts) for i in range(n_parts)]


_rule = cache(np.polynomial.legendre.leggauss)
