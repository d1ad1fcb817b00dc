"""Gauss-Newton: trust-region Newton steps from second derivatives that are learnt as long as that will do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lgi.solver.energy import Curvature
from lgi.solver.grid import Grid, constant, interpolation
from lgi.solver.methods.base import Method, Stage, Steps
from lgi.solver.refinement import finer
from lgi.solver.rows import Rows, located
from lgi.solver.steps import Norm, adapted, damped_step, factorised, flipped_step, secant

# The step that each curve takes unseen when it leaves makes its residual smaller by this factor, as a rule.
_LEFT = 3
# It is taken where the residual is below this.
_TRUSTED = 0.1
# A step is poor when less than this part of the promised decrease has come true. Second derivatives are computed anew
# after so many poor steps of a curve, and after each one that follows: on VAE1, where they cost more than they bring,
# few curves have so many, on walls of the standard deviation (tests/benchmarks/walls.py) most.
_POOR, _DOUBTS = 0.25, 4


@dataclass(eq=False)
class DampedSteps(Rows, Steps):
    """Steps ``(H + lambda 2 N) step = -gradient`` with the second derivatives ``H`` and the norm ``N`` of variations.

    Each evaluation, accepted or not, adds a secant to ``H``. Where that no longer foretells the energy, as in metrics
    that grow exponentially, ``H`` is to be computed anew.
    """

    hessian: Tensor  # (c, f, f)
    norm: Norm
    damping: Tensor  # (c,)
    doubts: Tensor  # (c,), steps of which too little has come true, on all levels
    moved: Tensor  # (c,), whether the curve has moved since H was computed
    stale: Tensor  # (c,), whether it is to be computed anew

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy that they promise (l,)."""
        H, damping, norm = self.hessian[live], self.damping[live], self.norm[live]

        def flipped(bad: Tensor) -> Tensor:
            return flipped_step(H[bad], norm[bad], damping[bad], gradient[bad])

        step = damped_step(H + 2 * damping[:, None, None] * norm.matrix, gradient, flipped)[0]
        curvature = (step * (H @ step[..., None])[..., 0]).sum(-1)
        return -step, (gradient * step).sum(-1) - curvature / 2

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Take in the change of the gradient along a step, and which part of the promised decrease came true."""
        self.hessian[live] = secant(self.hessian[live], step, change)
        self.damping[live] = adapted(self.damping[live], quality)
        poor = ~(quality > _POOR)
        self.doubts[live] += poor
        self.moved[live] |= quality > 0
        self.stale[live] = poor & self.moved[live] & (self.doubts[live] >= _DOUBTS)


class GaussNewton(Method):
    """Needs ``d`` forward derivatives a point along the first curve, and again where gradients teach too little."""

    order = 2
    foretells = True

    def __init__(self, stage: Stage) -> None:
        energy, level = stage.energy, stage.level
        knots = finer(level.knots)
        self.finer_basis = energy.basis(level.grid, knots)
        self.judging = level.seeing(knots)
        self.judging_basis = energy.basis(self.judging, knots)
        known, learnt, group = stage.sample.energy, stage.group.learnt, stage.group
        assert group.curvature is not None
        self.base, norm, self.finer_norm, self.metric = self._matrices(stage, group.curvature, stage.first.grid)
        hessian = self.base.clone() if learnt is None else self.base + learnt
        damping, moved = torch.zeros_like(known), torch.zeros_like(known, dtype=torch.bool)
        # What has had to be computed anew on a coarser level is not taken for granted on this one.
        self.steps = DampedSteps(hessian, norm, damping, group.doubts, moved, group.doubts >= _DOUBTS)
        self.promise = torch.full_like(known, torch.inf)

    @staticmethod
    def n_values(d: int, n_free: int, n_nodes: int) -> int:
        """Numbers kept of a curve in d dimensions with so many free control points and nodes: matrices of both."""
        return 10 * (n_free * d) ** 2 + (n_nodes * d) ** 2

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy that they promise (l,)."""
        return self.steps.propose(live, gradient)

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Take in the change of the gradient along a step, and which part of the promised decrease came true."""
        self.steps.learn(live, step, change, quality)

    def stale(self, live: Tensor) -> Tensor:
        """Of which of the curves ``live`` (l,) second derivatives no longer foretell the energy."""
        return self.steps.stale[live]

    def renew(self, stage: Stage, live: Tensor, curvature: Curvature) -> None:
        """Take second derivatives along the curves ``live`` (l,) as they are now."""
        hessian, norm, finer_norm, self.metric[live] = self._matrices(stage, curvature, stage.grid)
        self.steps.hessian[live], self.steps.norm[live], self.finer_norm[live] = hessian, norm, finer_norm
        self.steps.stale[live] = self.steps.moved[live] = False

    def going(self, stage: Stage, live: Tensor) -> Tensor:
        """Which of the curves ``live`` (l,) neither deserve a finer level nor are done."""
        sample = stage.sample[live]
        residual = self.steps.norm.residual(live, stage.gradient[live], sample.energy)
        outlook = self.finer_norm.residual(live, sample.gradient(self.finer_basis), sample.energy)
        velocity = stage.basis[1] @ stage.group.control[live]
        of_length = stage.energy.length_gradient(
            stage.grid, sample, velocity, (self.metric[live] @ velocity[..., None])[..., 0]
        )
        shortening = self.finer_norm.residual(live, of_length.gradient(self.finer_basis), sample.energy)
        self.promise[live] = promise = shortening.square() / 2
        wanted = torch.where(self.steps.damping[live] == 0, _LEFT, 1) * stage.tolerance
        if stage.has_finer_knots:
            wanted = torch.where(promise > stage.length_tolerance, wanted.maximum(outlook / 2), wanted)
        if stage.has_finer_grid:
            wanted = wanted.maximum(sample.tail)
        return residual > wanted

    def gain(self, before: Tensor, length: Tensor) -> Tensor:
        """Relative shortening (c,) to expect of more knots, from the gradient of the length by finer ones."""
        del before, length
        return self.promise

    def learnt(self) -> Tensor:
        """What secants have added to the second derivatives (c, f, f)."""
        return self.steps.hessian - self.base

    def distrust(self, chosen: Tensor) -> None:
        """Some curves (l,) have been moved elsewhere, where second derivatives are others."""
        self.steps.doubts[chosen] += _DOUBTS

    def convex(self, chosen: Tensor, least: float) -> Tensor:
        """Which curves (l,) have no relative second derivative (`certify`) below ``least``, by the model of them."""
        norm = self.steps.norm[chosen]
        return ~factorised(self.steps.hessian[chosen] - 2 * least * norm.matrix)[1]

    def last_step(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Curves (l,) whose model has proved good, and their next steps (l, f)."""
        everywhere = slice(None)
        residual = self.steps.norm.residual(everywhere, stage.gradient, stage.sample.energy)
        trusted = (residual > stage.tolerance / 2) & (self.steps.damping == 0)
        live = located(trusted & (residual < _TRUSTED))
        return live, self.propose(live, stage.gradient[live])[0]

    def corrections(self, chosen: Tensor) -> tuple[DampedSteps, Norm]:
        """Steps of some of the curves, as far as they have learnt, and the norm of their residual."""
        steps = self.steps[chosen]
        return steps, steps.norm

    def _matrices(self, stage: Stage, curvature: Curvature, source: Grid) -> tuple[Tensor, Norm, Norm, Tensor]:
        """Hessian, norm, norm with finer knots, and metric at the nodes, from the curvature at the nodes of a grid."""
        energy, level = stage.energy, stage.level
        parts = []
        # Interpolated, the metric at all pairs of nodes takes much more memory than the matrices made of it.
        n_curves = max(1, energy.budget * 8 // (len(level.grid.t) * energy.d) ** 2)
        known = curvature.gram if curvature.gram is not None else curvature.rest_gram
        assert known is not None
        I = constant(interpolation(level.grid, self.judging, linearly=True), energy.device)
        for i in range(0, len(known), n_curves):
            here = curvature[i : i + n_curves].interpolated(source, level.grid)
            M = here.metric
            parts.append(
                (
                    energy.hessian(level.grid, stage.basis, here),
                    energy.norm(level.grid, stage.basis, M),
                    energy.norm(self.judging, self.judging_basis, torch.einsum("pk,ckab->cpab", I, M)),
                    M,
                )
            )
        hessian, norm, finer_norm, metric = (torch.cat(matrices) for matrices in zip(*parts, strict=True))
        return hessian, Norm.of(norm), Norm.of(finer_norm), metric
