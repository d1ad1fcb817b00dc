"""L-BFGS: quasi-Newton steps from gradients alone, for latent spaces of large dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from lgi.solver.methods.base import FirstOrder, Stage
from lgi.solver.rows import located
from lgi.solver.steps import factorised

# Steps remembered.
_MEMORY = 10
# What is added to the metric in the preconditioner, in units of its diagonal: in directions where it is flat by
# comparison, it says less about the second derivatives than that.
_RIDGE = 1e-2


class LBFGS(FirstOrder):
    """Limited-memory quasi-Newton steps (Nocedal 1980), with backtracking.

    Preconditioned by the second derivatives ``2 K x M`` that the energy would have, were the metric everywhere that in
    the middle of the curve, M; K is the stiffness of the spline.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.inverse = torch.linalg.inv(self.stiffness)
        self.d = stage.energy.d
        middle = stage.basis[0][len(stage.grid.t) // 2] @ stage.group.control
        M = stage.energy.tensor(middle[:, None])[:, 0]
        self.factor = factorised(M + _RIDGE * torch.diag_embed(M.diagonal(dim1=-2, dim2=-1)))[0]
        self.n_rows = stage.energy.tensor_cost
        self.scale = torch.full_like(M[:, 0, 0], 0.5)
        self.shrink = torch.ones_like(self.scale)
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def least_decrease(self, stage: Stage) -> Tensor:
        """The energy exceeds the least by the square of the residual; no need to outdo the grid."""
        return stage.sample.tail.clamp_min(stage.tolerance).square() / 10

    def gain(self, before: Tensor, length: Tensor) -> Tensor:
        """What the last refinement has brought (c,); before there was one, nothing is known."""
        return torch.where(before > 0, (before - length).abs() / length, torch.inf)

    @staticmethod
    def n_values(d: int, n_free: int, n_nodes: int) -> int:
        """Numbers kept of a curve in d dimensions with so many free control points and nodes: steps, and metrics."""
        del n_nodes
        return 3 * _MEMORY * n_free * d + 4 * d**2

    def _precondition(self, live: Tensor, x: Tensor) -> Tensor:
        """``(K x M)^-1 x`` (l, f) for the curves ``live`` (l,)."""
        columns = (self.inverse @ x.unflatten(1, (-1, self.d))).mT
        return torch.cholesky_solve(columns, self.factor[live]).mT.flatten(1)

    def propose(self, live: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Steps (l, f) of the curves ``live`` (l,) and the decrease of energy that they promise (l,)."""
        direction = gradient.clone()
        pairs = [(step[live], change[live], inverse[live, None]) for step, change, inverse in self.pairs]
        shares = []
        for step, change, inverse in reversed(pairs):
            share = inverse * (step * direction).sum(-1, keepdim=True)
            direction = direction - share * change
            shares.append(share)
        direction = self.scale[live, None] * self._precondition(live, direction)
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
        length = (change * self._precondition(live, change)).sum(-1)
        self.scale[kept] = (product / length)[usable]
