"""Newton's method without matrices: conjugate gradients in a trust region, for latent spaces of large dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from lgi.solver.methods.base import Method, Stage
from lgi.solver.products import Average, conjugate_gradients, hessian, middles, stiffness
from lgi.solver.refinement import finer
from lgi.solver.rows import located

# The radius at first, in parts of the root of the energy: the line has this length in the norm of the preconditioner.
_RADIUS = 0.5
# A step is known well enough when three iterations bring so small a part of what it promises; at most so many are made.
_WANTED, _DELAY, _MOST = 0.1, 3, 60
# The step that each curve takes unseen when it leaves makes its residual smaller by this factor, as a rule; it is taken
# where the residual is below the second number.
_LEFT, _TRUSTED = 3, 0.1
# Of a node, in decoder rows: second derivatives times a vector.
_PRODUCT = 4.0


class NewtonCG(Method):
    """Newton steps by products with second derivatives, preconditioned by the average metric of the first curve."""

    foretells = True

    def __init__(self, stage: Stage) -> None:
        self.stage, group, energy = stage, stage.group, stage.energy
        self.n_rows = self.rows = torch.zeros_like(stage.sample.energy)
        if group.average is None:
            nodes = middles(len(stage.grid.t))
            group.average = Average.of(energy, stage.basis[0][nodes] @ group.control)
            self.rows += len(nodes) * energy.tensor_cost
        self.finer_basis = energy.basis(stage.level.grid, finer(stage.level.knots))
        self.inverse, self.finer_inverse = (
            torch.linalg.inv(stiffness(stage.level.grid, basis))
            for basis in (energy.basis(stage.level.grid, stage.level.knots), self.finer_basis)
        )
        self.radius = _RADIUS * stage.sample.energy.sqrt()
        self.step = torch.zeros_like(stage.gradient)
        self.decrease, self.length = torch.zeros_like(self.radius), torch.zeros_like(self.radius)
        self.inside = torch.zeros_like(self.radius, dtype=torch.bool)
        self.promise = torch.full_like(self.radius, torch.inf)

    @staticmethod
    def n_values(d: int, n_free: int, n_nodes: int) -> int:
        """Numbers kept of a curve in d dimensions with so many free control points and nodes: vectors, and metrics."""
        return 20 * (n_free + n_nodes) * d + 4 * d**2

    def going(self, stage: Stage, live: Tensor) -> Tensor:
        """Which of the curves ``live`` (l,) neither deserve a finer level nor are done."""
        average = stage.group.average
        assert average is not None
        for part in live.split(stage.energy.n_curves(len(stage.grid.t))):
            self._solve(stage, part, average[part])
        sample, gradient, average = stage.sample[live], stage.gradient[live], average[live]
        residual = self._residual(stage)[live]

        def squared(gradient: Tensor, inverse: Tensor) -> Tensor:
            return (gradient * average.solve(inverse, gradient)).sum(-1) / (2 * sample.energy)

        outlook = squared(sample.gradient(self.finer_basis), self.finer_inverse)
        more = (outlook - squared(gradient, self.inverse)).clamp_min(0)
        self.promise[live] = promise = more / 2
        wanted = torch.full_like(residual, _LEFT * stage.tolerance)
        if stage.has_finer_knots:
            wanted = torch.where(promise > stage.length_tolerance, wanted.maximum(more.sqrt() / 2), wanted)
        if stage.has_finer_grid:
            wanted = wanted.maximum(sample.tail)
        return ~self.inside[live] | (residual > wanted)

    def _solve(self, stage: Stage, live: Tensor, average: Average) -> None:
        """Look for the next steps of the curves ``live`` (l,), as many as are recorded at a time."""
        control = stage.group.control[live]
        found = conjugate_gradients(
            lambda some: hessian(stage.energy, stage.grid, stage.basis, control[some]),
            lambda some, x: average[some].solve(self.inverse, x),
            -stage.gradient[live],
            radius=self.radius[live],
            wanted=_WANTED,
            delay=_DELAY,
            most=_MOST,
        )
        self.step[live], self.decrease[live], self.length[live] = found.x, found.decrease, found.length
        self.inside[live] = found.inside
        self.rows[live] += found.n_products * _PRODUCT * len(stage.grid.t)

    def gain(self, before: Tensor, length: Tensor) -> Tensor:
        """Relative shortening (c,) to expect of more knots, from the gradient by finer ones."""
        del before, length
        return self.promise

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy that they promise (l,)."""
        del gradient
        return self.step[live], self.decrease[live]

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Take in which part of the promised decrease came true: a larger radius, or one that excludes this step."""
        del step, change
        larger = torch.where(self.inside[live], self.radius[live], 2.5 * self.radius[live])
        same = torch.where(quality > 0.25, self.radius[live], self.length[live] / 4)
        self.radius[live] = torch.where(quality > 0.75, larger, same)

    def last_step(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Curves (l,) whose model has proved good, and their next steps (l, f)."""
        residual = self._residual(stage)
        live = located(self.inside & (residual > stage.tolerance / 2) & (residual < _TRUSTED))
        return live, self.step[live]

    def _residual(self, stage: Stage) -> Tensor:
        """Relative projected gradient (c,), were the second derivatives those of the norm."""
        return (self.decrease / stage.sample.energy.clamp_min(torch.finfo(torch.float64).tiny)).clamp_min(0).sqrt()
