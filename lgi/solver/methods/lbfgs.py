"""L-BFGS: quasi-Newton steps from gradients alone, for latent spaces of large dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from lgi.solver.methods.base import FirstOrder, Stage
from lgi.solver.rows import located

# Steps remembered.
_MEMORY = 10


class LBFGS(FirstOrder):
    """Limited-memory quasi-Newton steps (Nocedal 1980), preconditioned by the spline's stiffness, with backtracking."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.inverse = torch.linalg.inv(self.stiffness)
        self.d = stage.energy.d
        # For a metric that is everywhere the identity over `ratio`, the Hessian is 2 K / ratio.
        self.scale = self.ratio / 2
        self.shrink = torch.ones_like(self.ratio)
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def least_decrease(self, stage: Stage) -> Tensor:
        """The energy exceeds the least by the square of the residual; no need to outdo the grid."""
        return stage.sample.tail.clamp_min(stage.tolerance).square() / 10

    def gain(self, before: Tensor, length: Tensor) -> Tensor:
        """What the last refinement has brought (c,); before there was one, nothing is known."""
        return torch.where(before > 0, (before - length).abs() / length, torch.inf)

    def _precondition(self, x: Tensor) -> Tensor:
        return (self.inverse @ x.unflatten(1, (-1, self.d))).flatten(1)

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy that they promise (l,)."""
        direction = gradient.clone()
        pairs = [(step[live], change[live], inverse[live, None]) for step, change, inverse in self.pairs]
        shares = []
        for step, change, inverse in reversed(pairs):
            share = inverse * (step * direction).sum(-1, keepdim=True)
            direction = direction - share * change
            shares.append(share)
        direction = self.scale[live, None] * self._precondition(direction)
        for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
            direction = direction + step * (share - inverse * (change * direction).sum(-1, keepdim=True))
        step = self.shrink[live, None] * direction
        return -step, (gradient * step).sum(-1)

    def learn(self, live: Tensor, step: Tensor, change: Tensor, quality: Tensor) -> None:
        """Take in the change of the gradient along a step, and which part of the promised decrease came true."""
        good = quality > 1e-4
        self.shrink[live] = torch.where(good, 1, self.shrink[live] / 4)
        product = (step * change).sum(-1)
        norms = torch.linalg.vector_norm(step, dim=-1) * torch.linalg.vector_norm(change, dim=-1)
        usable = located(good & (product > 1e-8 * norms))
        kept = live[usable]
        # A pair whose inverse product is 0 changes nothing: curves that have none of this round keep their history.
        steps, changes = (torch.zeros(len(self.scale), step.shape[1]).to(step) for _ in range(2))
        inverses = torch.zeros_like(self.scale)
        steps[kept], changes[kept], inverses[kept] = step[usable], change[usable], 1 / product[usable]
        self.pairs = [*self.pairs[1 - _MEMORY :], (steps, changes, inverses)]
        length = (change * self._precondition(change)).sum(-1)
        self.scale[kept] = (product / length)[usable]
