"""Newton's method without matrices: steps in Krylov spaces of the second derivatives, for many latent dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lgi.solver.energy import Basis
from lgi.solver.methods.base import Method, Stage
from lgi.solver.products import Average, Krylov, Product, hessian, inverse_root, residual_by_products
from lgi.solver.refinement import finer, grid_degrees
from lgi.solver.rows import located

# A space is large enough when four more products bring so small a part of what a step promises; or when it has so many.
_WANTED, _MOST = 0.05, 64
# After so many products, M is taken anew where the curve is: the mean at so many points.
_WORN, _POINTS = 128, 3
# Part of the tolerance that the search goes down to: the measuring grid sees a little more.
_SHARE = 0.8
# Products by which negative second derivatives are looked for.
_CONVEX = 24
# Less damping is none, and more than none is at least twice as much. After a step it changes by this factor.
_LEAST, _FACTOR = 1e-3, 8
# Of a node, in decoder rows: second derivatives times a vector (MLPs, 20 curves at a time).
_PRODUCT = 3.3


class NewtonCG(Method):
    """Steps ``(|H| + damping P)^-1 g`` in the Krylov space of the second derivatives ``H`` and the gradient ``g``.

    ``P = 2 K x M`` is what ``H`` would be, were the metric everywhere the same M, that in the middle of the first curve
    or, after many products, the mean along a later one; K is the stiffness of the spline. M has a ridge in proportion
    to the damping. After a step that has been rejected the next one is taken in the same space.
    """

    foretells = True

    def __init__(self, stage: Stage) -> None:
        self.stage, group, energy = stage, stage.group, stage.energy
        self.n_rows = self.rows = torch.zeros_like(stage.sample.energy)
        if group.average is None:
            group.average = Average.of(energy, stage.basis[0][len(stage.grid.t) // 2, None] @ group.control)
            self.rows += energy.tensor_cost
        # The latter is for spaces: with the ridges that go with the damping of their steps.
        self.average, self.steps = group.average, replace(group.average, ridge=group.average.ridge.clone())
        self.finer_basis = energy.basis(stage.level.grid, finer(stage.level.knots))
        self.root, self.finer_root = (inverse_root(stage.grid, basis) for basis in (stage.basis, self.finer_basis))
        self.at = torch.full_like(group.control, torch.nan)
        self.spaces = Krylov.nothing(stage.gradient).padded(_MOST)
        # Of residuals in the norm of variations to those in P; and how many products there were since M was taken.
        self.ratio, self.wear = torch.ones_like(self.rows), torch.zeros_like(self.rows)
        self.residual, self.promise, self.wanted = (torch.full_like(self.rows, torch.inf) for _ in range(3))
        self.least = torch.full_like(self.rows, torch.nan)

    @staticmethod
    def degrees(nodes: int) -> Sequence[int]:
        """Degrees of the grids of all levels, but for the coarsest.

        Where the metric hardly sees many directions, a curve finds ways between the nodes of that: a residual of 3e-4
        there has been seen to be 3e-2 on the next.
        """
        return grid_degrees(nodes)[1:]

    @staticmethod
    def n_values(d: int, n_free: int, n_nodes: int) -> int:
        """Numbers kept of a curve in d dimensions with so many free control points and nodes: vectors, and metrics."""
        return (3 * _MOST * n_free + 20 * n_nodes) * d + 3 * d**2

    def going(self, stage: Stage, live: Tensor) -> Tensor:
        """Which of the curves ``live`` (l,) have not converged on this grid; makes spaces for their steps."""
        control, n_nodes = stage.group.control[live], len(stage.grid.t)
        moved = (control != self.at[live]).any(-1).any(-1)
        self.at[live] = control
        for part in live[moved].split(stage.energy.n_curves(n_nodes)) if bool(moved.any()) else ():
            self._look(stage, part, stage.group.control[part])
        return self.residual[live] > self.wanted[live]

    def _look(self, stage: Stage, live: Tensor, control: Tensor) -> None:
        """Residuals, promises and next steps of curves ``live`` (l,) that have moved, all recorded at once."""
        energy, sample, average = stage.energy, stage.sample[live], self._renewed(live, control)
        points, velocity = ((B @ control).to(energy.dtype) for B in stage.basis)
        gradient = average.whitened(self.root, stage.gradient[live])
        own = gradient.square().sum(-1) / (2 * sample.energy)
        self.residual[live] = self.ratio[live] * own.sqrt()
        wanted = torch.full_like(own, stage.tolerance * _SHARE)
        self.wanted[live] = wanted = wanted.maximum(sample.tail) if stage.has_finer_grid else wanted

        def residual(some: Tensor, basis: Basis, gradient: Tensor, limit: Tensor | None = None) -> Tensor:
            found, rows = residual_by_products(
                energy,
                stage.grid,
                basis,
                points[some],
                gradient[some],
                known=sample.energy[some],
                average=average[some],
                limit=limit,
            )
            self.rows[live[some]] += rows
            return found

        some = located(self.residual[live] <= wanted)
        self.residual[live[some]] = found = residual(some, stage.basis, stage.gradient[live], wanted[some])
        self.ratio[live[some]] = found / own[some].sqrt()
        going = self.residual[live] > wanted
        of_length = energy.length_gradient(stage.grid, sample, velocity, energy.metric_product(points)(velocity))
        outlook = of_length.gradient(self.finer_basis)
        promise = average.whitened(self.finer_root, outlook).square().sum(-1) / (4 * sample.energy)
        # What is promised by the metric of one point is looked at more closely before it is paid for.
        some = located(~going & (promise > stage.length_tolerance))
        promise[some] = residual(some, self.finer_basis, outlook).square() / 2
        self.promise[live] = promise
        some = live[going]
        self.steps.ridge[some] = average[going].damped()
        b = -self.steps[some].whitened(self.root, stage.gradient[some])
        space = self._space(some, b, _MOST, _WANTED, average.damping[going])
        self.spaces[some] = space.padded(_MOST)

    def _renewed(self, live: Tensor, control: Tensor) -> Average:
        """Average metrics of some curves, anew of those to whose steps they no longer fit."""
        worn = located(self.wear[live] >= _WORN)
        if len(worn):
            n = len(self.stage.grid.t)
            points = self.stage.basis[0][[(2 * k + 1) * n // (2 * _POINTS) for k in range(_POINTS)]] @ control[worn]
            found = Average.of(self.stage.energy, points)
            self.average.values[live[worn]], self.average.vectors[live[worn]] = found.values, found.vectors
            self.rows[live[worn]] += _POINTS * self.stage.energy.tensor_cost
            self.wear[live[worn]], self.ratio[live[worn]] = 0, 1
        return self.average[live]

    def _space(self, live: Tensor, b: Tensor, most: int, wanted: float, damping: Tensor | None = None) -> Krylov:
        """Spaces of the second derivatives along the curves ``live`` (l,) and vectors (l, f), in coordinates of P."""
        average, root, stage = self.steps[live], self.root, self.stage
        control = stage.group.control[live]

        def whitened(some: Tensor) -> Product:
            product, own = hessian(stage.energy, stage.grid, stage.basis, control[some]), average[some]
            return lambda x: own.whitened(root, product(own.coloured(root, x)))

        space = Krylov.of(whitened, b, most=most, wanted=wanted, damping=damping)
        self.rows[live] += space.n_products * _PRODUCT * len(stage.grid.t)
        self.wear[live] += space.n_products
        return space

    def gain(self, before: Tensor, length: Tensor) -> Tensor:
        """Relative shortening (c,) to expect of more knots, from the gradient by finer ones."""
        del before, length
        return self.promise

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy that they promise (l,)."""
        del gradient
        x, decrease = self.spaces[live].step(self.average.damping[live])
        step = (x[:, None] @ self.spaces.Q[live])[:, 0]
        return self.steps[live].coloured(self.root, step), decrease

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Less damping where the promised decrease has come true, more where not a quarter of it has."""
        del step, change
        damping = self.average.damping[live]
        less = torch.where(damping < _LEAST, 0, damping / _FACTOR)
        more = (_FACTOR * damping).clamp_min(2 * _LEAST)
        self.average.damping[live] = torch.where(quality > 0.75, less, torch.where(quality > 0.25, damping, more))

    def convex(self, chosen: Tensor, least: float) -> Tensor:
        """Which curves (l,) have no relative second derivative (`certify`) below ``least``, as far as products tell.

        With vectors of random direction, which have a part in all directions.
        """
        gradient = self.stage.gradient
        b = torch.randn(gradient.shape[1], generator=torch.Generator().manual_seed(0)).to(gradient)
        unknown = chosen[self.least[chosen].isnan()]
        for part in unknown.split(self.stage.energy.n_curves(len(self.stage.grid.t))) if len(unknown) else ():
            # Below 0: no gain is too small to go on.
            self.least[part] = self._space(part, b.expand(len(part), -1), _CONVEX, -1).least()
        return self.least[chosen] >= least
