"""Shorter curves between latent points, many at once, each with a certificate (section 2.1)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lgi.metric import Metric, curve_length
from lgi.progress import progress_bar
from lgi.spline import CubicBSpline, basis, uniform_knots

Method = Literal["gauss-newton", "lbfgs", "gradient"]
Starts = Literal["line", "graph", "multi"]


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """How shorter curves are looked for.

    Attributes
    ----------
    method : {"gauss-newton", "lbfgs", "gradient"}
        ``"gauss-newton"`` needs ``d`` forward derivatives a point now and then, ``"lbfgs"`` none: for large ``d``.
        ``"gradient"`` is the paper's gradient descent.
    n_control : int
        Largest number of control points. The paper's "maximal node count" has no number; 20 bring smooth closed forms
        to 1e-6.
    n_iterations : int
        Largest number of iterations of a curve, over all refinements.
    tolerance : float
        A curve has converged when its relative projected gradient (:class:`ShortenResult`) is at most this: then its
        energy is about ``tolerance**2``, relatively, above the smallest with so many control points.
    length_tolerance : float
        Control points are added as long as they promise to shorten the curve relatively by more than this.
    nodes : int
        Number of intervals between the points of a curve at which the search starts to evaluate the metric; more are
        used where the curve needs them. Results are measured at 41 points or more, and at least half as many again as
        were searched on. Where that finds a residual a little above the tolerance, up to three more steps are taken
        there; ``length_error`` compares with the grid of the search either way.
    starts : {"line", "graph", "multi"}
        Where the search starts. ``"line"``: the straight line (the paper's). ``"multi"``: the line and ``n_starts - 1``
        bent curves. ``"graph"``: the line and the shortest path over a graph of given points.
    n_starts : int
        Number of initial curves of ``"multi"``.
    n_neighbours : int
        Neighbours that each point of the graph is joined to.
    chunk_size : int, optional
        Curves worked on at a time; by default as many as fit a bounded memory. On a CPU, results do not depend on it.
    seed : int
        Of the bent curves. Those of pair ``i`` depend on (seed, i) alone.
    progress : bool, optional
        Whether to show a progress bar; by default if the output is a terminal.
    """

    method: Method = "gauss-newton"
    n_control: int = 20
    n_iterations: int = 100
    tolerance: float = 1e-3
    length_tolerance: float = 1e-3
    nodes: int = 8
    starts: Starts = "line"
    n_starts: int = 4
    n_neighbours: int = 10
    chunk_size: int | None = None
    seed: int = 0
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("method", get_args(Method)), ("starts", get_args(Starts))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        least = {"n_control": 4, "n_iterations": 0, "nodes": 4, "n_starts": 1, "n_neighbours": 1, "chunk_size": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"expected {name} to be at least {low}, got {value}")
        if not (self.tolerance > 0 and self.length_tolerance > 0):
            raise ValueError(
                f"expected positive tolerances, got tolerance {self.tolerance} and length_tolerance "
                f"{self.length_tolerance}"
            )


# --------------------------------------------------------------------------------------------------------------------
# Energy of splines on a grid of parameters
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Grid:
    """Where curves with common knots are evaluated, and how energy and length follow.

    With an embedding ``h``, the curve ``h(z(t))`` is interpolated on each span by the polynomial through its values at
    the Gauss-Lobatto nodes (a spectral element): ``difference`` takes the p + 1 values of an element of width 2 to the
    derivatives there, and the energy ``sum_q w_q |sum_n D_qn h_n|^2`` converges faster than any power of the number of
    nodes, from values alone. Without one, Gauss-Legendre quadrature of the squared speed; ``difference`` is None.
    """

    t: Tensor  # (n,)
    weights: Tensor  # (q,), of the derivatives
    nodal_weights: Tensor  # (n,), of the nodes
    node: Tensor  # (q,), the node that each derivative belongs to
    degree: int  # p, of the polynomials
    width: Tensor  # (n_elements,)
    difference: Tensor | None = None  # (p + 1, p + 1)
    top: Tensor | None = None  # (2, p + 1), takes derivatives to the amplitudes of their highest two modes

    def derivatives(self, values: Tensor) -> Tensor:
        """Derivatives (c, q, m) of the curves through values (c, n, m)."""
        assert self.difference is not None
        if len(self.t) <= _DENSE:
            return _whole(self).to(values) @ values
        elements = values.unfold(1, self.degree + 1, self.degree)
        scale = 2 / self.width[:, None, None].to(values)
        return (elements @ self.difference.T.to(values) * scale).mT.flatten(1, 2)

    @cached_property
    def amplification(self) -> float:
        """Root mean square of the derivatives of values that are independent and of size 1."""
        assert self.difference is not None
        of_rows = self.difference.square().sum(1) * (2 / self.width[:, None]).square()
        return math.sqrt(float(self.weights @ of_rows.flatten()))

    def highest(self, derivatives: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (c, n_elements) in the highest mode and in the one below it, of derivatives (c, q, m)."""
        assert self.top is not None
        elements = derivatives.unflatten(1, (len(self.width), -1))
        amplitude = torch.einsum("kq,ceqm->kcem", self.top.to(derivatives), elements)
        highest, below = amplitude.square().sum(-1) * self.width.to(derivatives)
        return highest / (2 * self.degree - 1), below / (2 * self.degree - 3)


@lru_cache(maxsize=128)
def _gauss_lobatto(degree: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Nodes and weights on [-1, 1] and the matrix that differentiates the polynomial through values at the nodes."""
    legendre = np.polynomial.legendre.Legendre.basis(degree)
    x = np.concatenate([[-1.0], np.sort(legendre.deriv().roots().real), [1.0]])
    weights = 2 / (degree * (degree + 1) * legendre(x) ** 2)
    gap = x[:, None] - x + np.eye(degree + 1)
    scale = gap.prod(1)
    D = scale[:, None] / scale / gap
    np.fill_diagonal(D, 0)
    np.fill_diagonal(D, -D.sum(1))
    return x, weights, D


@lru_cache(maxsize=256)
def _grid(boundaries: tuple[float, ...], degree: int, pieces: int, embedded: bool) -> _Grid:
    """Grid on spans, each cut into equal pieces, with ``degree + 1`` nodes a piece."""
    ends = np.array(boundaries)
    ends = np.append((ends[:-1, None] + np.diff(ends)[:, None] * np.arange(pieces) / pieces).reshape(-1), 1.0)
    left, width = ends[:-1], np.diff(ends)
    if not embedded:
        x, w = np.polynomial.legendre.leggauss(degree + 1)
        t = (left[:, None] + width[:, None] * (x + 1) / 2).reshape(-1)
        weights = (width[:, None] * w / 2).reshape(-1)
        own = torch.arange(len(t))
        return _Grid(torch.tensor(t), torch.tensor(weights), torch.tensor(weights), own, degree, torch.tensor(width))
    x, w, D = _gauss_lobatto(degree)
    # Amplitudes of the highest Legendre polynomials in a derivative, which has one degree less than the curve.
    amplitudes = np.linalg.pinv(np.polynomial.legendre.legvander(x, degree - 1))[[-1, -2]]
    n = len(width)
    t, nodal = np.zeros(n * degree + 1), np.zeros(n * degree + 1)
    for e in range(n):
        nodes = slice(e * degree, (e + 1) * degree + 1)
        t[nodes] = left[e] + width[e] * (x + 1) / 2
        nodal[nodes] += width[e] * w / 2
    t[-1] = 1
    weights = (width[:, None] * w / 2).reshape(-1)
    rows_to_nodes = (np.arange(n)[:, None] * degree + np.arange(degree + 1)).reshape(-1)
    return _Grid(
        torch.tensor(t),
        torch.tensor(weights),
        torch.tensor(nodal),
        torch.tensor(rows_to_nodes),
        degree,
        torch.tensor(width),
        torch.tensor(D),
        torch.tensor(amplitudes),
    )


# Nodes up to which one matrix for all elements is the faster way, and is kept.
_DENSE = 512


@lru_cache(maxsize=128)
def _whole(grid: _Grid) -> Tensor:
    """Matrix (q, n) that takes values at the nodes to derivatives."""
    assert grid.difference is not None
    p = grid.degree
    D = torch.zeros(len(grid.weights), len(grid.t), dtype=torch.float64)
    for e, width in enumerate(grid.width.tolist()):
        D[e * (p + 1) : (e + 1) * (p + 1), e * p : (e + 1) * p + 1] = grid.difference * 2 / width
    return D


@lru_cache(maxsize=256)
def _interpolation(source: _Grid, target: _Grid, linearly: bool) -> Tensor:
    """Matrix (n_target, n_source): the polynomials of spectral elements, else linear, which keeps matrices positive."""
    t, nodes = target.t.numpy(), source.t.numpy()
    if linearly or source.difference is None:
        return torch.tensor(np.stack([np.interp(t, nodes, unit) for unit in np.eye(len(nodes))], axis=1))
    p = source.degree
    element = np.clip(np.searchsorted(nodes[::p], t, side="right") - 1, 0, (len(nodes) - 1) // p - 1)
    result = np.zeros((len(t), len(nodes)))
    for k, e in enumerate(element):
        x = nodes[e * p : (e + 1) * p + 1]
        gap = x[:, None] - x + np.eye(p + 1)
        for j in range(p + 1):
            others = np.arange(p + 1) != j
            result[k, e * p + j] = ((t[k] - x[others]) / gap[j, others]).prod()
    return torch.tensor(result)


@dataclass(eq=False)
class _Sample:
    """Energy of c curves, and on request its derivatives and the metric along them, in float64."""

    energy: Tensor  # (c,)
    length: Tensor  # (c,)
    tail: Tensor  # (c,), share of the energy in the highest mode: how well the grid resolves the curve
    length_tail: Tensor  # (c,), what the highest mode may add to the length
    noise: Tensor  # (c,), what rounding may add to it
    z_gradient: Tensor | None = None  # (c, n, d): the energy changes by <z_gradient, dz> + <v_gradient, dv>
    v_gradient: Tensor | None = None
    # What the second derivatives of the energy take, of the embedding and of the rest: see `_Problem.hessian`.
    gram: Tensor | None = None  # (c, n, d, n, d), J_k^T J_l of all pairs of nodes
    bend: Tensor | None = None  # (c, n, d, d)
    rest_gram: Tensor | None = None  # (c, n, d, d), the metric
    rest_bend: Tensor | None = None  # (c, n, 2 d, d)

    def at(self, chosen: Tensor) -> _Sample:
        """Sample of some of the curves."""
        fields: dict[str, Any] = {
            name: x for name, x in vars(self).items() if x is not None and name not in _SECOND_ORDER
        }
        return _Sample(**{name: x[chosen] for name, x in fields.items()})

    def put(self, chosen: Tensor, other: _Sample) -> None:
        """Replace what is known of some curves, but for the metric."""
        for name, x in vars(other).items():
            if x is not None:
                getattr(self, name)[chosen] = x

    def gradient(self, points: Tensor, velocities: Tensor) -> Tensor:
        """With respect to the free coordinates of bases (n, n_free), (c, f)."""
        assert self.z_gradient is not None
        g = points.T @ self.z_gradient
        if self.v_gradient is not None:
            g = g + velocities.T @ self.v_gradient
        return g.flatten(1)


_SECOND_ORDER = ("gram", "bend", "rest_gram", "rest_bend")


def _evenly(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Values of a function of points at tensors (c, n, d), which it is given in full vectors of the processor.

    The last points of a batch that fill no vector are rounded in another way, and by a discrete choice (to go on, to
    refine) that would make the length of a curve depend on those it is looked for with.
    """
    leading = tensors[0].shape[:2]
    n = leading.numel()
    rows = [x.flatten(0, 1) for x in tensors]
    rows = [torch.cat([x, x[-1:].expand(-n % _VECTOR, -1)]) for x in rows]
    values = function(*rows)
    if isinstance(values, Tensor):
        return values[:n].unflatten(0, leading)
    return tuple(value[:n].unflatten(0, leading) for value in values)


# Points: whatever their number of values is, these fill whole vectors (AVX-512, float32).
_VECTOR = 16


class _Problem:
    """A metric, what it offers, and how it is best evaluated.

    What the metric has of an embedding is differenced: no curve can seem shorter than the polygon of its nodes is. Only
    the rest is a quadrature of the squared speed. That misses what lies between two nodes, and an optimiser finds out
    where the metric is concentrated on thin ridges (class probabilities in eq. 4).
    """

    def __init__(self, metric: Metric, point: Tensor) -> None:
        self.metric = metric
        self.dtype, self.device = point.dtype, point.device
        self.d = point.shape[-1]
        self.embedded, self.rest = metric.split(point)
        self.n_values = self.d if self.embedded is None else self.embedded.embed(point[None]).shape[-1]
        # Values (CPU) whose intermediate results stay in the cache; no more than a metric takes at a time.
        self.budget = 1 << 18 if self.device.type == "cpu" else 1 << 24

    def rounded(self, control: Tensor) -> Tensor:
        """Control points as they are handed out: what is certified must be the same."""
        return control.to(self.dtype).double()

    def grid(self, knots: Tensor, degree: int, pieces: int = 1) -> _Grid:
        """Grid with ``degree * pieces`` nodes a span."""
        return _grid(tuple(knots.unique().tolist()), degree, pieces, self.embedded is not None)

    def halved(self, grid: _Grid, knots: Tensor) -> _Grid:
        """Grid with twice as many elements on each span."""
        n = len(grid.t) // (grid.degree + 1) if self.embedded is None else (len(grid.t) - 1) // grid.degree
        return self.grid(knots, grid.degree, 2 * n // (len(knots) - 7))

    def basis(self, grid: _Grid, knots: Tensor) -> tuple[Tensor, Tensor]:
        """Points and velocities (n, n_control) on a grid."""
        return basis(knots, grid.t).to(self.device), basis(knots, grid.t, 1).to(self.device)

    def sample(self, grid: _Grid, knots: Tensor, control: Tensor, order: int) -> _Sample:
        """Energies of curves with control points (c, n_control, d); 1: with gradients, 2: with the metric too."""
        n_curves = max(1, self.budget // (len(grid.t) * self.n_values))
        parts = [self._sample(grid, knots, part, order) for part in control.split(n_curves)]
        if len(parts) == 1:
            return parts[0]
        names = [name for name, value in vars(parts[0]).items() if value is not None]
        return _Sample(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def tensor(self, z: Tensor) -> Tensor:
        """Metric at points (c, n, d), in float64."""
        n_curves = max(1, self.budget // (z.shape[1] * self.n_values))
        return torch.cat([_evenly(self.metric.tensor, part) for part in z.to(self.dtype).split(n_curves)]).double()

    def _sample(self, grid: _Grid, knots: Tensor, control: Tensor, order: int) -> _Sample:
        B, dB = self.basis(grid, knots)
        z, v = (B @ control).to(self.dtype), (dB @ control).to(self.dtype)
        weights = grid.weights.to(self.device)
        s = weights.new_zeros(len(control), len(weights))
        tail = length_tail = noise = s[:, 0]
        derivatives: dict[str, Tensor] = {}
        if self.embedded is not None:
            s, highest, below, noise, derivatives = self._embedded_speed(self.embedded, grid, z, order)
        if self.rest is not None:
            r, of_rest = self._rest_speed(self.rest, grid, z, v, order)
            s = s + r[:, grid.node.to(self.device)]
            if "z_gradient" in derivatives:
                of_rest["z_gradient"] = of_rest["z_gradient"] + derivatives["z_gradient"]
            derivatives |= of_rest
        energy = s @ weights
        if self.embedded is not None:
            tiny = torch.finfo(energy.dtype).tiny
            tail = highest.sum(-1) / energy.clamp_min(tiny)
            # An oscillation of amplitude a around speed s lengthens by a^2 / 2s; where the curve stands still, by a.
            # Two modes, because every other one vanishes where the curve is symmetric.
            oscillation = highest + below
            whole = (s.clamp_min(0) * weights).unflatten(1, (highest.shape[1], -1)).sum(-1)
            share = oscillation / (whole.sqrt() + oscillation.sqrt()).clamp_min(tiny)
            length_tail = share @ grid.width.to(self.device).sqrt()
            # As for an oscillation, of the derivative that rounded values have.
            noise = noise.square() / (energy.clamp_min(0).sqrt() + noise).clamp_min(tiny)
        return _Sample(energy, s.clamp_min(0).sqrt() @ weights, tail, length_tail, noise, **derivatives)

    def _embedded_speed(
        self, metric: Metric, grid: _Grid, z: Tensor, order: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Squared speed (c, q) of what is embedded, its highest modes (`_Grid.highest`), its noise, and derivatives."""
        w = grid.weights.to(self.device, self.dtype)
        found = {}
        # Differences to the first value lose less to rounding, and are 0 where the generator is constant.
        if order == 1:
            with torch.enable_grad():
                h = _evenly(metric.embed, z.requires_grad_())
                change = grid.derivatives(h - h[:, :1])
                (gradient,) = torch.autograd.grad((change.square().sum(-1) @ w).sum(), z)
            change = change.detach()
            found["z_gradient"] = gradient.double()
        elif order == 0:
            h = _evenly(metric.embed, z)
            change = grid.derivatives(h - h[:, :1])
        else:
            h, columns = _evenly(metric.linearise, z)
            change = grid.derivatives(h - h[:, :1])
            force = 2 * (_whole(grid).to(change).T @ (w[:, None] * change))
            gradient = (columns @ force[..., None])[..., 0]
            flat = columns.flatten(1, 2)
            found["z_gradient"] = gradient.double()
            found["gram"] = (flat @ flat.mT).double().unflatten(2, z.shape[1:]).unflatten(1, z.shape[1:])
            found["bend"] = self._bend(metric, z, force, gradient) / grid.nodal_weights.to(self.device)[:, None, None]
        highest, below = (x.double() for x in grid.highest(change))
        noise = _ROUNDING * torch.finfo(self.dtype).eps * torch.linalg.vector_norm(h[:, 0].detach(), dim=-1).double()
        return change.square().sum(-1).double(), highest, below, noise * grid.amplification, found

    def _rest_speed(
        self, metric: Metric, grid: _Grid, z: Tensor, v: Tensor, order: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared speed (c, n) of what is not embedded, and derivatives."""
        if order == 0:
            return _evenly(metric.squared_speed, z, v).double(), {}
        nodal = grid.nodal_weights.to(self.device)[:, None]
        s, dz, dv = _evenly(metric.squared_speed_and_gradient, z.detach(), v)
        found = {"z_gradient": nodal * dz.double(), "v_gradient": nodal * dv.double()}
        if order == 2:
            found["rest_gram"] = _evenly(metric.tensor, z).double()
            found["rest_bend"] = self._speed_bend(metric, z, v, dz, dv)
        return s.double(), found

    def _shifted(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Points moved a little along each axis in turn, and how far (c, 1, 1)."""
        span = torch.linalg.vector_norm(z[:, -1:] - z[:, :1], dim=-1, keepdim=True)
        step = torch.finfo(self.dtype).eps ** (1 / 3) * span
        for direction in torch.eye(self.d, dtype=self.dtype, device=self.device):
            yield z + step * direction, step.double()

    def _bend(self, metric: Metric, z: Tensor, force: Tensor, pulled: Tensor) -> Tensor:
        """``sum_m force_m d^2 h_m / dz^2`` (c, n, d, d), by differences of ``J^T force``, which at z is ``pulled``."""
        columns = []
        for moved, step in self._shifted(z):
            with torch.enable_grad():
                leaf = moved.requires_grad_()
                (gradient,) = torch.autograd.grad(_evenly(metric.embed, leaf), leaf, force)
            columns.append((gradient - pulled).double() / step)
        bend = torch.stack(columns, dim=-1)
        return (bend + bend.mT) / 2

    def _speed_bend(self, metric: Metric, z: Tensor, v: Tensor, z_gradient: Tensor, v_gradient: Tensor) -> Tensor:
        """Second derivatives of the squared speed by ``z, z`` and by ``v, z`` (c, n, 2 d, d)."""
        columns = []
        for moved, step in self._shifted(z):
            _, dz, dv = _evenly(metric.squared_speed_and_gradient, moved, v)
            columns.append(torch.cat([dz - z_gradient, dv - v_gradient], dim=-1).double() / step)
        return torch.stack(columns, dim=-1)

    def across(self, grid: _Grid, sample: _Sample, velocity: Tensor, M: Tensor) -> _Sample:
        """Sample whose gradient is without what moves points along their curve, which leaves the length as it is.

        At constant speed it is the gradient of the length, in the units of the energy's; ``velocity`` (c, n, d) and the
        metric ``M`` (c, n, d, d) are those at the nodes.
        """
        z_gradient, v_gradient = sample.z_gradient, sample.v_gradient
        assert z_gradient is not None
        tiny = torch.finfo(z_gradient.dtype).tiny
        if self.embedded is None:
            assert v_gradient is not None
            weights = grid.weights.to(self.device)[:, None]
            squared_speed = (velocity * v_gradient).sum(-1, keepdim=True) / (2 * weights)
            scale = sample.length[:, None, None] / squared_speed.clamp_min(tiny).sqrt()
            return replace(sample, z_gradient=scale * z_gradient, v_gradient=scale * v_gradient)
        if v_gradient is not None:
            # By parts: all that pulls at the points.
            share = (grid.weights / grid.nodal_weights[grid.node])[:, None].to(self.device)
            z_gradient = z_gradient + _whole(grid).T.to(self.device) @ (share * v_gradient[:, grid.node])
        covector = (M @ velocity[..., None])[..., 0]
        squared_speed = (velocity * covector).sum(-1, keepdim=True).clamp_min(tiny)
        z_gradient = z_gradient - covector * ((velocity * z_gradient).sum(-1, keepdim=True) / squared_speed)
        return replace(sample, z_gradient=z_gradient, v_gradient=None)

    def norm(self, grid: _Grid, knots: Tensor, *grams: Tensor | None) -> Tensor:
        """``integral of B'_i M B'_j dt`` (c, f, f), with M at the nodes the sum of (c, n, d, d) and of Gram blocks."""
        M = _at_nodes(*grams)
        dB = self.basis(grid, knots)[1][:, 1:-1]
        scaled = grid.nodal_weights.to(self.device)[:, None, None] * dB[:, :, None] * dB[:, None, :]
        return torch.einsum("kij,ckab->ciajb", scaled, M).flatten(3, 4).flatten(1, 2)

    def hessian(
        self,
        grid: _Grid,
        knots: Tensor,
        *,
        gram: Tensor | None = None,
        bend: Tensor | None = None,
        rest_gram: Tensor | None = None,
        rest_bend: Tensor | None = None,
    ) -> Tensor:
        """Second derivatives of the energy (c, f, f).

        Those of what is embedded are the Gauss-Newton matrix, of ``integral of |d(J eta) / dt|^2``, and ``bend``
        (c, n, d, d), the second derivative of the embedding times what pulls at the curve; those of the rest are those
        of the squared speed, of which ``rest_bend`` (c, n, 2 d, d) has the ones by ``z, z`` and ``v, z``.
        """
        points, velocities = _free(self.basis(grid, knots))
        weights, d = grid.nodal_weights.to(self.device)[:, None, None], self.d
        mass = weights * points[:, :, None] * points[:, None, :]
        n_free = points.shape[1] * d
        result = mass.new_zeros(1, n_free, n_free)
        if gram is not None and bend is not None:
            D = _whole(grid)
            stiffness = (D.T @ (grid.weights[:, None] * D)).to(self.device)
            half = torch.einsum("ckalb,kl,lj->ckajb", gram, stiffness, points)
            gauss_newton = 2 * torch.einsum("ckajb,ki->ciajb", half, points)
            result = result + (gauss_newton + torch.einsum("kij,ckab->ciajb", mass, bend)).flatten(3, 4).flatten(1, 2)
        if rest_gram is not None and rest_bend is not None:
            by_points, mixed = rest_bend[:, :, :d], rest_bend[:, :, d:]
            cross = weights * velocities[:, :, None] * points[:, None, :]
            half = torch.einsum("kij,ckab->ciajb", cross, mixed).flatten(3, 4).flatten(1, 2)
            own = torch.einsum("kij,ckab->ciajb", mass, (by_points + by_points.mT) / 2).flatten(3, 4).flatten(1, 2)
            result = result + 2 * self.norm(grid, knots, rest_gram) + own + half + half.mT
        return result


def _at_nodes(*grams: Tensor | None) -> Tensor:
    """Metric at the nodes (c, n, d, d): the sum of such and of Gram blocks of all pairs of nodes."""
    parts = [torch.einsum("ckakb->ckab", gram) if gram.ndim == 5 else gram for gram in grams if gram is not None]
    return torch.stack(parts).sum(0)


def _interpolated(gram: Tensor, source: _Grid, target: _Grid, *, linearly: bool = False) -> Tensor:
    """Metric along curves, from the nodes of one grid to those of another; positive semi-definite as it was."""
    if source is target:
        return gram
    I = _interpolation(source, target, linearly).to(gram.device)
    if gram.ndim == 4:
        return torch.einsum("pk,ckab->cpab", I, gram)
    return torch.einsum("pk,ckalb,ql->cpaqb", I, gram, I)


# --------------------------------------------------------------------------------------------------------------------
# Minimisers: how the next curve is proposed
# --------------------------------------------------------------------------------------------------------------------


def _solve(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions (c, f) of symmetric systems, and where the matrix (c, f, f) is not positive definite (c,)."""
    size = matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(matrix.dtype).tiny)
    # Variations that the metric does not see would make the matrix singular.
    ridge = 1e-10 * size[:, None, None] * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(matrix + ridge)
    return torch.cholesky_solve(vector[..., None], factor)[..., 0], failed > 0


def _residual(norm: Tensor, gradient: Tensor, energy: Tensor) -> Tensor:
    """Relative projected gradient ``sqrt(g^T N^-1 g / (4 E))`` (c,)."""
    squared = (gradient * _solve(norm, gradient)[0]).sum(-1).clamp_min(0)
    return (squared / (4 * energy).clamp_min(torch.finfo(energy.dtype).tiny)).sqrt()


class _Minimiser(ABC):
    """Proposes steps for a group of c curves with f free coordinates, and learns from what became of them."""

    @abstractmethod
    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy that they promise (l,)."""

    @abstractmethod
    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Take in the change of the gradient along a step, and which part of the promised decrease came true."""


class _GaussNewton(_Minimiser):
    """Trust-region Newton steps: second derivatives of the start, kept up by secants, damped for each curve.

    ``(H + lambda 2 N) step = -gradient``. Each evaluation, accepted or not, adds the symmetric rank-one secant (Conn,
    Gould & Toint 1991), so that the matrix need not be computed again and the steps converge superlinearly.
    """

    def __init__(self, hessian: Tensor, norm: Tensor) -> None:
        self.hessian, self.norm = hessian, norm
        self.damping = hessian.new_zeros(len(hessian))

    def at(self, chosen: Tensor) -> _GaussNewton:
        """Minimiser of some of the curves, as far as it has learnt."""
        part = _GaussNewton(self.hessian[chosen], self.norm[chosen])
        part.damping = self.damping[chosen]
        return part

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        H, N, damping = self.hessian[live], self.norm[live], self.damping[live]
        step, indefinite = _solve(H + 2 * damping[:, None, None] * N, gradient)
        if bool(indefinite.any()):
            # Where the model has no minimum, the energy's own metric gives the direction.
            step[indefinite] = _solve(2 * N[indefinite], gradient[indefinite])[0] / (1 + damping[indefinite, None])
        curvature = (step * (H @ step[..., None])[..., 0]).sum(-1)
        return -step, (gradient * step).sum(-1) - curvature.where(~indefinite, 0) / 2

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        H = self.hessian[live]
        error = change - (H @ step[..., None])[..., 0]
        curvature = (error * step).sum(-1)
        size = torch.linalg.vector_norm(error, dim=-1) * torch.linalg.vector_norm(step, dim=-1)
        usable = error.isfinite().all(-1) & (curvature.abs() > 1e-6 * size)
        scale = torch.where(usable, 1 / curvature.where(usable, 1), 0)
        error = error.where(usable[:, None], 0)
        self.hessian[live] = H + scale[:, None, None] * error[:, :, None] * error[:, None, :]
        damping = self.damping[live]
        less = torch.where(damping < 0.1, 0, damping / 4)
        more = (4 * damping).clamp_min(0.5)
        self.damping[live] = torch.where(quality > 0.75, less, torch.where(quality > 0.25, damping, more))


class _LBFGS(_Minimiser):
    """Limited-memory quasi-Newton steps (Nocedal 1980), preconditioned by the spline's stiffness, with backtracking."""

    memory = 10

    def __init__(self, stiffness: Tensor, ratio: Tensor, d: int) -> None:
        self.inverse = torch.linalg.inv(stiffness)
        self.d = d
        # For a metric that is everywhere the identity over `ratio`, the Hessian is 2 K / ratio.
        self.scale = ratio / 2
        self.shrink = torch.ones_like(ratio)
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def _precondition(self, x: Tensor) -> Tensor:
        return (self.inverse @ x.unflatten(1, (-1, self.d))).flatten(1)

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        direction = gradient.clone()
        pairs = [(step[live], change[live], inverse[live, None]) for step, change, inverse in self.pairs]
        shares = []
        for step, change, inverse in reversed(pairs):
            share = inverse * (step * direction).sum(-1, keepdim=True)
            direction = direction - share * change
            shares.append(share)
        direction = self.scale[live, None] * self._precondition(direction)
        for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
            direction = direction + step * (share - inverse * (change * direction).sum(-1, keepdim=True))
        step = self.shrink[live, None] * direction
        return -step, (gradient * step).sum(-1)

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        good = quality > 1e-4
        self.shrink[live] = torch.where(good, 1, self.shrink[live] / 4)
        product = (step * change).sum(-1)
        norms = torch.linalg.vector_norm(step, dim=-1) * torch.linalg.vector_norm(change, dim=-1)
        usable = good & (product > 1e-8 * norms)
        kept = live[usable]
        # A pair whose inverse product is 0 changes nothing: curves that have none of this round keep their history.
        pair = (
            tuple(torch.zeros(len(self.scale), step.shape[1]).to(step) for _ in range(2)),
            torch.zeros_like(self.scale),
        )
        (steps, changes), inverses = pair
        steps[kept], changes[kept], inverses[kept] = step[usable], change[usable], 1 / product[usable]
        self.pairs = [*self.pairs[1 - self.memory :], (steps, changes, inverses)]
        length = (change * self._precondition(change)).sum(-1)
        self.scale[kept] = (product / length)[usable]


class _GradientDescent(_Minimiser):
    """Steps against the gradient with respect to the control points (section 2.1), their size adapted to each curve."""

    def __init__(self, size: Tensor) -> None:
        self.size = size.clone()

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        step = self.size[live, None] * gradient
        return -step, (gradient * step).sum(-1)

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:  # noqa: ARG002
        self.size[live] *= torch.where(quality > 0.5, 1.5, torch.where(quality > 0.1, 1.0, 0.4)).to(self.size)


# --------------------------------------------------------------------------------------------------------------------
# The search
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Level:
    """Knots and grids of one step of refinement."""

    knots: Tensor
    grid: _Grid  # to optimise on
    measuring: _Grid
    weighing: _Grid  # for the metric in the norm

    @property
    def n_elements(self) -> int:
        return (len(self.grid.t) - 1) // self.grid.degree


@dataclass(eq=False)
class _State:
    """Where the curves of a group are at one level."""

    group: _Group
    grid: _Grid
    sample: _Sample
    gradient: Tensor  # (c, f)
    own: tuple[Tensor, Tensor]  # bases of the free control points, on the grid


@dataclass(eq=False)
class _Group:
    """Curves of one level that are still looked for, and what is known of them; first dimension c everywhere."""

    index: Tensor  # (c,), in the chunk
    control: Tensor  # (c, n_control, d), float64
    # Second-order quantities along the first curve, at the nodes of the first grid: see `_Sample`.
    gram: Tensor | None = None
    bend: Tensor | None = None
    rest_gram: Tensor | None = None
    rest_bend: Tensor | None = None
    learnt: Tensor | None = None  # (c, f, f), what secants have added to the Gauss-Newton matrix

    def __getitem__(self, chosen: Tensor) -> _Group:
        fields: dict[str, Any] = {name: x for name, x in vars(self).items() if x is not None}
        return _Group(**{name: x[chosen] for name, x in fields.items()})


def _joined(groups: Sequence[_Group]) -> _Group:
    names = [name for name, x in vars(groups[0]).items() if x is not None]
    return _Group(**{name: torch.cat([getattr(group, name) for group in groups]) for name in names})


@dataclass(eq=False)
class _Found:
    """What the search has found for the curves of a chunk, first dimension c everywhere."""

    control: Tensor  # (c, n_control of the last level, d), of which a curve of a lower level fills the first rows
    level: Tensor
    length: Tensor
    straight_length: Tensor
    energy: Tensor
    residual: Tensor
    length_error: Tensor
    promise: Tensor
    status: Tensor
    n_iterations: Tensor
    n_rows: Tensor
    n_minima: Tensor
    energies: Tensor  # (c, n)
    lengths: Tensor  # (c, n)

    @classmethod
    def nothing(cls, start: Tensor, n_control: int) -> _Found:
        """What is known of curves whose end points coincide."""
        c = len(start)
        count = torch.zeros(c, dtype=torch.long, device=start.device)
        number = torch.zeros(c, dtype=torch.float64, device=start.device)
        names = ("length", "straight_length", "energy", "residual", "length_error", "promise", "n_rows")
        return cls(
            control=start[:, None].double().repeat(1, n_control, 1),
            level=count.clone(),
            status=count + _COINCIDENT,
            n_iterations=count.clone(),
            n_minima=count.clone(),
            energies=number.new_zeros(c, 0),
            lengths=number.new_zeros(c, 0),
            **{name: number.clone() for name in names},
        )


def _padded(history: Tensor, n: int) -> Tensor:
    """History (c, k) with its last value repeated up to n columns; zeros where there is none."""
    last = history[:, -1:] if history.shape[1] else history.new_zeros(len(history), 1)
    return torch.cat([history, last.expand(-1, n - history.shape[1])], dim=1)


def _stacked(founds: Sequence[_Found]) -> _Found:
    """Results of chunks, one after the other."""
    n = max(found.energies.shape[1] for found in founds)
    for found in founds:
        found.energies, found.lengths = _padded(found.energies, n), _padded(found.lengths, n)
    return _Found(**{name: torch.cat([getattr(found, name) for found in founds]) for name in vars(founds[0])})


# Cost of one row in forward passes through the decoder of VAE1 (processor time on one core, tests/benchmarks): the
# value; the value and a reverse pass; each forward derivative besides the value; the squared speed; the squared speed
# and its gradients, which is a reverse pass through a forward derivative.
_VALUE, _VALUE_GRADIENT, _COLUMN, _SPEED, _SPEED_GRADIENT = 1.0, 2.1, 1.75, 3.3, 7.3
_PLATEAU = 5  # iterations; ours: a curve that has stopped getting shorter for so long has a plateau


class _Search:
    """Search for the shorter curves of one chunk of pairs."""

    def __init__(
        self, problem: _Problem, settings: SolverSettings, levels: tuple[list[_Level], int], start: Tensor, end: Tensor
    ) -> None:
        self.problem, self.settings, self.levels, self.n_degrees = problem, settings, *levels
        self.start, self.end = start, end
        self.found = _Found.nothing(start, len(self.levels[-1].knots) - 4)
        self.history: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def run(self, first: int, control: Tensor) -> _Found:
        """Search from control points (c, n_control, d) with the knots of level ``first``."""
        waiting: list[list[_Group]] = [[] for _ in self.levels]
        index = torch.arange(len(control), device=control.device)
        waiting[first].append(_Group(index, control.double()))
        for level in range(first, len(self.levels)):
            if waiting[level]:
                for target, group in self._stage(level, first, _joined(waiting[level])):
                    waiting[target].append(group)
        self._tell_history()
        return self.found

    def _tell_history(self) -> None:
        """Order what was noted by curve and iteration."""
        found = self.found
        n = int(found.n_iterations.max()) + 1
        table = found.energy.new_full((2, len(found.energy), n), torch.nan)
        for index, iteration, energy, length in self.history:
            table[0, index, iteration], table[1, index, iteration] = energy, length
        for k in range(1, n):
            table[..., k] = torch.where(table[..., k].isnan(), table[..., k - 1], table[..., k])
        found.energies, found.lengths = table

    def _sample(self, level: _Level, index: Tensor, control: Tensor, order: int, grid: _Grid | None = None) -> _Sample:
        """Energies of the curves ``index``, and note what that has cost."""
        grid, d = grid or level.grid, self.problem.d
        row = 0.0
        if self.problem.embedded is not None:
            row += (_VALUE, _VALUE_GRADIENT, _VALUE + d * (_COLUMN + _VALUE_GRADIENT))[order]
        if self.problem.rest is not None:
            row += (_SPEED, _SPEED_GRADIENT, (d + 1) * _SPEED_GRADIENT + _VALUE + d * _COLUMN)[order]
        self.found.n_rows[index] += row * len(grid.t)
        return self.problem.sample(grid, level.knots, control, order)

    def _stage(self, number: int, first: int, group: _Group) -> list[tuple[int, _Group]]:
        """Optimise curves at one level; return those to be refined, with the levels where they go on."""
        problem, level = self.problem, self.levels[number]
        newton = self.settings.method == "gauss-newton"
        index = group.index
        sample = self._sample(level, index, group.control, 2 if newton and number == first else 1)
        self.found.n_iterations[index] += number != first
        if number == first:
            _refuse_nonfinite(sample.energy, self.start[index], self.end[index])
            for name in _SECOND_ORDER:
                setattr(group, name, getattr(sample, name))
        self._note(index, sample)
        own = _free(problem.basis(level.grid, level.knots))
        state = _State(group, level.grid, sample, sample.gradient(*own), own)
        if not newton:
            promise = self._descend(level, state)
            return self._conclude(number, state, promise)
        base, norm, finer_norm, M = self._matrices(self.levels[first], level, group)
        minimiser = _GaussNewton(base if group.learnt is None else base + group.learnt, norm)
        promise = self._newton(number, state, minimiser, finer_norm, M)
        group.learnt = minimiser.hessian - base
        return self._conclude(number, state, promise, minimiser)

    def _matrices(self, first: _Level, level: _Level, group: _Group) -> list[Tensor]:
        """Hessian, norm, norm with finer knots, and metric at the nodes, from what is known along the first curve."""
        problem, finer_knots = self.problem, _finer(level.knots)
        parts = []
        # Interpolated, the metric at all pairs of nodes takes much more memory than the matrices made of it.
        n_curves = max(1, problem.budget * 8 // (len(level.grid.t) * problem.d) ** 2)
        known = {name: x for name in _SECOND_ORDER if (x := getattr(group, name)) is not None}
        for i in range(0, len(group.index), n_curves):
            here = {
                name: _interpolated(x[i : i + n_curves], first.grid, level.grid, linearly=name.startswith("rest"))
                for name, x in known.items()
            }
            grams = here.get("gram"), here.get("rest_gram")
            parts.append(
                (
                    problem.hessian(level.grid, level.knots, **here),
                    problem.norm(level.grid, level.knots, *grams),
                    problem.norm(level.grid, finer_knots, *grams),
                    _at_nodes(*grams),
                )
            )
        return [torch.cat(matrices) for matrices in zip(*parts, strict=True)]

    def _newton(self, number: int, state: _State, minimiser: _GaussNewton, finer_norm: Tensor, M: Tensor) -> Tensor:
        """Iterate until each curve deserves a finer level or is done; return the relative gain of finer knots."""
        settings, problem, level = self.settings, self.problem, self.levels[number]
        finer = _free(problem.basis(level.grid, _finer(level.knots)))
        velocities = problem.basis(level.grid, level.knots)[1]
        promise = torch.full_like(state.sample.energy, torch.inf)
        live = torch.arange(len(promise), device=promise.device)
        while len(live):
            sample = state.sample.at(live)
            residual = _residual(minimiser.norm[live], state.gradient[live], sample.energy)
            outlook = _residual(finer_norm[live], sample.gradient(*finer), sample.energy)
            across = problem.across(level.grid, sample, velocities @ state.group.control[live], M[live])
            promise[live] = _residual(finer_norm[live], across.gradient(*finer), sample.energy).square() / 2
            # The last step, which each curve takes when it leaves, makes this much smaller.
            wanted = torch.where(minimiser.damping[live] == 0, _LEFT, 1) * settings.tolerance
            if self._has_finer_knots(number):
                wanted = torch.where(promise[live] > settings.length_tolerance, wanted.maximum(outlook / 2), wanted)
            if self._has_finer_grid(number):
                wanted = wanted.maximum(_grid_error(state.sample.tail[live]))
            live = live[residual > wanted]
            live = self._iterate(level, state, minimiser, live)
        return promise

    def _descend(self, level: _Level, state: _State) -> Tensor:
        """Iterate until the energy of each curve has a plateau; what finer knots promise is not known."""
        settings, problem, index = self.settings, self.problem, state.group.index
        energy = state.sample.energy
        unit = energy.new_ones(1, len(level.grid.t), 1, 1)
        stiffness = problem.norm(level.grid, level.knots, unit)[0]
        # Squared latent over squared decoded length.
        squared = (self.end - self.start)[index].double().square().sum(-1)
        ratio = torch.where(energy > 0, squared / energy, 0)
        minimiser: _Minimiser
        if settings.method == "lbfgs":
            minimiser = _LBFGS(stiffness, ratio, problem.d)
        else:
            minimiser = _GradientDescent(ratio / (2 * torch.linalg.matrix_norm(stiffness, 2)))
        past = [energy.clone()]
        live = torch.arange(len(index), device=index.device)
        while len(live):
            live = self._iterate(level, state, minimiser, live)
            past.append(state.sample.energy.clone())
            if len(past) > _PLATEAU:
                plateau = torch.full_like(energy, settings.length_tolerance)
                if settings.method == "lbfgs":
                    # The energy exceeds the least by the square of the residual; no need to outdo the grid.
                    plateau = _grid_error(state.sample.tail).clamp_min(settings.tolerance).square() / 10
                live = live[((past[-1 - _PLATEAU] - past[-1]) / past[-1] > plateau)[live]]
        return torch.full_like(energy, torch.inf)

    def _iterate(self, level: _Level, state: _State, minimiser: _Minimiser, live: Tensor) -> Tensor:
        """Try one step of the curves ``live``; return those for which another may make sense."""
        index, noise = state.group.index, 4 * torch.finfo(self.problem.dtype).eps
        live = live[self.found.n_iterations[index[live]] < self.settings.n_iterations]
        step, promised = minimiser.propose(live, state.gradient[live])
        energy = state.sample.energy[live]
        hopeful = promised > 1e-3 * noise * energy
        live, step, promised, energy = live[hopeful], step[hopeful], promised[hopeful], energy[hopeful]
        if len(live) == 0:
            return live
        control = state.group.control
        trial = control[live]
        trial[:, 1:-1] += step.unflatten(1, (-1, self.problem.d))
        trial = self.problem.rounded(trial)
        self.found.n_iterations[index[live]] += 1
        tried = self._sample(level, index[live], trial, 1, state.grid)
        gradient = tried.gradient(*state.own)
        minimiser.learn(live, step, gradient - state.gradient[live], (energy - tried.energy) / promised)
        # Within rounding a step is trusted: the gradient is still right where differences of energy are not.
        better = (tried.energy <= energy * (1 + noise)) & gradient.isfinite().all(-1)
        won = live[better]
        control[won], state.gradient[won] = trial[better], gradient[better]
        state.sample.put(won, tried.at(better))
        self._note(index[live], state.sample.at(live))
        return live

    def _note(self, index: Tensor, sample: _Sample) -> None:
        self.history.append((index, self.found.n_iterations[index], sample.energy.clone(), sample.length.clone()))

    def _has_finer_knots(self, number: int) -> bool:
        return number // self.n_degrees + 1 < len(self.levels) // self.n_degrees

    def _has_finer_grid(self, number: int) -> bool:
        return number % self.n_degrees + 1 < self.n_degrees

    def _conclude(
        self, number: int, state: _State, promise: Tensor, minimiser: _GaussNewton | None = None
    ) -> list[tuple[int, _Group]]:
        """Certify the curves that are done and refine the others."""
        settings, found, group = self.settings, self.found, state.group
        index, length, tail = group.index, state.sample.length, state.sample.tail
        can_go_on = found.n_iterations[index] < settings.n_iterations
        if settings.method == "lbfgs":
            # What the last refinement has brought; before there was one, nothing is known.
            before = found.length[index]
            promise = torch.where(before > 0, (before - length).abs() / length, torch.inf)
        found.length[index], found.promise[index] = length, promise
        refine = can_go_on & (promise > settings.length_tolerance) & self._has_finer_knots(number)
        resolve = can_go_on & (_grid_error(tail) > settings.tolerance) & self._has_finer_grid(number)
        if minimiser is not None:
            self._last_step(state, minimiser)
        done = (~(refine | resolve)).nonzero()[:, 0]
        if len(done):
            again = can_go_on[done] & (self._has_finer_grid(number) or self._has_finer_knots(number))
            bad, longer = self._certify(number, state, done, minimiser, again)
            # What fails on the measuring grid needs more nodes; what is longer than the line, more control points.
            (resolve if self._has_finer_grid(number) else refine)[done[bad & again]] = True
            refine[done[longer & again]] = self._has_finer_knots(number)
        target = self._targets(number, refine, resolve, promise, tail)
        return [
            (to, self._moved(number, to, group[(target == to).nonzero()[:, 0]]))
            for to in target[target > number].unique().tolist()
        ]

    def _targets(self, number: int, refine: Tensor, resolve: Tensor, promise: Tensor, tail: Tensor) -> Tensor:
        """Levels where curves go on; this one for those that do not."""
        settings, n_degrees = self.settings, self.n_degrees
        now, here = number // n_degrees, number % n_degrees
        n_knots = len(self.levels) // n_degrees
        jump = torch.ones_like(refine, dtype=torch.long)
        if settings.method == "gauss-newton":
            jump += promise > _MUCH * settings.length_tolerance
        knots = torch.where(refine, (now + jump).clamp(max=n_knots - 1), now)
        # How fine must the grid be, for what is still to be gained?
        wanted = torch.where(refine, 0.3 * (2 * promise).sqrt(), 0).clamp_min(settings.tolerance)
        target = torch.full_like(knots, number)
        level = self.levels[number]
        for k in knots[refine | resolve].unique().tolist():
            degree = torch.full_like(knots, n_degrees - 1)
            for i in reversed(range(n_degrees)):
                finer = self.levels[k * n_degrees + i]
                # Amplitudes of the modes fall geometrically, the faster the shorter an element.
                rate = tail ** (1 / (level.grid.degree - 1)) * (level.n_elements / finer.n_elements) ** 2
                degree = torch.where(_grid_error(rate ** (finer.grid.degree - 1)) <= wanted, i, degree)
            chosen = (refine | resolve) & (knots == k)
            least = here + 1 if k == now else 0
            target[chosen] = k * n_degrees + degree[chosen].clamp(min=least)
        return target

    def _moved(self, number: int, to: int, group: _Group) -> _Group:
        """Curves of one level as curves of another."""
        T = _prolongation(self.levels[number].knots, self.levels[to].knots).to(group.control.device)
        learnt = group.learnt
        if learnt is not None:
            # R T = 1: on the curves of the coarse level, the matrix stays what it was.
            R = torch.linalg.pinv(T[1:-1, 1:-1])
            R = torch.kron(R, torch.eye(self.problem.d, dtype=R.dtype, device=R.device))
            learnt = R.T @ learnt @ R
        return replace(group, control=T @ group.control, learnt=learnt)

    def _last_step(self, state: _State, minimiser: _GaussNewton) -> None:
        """Take the next step unseen where the model has proved good: a finer grid will look at it."""
        residual = _residual(minimiser.norm, state.gradient, state.sample.energy)
        trusted = (residual > self.settings.tolerance / 2) & (minimiser.damping == 0)
        live = (trusted & (residual < _TRUSTED)).nonzero()[:, 0]
        step, _ = minimiser.propose(live, state.gradient[live])
        state.group.control[live, 1:-1] += step.unflatten(1, (-1, self.problem.d))

    def _certify(
        self, number: int, state: _State, done: Tensor, minimiser: _GaussNewton | None, again: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Measure the curves ``done`` on the measuring grid; tells which fail, and which are longer but may improve.

        Curves that may go on (``again``) and fail in the norm of the search are not looked at further.
        """
        found, problem, settings, level = self.found, self.problem, self.settings, self.levels[number]
        group = state.group[done]
        index, control = group.index, group.control
        line = _line(self.start[index], self.end[index], level.knots)
        moved = ((control - line).abs() > 1e-12 * line.abs().amax((1, 2), keepdim=True)).any(-1).any(-1)
        control[:] = problem.rounded(torch.where(moved[:, None, None], control, line))
        sample = self._sample(level, index, control, 1, level.measuring)
        keep = torch.ones_like(again)
        if minimiser is not None:
            own = _free(problem.basis(level.measuring, level.knots))
            measured = _State(group, level.measuring, sample, sample.gradient(*own), own)
            residual = self._correct(level, measured, minimiser.at(done))
            state.group.control[done] = control
            keep = ~again | (residual <= 1.5 * settings.tolerance)
        bad, longer = ~keep, torch.zeros_like(keep)
        if not bool(keep.any()):
            return bad, longer
        coarse = state.sample.length[done]
        found.level[index[keep]] = number
        rough = torch.zeros_like(keep)
        bad[keep], longer[keep], rough[keep] = self._record(
            level, index[keep], control[keep], sample.at(keep), coarse[keep]
        )
        # What the measuring grid does not resolve is measured on finer ones: a length must be one, converged or not.
        coarse = sample.length.clone()
        for _ in range(_DOUBLINGS):
            rough &= ~(again & (bad | longer))
            if not bool(rough.any()):
                break
            level = replace(level, measuring=problem.halved(level.measuring, level.knots))
            sample = self._sample(level, index[rough], control[rough], 1, level.measuring)
            finer = sample.length.clone()
            bad[rough], longer[rough], still = self._record(level, index[rough], control[rough], sample, coarse[rough])
            coarse[rough] = finer
            rough[rough.clone()] = still
        return bad, longer

    def _correct(self, level: _Level, measured: _State, minimiser: _GaussNewton) -> Tensor:
        """Take the steps on the measuring grid that small residuals are still lacking; return the residuals."""
        tolerance = self.settings.tolerance
        residual = _residual(minimiser.norm, measured.gradient, measured.sample.energy)
        live = ((residual > tolerance) & (residual < _NEAR * tolerance)).nonzero()[:, 0]
        for _ in range(_CORRECTIONS):
            live = self._iterate(level, measured, minimiser, live)
            residual[live] = _residual(minimiser.norm[live], measured.gradient[live], measured.sample.energy[live])
            live = live[residual[live] > tolerance]
        return residual

    def _record(
        self, level: _Level, index: Tensor, control: Tensor, sample: _Sample, coarse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compare measured curves with the line, weigh their gradient and note the result.

        Tells as `_certify`, and of which curves the grid does not resolve the length or that of the line.
        """
        found, problem, tolerance = self.found, self.problem, self.settings.tolerance
        line = problem.rounded(_line(self.start[index], self.end[index], level.knots))
        moved = (control != line).any(-1).any(-1)
        straight, straight_tail = sample.length.clone(), sample.length_tail.clone()
        if bool(moved.any()):
            on_line = self._sample(level, index[moved], line[moved], 0, level.measuring)
            straight[moved], straight_tail[moved] = on_line.length, on_line.length_tail
        longer = moved & ~(sample.length < straight)
        excess = sample.length / straight - 1
        if bool(longer.any()):
            control[longer] = line[longer]
            sample.put(longer, self._sample(level, index[longer], line[longer], 1, level.measuring))
            straight[longer] = sample.length[longer]
        z = problem.basis(level.weighing, level.knots)[0] @ control
        M = problem.tensor(z)
        found.n_rows[index] += (_VALUE + problem.d * _COLUMN) * len(level.weighing.t)
        norm = problem.norm(level.grid, level.knots, _interpolated(M, level.weighing, level.grid))
        gradient = sample.gradient(*_free(problem.basis(level.measuring, level.knots)))
        residual = _residual(norm, gradient, sample.energy)
        converged = residual <= tolerance
        exhausted = found.n_iterations[index] >= self.settings.n_iterations
        promise = found.promise[index]
        rough = promise > self.settings.length_tolerance
        status = torch.where(exhausted, _EXHAUSTED, torch.full_like(index, _COARSE))
        status = torch.where(longer & ~exhausted, _LONGER, status)
        status = torch.where(converged, torch.where(rough & ~longer, _REFINABLE, _CONVERGED), status)
        error = (sample.length - coarse).abs()
        if problem.embedded is not None:
            # The highest mode alone can vanish by chance; a kept line has no length on the coarser grid.
            error = torch.maximum(torch.where(longer, 0.0, error), sample.length_tail)
        before = found.straight_length[index]
        straight_error = torch.maximum(straight_tail, torch.where(before > 0, (straight - before).abs(), 0))
        # A tenth: the estimates have been seen to be too small by ten where a curve stands still.
        wanted = max(self.settings.length_tolerance, _KNOWN)
        limit = wanted / 10
        unresolved = (error > limit * sample.length) | (straight_error > limit * straight)
        # A finer grid resolves no rounding: it amplifies it.
        unresolved &= torch.maximum(error, straight_error) > _ABOVE_NOISE * sample.noise
        error = error + sample.noise
        known = error <= wanted * sample.length
        drowned = error <= _ABOVE_NOISE * sample.noise
        status = torch.where(~known & (converged | drowned), _UNKNOWN, status)
        found.control[index, : control.shape[1]] = control
        found.length[index], found.straight_length[index], found.energy[index] = sample.length, straight, sample.energy
        found.length_error[index] = error + 4 * torch.finfo(problem.dtype).eps * sample.length
        found.residual[index], found.status[index] = residual, status
        hopeful = longer & (promise > excess / 2) & (promise > self.settings.length_tolerance / 100)
        return ~converged & ~longer, hopeful, unresolved


def _free(matrices: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Columns of the control points that are free: all but the first and the last."""
    return matrices[0][:, 1:-1], matrices[1][:, 1:-1]


def _line(start: Tensor, end: Tensor, knots: Tensor) -> Tensor:
    """Control points (c, n_control, d) of straight lines, in float64."""
    fraction = knots.unfold(0, 3, 1)[1:-1].mean(-1).to(start.device)[:, None]
    return (1 - fraction) * start[:, None].double() + fraction * end[:, None].double()


def _bisected(knots: Tensor) -> Tensor:
    ends = knots.unique()
    return torch.cat([knots, (ends[1:] + ends[:-1]) / 2]).sort().values


def _finer(knots: Tensor) -> Tensor:
    """Knots on which it is judged whether more are needed; one in the middle brings nothing to a symmetric curve."""
    return _bisected(_bisected(knots)) if len(knots) == 8 else _bisected(knots)


def _prolongation(coarse: Tensor, fine: Tensor) -> Tensor:
    """Matrix (n_fine, n_coarse) that takes control points to those of the same curve with more knots."""
    curve = CubicBSpline(torch.eye(len(coarse) - 4, dtype=torch.float64), coarse)
    present = coarse.tolist()
    for knot in fine.unique().tolist():
        if knot not in present:
            curve = curve.insert_knot(knot)
    return curve.control_points


def _levels(problem: _Problem, settings: SolverSettings) -> tuple[list[_Level], int]:
    """Levels in the order in which they are visited, by knots and then by degree; and the number of degrees."""
    all_knots = [uniform_knots(4)]
    while True:
        if settings.method == "gradient":
            # One control point at a time, in the middle of the largest interval (App. A).
            knots = CubicBSpline(torch.zeros(len(all_knots[-1]) - 4, 1), all_knots[-1]).insert_knot().knots
        else:
            knots = _bisected(all_knots[-1])
        if len(knots) - 4 > settings.n_control:
            break
        all_knots.append(knots)
    coarsest = max(2, round(settings.nodes / _ELEMENTS))
    degrees = [coarsest, *(degree for degree in _DEGREES if degree > coarsest)]
    if settings.method == "gradient":
        degrees = [6]
    return [_level(problem, knots, degree) for knots in all_knots for degree in degrees], len(degrees)


def _level(problem: _Problem, knots: Tensor, degree: int) -> _Level:
    n_spans = len(knots) - 7
    pieces = math.ceil(_ELEMENTS / n_spans)
    fine = max(math.ceil(1.5 * degree), math.ceil(_MEASURED / (n_spans * pieces)))
    return _Level(
        knots,
        problem.grid(knots, degree, pieces),
        problem.grid(knots, fine, pieces),
        # The metric varies more slowly than the gradient: a few nodes, linearly interpolated, make the norm.
        _grid((0.0, 1.0), max(6, n_spans) - 1, 1, False),
    )


# Ours, tuned on Algorithm 1's pairs of VAE1 for the fewest decoder rows. A curve is cut into at least so many elements,
# with polynomials of these degrees after the coarsest; it is measured at no fewer nodes than this.
_ELEMENTS, _DEGREES, _MEASURED = 4, (3, 4, 6, 8, 12, 16), 40
# A length is to be known at least so well, relatively, whatever is asked of the number of control points.
_KNOWN = 1e-3
# The measuring grid is halved so often at most: for a curve that crosses a border as thin as a thousandth of it.
_DOUBLINGS = 5
# Rounding errors of a decoder's values, in units of the dtype's precision; and how far an error must be above what they
# add to a length for a finer grid to make it smaller.
_ROUNDING, _ABOVE_NOISE = 4, 10
# A step is taken unseen, as a finer grid will look at it, where the residual is below this.
_TRUSTED = 0.1
# Such a step makes a residual smaller by this factor, as a rule. If not, so many more are taken on the measuring grid,
# where the residual, relative to the tolerance, is below this.
_LEFT, _CORRECTIONS, _NEAR = 3, 3, 30
# Promised gain, relative to the tolerance, above which spans are quartered and not halved.
_MUCH = 2


def _grid_error(tail: Tensor) -> Tensor:
    """Estimated error of the relative projected gradient on a grid: the share of the highest mode.

    On VAE1 the error is 0.9 to 5.5 times this (the middle four fifths of curves, degree 6); what is promised too much
    shows on the measuring grid.
    """
    return tail


def _refuse_nonfinite(energy: Tensor, start: Tensor, end: Tensor) -> None:
    bad = ~energy.isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"the energy of {int(bad.sum())} of {len(bad)} initial curves is not finite, first from "
            f"{start[bad][0].tolist()} to {end[bad][0].tolist()}: the generator gives NaN or infinity on the way"
        )


_CONVERGED, _REFINABLE, _COARSE, _EXHAUSTED, _LONGER, _COINCIDENT, _UNKNOWN = range(7)
_CERTIFIED = (_CONVERGED, _REFINABLE, _COINCIDENT)
_MESSAGES = (
    "converged",
    "converged with as many control points as allowed; more would shorten the curve further: raise n_control",
    "the projected gradient on the measuring grid stays above the tolerance: raise nodes or n_control, or use float64",
    "the iterations are used up: raise n_iterations",
    "no curve shorter than the straight line was found: raise n_control, or use other starts",
    "the end points coincide",
    "the length is not known to a thousandth or length_tolerance: use float64, or raise nodes",
)


# --------------------------------------------------------------------------------------------------------------------
# Public
# --------------------------------------------------------------------------------------------------------------------


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
        Index into the messages.
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
        return np.array(_MESSAGES)[self.status.cpu().numpy()]


def shorten(
    metric: Metric,
    start: Tensor,
    end: Tensor,
    settings: SolverSettings = SolverSettings(),
    *,
    points: Tensor | None = None,
) -> ShortenResult:
    """Look for curves between pairs of latent points that are shorter than the straight line (section 2.1).

    Minimises the path energy ``integral of |g'(t)|^2 dt`` over the control points of cubic B-splines, for all pairs at
    once, each with its own steps, refinement and stopping.

    Parameters
    ----------
    metric : Metric
    start, end : Tensor, shape (..., d)
        End points, of one shape, dtype and device.
    settings : SolverSettings
    points : Tensor, shape (n, d), optional
        Samples of the prior or codes of data, between which ``starts="graph"`` looks for a path.

    Returns
    -------
    ShortenResult
        Never longer than the straight line; where no shorter curve was found it is the straight line itself.

    Raises
    ------
    ValueError
        If end points are not floating point, not finite, or differ in shape, dtype or device; if the metric is not
        finite along the straight line; if a setting makes no sense; if the graph falls apart.
    TypeError
        If ``metric`` is not a :class:`lgi.metric.Metric`.

    Notes
    -----
    The search starts with two free control points and bisects all spans where the estimated gain is worth it. Where the
    metric is the pull-back of a map ``h``, the energy is that of the polynomials through the values of ``h`` on each
    span (spectral elements), whose gradient takes one reverse pass; else it is a quadrature of the squared speed.
    A curve that has converged on its grid is measured on a finer one (see ``SolverSettings.nodes``), where a few more
    steps are taken if they are needed; if its projected gradient stays too large, the search goes on with more nodes. A
    length that this grid does not resolve, on the way across a thin ridge of the metric, is measured on finer grids,
    up to 32 times as fine. All small matrices are in float64, whatever the metric's dtype.

    The result is a stationary point of the energy, not always the shortest curve: see ``starts``.
    """
    _check(metric, start, end, settings, points)
    with torch.inference_mode(False), torch.no_grad():
        d = start.shape[-1]
        first, last = (x.detach().clone().reshape(-1, d) for x in (start, end))
        problem = _Problem(metric, first.new_zeros(d) if len(first) == 0 else first[0])
        levels = _levels(problem, settings)
        graph = None if points is None else _Graph(metric, points, settings.n_neighbours)
        chunk_size = settings.chunk_size or _chunk_size(settings, d)
        pieces = []
        with progress_bar(len(first), desc="shorten", unit="curves", show=settings.progress) as advance:
            # No pairs have a result too, an empty one.
            for offset in range(0, max(1, len(first)), chunk_size):
                part = slice(offset, offset + chunk_size)
                pieces.append(
                    _shorten_chunk(problem, settings, levels, first[part], last[part], offset=offset, graph=graph)
                )
                advance(len(first[part]))
        return _assemble(_stacked(pieces), levels[0], start.shape[:-1], start)


def _check(metric: Metric, start: Tensor, end: Tensor, settings: SolverSettings, points: Tensor | None) -> None:
    if not isinstance(metric, Metric):
        raise TypeError(f"expected a metric, such as lgi.PullbackMetric(generator), got a {type(metric).__name__}")
    for name, x in (("start", start), ("end", end)):
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim == 0:
            what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ValueError(f"expected {name} as floating-point points (..., d), got {what}: use .float()")
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name} has {int((~x.isfinite()).any(-1).sum())} points that are NaN or infinite")
    if start.shape != end.shape:
        raise ValueError(
            f"expected start and end of one shape (..., d), got {tuple(start.shape)} and {tuple(end.shape)}: expand one"
        )
    if start.dtype != end.dtype or start.device != end.device:
        raise ValueError(f"start is {start.dtype} on {start.device}, end is {end.dtype} on {end.device}: convert one")
    if metric.latent_dim is not None and start.shape[-1] != metric.latent_dim:
        raise ValueError(f"expected points (..., {metric.latent_dim}) for {metric!r}, got {tuple(start.shape)}")
    if (points is None) == (settings.starts == "graph"):
        raise ValueError('points are needed for starts="graph", and only there')


def _chunk_size(settings: SolverSettings, d: int) -> int:
    """Curves at a time, such that what is kept of a chunk takes about a quarter of a gigabyte."""
    n_free = (settings.n_control - 2) * d
    per_curve = 20 * n_free if settings.method != "gauss-newton" else 10 * n_free**2 + (2 * settings.nodes * d) ** 2
    return max(1, min(1024, (1 << 25) // per_curve))


def _shorten_chunk(
    problem: _Problem,
    settings: SolverSettings,
    levels: tuple[list[_Level], int],
    start: Tensor,
    end: Tensor,
    *,
    offset: int,
    graph: _Graph | None,
) -> _Found:
    """Search from all initial curves, and keep the shortest of each pair."""
    result = _Found.nothing(start, len(levels[0][-1].knots) - 4)
    apart = (start != end).any(-1).nonzero()[:, 0]
    if len(apart) == 0:
        return result
    start, end = start[apart], end[apart]
    starts: list[tuple[int, Tensor]] = [(0, _line(start, end, uniform_knots(4)))]
    rows = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    if settings.starts == "multi":
        starts += [(0, control) for control in _bent(start, end, settings, (apart + offset).tolist())]
    elif graph is not None:
        # A path has more corners than two free control points can follow.
        number = max(i for i, level in enumerate(levels[0]) if len(level.knots) <= 15 and i % levels[1] == 0)
        control, rows = graph.initial(start, end, levels[0][number].knots)
        starts.append((number, control))
    founds = [_Search(problem, settings, levels, start, end).run(*initial) for initial in starts]
    lengths = torch.stack([found.length for found in founds])
    all_starts = _stacked(founds)
    chosen = lengths.argmin(0) * len(start) + torch.arange(len(start), device=start.device)
    best = _Found(**{name: x[chosen] for name, x in vars(all_starts).items()})
    best.n_rows = sum((found.n_rows for found in founds), rows)
    best.n_minima = _n_distinct(lengths, torch.stack([found.residual for found in founds]) <= settings.tolerance)
    n = best.energies.shape[1]
    result.energies, result.lengths = _padded(result.energies, n), _padded(result.lengths, n)
    for name, x in vars(best).items():
        getattr(result, name)[apart] = x
    return result


def _n_distinct(lengths: Tensor, valid: Tensor) -> Tensor:
    """Number of distinct lengths (n_starts, c) of each column, among the valid ones."""
    ordered = torch.where(valid, lengths, torch.inf).sort(0).values
    new = ordered[1:] > ordered[:-1] * (1 + 1e-3)
    return (ordered[0].isfinite().long() + (new & ordered[1:].isfinite()).sum(0)).long()


def _bent(start: Tensor, end: Tensor, settings: SolverSettings, numbers: Sequence[int]) -> list[Tensor]:
    """Curves bent to one side and to the other, ever further, of random direction; four control points."""
    line = _line(start, end, uniform_knots(4))
    along = line[:, -1] - line[:, 0]
    n_draws = settings.n_starts // 2
    draws = np.array(
        [np.random.default_rng((settings.seed, i)).standard_normal((n_draws, start.shape[1])) for i in numbers]
    ).reshape(len(start), n_draws, -1)
    curves = []
    for k in range(settings.n_starts - 1):
        # Each direction serves twice, for either side.
        direction = torch.as_tensor(draws[:, k // 2], device=start.device)
        direction = direction - along * ((direction * along).sum(-1) / along.square().sum(-1))[:, None]
        unit = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True).clamp_min(1e-12)
        height = torch.linalg.vector_norm(along, dim=-1, keepdim=True) * (1 + k // 2) / 2 * (1 - 2 * (k % 2))
        curve = line.clone()
        curve[:, 1:-1] += (height * unit)[:, None]
        curves.append(curve)
    return curves


class _Graph:
    """Points joined to their nearest neighbours, edges weighed by decoded length.

    Parameters
    ----------
    metric : Metric
    points : Tensor, shape (n, d)
    n_neighbours : int
    """

    def __init__(self, metric: Metric, points: Tensor, n_neighbours: int) -> None:
        from scipy.sparse import coo_array
        from sklearn.neighbors import NearestNeighbors

        self.metric, self.points = metric, points.detach().clone()
        self.n_neighbours = min(n_neighbours, len(points) - 1)
        self.search = NearestNeighbors(n_neighbors=self.n_neighbours + 1).fit(points.cpu().numpy())
        neighbours = self.search.kneighbors(points.cpu().numpy(), return_distance=False)
        edges = np.stack([np.repeat(np.arange(len(points)), self.n_neighbours + 1), neighbours.reshape(-1)], axis=1)
        edges = np.unique(np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1), axis=0)
        a, b = self.points[edges[:, 0]], self.points[edges[:, 1]]
        self.matrix = coo_array((self._lengths(a, b), (edges[:, 0], edges[:, 1])), shape=(len(points), len(points)))

    def _lengths(self, a: Tensor, b: Tensor) -> np.ndarray[Any, Any]:
        lengths = curve_length(self.metric, torch.stack([a, b], dim=-2), n_t=_EDGE_NODES)
        # Dijkstra takes an edge of weight 0 for none.
        return np.asarray(lengths.double().cpu().numpy().clip(min=1e-300))

    def initial(self, start: Tensor, end: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
        """Splines along the shortest paths (c, n_control, d), and the decoder rows spent on each pair."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components, dijkstra

        c, n, k = len(start), len(self.points), self.n_neighbours
        ends = torch.cat([start, end])
        near = self.search.kneighbors(ends.cpu().numpy(), n_neighbors=k, return_distance=False).reshape(-1)
        own = np.repeat(np.arange(n, n + 2 * c), k)
        weights = self._lengths(ends.repeat_interleave(k, 0), self.points[near])
        # Edges lead out of starts and into ends only: they are no way through for other pairs.
        is_start = own < n + c
        row = np.concatenate([self.matrix.row, self.matrix.col, np.where(is_start, own, near)])
        column = np.concatenate([self.matrix.col, self.matrix.row, np.where(is_start, near, own)])
        data = np.concatenate([self.matrix.data, self.matrix.data, weights])
        joined = coo_array((data, (row, column)), shape=(n + 2 * c, n + 2 * c)).tocsr()
        distances, before = dijkstra(joined, indices=np.arange(n, n + c), return_predecessors=True)
        lost = np.isinf(distances[np.arange(c), n + c + np.arange(c)])
        if lost.any():
            sizes = np.sort(np.bincount(connected_components(self.matrix, directed=False)[1]))[::-1]
            raise ValueError(
                f"the graph of {n} points with {k} neighbours each falls apart into {len(sizes)} pieces of "
                f"{sizes[:5].tolist()}{'...' if len(sizes) > 5 else ''} points, and {int(lost.sum())} of {c} pairs lie "
                "in different pieces: raise n_neighbours, or give more points between them"
            )
        everything = torch.cat([self.points, ends]).double().cpu().numpy()
        t = torch.linspace(0, 1, 4 * len(knots), dtype=torch.float64)
        paths = []
        for i in range(c):
            nodes = [n + c + i]
            while nodes[-1] != n + i:
                nodes.append(int(before[i, nodes[-1]]))
            nodes.reverse()
            passed = distances[i, nodes] / distances[i, nodes[-1]]
            paths.append(np.stack([np.interp(t.numpy(), passed, x) for x in everything[nodes].T], axis=-1))
        B = basis(knots, t).to(start.device)
        control = _line(start, end, knots)
        rest = torch.tensor(np.array(paths), device=start.device) - B[:, [0, -1]] @ control[:, [0, -1]]
        control[:, 1:-1] = torch.linalg.pinv(B[:, 1:-1]) @ rest
        cost = _EDGE_NODES * _SPEED * (2 * k + len(self.matrix.data) / c)
        return control, torch.full((c,), cost, dtype=torch.float64, device=start.device)


# Quadrature nodes for the length of an edge; it need not be more exact than the choice of a path.
_EDGE_NODES = 4


def _assemble(found: _Found, levels: list[_Level], shape: torch.Size, like: Tensor) -> ShortenResult:
    """Give the results the leading dimensions of the end points."""
    # All curves get the knots of the finest that is needed; knots are only added, never taken away.
    top = int(found.level.max()) if len(found.level) else 0
    knots = levels[top].knots
    control = found.control.new_zeros(len(found.level), len(knots) - 4, found.control.shape[-1])
    for level in found.level.unique().tolist():
        chosen = found.level == level
        T = _prolongation(levels[level].knots, knots).to(control.device)
        control[chosen] = T @ found.control[chosen, : T.shape[1]]

    def shaped(x: Tensor) -> Tensor:
        return x.reshape(shape + x.shape[1:])

    def real(x: Tensor) -> Tensor:
        return shaped(x).to(like.dtype)

    positive = found.straight_length > 0
    improvement = torch.where(positive, (found.straight_length - found.length) / found.straight_length, 0)
    ratio = torch.where(found.energy > 0, found.length.square() / found.energy, 1).clamp(max=1)
    n_control = torch.tensor([len(level.knots) - 4 for level in levels], device=found.level.device)
    return ShortenResult(
        curve=CubicBSpline(real(control), knots),
        length=real(found.length),
        straight_length=real(found.straight_length),
        improvement=real(improvement),
        energy=real(found.energy),
        converged=shaped(torch.isin(found.status, found.status.new_tensor(_CERTIFIED))),
        residual=real(found.residual),
        refinement_gain=real(found.promise),
        speed_variation=real((1 / ratio - 1).sqrt()),
        length_squared_over_energy=real(ratio),
        length_error=real(found.length_error),
        status=shaped(found.status),
        n_iterations=shaped(found.n_iterations),
        n_control=shaped(n_control[found.level]),
        n_rows=real(found.n_rows),
        n_minima=shaped(found.n_minima),
        history=ShortenHistory(energy=real(found.energies), length=real(found.lengths)),
    )
