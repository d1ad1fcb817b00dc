"""Levels of refinement, of knots and of grids: which there are, and at which a curve goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lgi.solver.energy import Energy
from lgi.solver.grid import Grid, constant, make_grid
from lgi.spline import CubicBSpline
from lgi.spline import basis as spline_basis

# Ours, as are the next two, tuned on Algorithm 1's pairs of VAE1 for the fewest decoder rows. A curve is cut into at
# least so many elements.
_ELEMENTS = 4
# Degrees of their polynomials, after the coarsest.
_DEGREES = (3, 4, 6, 8, 12, 16)
# A curve is measured at no fewer nodes than this.
_MEASURED = 40
# Promised gain, relative to the tolerance, above which spans are quartered and not halved.
_MUCH = 2


@dataclass(frozen=True, eq=False)
class Level:
    """Knots and grids of one step of refinement."""

    knots: Tensor
    grid: Grid  # to optimise on
    measuring: Grid
    weighing: Grid  # for the metric in the norm

    @classmethod
    def of(cls, knots: Tensor, degree: int, *, embedded: bool, boundaries: Sequence[float] = ()) -> Level:
        """Level with elements of a degree between knots, and between further boundaries where a curve has kinks."""
        spans = tuple(sorted({*knots.tolist(), *boundaries}))
        n_spans = len(spans) - 1
        pieces = math.ceil(_ELEMENTS / n_spans)
        # Finer than what was optimised on: a curve that makes use of the gaps between its nodes is found out.
        fine = max(math.ceil(1.5 * degree), math.ceil(_MEASURED / (n_spans * pieces)))
        return cls(
            knots,
            make_grid(spans, degree, pieces, embedded=embedded),
            make_grid(spans, fine, pieces, embedded=embedded),
            # The metric varies more slowly than the gradient: a few nodes, linearly interpolated, make the norm.
            make_grid((0.0, 1.0), max(6, n_spans) - 1, embedded=False),
        )

    def seeing(self, knots: Tensor) -> Grid:
        """Grid for a norm of variations with these knots: at fewer nodes than control points, some would have none."""
        return self.measuring if len(self.grid.t) < len(knots) - 4 else self.grid

    def halved(self) -> Level:
        """The same with a measuring grid of twice as many elements."""
        return replace(self, measuring=self.measuring.halved())


class Levels:
    """Levels in the order in which they are visited, by knots and then by degree.

    Parameters
    ----------
    energy : Energy
    knots : sequence of Tensor
        Each with all knots of the one before.
    degrees : sequence of int
        Of the polynomials of the grids, ascending.
    """

    def __init__(self, energy: Energy, knots: Sequence[Tensor], degrees: Sequence[int]) -> None:
        embedded = energy.embedded is not None
        self.all = [Level.of(own, degree, embedded=embedded) for own in knots for degree in degrees]
        self.n_degrees = len(degrees)

    def has_finer_knots(self, number: int) -> bool:
        """Whether there is a level with more knots."""
        return number // self.n_degrees + 1 < len(self.all) // self.n_degrees

    def has_finer_grid(self, number: int) -> bool:
        """Whether there is a level with the same knots and a finer grid."""
        return number % self.n_degrees + 1 < self.n_degrees

    def finest_below(self, n_knots: int) -> int:
        """The last of the levels with at most so many knots, with the coarsest of its grids."""
        return max(i for i, level in enumerate(self.all) if len(level.knots) <= n_knots and i % self.n_degrees == 0)

    def targets(
        self,
        number: int,
        refine: Tensor,
        resolve: Tensor,
        promise: Tensor,
        tail: Tensor,
        *,
        tolerance: float,
        much: float,
    ) -> Tensor:
        """Levels (c,) where curves go on that need more knots or a finer grid; this one for the others.

        Above ``much`` of what more knots promise, spans are quartered at once.
        """
        now, here = number // self.n_degrees, number % self.n_degrees
        jump = 1 + (promise > _MUCH * much).long()
        knots = torch.where(refine, (now + jump).clamp(max=len(self.all) // self.n_degrees - 1), now)
        # How fine must the grid be, for what is still to be gained?
        wanted = torch.where(refine, 0.3 * (2 * promise).sqrt(), 0).clamp_min(tolerance)
        target = torch.full_like(knots, number)
        grid = self.all[number].grid
        for k in knots[refine | resolve].unique().tolist():
            degree = torch.full_like(knots, self.n_degrees - 1)
            for i in reversed(range(self.n_degrees)):
                finer = self.all[k * self.n_degrees + i].grid
                # Amplitudes of the modes fall geometrically, the faster the shorter an element.
                rate = tail ** (1 / (grid.degree - 1)) * (len(grid.width) / len(finer.width)) ** 2
                degree = torch.where(rate ** (finer.degree - 1) <= wanted, i, degree)
            chosen = (refine | resolve) & (knots == k)
            least = here + 1 if k == now else 0
            target[chosen] = k * self.n_degrees + degree[chosen].clamp(min=least)
        return target


def bisected(knots: Tensor) -> Tensor:
    """Knots with one more in the middle of each span."""
    ends = knots.unique()
    return torch.cat([knots, (ends[1:] + ends[:-1]) / 2]).sort().values


def finer(knots: Tensor) -> Tensor:
    """Knots on which it is judged whether more are needed; one in the middle brings nothing to a symmetric curve."""
    return bisected(bisected(knots)) if len(knots) == 8 else bisected(knots)


def prolongation(coarse: Tensor, fine: Tensor) -> Tensor:
    """Matrix (n_fine, n_coarse) that takes control points to those of the same curve with more knots."""
    curve = CubicBSpline(torch.eye(len(coarse) - 4, dtype=torch.float64), coarse)
    present = coarse.tolist()
    for knot in fine.unique().tolist():
        if knot not in present:
            curve = curve.insert_knot(knot)
    return curve.control_points


def evened(level: Level, control: Tensor, squared_speed: Tensor) -> Tensor:
    """Control points (c, n_control, d) of curves that run about as those given, at a more constant speed.

    Parameters
    ----------
    level : Level
    control : Tensor, shape (c, n_control, d)
    squared_speed : Tensor, shape (c, q)
        At the derivatives of the level's grid.

    Returns
    -------
    Tensor, shape (c, n_control, d)
        The splines nearest to the reparametrised curves, in the least squares of latent coordinates.
    """
    grid, device = level.grid, control.device
    t = constant(grid.t, device)
    weights, node, nodal = (constant(x, device) for x in (grid.weights, grid.node, grid.nodal_weights))
    speed = squared_speed.clamp_min(0).sqrt() * weights
    speed = torch.zeros(len(control), len(t), dtype=speed.dtype, device=device).index_add_(1, node, speed) / nodal
    speed = speed.clamp_min(1e-3 * speed.amax(1, keepdim=True))
    run = torch.nn.functional.pad(((speed[:, 1:] + speed[:, :-1]) / 2 * t.diff()).cumsum(1), (1, 0))
    run = run / run[:, -1:]
    u = torch.linspace(0, 1, 4 * len(level.knots) + 1, dtype=t.dtype, device=device)[1:-1].expand(len(control), -1)
    right = torch.searchsorted(run, u.contiguous()).clamp(1, len(t) - 1)
    begin, end = run.gather(1, right - 1), run.gather(1, right)
    at = t[right - 1] + (u - begin) / (end - begin) * (t[right] - t[right - 1])
    points = spline_basis(level.knots, at.flatten().cpu()).to(device).unflatten(0, at.shape) @ control
    B = spline_basis(level.knots, u[0].cpu()).to(device)
    moved = control.clone()
    moved[:, 1:-1] = torch.linalg.pinv(B[:, 1:-1]) @ (points - B[:, [0, -1]] @ control[:, [0, -1]])
    return moved


def grid_degrees(nodes: int) -> tuple[int, ...]:
    """Degrees of the elements, the coarsest of which have about so many nodes on the whole curve."""
    coarsest = max(2, round(nodes / _ELEMENTS))
    return coarsest, *(degree for degree in _DEGREES if degree > coarsest)
