"""Conjugate gradients for many curves at once, with products in place of matrices that no memory holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lgi.solver.energy import Basis, Energy, free
from lgi.solver.grid import Grid, constant
from lgi.solver.rows import Rows
from lgi.solver.steps import factorised

# Products (l, f) with the matrices of some curves.
Product = Callable[[Tensor], Tensor]
# What is added to it, in units of its mean diagonal, where rounding leaves more of it than of the metric.
_RIDGE = 1e-4
# A product is made of graphs that are built anew where so small a part of their curves is left.
_LEFT = 0.7


@dataclass(eq=False)
class Average(Rows):
    """``2 K x M`` of c curves, were the metric everywhere its average M; K is the stiffness of a spline."""

    factor: Tensor  # (c, d, d), Cholesky factor of M with a ridge
    size: Tensor  # (c,), mean diagonal of M

    @classmethod
    def of(cls, energy: Energy, points: Tensor) -> Average:
        """From the metric at some points (c, k, d) of each curve, one after the other: they take memory."""
        M = torch.stack([energy.tensor(z[:, None])[:, 0] for z in points.unbind(1)]).mean(0)
        size = M.diagonal(dim1=-2, dim2=-1).mean(-1)
        ridge = _RIDGE * size[:, None, None] * torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
        return cls(factorised(M + ridge)[0], size)

    def solve(self, inverse: Tensor, x: Tensor) -> Tensor:
        """``(2 K x M)^-1 x`` (l, f), with the inverse of K."""
        columns = (inverse @ x.unflatten(1, (len(inverse), -1))).mT
        return torch.cholesky_solve(columns, self.factor).mT.flatten(1) / 2


def middles(n: int) -> Tensor:
    """Which of n nodes an average metric is made of: three, evenly between the ends."""
    return torch.linspace(0, n - 1, 5).round().long()[1:-1]


def stiffness(grid: Grid, basis: Basis) -> Tensor:
    """K (n_free, n_free) of the splines with a basis."""
    dB = free(basis)[1]
    return dB.T @ (constant(grid.nodal_weights, dB.device)[:, None] * dB)


def hessian(energy: Energy, grid: Grid, basis: Basis, control: Tensor) -> Product:
    """Products with the second derivatives of the energy, by differentiating its gradient once more."""
    points, velocities = free(basis)
    z = (basis[0] @ control).to(energy.dtype)
    v = (basis[1] @ control).to(energy.dtype)
    slope = energy.differentiable_gradient(grid, z, v)

    def product(x: Tensor) -> Tensor:
        x = x.unflatten(1, (-1, energy.d))
        by_z, by_v = slope(points @ x, velocities @ x)
        return (points.T @ by_z + velocities.T @ by_v).flatten(1)

    return product


def norm_product(energy: Energy, grid: Grid, basis: Basis, points: Tensor) -> Product:
    """Products with twice the norm of variations, ``integral of B'_i M B'_j dt``; points (c, n, d) on the curves."""
    velocities = free(basis)[1]
    weights = constant(grid.nodal_weights, points.device)[:, None]
    metric = energy.metric_product(points.to(energy.dtype))

    def product(x: Tensor) -> Tensor:
        return 2 * (velocities.T @ (weights * metric(velocities @ x.unflatten(1, (-1, energy.d))))).flatten(1)

    return product


@dataclass(eq=False)
class Solution(Rows):
    """Of ``min x^T A x / 2 - b^T x`` for c curves, among x no longer than a radius."""

    x: Tensor  # (c, f)
    decrease: Tensor  # (c,), of the minimised function; where A is positive and x inside, b^T A^-1 b / 2
    length: Tensor  # (c,), of x in the norm of the preconditioner
    inside: Tensor  # (c,), whether the radius was not reached, nor a direction in which A is not positive met
    n_products: Tensor  # (c,)


def conjugate_gradients(
    make: Callable[[Tensor], Product],
    solve: Callable[[Tensor, Tensor], Tensor],
    b: Tensor,
    *,
    radius: Tensor,
    wanted: float,
    delay: int,
    most: int,
) -> Solution:
    """Minimise until the last ``delay`` steps bring relatively no more than ``wanted`` (Steihaug 1983).

    ``make(curves)`` gives products with the matrices of some of the curves, ``solve(curves, x)`` applies their
    preconditioners. Where the radius is reached, or a direction met in which A is not positive, it is followed to it.
    """
    live = torch.arange(len(b), device=b.device)
    x, r, y = torch.zeros_like(b), b.clone(), solve(live, b)
    p, rho = y.clone(), (b * y).sum(-1)
    decrease, xx, xp, pp = torch.zeros_like(rho), torch.zeros_like(rho), torch.zeros_like(rho), rho.clone()
    inside, n_products = torch.ones_like(rho, dtype=torch.bool), torch.zeros_like(rho)
    gains: list[Tensor] = []
    made, product = live[:0], None
    live = live[rho > 0]
    for step in range(most):
        if len(live) == 0:
            break
        if product is None or len(live) < _LEFT * len(made):
            made, product = live, make(live)
        Ap = torch.zeros_like(b)
        Ap[made] = product(p[made])
        n_products[made] += 1
        bend, full = (p * Ap).sum(-1), torch.zeros_like(rho)
        full[live] = torch.where(bend[live] > 0, rho[live] / bend[live].where(bend[live] > 0, 1), torch.inf)
        edge = (-xp + (xp.square() + pp * (radius.square() - xx)).clamp_min(0).sqrt()) / pp.where(pp > 0, 1)
        out = full >= edge
        size = torch.where(out, edge, full)
        a = torch.zeros_like(rho)
        a[live] = size[live]
        inside[live[out[live]]] = False
        gain = a * rho - a.square() * bend / 2
        gain = torch.where(a > 0, gain, 0)
        decrease = decrease + gain
        x, r = x + a[:, None] * p, r - a[:, None] * Ap
        xx = xx + 2 * a * xp + a.square() * pp
        gains = [*gains[1 - delay :], gain] if delay > 1 else [gain]
        live = live[inside[live]]
        y[live] = solve(live, r[live])
        then = (r[live] * y[live]).sum(-1)
        # Of this direction and the next, in the norm of the preconditioner.
        b_ = then / rho[live]
        p[live] = y[live] + b_[:, None] * p[live]
        xp[live] = b_ * (xp[live] + a[live] * pp[live])
        pp[live] = then + b_.square() * pp[live]
        rho[live] = then
        going = (torch.stack(gains).sum(0) > wanted * decrease)[live] | (step + 1 < delay)
        live = live[going & (then > 0)]
    return Solution(x, decrease, xx.clamp_min(0).sqrt(), inside, n_products)
