"""Shorter curves between many latent points: chunks of pairs, all starts, the shortest of each (section 2.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lgi.checks import describe
from lgi.metric import Metric
from lgi.metric.base import check_metric
from lgi.metric.batching import check_ends
from lgi.progress import progress_bar
from lgi.solver.energy import Energy
from lgi.solver.methods import METHODS, chosen
from lgi.solver.refinement import Levels
from lgi.solver.result import Found, ShortenResult
from lgi.solver.search import Search
from lgi.solver.settings import SolverSettings
from lgi.solver.starts import Graph, initial_curves, n_starts

# Float64 numbers kept of a chunk: about a quarter of a gigabyte, on a GPU two gigabytes.
_MOST_VALUES, _MOST_VALUES_GPU = 1 << 25, 1 << 28
# More curves at a time make nothing faster; on a GPU, an iteration takes as long for ten curves as for thousands.
_MOST_CURVES, _MOST_CURVES_GPU = 1 << 10, 1 << 14
# Lengths that differ relatively by more than this belong to different curves.
_DISTINCT = 1e-3


def shorten(
    metric: Metric,
    start: Tensor,
    end: Tensor,
    settings: SolverSettings = SolverSettings(),  # noqa: B008 - it is frozen
    *,
    points: Tensor | None = None,
    first_pair: int = 0,
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
    first_pair : int
        Number of the first pair, where these are a part of many: the bent curves of ``starts="multi"`` depend on it.

    Returns
    -------
    ShortenResult
        Never longer than the straight line; where no shorter curve was found it is the straight line itself.

    Raises
    ------
    lgi.checks.NotFiniteError
        If the metric is not finite along the straight line; a ``ValueError``.
    ValueError
        If end points are not floating point, not finite, or differ in shape, dtype or device; if a setting makes no
        sense; if the graph falls apart.
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
        energy = Energy(metric, first.new_zeros(d) if len(first) == 0 else first[0])
        method = METHODS[chosen(settings.method, d)]
        levels = Levels(energy, method.knots(settings.n_control), method.degrees(settings.nodes))
        graph = None if points is None else Graph(metric, points, settings.n_neighbours)
        n_values = method.n_values(d, settings.n_control - 2, 2 * settings.nodes)
        chunk_size = settings.chunk_size or _chunk_size(start.device, n_values)
        pieces = []
        total = len(first) * n_starts(settings)
        with progress_bar(total, desc="shorten", unit="curves", show=settings.progress) as advance:
            # No pairs have a result too, an empty one.
            for offset in range(0, max(1, len(first)), chunk_size):
                part = slice(offset, offset + chunk_size)
                ends, number = (first[part], last[part]), first_pair + offset
                pieces.append(
                    _shorten_chunk(energy, settings, levels, *ends, number=number, graph=graph, advance=advance)
                )
        return Found.stacked(pieces).result(levels, start.shape[:-1], start, metric)


def _chunk_size(device: torch.device, n_values: int) -> int:
    """Curves at a time, of each of which so many numbers are kept."""
    on_cpu = device.type == "cpu"
    curves, values = (_MOST_CURVES, _MOST_VALUES) if on_cpu else (_MOST_CURVES_GPU, _MOST_VALUES_GPU)
    return max(1, min(curves, values // n_values))


def _check(metric: Metric, start: Tensor, end: Tensor, settings: SolverSettings, points: Tensor | None) -> None:
    check_metric(metric)
    check_ends(start, end, metric.latent_dim)
    for name, x in (("start", start), ("end", end)):
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name} has {int((~x.isfinite()).any(-1).sum())} points that are NaN or infinite")
    if (points is None) == (settings.starts == "graph"):
        raise ValueError('points are needed for starts="graph", and only there')
    d = start.shape[-1]
    if points is not None and not (points.shape[1:] == (d,) and len(points) > 1 and bool(points.isfinite().all())):
        raise ValueError(f"expected two or more finite points (n, {d}) of a graph, got {describe(points)}")


def _shorten_chunk(
    energy: Energy,
    settings: SolverSettings,
    levels: Levels,
    start: Tensor,
    end: Tensor,
    *,
    number: int,
    graph: Graph | None,
    advance: Callable[[int], object],
) -> Found:
    """Search from all initial curves, and keep the shortest of each pair; ``number`` is that of the first."""
    result = Found.nothing(start, len(levels.all[-1].knots) - 4)
    apart = (start != end).any(-1).nonzero()[:, 0]
    advance((len(start) - len(apart)) * n_starts(settings))
    if len(apart) == 0:
        return result
    start, end = start[apart], end[apart]
    numbers = (apart + number).tolist()
    starts, rows = initial_curves(start, end, levels, settings, numbers=numbers, graph=graph)
    founds = [Search(energy, settings, levels, start, end).run(*initial, advance) for initial in starts]
    lengths = torch.stack([found.length for found in founds])
    shortest = lengths.argmin(0) * len(start) + torch.arange(len(start), device=start.device)
    best = Found.stacked(founds)[shortest]
    best.n_rows = sum((found.n_rows for found in founds), rows)
    best.seconds = torch.stack([found.seconds for found in founds]).sum(0)
    best.start_gain = torch.where(best.length < founds[0].length, 1 - best.length / founds[0].length, 0)
    best.n_minima = _n_distinct(lengths, torch.stack([found.residual for found in founds]) <= settings.tolerance)
    result.lengthen(best.energies.shape[1])
    result[apart] = best
    return result


def _n_distinct(lengths: Tensor, valid: Tensor) -> Tensor:
    """Number of distinct lengths (n_starts, c) of each column, among the valid ones."""
    ordered = torch.where(valid, lengths, torch.inf).sort(0).values
    new = ordered[1:] > ordered[:-1] * (1 + _DISTINCT)
    return (ordered[0].isfinite().long() + (new & ordered[1:].isfinite()).sum(0)).long()
