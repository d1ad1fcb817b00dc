"""Parameters at which curves are evaluated, and how energy and length follow: spectral elements, or quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Grid:
    """Where curves are evaluated, and how energy and length follow.

    With an embedding ``h``, the curve ``h(z(t))`` is interpolated on each element by the polynomial through its values
    at the Gauss-Lobatto nodes (a spectral element): ``difference`` takes the p + 1 values of an element of width 2 to
    the derivatives there, and the energy ``sum_q w_q |sum_n D_qn h_n|^2`` converges faster than any power of the number
    of nodes, from values alone. Without one, Gauss-Legendre quadrature of the squared speed; ``difference`` is None.
    """

    boundaries: tuple[float, ...]  # of the spans, in each of which a curve is smooth
    pieces: int  # elements of equal width that a span is cut into
    degree: int  # p, of the polynomials
    t: Tensor  # (n,)
    weights: Tensor  # (q,), of the derivatives
    nodal_weights: Tensor  # (n,), of the nodes
    node: Tensor  # (q,), the node that each derivative belongs to
    width: Tensor  # (n_elements,)
    difference: Tensor | None = None  # (p + 1, p + 1)
    top: Tensor | None = None  # (2, p + 1), takes derivatives to the amplitudes of their highest two modes

    def halved(self) -> Grid:
        """Grid with twice as many elements."""
        return make_grid(self.boundaries, self.degree, 2 * self.pieces, embedded=self.difference is not None)

    def derivatives(self, values: Tensor) -> Tensor:
        """Derivatives (c, q, m) of the curves through values (c, n, m)."""
        assert self.difference is not None
        if len(self.t) <= _DENSE:
            return constant(whole(self), values) @ values
        elements = values.unfold(1, self.degree + 1, self.degree)
        scale = 2 / constant(self.width, values)[:, None, None]
        return (elements @ constant(self.difference, values).T * scale).mT.flatten(1, 2)

    @cached_property
    def first(self) -> Tensor:
        """Which (n,) of the derivatives at each node comes first: between elements there are two."""
        return torch.searchsorted(self.node, torch.arange(len(self.t)))

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
        amplitude = torch.einsum("kq,ceqm->kcem", constant(self.top, derivatives), elements)
        highest, below = amplitude.square().sum(-1) * constant(self.width, derivatives)
        return highest / (2 * self.degree - 1), below / (2 * self.degree - 3)


def constant(x: Tensor, like: Tensor | torch.device) -> Tensor:
    """A tensor on the CPU that never changes, on a device, or in the dtype too of another tensor; sent there once."""
    device, dtype = (like.device, like.dtype) if isinstance(like, Tensor) else (like, x.dtype)
    return x if (device, dtype) == (x.device, x.dtype) else _sent(x, device, dtype)


# Tensors are told apart by identity, which serves here: those of grids and bases are made once themselves.
@lru_cache(maxsize=512)
def _sent(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return x.to(device, dtype)


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
def make_grid(boundaries: tuple[float, ...], degree: int, pieces: int = 1, *, embedded: bool) -> Grid:
    """Grid on spans, each cut into equal pieces, with ``degree + 1`` nodes a piece."""
    ends = np.array(boundaries)
    ends = np.append((ends[:-1, None] + np.diff(ends)[:, None] * np.arange(pieces) / pieces).reshape(-1), 1.0)
    left, width = ends[:-1], np.diff(ends)
    common: dict[str, Any] = {
        "boundaries": boundaries,
        "pieces": pieces,
        "degree": degree,
        "width": torch.tensor(width),
    }
    if not embedded:
        x, w = np.polynomial.legendre.leggauss(degree + 1)
        t = (left[:, None] + width[:, None] * (x + 1) / 2).reshape(-1)
        weights = torch.tensor((width[:, None] * w / 2).reshape(-1))
        own = torch.arange(len(t))
        return Grid(**common, t=torch.tensor(t), weights=weights, nodal_weights=weights, node=own)
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
    return Grid(
        **common,
        t=torch.tensor(t),
        weights=torch.tensor((width[:, None] * w / 2).reshape(-1)),
        nodal_weights=torch.tensor(nodal),
        node=torch.tensor((np.arange(n)[:, None] * degree + np.arange(degree + 1)).reshape(-1)),
        difference=torch.tensor(D),
        top=torch.tensor(amplitudes),
    )


# Nodes up to which one matrix for all elements is the faster way, and is kept.
_DENSE = 512


@lru_cache(maxsize=128)
def whole(grid: Grid) -> Tensor:
    """Matrix (q, n) that takes values at the nodes to derivatives."""
    assert grid.difference is not None
    p = grid.degree
    D = torch.zeros(len(grid.weights), len(grid.t), dtype=torch.float64)
    for e, width in enumerate(grid.width.tolist()):
        D[e * (p + 1) : (e + 1) * (p + 1), e * p : (e + 1) * p + 1] = grid.difference * 2 / width
    return D


@lru_cache(maxsize=256)
def interpolation(source: Grid, target: Grid, *, linearly: bool) -> Tensor:
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
