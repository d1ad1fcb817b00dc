"""Krylov spaces of many curves at once, from products in place of matrices that no memory holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lgi.metric.batching import eigh
from lgi.solver.energy import Basis, Energy, free
from lgi.solver.grid import Grid, constant
from lgi.solver.rows import Rows, located

# Products (l, f) with the matrices of some curves.
Product = Callable[[Tensor], Tensor]
# What is added to the metric, in units of its mean diagonal, where rounding leaves more of it than of the metric.
_RIDGE = 1e-4
# The same for a step, in parts of its damping: where the metric sees next to nothing, a curve does not go far.
_DAMPED = 0.01
# Of a first step, by which the curve is left where second derivatives are known.
_DAMPING = 0.1
# A product is made of graphs that are built anew where so small a part of their curves is left.
_LEFT = 0.7
# Of a node, in decoder rows: the metric times a vector (MLPs, 20 curves at a time).
_NORM_PRODUCT = 2.5
# A squared residual is known when four more products add relatively so little to it, or when it took so many.
_WANTED, _MOST = 0.01, 300
# After so many products each it is asked whether a space is large enough.
_ASKED = 4


@dataclass(eq=False)
class Average(Rows):
    """``P = 2 K x M`` of c curves, as if the metric were M all along them; K is the stiffness of their splines."""

    values: Tensor  # (c, d), eigenvalues of M, in the dtype of the curves
    vectors: Tensor  # (c, d, d)
    ridge: Tensor  # (c,), added to the eigenvalues, in units of their mean
    damping: Tensor  # (c,), of the steps of a search, in parts of P

    @classmethod
    def of(cls, energy: Energy, points: Tensor) -> Average:
        """From the mean of the metric at points (c, m, d) of each curve."""
        parts = []
        for some in points.split(energy.n_curves(points.shape[1])):
            values, vectors = eigh(energy.tensor(some).mean(1).to(energy.dtype))
            size = values.mean(-1).double()
            parts.append(cls(values, vectors, torch.full_like(size, _RIDGE), torch.full_like(size, _DAMPING)))
        return cls.joined(parts)

    def damped(self) -> Tensor:
        """Ridges (c,) for steps, in proportion to the damping."""
        return (_DAMPED * self.damping).clamp_min(_RIDGE)

    def _scale(self) -> Tensor:
        ridge = self.ridge[:, None].to(self.values) * self.values.mean(-1, keepdim=True)
        return (self.values.clamp_min(0) + ridge).clamp_min(torch.finfo(self.values.dtype).tiny).rsqrt()[:, None]

    def whitened(self, root: Tensor, gradient: Tensor) -> Tensor:
        """``P^(-1/2) g`` (l, f) for gradients (l, f), with the inverse of the Cholesky factor of K."""
        g = (root @ gradient.unflatten(1, (len(root), -1)) / 2**0.5).to(self.vectors)
        return (g @ self.vectors * self._scale()).double().flatten(1)

    def coloured(self, root: Tensor, x: Tensor) -> Tensor:
        """``P^(-T/2) x`` (l, f), the variations of which x (l, f) are the coordinates, in which P is the identity."""
        x = (root.T @ x.unflatten(1, (len(root), -1)) / 2**0.5).to(self.vectors)
        return (x * self._scale() @ self.vectors.mT).double().flatten(1)


def inverse_root(grid: Grid, basis: Basis) -> Tensor:
    """Inverse (n_free, n_free) of the Cholesky factor of K, ``integral of B'_i B'_j dt``, of splines with a basis."""
    dB = free(basis)[1]
    factor = torch.linalg.cholesky(dB.T @ (constant(grid.nodal_weights, dB.device)[:, None] * dB))
    return torch.linalg.inv(factor)


def hessian(energy: Energy, grid: Grid, basis: Basis, control: Tensor) -> Product:
    """Products with the second derivatives of the energy, by differentiating its gradient once more."""
    points, velocities = free(basis)
    z = (basis[0] @ control).to(energy.dtype)
    v = (basis[1] @ control).to(energy.dtype)
    slope = energy.second_derivatives(grid, z, v)

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
class Krylov(Rows):
    """Krylov spaces of c symmetric matrices A and vectors b: orthonormal Q with ``Q^T A Q = T``, tridiagonal."""

    Q: Tensor  # (c, k, f)
    T: Tensor  # (c, k, k)
    size: Tensor  # (c,), |b|
    rest: Tensor  # (c,), how far the product with the last vector leaves the space
    n_products: Tensor  # (c,)

    @classmethod
    def of(
        cls,
        make: Callable[[Tensor], Product],
        b: Tensor,
        *,
        most: int,
        wanted: float,
        damping: Tensor | None = None,
        enough: Tensor | None = None,
    ) -> Krylov:
        """Spaces that the last products no longer improve: these bring relatively no more than ``wanted``.

        ``make(curves)`` gives products with the matrices of some of the curves; what is improved is the decrease by
        :meth:`step`, of which more than ``enough`` (c,) is not asked for.
        """
        size = torch.linalg.vector_norm(b, dim=-1)
        vectors = [b / size.clamp_min(torch.finfo(b.dtype).tiny)[:, None]]
        T = b.new_zeros(len(b), most, most)
        n_products, gain, left = (torch.zeros_like(size) for _ in range(3))
        live = located(size > 0)
        made, product = live[:0], None
        for k in range(most):
            if len(live) == 0:
                break
            if product is None or len(live) < _LEFT * len(made):
                made, product = live, make(live)
            w = torch.zeros_like(b)
            w[made] = product(vectors[k][made])
            n_products[made] += 1
            T[:, k, k] = (w * vectors[k]).sum(-1)
            Q = torch.stack(vectors, 1)
            # Twice, or rounding makes the vectors lose their right angles.
            for _ in range(2):
                w = w - ((Q @ w[..., None]).mT @ Q)[:, 0]
            rest = torch.linalg.vector_norm(w, dim=-1)
            left[live] = rest[live]
            # A space that a product does not leave is all there is.
            live = live[rest[live] > 1e-6 * T[live, k, k].abs()]
            if (k + 1) % _ASKED == 0:
                here = cls(Q, T[:, : k + 1, : k + 1], size, left, n_products)
                now = here.step(torch.zeros_like(size) if damping is None else damping)[1]
                more = now - gain > wanted * now
                live = live[(more if enough is None else more & (now <= enough))[live]]
                gain = now
            if len(live) == 0 or k + 1 == most:
                break
            going = torch.zeros_like(rest).index_fill(0, live, 1)
            T[:, k, k + 1] = T[:, k + 1, k] = rest * going
            vectors.append(w * (going / rest.clamp_min(torch.finfo(b.dtype).tiny))[:, None])
        k = len(vectors)
        return cls(torch.stack(vectors, 1), T[:, :k, :k], size, left, n_products)

    @classmethod
    def nothing(cls, b: Tensor) -> Krylov:
        """Empty spaces of vectors (c, f)."""
        size, rest, n_products = b.new_zeros(3, len(b))
        return cls(b.new_zeros(len(b), 0, b.shape[1]), b.new_zeros(len(b), 0, 0), size, rest, n_products)

    def padded(self, k: int) -> Krylov:
        """The same with vectors that are 0, up to k."""
        n = k - len(self.T[0]) if len(self.T) else 0
        pad = torch.nn.functional.pad
        return replace(self, Q=pad(self.Q, (0, 0, 0, n)), T=pad(self.T, (0, n, 0, n)))

    def step(self, damping: Tensor) -> tuple[Tensor, Tensor]:
        """``(|A| + damping)^-1 b`` (c, k) in the basis Q, and by how much ``x^T A x / 2 - b^T x`` decreases there.

        ``|A|`` has the absolute values of the eigenvalues: such a step leads down along all directions of negative
        curvature that the space has.
        """
        values, vectors = eigh(self.T)
        first = self.size[:, None] * vectors[:, 0]
        # What a space has no coordinate of is not gone along: of vectors that are 0, values are.
        x = first / (values.abs() + damping[:, None]).clamp_min(1e-12)
        decrease = (first * x - values * x.square() / 2).sum(-1)
        return (vectors @ x[..., None])[..., 0], decrease

    def least(self) -> Tensor:
        """Least eigenvalue (c,) of the matrices in the space, less the error that it is known to."""
        empty = (self.Q == 0).all(-1).to(self.T)
        values, vectors = eigh(self.T + torch.diag_embed(empty * self.T.abs().amax((1, 2))[:, None]))
        return values[:, 0] - self.rest * vectors[:, -1, 0].abs()


def residual_by_products(
    energy: Energy,
    grid: Grid,
    basis: Basis,
    points: Tensor,
    gradient: Tensor,
    *,
    known: Tensor,
    average: Average,
    limit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Relative projected gradient (c,) in the norm at points (c, n, d) of curves, and what it took in decoder rows.

    ``known`` (c,) are their energies. Approached from below; the last products tell how closely. Of those above
    ``limit`` (c,), no more is found out than that.
    """
    root = inverse_root(grid, basis)

    def whitened(some: Tensor) -> Product:
        product, own = norm_product(energy, grid, basis, points[some]), average[some]
        return lambda x: own.whitened(root, product(own.coloured(root, x)))

    enough = None if limit is None else known * limit.square()
    space = Krylov.of(whitened, average.whitened(root, gradient), most=_MOST, wanted=_WANTED, enough=enough)
    decrease = space.step(torch.zeros_like(known))[1]
    residual = (decrease / known.clamp_min(torch.finfo(known.dtype).tiny)).sqrt()
    return residual, space.n_products * _NORM_PRODUCT * len(grid.t)
