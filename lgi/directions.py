"""Which way Algorithm 1 steps: eigenvectors of the metric, turned towards the origin (section 2.3, footnote 1)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from lgi.metric import Metric
from lgi.metric.batching import eigh


def towards_origin(space: Tensor, z: Tensor) -> Tensor:
    """Unit vectors of subspaces, such as eigenspaces, turned towards the origin (footnote 1 of the paper).

    ``v = -P z / |P z|`` with the orthogonal projector ``P``: of the vectors of the subspace, the one that points most
    towards the origin. Where ``z`` is perpendicular to the subspace, ``P e_k`` in place of ``-P z``, of the first axis
    ``e_k`` whose projection is at least half as long as the longest.

    Parameters
    ----------
    space : Tensor, shape (..., d, k)
        Orthogonal columns, of which some may be 0.
    z : Tensor, shape (..., d)

    Returns
    -------
    Tensor, shape (..., d)
    """
    basis = unit(space.mT).mT
    share = -(basis.mT @ z[..., None])[..., 0]
    size, radius = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (share, z))
    reach = torch.linalg.vector_norm(basis, dim=-1)
    axis = (reach >= reach.amax(-1, keepdim=True) / 2).int().argmax(-1)
    fallback = basis.gather(-2, axis[..., None, None].expand(*axis.shape, 1, basis.shape[-1]))[..., 0, :]
    # Below this, the sign is one of rounding and would differ between machines.
    share = torch.where(size > 1e-6 * radius, share, fallback)
    return unit((basis @ share[..., None])[..., 0])


def unit(v: Tensor) -> Tensor:
    """Vectors (..., d) scaled to length 1; 0 stays 0."""
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)


def eigenspace(metric: Metric, z: Tensor, *, largest: bool) -> Tensor:
    """Eigenvectors (n, d, d) of the largest or of the smallest eigenvalue; the other columns are 0."""
    eigenvalues, eigenvectors = metric.eigh(z)
    # Closer ones cannot be told apart in this precision.
    margin = 64 * torch.finfo(z.dtype).eps * eigenvalues[:, -1:]
    inside = eigenvalues >= eigenvalues[:, -1:] - margin if largest else eigenvalues <= eigenvalues[:, :1] + margin
    return eigenvectors * inside[:, None]


# The most products a point. Where that is too few, eigenvalues lie so close together that the user should know.
_MOST_PRODUCTS = 100
# After fewer, another eigenvector near the first vector may look like the largest one's.
_FEWEST_PRODUCTS = 8


def largest_eigenvectors(metric: Metric, z: Tensor, first: Tensor) -> Tensor:
    """Eigenvectors of the largest eigenvalue of ``M(z)``, from products ``M v`` alone, for all points at once.

    Lanczos iterations with full reorthogonalisation, in float64. The eigensolvers of torch take matrices, and those of
    scipy one operator at a time, with one product a call.

    Parameters
    ----------
    metric : Metric
    z : Tensor, shape (n, d)
    first : Tensor, shape (n, d)
        Vectors to start from, not perpendicular to those that are looked for. Of an eigenspace of several dimensions,
        their projection onto it is found.

    Returns
    -------
    Tensor, shape (n, d)
        Unit vectors in the dtype of ``first``; the signs are arbitrary.

    Warns
    -----
    UserWarning
        If some are not exact to half the digits of ``z`` after 100 products.
    """
    # The vectors that are kept for a point take as much memory as 100 points.
    n_points = max(1, (1 << 24) // (z.shape[-1] * _MOST_PRODUCTS))
    parts = zip(z.split(n_points), first.split(n_points), strict=True)
    found, converged = (torch.cat(x) for x in zip(*(_lanczos(metric, *part) for part in parts), strict=True))
    if not bool(converged.all()):
        warnings.warn(
            f"{int((~converged).sum())} of {len(z)} maximal eigenvectors are not exact after {_MOST_PRODUCTS} "
            'products: the largest eigenvalues lie close together; eigenvectors="eigh" is exact',
            stacklevel=2,
        )
    return found


def _lanczos(metric: Metric, z: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (n, d) and whether they are exact (n,)."""
    n, d = z.shape
    basis = unit(first)[:, None]
    n_steps = min(d, _MOST_PRODUCTS)
    tridiagonal = first.new_zeros(n, n_steps, n_steps)
    found, exact = torch.zeros_like(first), torch.zeros(n, dtype=torch.bool, device=first.device)
    eps = torch.finfo(z.dtype).eps
    for k in range(n_steps):
        product = metric.apply(z, basis[:, k].to(z)).to(first)
        # In place of a vector that was not added, an eigenvalue that is never the largest.
        tridiagonal[:, k, k] = (product * basis[:, k]).sum(-1).where(basis[:, k].any(-1), -1)
        # Twice is enough (Parlett).
        for _ in range(2):
            product = product - (basis.mT @ (basis @ product[..., None]))[..., 0]
        rest = torch.linalg.vector_norm(product, dim=-1)
        eigenvalues, vectors = eigh(tridiagonal[:, : k + 1, : k + 1])
        largest, top = eigenvalues[:, -1], vectors[..., -1]
        # What is exact stays as it is: further products add rounding, which an eigenspace does not withstand.
        found = torch.where(exact[:, None], found, (basis.mT @ top[..., None])[..., 0])
        if k + 1 >= min(_FEWEST_PRODUCTS, n_steps):
            exact = exact | (rest * top[:, -1].abs() <= eps**0.5 * largest)
        if bool(exact.all()) or k + 1 == n_steps:
            break
        # Where the basis spans an invariant subspace already, nothing is added to it.
        size = rest.where(rest > max(1e-12, 16 * eps) * largest, torch.inf)
        basis = torch.cat([basis, (product / size[:, None])[:, None]], dim=1)
        tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = rest.where(size.isfinite(), 0)
    # A basis of the whole space leaves nothing open.
    return found, exact | (k + 1 == d)
