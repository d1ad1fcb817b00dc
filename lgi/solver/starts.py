"""Curves from which the search starts: the line, bent curves, paths over a graph of points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lgi.metric import Metric, curve_length
from lgi.solver.energy import SpeedEnergy
from lgi.solver.refinement import Levels
from lgi.solver.settings import SolverSettings
from lgi.spline import basis, uniform_knots

# Quadrature nodes for the length of an edge; it need not be more exact than the choice of a path.
_EDGE_NODES = 4
# Knots of the curve along a path of the graph: it has more corners than two free control points can follow.
_PATH_KNOTS = 15


def line(start: Tensor, end: Tensor, knots: Tensor) -> Tensor:
    """Control points (c, n_control, d) of straight lines, in float64."""
    fraction = knots.unfold(0, 3, 1)[1:-1].mean(-1).to(start.device)[:, None]
    return (1 - fraction) * start[:, None].double() + fraction * end[:, None].double()


def n_starts(settings: SolverSettings) -> int:
    """Number of initial curves of a pair."""
    return {"line": 1, "graph": 2, "multi": settings.n_starts}[settings.starts]


def initial_curves(
    start: Tensor, end: Tensor, levels: Levels, settings: SolverSettings, *, numbers: Sequence[int], graph: Graph | None
) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Levels and control points (c, n_control, d) of all initial curves, and the decoder rows (c,) they have cost.

    The pairs are known by their ``numbers``, on which the bent curves depend.
    """
    starts: list[tuple[int, Tensor]] = [(0, line(start, end, uniform_knots(4)))]
    rows = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    if settings.starts == "multi":
        starts += [(0, control) for control in _bent(start, end, settings, numbers)]
    elif graph is not None:
        number = levels.finest_below(_PATH_KNOTS)
        control, rows = graph.initial(start, end, levels.all[number].knots)
        starts.append((number, control))
    return starts, rows


def _bent(start: Tensor, end: Tensor, settings: SolverSettings, numbers: Sequence[int]) -> list[Tensor]:
    """Curves bent to one side and to the other, ever further, of random direction; four control points."""
    straight = line(start, end, uniform_knots(4))
    along = straight[:, -1] - straight[:, 0]
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
        curve = straight.clone()
        curve[:, 1:-1] += (height * unit)[:, None]
        curves.append(curve)
    return curves


class Graph:
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
        control = line(start, end, knots)
        rest = torch.tensor(np.array(paths), device=start.device) - B[:, [0, -1]] @ control[:, [0, -1]]
        control[:, 1:-1] = torch.linalg.pinv(B[:, 1:-1]) @ rest
        cost = _EDGE_NODES * SpeedEnergy.cost(0, self.points.shape[1]) * (2 * k + len(self.matrix.data) / c)
        return control, torch.full((c,), cost, dtype=torch.float64, device=start.device)
