"""Newton's method without matrices: steps in Krylov spaces of the second derivatives, for many latent dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from lgi.solver.methods.base import Method, Stage
from lgi.solver.products import Average, Krylov, Product, hessian, residual_by_products, inverse_root
from lgi.solver.refinement import finer
from lgi.solver.rows import located

# A space is large enough when four more products bring so small a part of what a step promises; or when it has so many.
_WANTED, _MOST = 0.1, 32
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
        self.ratio = torch.ones_like(self.rows)
        self.residual, self.promise = (torch.full_like(self.rows, torch.inf) for _ in range(2))

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

        def squared(gradient: Tensor, root: Tensor) -> Tensor:
            return average.whitened(root, gradient).square().sum(-1) / (2 * sample.energy)

        own = squared(gradient, self.root)
        more = (squared(sample.gradient(self.finer_basis), self.finer_root) - own).clamp_min(0)
        self.promise[live] = promise = more / 2
        self.residual[live[moved]] = (self.ratio[live] * own.sqrt())[moved]
        wanted = torch.full_like(own, stage.tolerance / 2)
        if stage.has_finer_knots:
            wanted = torch.where(promise > stage.length_tolerance, wanted.maximum(more.sqrt() / 2), wanted)
        if stage.has_finer_grid:
            wanted = wanted.maximum(sample.tail)
        close = moved & (self.residual[live] <= wanted) & (wanted <= stage.tolerance)
        for part in located(close).split(energy.n_curves(len(stage.grid.t))):
            points = stage.basis[0] @ control[part]
            found, n = residual_by_products(
                energy, stage.grid, stage.basis, points, gradient[part], sample.energy[part], average[part]
            )
            self.ratio[live[part]], self.residual[live[part]] = found / own[part].sqrt(), found
            self.rows[live[part]] += n * _NORM_PRODUCT * len(stage.grid.t)
        going = self.residual[live] > wanted
        for part in located(going & moved).split(energy.n_curves(len(stage.grid.t))):
            self._solve(stage, live[part], control[part], gradient[part])
        return going

    def _solve(self, stage: Stage, live: Tensor, control: Tensor, gradient: Tensor) -> None:
        """Make spaces for the next steps of the curves ``live`` (l,), as many as are recorded at a time."""
        average, root = self.average[live], self.root

        def whitened(some: Tensor) -> Product:
            product, own = hessian(stage.energy, stage.grid, stage.basis, control[some]), average[some]
            return lambda x: own.whitened(root, product(own.coloured(root, x)))

        found = Krylov.of(
            whitened, average.whitened(root, -gradient), most=_MOST, wanted=_WANTED, damping=average.damping
        )
        self.spaces[live] = found.padded(_MOST)
        self.rows[live] += found.n_products * _PRODUCT * len(stage.grid.t)

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
