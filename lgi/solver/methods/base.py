"""What a method of the solver is, and what it is given: curves at one level of refinement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lgi.solver.energy import Basis, Curvature, Energy, Sample
from lgi.solver.grid import Grid
from lgi.solver.products import Average
from lgi.solver.refinement import Level, bisected, grid_degrees
from lgi.solver.rows import Rows
from lgi.solver.steps import Norm
from lgi.spline import uniform_knots


@dataclass(eq=False)
class Group(Rows):
    """Curves of one level that are still looked for, and what is known of them."""

    index: Tensor  # (c,), in the chunk
    control: Tensor  # (c, n_control, d), float64
    doubts: Tensor  # (c,), steps so far of which a method had expected more
    curvature: Curvature | None = None  # along the first curve, at the nodes of the first grid
    learnt: Tensor | None = None  # (c, f, f), what a method has learnt of the second derivatives since
    average: Average | None = None  # the metric along the first curve, which preconditions


@dataclass(eq=False)
class Stage:
    """A group of c curves at one level, on the grid where they are now, and what is wanted of them."""

    energy: Energy
    level: Level
    first: Level  # where the search has begun, to which `group.curvature` belongs
    grid: Grid
    basis: Basis
    group: Group
    sample: Sample
    gradient: Tensor  # (c, f)
    gained: Tensor  # (c,), relative decrease of the energy by the last step
    tolerance: float
    length_tolerance: float
    has_finer_knots: bool
    has_finer_grid: bool

    def take(self, live: Tensor, control: Tensor, sample: Sample) -> None:
        """Replace the curves ``live`` (l,) by others, with their sample."""
        self.group.control[live], self.sample[live] = control, sample
        self.gradient[live] = sample.gradient(self.basis)


class Steps(ABC):
    """Proposes steps for c curves with f free coordinates, and learns from what became of them."""

    @abstractmethod
    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy that they promise (l,)."""

    @abstractmethod
    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Take in the change of the gradient along a step, and which part of the promised decrease came true."""


class Method(Steps):
    """How the curves of a stage are brought to the least energy: one class in one file, named in one table.

    It is made for a stage. :meth:`going` says which curves take another step; when none does, :meth:`gain` says what
    more knots would bring.
    """

    order: ClassVar[int] = 1
    """Order of the derivatives of the first curve that a method wants: 2 with the curvature."""
    foretells: ClassVar[bool] = False
    """Whether :meth:`gain` is a forecast, by which the number of knots is chosen."""
    n_rows: float | Tensor = 0.0
    """Decoder rows a curve that the method has taken beside the samples of the search."""

    @staticmethod
    def knots(n_control: int) -> list[Tensor]:
        """Knots of all levels, up to so many control points."""
        found = [uniform_knots(4)]
        while len(more := bisected(found[-1])) - 4 <= n_control:
            found.append(more)
        return found

    @staticmethod
    def degrees(nodes: int) -> Sequence[int]:
        """Degrees of the grids of all levels, the coarsest of which has about so many nodes."""
        return grid_degrees(nodes)

    @staticmethod
    def n_values(d: int, n_free: int, n_nodes: int) -> int:
        """Numbers kept of a curve in d dimensions with so many free control points and nodes."""
        return 20 * n_free * d

    @abstractmethod
    def __init__(self, stage: Stage) -> None: ...

    @abstractmethod
    def going(self, stage: Stage, live: Tensor) -> Tensor:
        """Which of the curves ``live`` (l,) take another step."""

    @abstractmethod
    def gain(self, before: Tensor, length: Tensor) -> Tensor:
        """Relative shortening (c,) to expect of more knots; ``before`` are the lengths with fewer, 0 if unknown."""

    def learnt(self) -> Tensor | None:
        """What is to be kept for later levels (c, f, f)."""
        return None

    def stale(self, live: Tensor) -> Tensor:
        """Of which of the curves ``live`` (l,) second derivatives are to be computed anew, for :meth:`renew`."""
        return torch.zeros_like(live, dtype=torch.bool)

    def renew(self, stage: Stage, live: Tensor, curvature: Curvature) -> None:
        """Take second derivatives along the curves ``live`` (l,) as they are now."""

    def distrust(self, chosen: Tensor) -> None:
        """Some curves (l,) have been moved elsewhere, where second derivatives are others."""

    def convex(self, chosen: Tensor, least: float) -> Tensor:
        """Which curves (l,) are known to have no relative second derivative (`certify`) below ``least``."""
        return torch.zeros_like(chosen, dtype=torch.bool)

    def last_step(self, stage: Stage) -> tuple[Tensor, Tensor] | None:
        """Which curves (l,) take one more step (l, f), at which nothing but a finer grid will look."""
        return None

    def corrections(self, chosen: Tensor) -> tuple[Steps, Norm] | None:
        """Steps of some of the curves on the measuring grid, if there are any, and the norm in which they are small."""
        return None
