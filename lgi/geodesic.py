"""Shorter curves between latent points, many at once, each with a certificate (section 2.1)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lgi.metric import Metric, curve_length
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
        Smallest number of points of a curve at which the metric is evaluated while optimising; the results are
        measured on at least four times as many. There are at least ``4`` a span.
    starts : {"line", "graph", "multi"}
        Where the search starts. ``"line"``: the straight line (the paper's). ``"multi"``: the line and ``n_starts - 1``
        bent curves. ``"graph"``: the line and the shortest path over a graph of given points.
    n_starts : int
        Number of initial curves of ``"multi"``.
    n_neighbours : int
        Neighbours that each point of the graph is joined to.
    chunk_size : int, optional
        Curves worked on at a time; by default as many as fit a bounded memory.
    seed : int
        Of the bent curves. Those of pair ``i`` depend on (seed, i) alone.
    progress : bool, optional
        Whether to show a progress bar; by default if the output is a terminal.
    """

    method: Method = "gauss-newton"
    n_control: int = 20
    n_iterations: int = 100
    tolerance: float = 1e-3
    length_tolerance: float = 1e-4
    nodes: int = 12
    starts: Starts = "line"
    n_starts: int = 4
    n_neighbours: int = 10
    chunk_size: int | None = None
    seed: int = 0
    progress: bool | None = None


# --------------------------------------------------------------------------------------------------------------------
# Energy of splines on a grid of parameters
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Grid:
    """Where curves with common knots are evaluated, and how energy and length follow.

    With an embedding ``h``, the curve ``h(z(t))`` is interpolated on each span by the polynomial through its values at
    the Gauss-Lobatto nodes (a spectral element): ``difference`` (q, n) takes the n values to the q derivatives, and the
    energy ``sum_q w_q |sum_n D_qn h_n|^2`` converges faster than any power of the number of nodes, from values
    alone. Without one, Gauss-Legendre quadrature of the squared speed; ``difference`` is None.
    """

    t: Tensor  # (n,)
    weights: Tensor  # (q,), of the derivatives
    nodal_weights: Tensor  # (n,), of the nodes
    difference: Tensor | None
    degree: int  # of the polynomials


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
        return _Grid(torch.tensor(t), torch.tensor(weights), torch.tensor(weights), None, degree)
    x, w, D = _gauss_lobatto(degree)
    n_spans = len(width)
    t, nodal = np.zeros(n_spans * degree + 1), np.zeros(n_spans * degree + 1)
    difference = np.zeros((n_spans * (degree + 1), len(t)))
    for s in range(n_spans):
        nodes = slice(s * degree, (s + 1) * degree + 1)
        t[nodes] = left[s] + width[s] * (x + 1) / 2
        nodal[nodes] += width[s] * w / 2
        difference[s * (degree + 1) : (s + 1) * (degree + 1), nodes] = D * 2 / width[s]
    t[-1] = 1
    weights = (width[:, None] * w / 2).reshape(-1)
    return _Grid(torch.tensor(t), torch.tensor(weights), torch.tensor(nodal), torch.tensor(difference), degree)


@lru_cache(maxsize=256)
def _interpolation(source: _Grid, target: _Grid) -> Tensor:
    """Matrix (n_target, n_source): the polynomials of spectral elements, else linear, which keeps matrices positive."""
    t, nodes = target.t.numpy(), source.t.numpy()
    if source.difference is None:
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
    z_gradient: Tensor | None = None  # (c, n, d): the energy changes by <z_gradient, dz> + <v_gradient, dv>
    v_gradient: Tensor | None = None
    gram: Tensor | None = None  # (c, n, d, n, d), J_k^T J_l of all pairs of nodes; without an embedding (c, n, d, d), M

    def gradient(self, points: Tensor, velocities: Tensor) -> Tensor:
        """With respect to the free coordinates of bases (n, n_free), (c, f)."""
        assert self.z_gradient is not None
        g = points.T @ self.z_gradient
        if self.v_gradient is not None:
            g = g + velocities.T @ self.v_gradient
        return g.flatten(1)


class _Problem:
    """A metric, what it offers, and how it is best evaluated."""

    def __init__(self, metric: Metric, point: Tensor) -> None:
        self.metric = metric
        self.dtype, self.device = point.dtype, point.device
        self.d = point.shape[-1]
        self.embedded = metric.has_embedding(point)
        self.n_values = metric.embed(point[None]).shape[-1] if self.embedded else self.d
        # Values (CPU) whose intermediate results stay in the cache.
        self.budget = 1 << 19 if self.device.type == "cpu" else 1 << 25

    def grid(self, knots: Tensor, degree: int, pieces: int = 1) -> _Grid:
        """Grid with ``degree * pieces`` nodes a span."""
        return _grid(tuple(knots.unique().tolist()), degree, pieces, self.embedded)

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

    def _sample(self, grid: _Grid, knots: Tensor, control: Tensor, order: int) -> _Sample:
        B, dB = self.basis(grid, knots)
        z = (B @ control).to(self.dtype)
        weights = grid.weights.to(self.device)
        metric = self.metric
        z_gradient = v_gradient = gram = None
        if grid.difference is None:
            v = (dB @ control).to(self.dtype)
            if order == 0:
                s = metric.squared_speed(z, v)
            else:
                s, dz, dv = metric.squared_speed_and_gradient(z, v)
                z_gradient, v_gradient = (weights[:, None] * x.double() for x in (dz, dv))
            if order == 2:
                gram = metric.tensor(z).double()
        else:
            D, w = grid.difference.to(self.device, self.dtype), weights.to(self.dtype)
            if order == 1:
                with torch.enable_grad():
                    h = metric.embed(z.requires_grad_())
                    s = (D @ h).square().sum(-1)
                    (z_gradient,) = torch.autograd.grad((s @ w).sum(), z)
            elif order == 0:
                s = (D @ metric.embed(z)).square().sum(-1)
            else:
                h, columns = metric.linearise(z)
                change = D @ h
                s = change.square().sum(-1)
                force = 2 * (D.T @ (w[:, None] * change))
                z_gradient = (columns @ force[..., None])[..., 0]
                flat = columns.flatten(1, 2)
                gram = (flat @ flat.mT).double().unflatten(2, z.shape[1:]).unflatten(1, z.shape[1:])
            z_gradient = None if z_gradient is None else z_gradient.double()
        s = s.detach().double()
        return _Sample(s @ weights, s.clamp_min(0).sqrt() @ weights, z_gradient, v_gradient, gram)

    def norm(self, grid: _Grid, knots: Tensor, gram: Tensor) -> Tensor:
        """``integral of B'_i M B'_j dt`` (c, f, f), with the metric at the nodes."""
        M = torch.einsum("ckakb->ckab", gram) if self.embedded else gram
        dB = self.basis(grid, knots)[1][:, 1:-1]
        scaled = grid.nodal_weights.to(self.device)[:, None, None] * dB[:, :, None] * dB[:, None, :]
        return torch.einsum("kij,ckab->ciajb", scaled, M).flatten(3, 4).flatten(1, 2)

    def hessian(self, grid: _Grid, knots: Tensor, gram: Tensor) -> Tensor:
        """Gauss-Newton matrix of the energy (c, f, f): of ``integral of |d(J eta) / dt|^2``, or with ``M`` frozen."""
        if grid.difference is None:
            return 2 * self.norm(grid, knots, gram)
        free = self.basis(grid, knots)[0][:, 1:-1]
        stiffness = (grid.difference.T @ (grid.weights[:, None] * grid.difference)).to(self.device)
        half = torch.einsum("ckalb,kl,lj->ckajb", gram, stiffness, free)
        return 2 * torch.einsum("ckajb,ki->ciajb", half, free).flatten(3, 4).flatten(1, 2)


def _interpolated(gram: Tensor, source: _Grid, target: _Grid) -> Tensor:
    """Metric along curves, from the nodes of one grid to those of another; positive semi-definite as it was."""
    I = _interpolation(source, target).to(gram.device)
    if gram.ndim == 4:
        return torch.einsum("pk,ckab->cpab", I, gram)
    return torch.einsum("pk,ckalb,ql->cpaqb", I, gram, I)


# --------------------------------------------------------------------------------------------------------------------
# Minimisers: how the next curve is proposed
# --------------------------------------------------------------------------------------------------------------------


def _dual_norm(norm: Tensor, gradient: Tensor) -> Tensor:
    """``sqrt(g^T N^-1 g)`` (c,); directions that ``N`` does not see do not count."""
    return (gradient * _solve(norm, gradient)).sum(-1).clamp_min(0).sqrt()


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Solution of positive semi-definite systems (c, f, f), (c, f), slightly regularised."""
    # An absolute floor too: of a constant generator the matrix is zero.
    ridge = 1e-12 * matrix.diagonal(dim1=-2, dim2=-1).mean(-1) + torch.finfo(matrix.dtype).tiny
    shifted = matrix + ridge[:, None, None] * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if bool(failed.any()):
        bad = failed > 0
        values, vectors = torch.linalg.eigh(shifted[bad])
        values = values.clamp_min(1e-10 * values[:, -1:].clamp_min(torch.finfo(matrix.dtype).tiny))
        factor[bad] = torch.linalg.cholesky_ex(vectors @ (values[:, :, None] * vectors.mT))[0]
    return torch.cholesky_solve(vector[..., None], factor)[..., 0]


class _GaussNewton:
    """Trust-region Newton steps: Gauss-Newton matrix of the start, improved by secants, damped for each curve.

    ``(H + lambda 2 N) step = -gradient``. The Gauss-Newton matrix lacks the second derivatives of the embedding; each
    evaluation, accepted or not, adds the symmetric rank-one secant (Conn, Gould & Toint 1991), so that the matrix need
    not be computed again and the steps converge superlinearly.
    """

    def __init__(self, hessian: Tensor, norm: Tensor) -> None:
        self.hessian, self.norm = hessian, norm
        self.damping = hessian.new_zeros(len(hessian))

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy they promise (l,)."""
        H, N, damping = self.hessian[live], self.norm[live], self.damping[live, None, None]
        ridge = 1e-10 * N.diagonal(dim1=-2, dim2=-1).mean(-1) + torch.finfo(N.dtype).tiny
        eye = torch.eye(N.shape[-1], dtype=N.dtype, device=N.device)
        factor, failed = torch.linalg.cholesky_ex(H + 2 * damping * N + ridge[:, None, None] * eye)
        indefinite = failed > 0
        step = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        if bool(indefinite.any()):
            # Without a minimum of the model the energy's own metric gives the direction.
            step[indefinite] = -_solve(2 * (1 + damping[indefinite]) * N[indefinite], gradient[indefinite])
        curvature = (step * (H @ step[..., None])[..., 0]).sum(-1)
        promised = -(gradient * step).sum(-1) - curvature.where(~indefinite, 0) / 2
        return step, promised

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Take in the change of gradient along a step, and how well the promise was kept."""
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
