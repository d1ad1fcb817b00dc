"""How far a curve is from a geodesic, and how well its length is known: for the search, and for any curve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lgi.metric import Curve, Metric
from lgi.metric.base import check_metric
from lgi.metric.batching import check_points
from lgi.metric.lengths import as_curve
from lgi.solver.energy import Basis, Energy, Sample, SpeedEnergy, defined, free
from lgi.solver.grid import Grid, constant, interpolation
from lgi.solver.products import Average, residual_by_products
from lgi.solver.refinement import Level
from lgi.solver.rows import Rows
from lgi.solver.steps import Norm, relative_eigh
from lgi.spline import uniform_knots

# A length is to be known at least so well, relatively, whatever is asked of the number of control points.
KNOWN = 1e-3
# The measuring grid is halved so often at most: for a curve that crosses a border as thin as a thousandth of it.
DOUBLINGS = 5
# An error that is so many times what rounding adds to a length gets smaller on a finer grid.
_ABOVE_NOISE = 10
# Control points of the variations of curves that have none of their own: 16 equal spans, the most that the search makes
# with its default of at most 20.
_CONTROL = 19
# Elements of a curve have this degree, and no ends at its kinks or knots where it has more than so many spans.
_DEGREE, _MOST_SPANS = 6, 64
# Coordinates of the nodes of a curve up to which second derivatives are looked at: they need the square of it.
_MOST_COORDINATES = 1 << 12
# Above it, a metric costs more forward passes than a curve should; products with it, some ten.
_MOST_DIMENSIONS = 200
# Float64 numbers of matrices kept at a time.
_MOST_VALUES = 1 << 25


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is known about given curves. Lengths are in the units of the generator's output.

    Attributes
    ----------
    length : Tensor, shape (...)
        Riemannian length (eq. 1).
    length_error : Tensor, shape (...)
        Estimated error of ``length``, rounding included: the difference to the length on a coarser grid; with an
        embedding, at least the share of the highest mode of the decoded velocity.
    residual : Tensor, shape (...)
        Relative projected gradient of the energy, see Notes of :func:`certify`; 0 for a geodesic.
    stationary : Tensor of bool, shape (...)
        Whether ``residual`` is at most the tolerance, and the length known to a thousandth.
    curvature : Tensor, shape (...)
        Least relative second derivative of the energy, see Notes of :func:`certify`; NaN where it was not looked at.
    minimum : Tensor of bool, shape (...)
        Whether the curve is stationary, and no variation has ``curvature`` below minus the tolerance.
    speed_variation : Tensor, shape (...)
        Standard deviation of the speed along the curve over its mean; 0 for a geodesic.
    n_control : int
        Control points of the variations among which was looked, end points included.
    n_nodes : Tensor of int, shape (...)
        Points of each curve that were looked at. What is narrower than the distance of two of them may go unseen.
    message : numpy array of str, shape (...)
        The verdict in words, with the resolution.
    """

    length: Tensor
    length_error: Tensor
    residual: Tensor
    stationary: Tensor
    curvature: Tensor
    minimum: Tensor
    speed_variation: Tensor
    n_control: int
    n_nodes: Tensor
    message: np.ndarray[Any, np.dtype[np.str_]]


def certify(
    metric: Metric, curve: Curve | Tensor, *, tolerance: float = 1e-3, n_control: int | None = None
) -> Certificate:
    r"""How far curves are from geodesics, found by whatever means; nothing is moved.

    Parameters
    ----------
    metric : Metric
    curve : curve, or Tensor of shape (..., n, d)
        Anything with ``curve(t)`` and ``curve.derivative(t)``, such as `lgi.CubicBSpline`; or the points of a path that
        is piecewise linear in latent space, each piece taking the same time.
    tolerance : float
        A curve is stationary when its residual is at most this.
    n_control : int, optional
        Control points of the variations, at least 4, on equal spans. By default those of a spline are its own, and
        those of other curves 19, on 16 spans.

    Returns
    -------
    Certificate
        With the leading dimensions of the curve.

    Raises
    ------
    ValueError
        If the points do not fit the latent space, the metric is not finite along a curve, or ``n_control`` is below 4.
    TypeError
        If ``metric`` is not a metric, or ``curve`` neither a curve nor a tensor.

    Notes
    -----
    *Residual.* With the energy ``E`` and cubic splines ``eta`` that are 0 at both ends (variations),

    .. math:: \max_\eta \frac{|E'(g)[\eta]|}{2 \sqrt{E(g)} \, |\eta|_M}, \qquad
              |\eta|_M^2 = \int_0^1 \eta'^T M(g) \, \eta' \, dt.

    In coordinates it is ``sqrt(x^T N^-1 x / (4 E))`` with the gradient ``x`` and the matrix ``N`` of the norm, which is
    what :func:`lgi.shorten` makes small; scales and linear changes of latent coordinates do not matter. The energy is
    by about ``residual**2``, relatively, above that of the nearest stationary curve among its variations. The curve
    need not be a spline: ``E'(g)[eta]`` is the derivative of its energy in the direction of one. In a batch that
    :func:`lgi.shorten` returns, all curves have the knots of the finest, on which those that needed fewer control
    points are not as stationary as on their own: by about their ``refinement_gain``, ``residual**2 / 2``.

    *Speed.* Curves of least energy run at constant speed. A geodesic that is run through unevenly is not stationary:
    with the length ``L``, its residual is ``sqrt(1 - L^2 / E)``, and the message tells so.

    *Minimum.* ``curvature`` is the least ``E''(g)[eta, eta] / (2 |eta|_M^2)``: 1 in a flat space, ``1 - (L / pi)^2`` on
    the equator of the unit sphere, below 0 at a saddle, which a step along that variation would leave. The variation
    is that of the smallest eigenvalue of the second derivatives, and the value is measured along it, by differences of
    gradients.
    """
    check_metric(metric)
    if not tolerance > 0:
        raise ValueError(f"expected a positive tolerance, got {tolerance}")
    path: Any = as_curve(curve)
    with torch.inference_mode(False), torch.no_grad():
        dtype, device = (getattr(path, name, None) for name in ("dtype", "device"))
        ends = path(torch.tensor([0.0, 1.0], dtype=dtype or torch.get_default_dtype(), device=device)).detach()
        leading, d = ends.shape[:-2], ends.shape[-1]
        check_points(ends, metric.latent_dim, "of the curve")
        spans = getattr(path, "knots", torch.empty(0)).unique().tolist()
        own = hasattr(path, "control_points") and n_control is None
        knots = path.knots if own else uniform_knots(_CONTROL if n_control is None else n_control)
        energy = Energy(metric, ends.reshape(-1, d)[0] if ends.numel() else ends.new_zeros(d))
        kinks = spans if len(spans) <= _MOST_SPANS else ()
        level = Level.of(knots, _DEGREE, embedded=energy.embedded is not None, boundaries=kinks)

        n_values = 10 * ((len(knots) - 6) * d) ** 2 + min(len(level.grid.t) * d, _MOST_COORDINATES) ** 2
        chunks = torch.arange(leading.numel(), device=ends.device).split(max(1, _MOST_VALUES // n_values))
        if leading.numel():
            parts = [part for index in chunks for part in _look(energy, level, _Curves(path, ends, index), tolerance)]
            seen = _Seen.joined(parts)
        else:
            index, nothing = torch.arange(0, device=ends.device), ends.new_zeros(0).double()
            seen = _Seen(index, nothing, nothing, nothing, nothing, nothing, index)
        seen = seen[seen.index.argsort()]
        return _told(seen, tolerance, len(knots) - 4, lambda x: x.reshape(leading), ends)


@dataclass(frozen=True)
class _Curves:
    """Some of the curves that are looked at."""

    path: Any
    ends: Tensor  # (..., 2, d), of all curves
    index: Tensor  # (c,), of these

    def __getitem__(self, chosen: Tensor) -> _Curves:
        return replace(self, index=self.index[chosen])

    def at(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Points and velocities (c, n, d) at the nodes of a grid, in float64."""
        return self(grid.t)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Points and velocities (c, n, d) in float64."""
        # A spline takes parameters in float64, whatever the dtype of its points.
        t = t if hasattr(self.path, "control_points") else t.to(self.ends)
        shape = (-1, len(t), self.ends.shape[-1])
        z, v = (x.detach().double().reshape(shape)[self.index] for x in (self.path(t), self.path.derivative(t)))
        return z, v


@dataclass(eq=False)
class _Seen(Rows):
    """What was measured of c curves."""

    index: Tensor
    energy: Tensor
    length: Tensor
    length_error: Tensor
    residual: Tensor
    curvature: Tensor
    n_nodes: Tensor


def _look(energy: Energy, level: Level, curves: _Curves, tolerance: float) -> Iterator[_Seen]:
    """Measure curves, on ever finer grids those that need it."""
    coarse = energy.sample_points(level.grid, *curves(level.grid.t), 0).length
    for doubling in range(DOUBLINGS + 1):
        sample = energy.sample_points(level.measuring, *curves(level.measuring.t), 1)
        if not bool(sample.energy.isfinite().all()):
            raise ValueError("the energy of a curve is not finite: the generator gives NaN or infinity along it")
        residual, norm, _, hidden = projected_gradient(energy, level, curves.at, sample)
        error = length_error(sample, coarse, hidden)
        rough = (sample.tail > tolerance) & ~within_rounding(error, sample.noise)
        rough |= unresolved([(error, sample.length)], sample.noise, KNOWN)
        rough &= doubling < DOUBLINGS
        if not bool(rough.all()):
            done, here = curves[~rough], sample[~rough]
            yield _Seen(
                index=done.index,
                energy=here.energy,
                length=here.length,
                length_error=error[~rough] + here.noise + 4 * torch.finfo(energy.dtype).eps * here.length,
                residual=residual[~rough],
                curvature=least_curvature(energy, level, done.at, here, norm and norm[~rough])[0],
                n_nodes=torch.full_like(done.index, len(level.measuring.t)),
            )
        if not bool(rough.any()):
            return
        curves, coarse, level = curves[rough], sample.length[rough], level.halved()


def least_curvature(
    energy: Energy, level: Level, at: Callable[[Grid], Basis], sample: Sample, norm: Norm | None
) -> tuple[Tensor, Tensor]:
    """Least ``E'' / 2`` (c,) of variations of norm 1, and these (c, n_free, d); NaN where that is too much for memory.

    ``at`` gives points and velocities (c, n, d) of the curves on a grid, ``sample`` is that of the measuring grid.
    """
    basis = energy.basis(level.grid, level.knots)
    n_free = len(level.knots) - 6
    if norm is None:
        nothing = sample.energy.new_full((len(sample.energy), n_free, energy.d), torch.nan)
        return nothing[:, 0, 0], nothing
    known = energy.sample_points(level.grid, *at(level.grid), 2).curvature
    assert known is not None
    vectors = relative_eigh(energy.hessian(level.grid, basis, known), norm)[1]
    x = vectors[..., 0].unflatten(1, (n_free, energy.d))
    basis = energy.basis(level.measuring, level.knots)
    B, dB = free(basis)
    z, v = at(level.measuring)
    # Of central differences, this balances the error with what rounding makes of a difference of gradients.
    step = torch.finfo(energy.dtype).eps ** 0.25 * sample.energy.sqrt()[:, None, None]
    there, back = (
        energy.sample_points(level.measuring, z + sign * step * (B @ x), v + sign * step * (dB @ x), 1).gradient(basis)
        for sign in (1, -1)
    )
    found = ((there - back) * x.flatten(1)).sum(-1) / (4 * step[:, 0, 0])
    return torch.where(sample.energy > 0, found, 0), x


def _told(
    seen: _Seen, tolerance: float, n_control: int, shaped: Callable[[Tensor], Tensor], like: Tensor
) -> Certificate:
    """Judge what was measured."""
    known = seen.length_error <= KNOWN * seen.length
    stationary = (seen.residual <= tolerance) & known | (seen.energy == 0)
    minimum = stationary & (seen.curvature >= -tolerance)
    ratio = torch.where(seen.energy > 0, seen.length.square() / seen.energy, 1).clamp(max=1)
    uneven = seen.residual.square() <= 1 - ratio + tolerance**2
    verdicts = (
        (minimum, "a minimum"),
        (stationary & seen.curvature.isnan(), "stationary; second derivatives would take too much memory to look at"),
        (stationary, "stationary, but no minimum: there are shorter curves on its sides"),
        (~known, "the length is not known to a thousandth: use float64"),
        (uneven, "not stationary, by no more than its uneven speed explains: run through it at constant speed"),
        (~uneven, "not stationary"),
    )
    words = np.select([x.cpu().numpy() for x, _ in verdicts], [text for _, text in verdicts], "")
    where = f"among variations with {n_control} control points, seen at {{}} points"
    message = [f"{word} ({where.format(n)})" for word, n in zip(words, seen.n_nodes.tolist(), strict=True)]

    def real(x: Tensor) -> Tensor:
        return shaped(x).to(like.dtype)

    return Certificate(
        length=real(seen.length),
        length_error=real(seen.length_error),
        residual=real(seen.residual),
        stationary=shaped(stationary),
        curvature=real(seen.curvature),
        minimum=shaped(minimum),
        speed_variation=real((1 / ratio - 1).sqrt()),
        n_control=n_control,
        n_nodes=shaped(seen.n_nodes),
        message=np.array(message, dtype=np.str_).reshape(shaped(seen.n_nodes).shape),
    )


def projected_gradient(
    energy: Energy, level: Level, at: Callable[[Grid], Basis], sample: Sample, average: Average | None = None
) -> tuple[Tensor, Norm | None, Tensor | float, Tensor]:
    """Relative projected gradient (c,) of curves sampled on a level's measuring grid, the norm, and decoder rows taken.

    And the length (c,) that is hidden between the nodes, as far as the metric at the weighing nodes tells.

    The norm is that of the metric at the nodes of the level's weighing grid; where its matrices are too large for
    memory, it is applied by products at those of the level's grid, and not returned. ``at`` gives points and velocities
    (c, n, d) of the curves on a grid.
    """
    gradient = sample.gradient(energy.basis(level.measuring, level.knots))
    nodes, velocities = at(level.weighing)
    if average is not None or not has_matrices(energy, level.grid):
        points = at(level.grid)[0]
        if average is None:
            average = Average.of(energy, points[:, points.shape[1] // 2, None])
        basis = energy.basis(level.grid, level.knots)
        residual, rows = residual_by_products(
            energy, level.grid, basis, points, gradient, known=sample.energy, average=average
        )
        speed = defined(energy.metric, "squared_speed", nodes.to(energy.dtype), velocities.to(energy.dtype))
        rows = rows + SpeedEnergy.cost(0, energy.d) * len(level.weighing.t)
        return residual, None, rows, _hidden(energy, level, sample, speed)
    I = constant(interpolation(level.weighing, level.grid, linearly=True), energy.device)
    tensor = energy.tensor(nodes)
    M = torch.einsum("pk,ckab->cpab", I, tensor)
    norm = Norm.of(energy.norm(level.grid, energy.basis(level.grid, level.knots), M))
    residual = norm.residual(slice(None), gradient, sample.energy)
    speed = torch.einsum("cka,ckab,ckb->ck", velocities, tensor, velocities)
    return residual, norm, energy.tensor_cost * len(level.weighing.t), _hidden(energy, level, sample, speed)


def _hidden(energy: Energy, level: Level, sample: Sample, speed: Tensor) -> Tensor:
    """Length (c,) of waves too fine for the measuring grid, which its values do not show and derivatives do.

    ``speed`` (c, n) is squared, by the metric at the weighing nodes.
    """
    grid = level.measuring
    if energy.embedded is None:
        return torch.zeros_like(sample.length)
    I = constant(interpolation(grid, level.weighing, linearly=False), energy.device)
    seen = sample.squared_speed[:, constant(grid.first, energy.device)].clamp_min(0).sqrt() @ I.T
    excess = (speed.clamp_min(0).sqrt() - seen) @ constant(level.weighing.weights, energy.device)
    # Of smooth curves that are resolved it is some ten times less, relatively.
    return torch.where(excess > KNOWN * sample.length, excess, 0)


def has_matrices(energy: Energy, grid: Grid) -> bool:
    """Whether second derivatives and norms of curves on a grid are made; else they are products."""
    return len(grid.t) * energy.d <= _MOST_COORDINATES and energy.d <= _MOST_DIMENSIONS


def length_error(sample: Sample, coarse: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Quadrature error (c,) of lengths that were ``coarse`` (c,) on a coarser grid.

    The difference, and at least what the highest mode may add: differences, and that mode alone, vanish by chance. And
    at least what is ``hidden`` between the nodes.
    """
    error = torch.maximum((sample.length - coarse).abs(), sample.length_tail)
    return error if hidden is None else torch.maximum(error, hidden)


def unresolved(lengths: Sequence[tuple[Tensor, Tensor]], noise: Tensor, wanted: float) -> Tensor:
    """Where one of the (error, length), each (c,), is too large for the relative error wanted, and not by rounding."""
    # A tenth: the estimates have been seen to be too small by ten where a curve stands still.
    rough = torch.stack([error > wanted / 10 * length for error, length in lengths]).any(0)
    # A finer grid resolves no rounding: it amplifies it.
    return rough & ~within_rounding(torch.stack([error for error, _ in lengths]).amax(0), noise)


def within_rounding(error: Tensor, noise: Tensor) -> Tensor:
    """Whether an error (c,) is explained by what rounding adds to the length."""
    return error <= _ABOVE_NOISE * noise
