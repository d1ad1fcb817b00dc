"""Newton's method without matrices: steps in Krylov spaces of the second derivatives, for many latent dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lgi.solver.methods.base import Method, Stage
from lgi.solver.products import Average, Krylov, Product, hessian, residual_by_products, inverse_root
from lgi.solver.refinement import finer, grid_degrees
from lgi.solver.rows import located

# A space is large enough when four more products bring so small a part of what a step promises; or when it has so many.
import os
_WANTED, _MOST = float(os.environ.get("W","0.1")), int(os.environ.get("MOST","32"))
# After so many spaces that were too small, M is taken anew where the curve is.
_WORN = int(os.environ.get("WORN","3"))
# Products by which it is looked for negative second derivatives.
_CONVEX = 24
# Less damping is none, and more than none is at least twice as much. After a step it changes by this factor.
_LEAST, _FACTOR = 1e-3, 8
# Of a node, in decoder rows: second derivatives, or the metric, times a vector (MLPs, 20 curves at a time).
_PRODUCT, _NORM_PRODUCT = 3.3, 2.5


class NewtonCG(Method):
    """Steps ``(|H| + damping P)^-1 g`` in the Krylov space of the second derivatives ``H`` and the gradient ``g``.

    ``P = 2 K x M`` is what ``H`` would be, were the metric everywhere that in the middle of the first curve, M; K is
    the stiffness of the spline. After a step that has been rejected the next one is taken in the same space.
    """

    foretells = True

    def __init__(self, stage: Stage) -> None:
        self.stage, group, energy = stage, stage.group, stage.energy
        self.n_rows = self.rows = torch.zeros_like(stage.sample.energy)
        if group.average is None:
            group.average = Average.of(energy, stage.basis[0][len(stage.grid.t) // 2] @ group.control)
            self.rows += energy.tensor_cost
        self.average = group.average
        self.finer_basis = energy.basis(stage.level.grid, finer(stage.level.knots))
        self.root, self.finer_root = (inverse_root(stage.grid, basis) for basis in (stage.basis, self.finer_basis))
        self.at = torch.full_like(group.control, torch.nan)
        self.spaces = Krylov.nothing(stage.gradient).padded(_MOST)
        self.ratio, self.wear = torch.ones_like(self.rows), torch.zeros_like(self.rows)
        self.least = torch.full_like(self.rows, torch.nan)
        self.residual, self.promise = (torch.full_like(self.rows, torch.inf) for _ in range(2))

    @staticmethod
    def degrees(nodes: int) -> Sequence[int]:
        """Degrees of the grids of all levels, but for the coarsest.

        Where the metric hardly sees many directions, a curve finds ways between the nodes of that: a residual of 3e-4
        there has been seen to be 3e-2 on the next.
        """
        return grid_degrees(nodes)[int(os.environ.get("SKIP","1")):]

    @staticmethod
    def n_values(d: int, n_free: int, n_nodes: int) -> int:
        """Numbers kept of a curve in d dimensions with so many free control points and nodes: vectors, and metrics."""
        return (3 * _MOST * n_free + 20 * n_nodes) * d + 3 * d**2

    def going(self, stage: Stage, live: Tensor) -> Tensor:
        """Which of the curves ``live`` (l,) neither deserve a finer level nor are done."""
        sample, gradient, average, energy = stage.sample[live], stage.gradient[live], self.average[live], stage.energy
        control = stage.group.control[live]
        moved = (control != self.at[live]).any(-1).any(-1)
        self.at[live] = control
        worn = located(moved & (self.wear[live] >= _WORN))
        if len(worn):
            fresh = Average.of(energy, stage.basis[0][len(stage.grid.t) // 2] @ control[worn])
            self.average.inverse[live[worn]] = average.inverse[worn] = fresh.inverse
            self.rows[live[worn]] += energy.tensor_cost
            self.wear[live[worn]], self.ratio[live[worn]] = 0, 1

        def squared(gradient: Tensor, root: Tensor) -> Tensor:
            return average.whitened(root, gradient).square().sum(-1) / (2 * sample.energy)

        own, n_curves = squared(gradient, self.root), energy.n_curves(len(stage.grid.t))
        more = (squared(sample.gradient(self.finer_basis), self.finer_root) - own).clamp_min(0)
        velocity = stage.basis[1] @ control
        parts = [energy.metric_product(z)(v) for z, v in zip(*(x.split(n_curves) for x in ((stage.basis[0] @ control).to(energy.dtype), velocity)))]
        of_length = energy.length_gradient(stage.grid, sample, velocity, torch.cat(parts))
        self.rows[live] += _NORM_PRODUCT * len(stage.grid.t)
        self.promise[live] = promise = squared(of_length.gradient(self.finer_basis), self.finer_root) / 2
        self.residual[live[moved]] = (self.ratio[live] * own.sqrt())[moved]
        wanted = torch.full_like(own, stage.tolerance / 2)
        if stage.has_finer_knots and os.environ.get("EARLY"):
            wanted = torch.where(promise > stage.length_tolerance, wanted.maximum(more.sqrt() / 2), wanted)
        if stage.has_finer_grid:
            wanted = wanted.maximum(sample.tail)
        close = moved & (self.residual[live] <= wanted) & (wanted <= stage.tolerance)
        for part in located(close).split(n_curves):
            points = stage.basis[0] @ control[part]
            found, n = residual_by_products(
                energy, stage.grid, stage.basis, points, gradient[part], sample.energy[part], average[part]
            )
            self.ratio[live[part]], self.residual[live[part]] = found / own[part].sqrt(), found
            self.rows[live[part]] += n * _NORM_PRODUCT * len(stage.grid.t)
        going = self.residual[live] > wanted
        # What is promised by the metric of one point is looked at more closely before it is paid for.
        for part in located(~going & moved & (promise > stage.length_tolerance)).split(n_curves):
            points, finer_gradient = stage.basis[0] @ control[part], of_length.gradient(self.finer_basis)[part]
            found, n = residual_by_products(
                energy, stage.grid, self.finer_basis, points, finer_gradient, sample.energy[part], average[part]
            )
            self.promise[live[part]] = found.square() / 2
            self.rows[live[part]] += n * _NORM_PRODUCT * len(stage.grid.t)
        for part in located(going & moved).split(n_curves):
            here = self.average[live[part]]
            start = here.whitened(self.root, -gradient[part])
            found = self._space(
                live[part], control[part], start, most=_MOST, wanted=_WANTED, damping=here.damping
            )
            self.wear[live[part]] += found.n_products >= _MOST
            self.spaces[live[part]] = found.padded(_MOST)
        return going

    def _space(self, live: Tensor, control: Tensor, start: Tensor, **settings: Any) -> Krylov:
        """Spaces of the second derivatives of some curves, and vectors ``start`` (l, f) in coordinates of P."""
        average, root, stage = self.average[live], self.root, self.stage

        def whitened(some: Tensor) -> Product:
            product, own = hessian(stage.energy, stage.grid, stage.basis, control[some]), average[some]
            return lambda x: own.whitened(root, product(own.coloured(root, x)))

        space = Krylov.of(whitened, start, **settings)
        self.rows[live] += space.n_products * _PRODUCT * len(stage.grid.t)
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
        return self.average[live].coloured(self.root, step), decrease

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Less damping where the promised decrease has come true, more where not a quarter of it has."""
        del step, change
        damping = self.average.damping[live]
        less = torch.where(damping < _LEAST, 0, damping / _FACTOR)
        more = (_FACTOR * damping).clamp_min(2 * _LEAST)
        self.average.damping[live] = torch.where(quality > 0.75, less, torch.where(quality > 0.25, damping, more))

    def convex(self, chosen: Tensor, least: float) -> Tensor:
        """Which curves (l,) have no relative second derivative (`certify`) below ``least``, as far as products tell."""
        control, stage = self.stage.group.control, self.stage
        start = torch.randn(stage.gradient.shape[1], generator=torch.Generator().manual_seed(0)).to(stage.gradient)
        for part in chosen[self.least[chosen].isnan()].split(stage.energy.n_curves(len(stage.grid.t))):
            space = self._space(part, control[part], start.expand(len(part), -1), most=_CONVEX, wanted=-1)
            self.least[part] = space.least()
        return self.least[chosen] >= least
