"""Gauss-Newton: trust-region Newton steps from second derivatives that are computed once and then learnt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lgi.solver.energy import Basis
from lgi.solver.methods.base import Method, Stage, Steps
from lgi.solver.refinement import finer
from lgi.solver.rows import Rows
from lgi.solver.steps import Norm, adapted, damped_step, secant, solved

# The step that each curve takes unseen when it leaves makes its residual smaller by this factor, as a rule.
_LEFT = 3
# It is taken where the residual is below this.
_TRUSTED = 0.1


@dataclass(eq=False)
class DampedSteps(Rows, Steps):
    """Steps ``(H + lambda 2 N) step = -gradient`` with the second derivatives ``H`` and the norm ``N`` of variations.

    Each evaluation, accepted or not, adds a secant to ``H``, so that it need not be computed again.
    """

    hessian: Tensor  # (c, f, f)
    norm: Norm
    damping: Tensor  # (c,)

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy that they promise (l,)."""
        H, damping = self.hessian[live], self.damping[live]

        def safe(bad: Tensor) -> Tensor:
            # Where the model has no minimum, the energy's own metric gives the direction.
            return solved(self.norm.factor[live[bad]], gradient[bad]) / (2 * (1 + damping[bad, None]))

        damped = H + 2 * damping[:, None, None] * self.norm.matrix[live]
        step, indefinite = damped_step(damped, gradient, safe)
        curvature = (step * (H @ step[..., None])[..., 0]).sum(-1)
        return -step, (gradient * step).sum(-1) - curvature.where(~indefinite, 0) / 2

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Take in the change of the gradient along a step, and which part of the promised decrease came true."""
        self.hessian[live] = secant(self.hessian[live], step, change)
        self.damping[live] = adapted(self.damping[live], quality)


class GaussNewton(Method):
    """Needs ``d`` forward derivatives a point once, along the first curve, and then gradients only."""

    order = 2
    foretells = True

    def __init__(self, stage: Stage) -> None:
        energy, level = stage.energy, stage.level
        self.finer_basis = energy.basis(level.grid, finer(level.knots))
        self.base, norm, finer_norm, self.metric = _matrices(stage, self.finer_basis)
        learnt, known = stage.group.learnt, stage.sample.energy
        hessian = self.base if learnt is None else self.base + learnt
        self.steps = DampedSteps(hessian, Norm.of(norm), torch.zeros_like(known))
        self.finer_norm = Norm.of(finer_norm)
        self.promise = torch.full_like(known, torch.inf)

    @staticmethod
    def n_values(n_free: int, n_nodes: int) -> int:
        """Numbers kept of a curve with so many free coordinates, and coordinates of its nodes: matrices of both."""
        return 10 * n_free**2 + n_nodes**2

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy that they promise (l,)."""
        return self.steps.propose(live, gradient)

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Take in the change of the gradient along a step, and which part of the promised decrease came true."""
        self.steps.learn(live, step, change, quality)

    def going(self, stage: Stage, live: Tensor) -> Tensor:
        """Those of the curves ``live`` (l,) that neither deserve a finer level nor are done."""
        sample = stage.sample[live]
        residual = self.steps.norm.residual(live, stage.gradient[live], sample.energy)
        outlook = self.finer_norm.residual(live, sample.gradient(self.finer_basis), sample.energy)
        velocity = stage.basis[1] @ stage.group.control[live]
        of_length = stage.energy.length_gradient(stage.grid, sample, velocity, self.metric[live])
        shortening = self.finer_norm.residual(live, of_length.gradient(self.finer_basis), sample.energy)
        self.promise[live] = promise = shortening.square() / 2
        wanted = torch.where(self.steps.damping[live] == 0, _LEFT, 1) * stage.tolerance
        if stage.has_finer_knots:
            wanted = torch.where(promise > stage.length_tolerance, wanted.maximum(outlook / 2), wanted)
        if stage.has_finer_grid:
            wanted = wanted.maximum(sample.tail)
        return live[residual > wanted]

    def gain(self, before: Tensor, length: Tensor) -> Tensor:
        """Relative shortening (c,) to expect of more knots, from the gradient of the length by finer ones."""
        del before, length
        return self.promise

    def learnt(self) -> Tensor:
        """What secants have added to the second derivatives (c, f, f)."""
        return self.steps.hessian - self.base

    def last_step(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Curves (l,) whose model has proved good, and their next steps (l, f)."""
        everywhere = slice(None)
        residual = self.steps.norm.residual(everywhere, stage.gradient, stage.sample.energy)
        trusted = (residual > stage.tolerance / 2) & (self.steps.damping == 0)
        live = (trusted & (residual < _TRUSTED)).nonzero()[:, 0]
        return live, self.propose(live, stage.gradient[live])[0]

    def corrections(self, chosen: Tensor) -> tuple[DampedSteps, Norm]:
        """Steps of some of the curves, as far as they have learnt, and the norm of their residual."""
        steps = self.steps[chosen]
        return steps, steps.norm


def _matrices(stage: Stage, finer_basis: Basis) -> list[Tensor]:
    """Hessian, norm, norm with finer knots, and metric at the nodes, from what is known along the first curve."""
    energy, level, known = stage.energy, stage.level, stage.group.curvature
    assert known is not None
    parts = []
    # Interpolated, the metric at all pairs of nodes takes much more memory than the matrices made of it.
    n_curves = max(1, energy.budget * 8 // (len(level.grid.t) * energy.d) ** 2)
    for i in range(0, len(stage.group.index), n_curves):
        here = known[i : i + n_curves].interpolated(stage.first.grid, level.grid)
        M = here.metric
        parts.append(
            (
                energy.hessian(level.grid, stage.basis, here),
                energy.norm(level.grid, stage.basis, M),
                energy.norm(level.grid, finer_basis, M),
                M,
            )
        )
    return [torch.cat(matrices) for matrices in zip(*parts, strict=True)]
