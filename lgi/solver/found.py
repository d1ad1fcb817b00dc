"""What a search has found so far, and the result that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lgi.solver.refinement import Levels, prolongation
from lgi.solver.result import CERTIFIED, ShortenHistory, ShortenResult, Status
from lgi.solver.rows import Rows
from lgi.spline import CubicBSpline


@dataclass(eq=False)
class Found(Rows):
    """What the search has found for c curves."""

    control: Tensor  # (c, n_control of the last level, d), of which a curve of a lower level fills the first rows
    level: Tensor
    length: Tensor
    straight_length: Tensor
    energy: Tensor
    residual: Tensor
    length_error: Tensor
    promise: Tensor
    status: Tensor
    n_iterations: Tensor
    n_rows: Tensor
    n_minima: Tensor
    energies: Tensor  # (c, n), by iteration
    lengths: Tensor  # (c, n)

    @classmethod
    def nothing(cls, start: Tensor, n_control: int) -> Found:
        """What is known of curves whose end points coincide."""
        c = len(start)
        count = torch.zeros(c, dtype=torch.long, device=start.device)
        number = torch.zeros(c, dtype=torch.float64, device=start.device)
        names = ("length", "straight_length", "energy", "residual", "length_error", "promise", "n_rows")
        return cls(
            control=start[:, None].double().repeat(1, n_control, 1),
            level=count.clone(),
            status=count + Status.COINCIDENT,
            n_iterations=count.clone(),
            n_minima=count.clone(),
            energies=number.new_zeros(c, 0),
            lengths=number.new_zeros(c, 0),
            **{name: number.clone() for name in names},
        )

    @classmethod
    def stacked(cls, founds: Sequence[Found]) -> Found:
        """Results of several searches, one after the other; the shorter histories end with their last values."""
        n = max(found.energies.shape[1] for found in founds)
        for found in founds:
            found.lengthen(n)
        return cls.joined(founds)

    def lengthen(self, n: int) -> None:
        """Repeat the last values of the histories up to n columns; zeros where there are none."""
        for name in ("energies", "lengths"):
            history = getattr(self, name)
            last = history[:, -1:] if history.shape[1] else history.new_zeros(len(history), 1)
            setattr(self, name, torch.cat([history, last.expand(-1, n - history.shape[1])], dim=1))

    def result(self, levels: Levels, shape: torch.Size, like: Tensor) -> ShortenResult:
        """Give the results the leading dimensions of the end points."""
        # All curves get the knots of the finest that is needed; knots are only added, never taken away.
        top = int(self.level.max()) if len(self.level) else 0
        knots = levels.all[top].knots
        control = self.control.new_zeros(len(self.level), len(knots) - 4, self.control.shape[-1])
        for level in self.level.unique().tolist():
            chosen = self.level == level
            T = prolongation(levels.all[level].knots, knots).to(control.device)
            control[chosen] = T @ self.control[chosen, : T.shape[1]]

        def shaped(x: Tensor) -> Tensor:
            return x.reshape(shape + x.shape[1:])

        def real(x: Tensor) -> Tensor:
            return shaped(x).to(like.dtype)

        improvement = (self.straight_length - self.length) / self.straight_length
        ratio = torch.where(self.energy > 0, self.length.square() / self.energy, 1).clamp(max=1)
        n_control = torch.tensor([len(level.knots) - 4 for level in levels.all], device=self.level.device)
        return ShortenResult(
            curve=CubicBSpline(real(control), knots),
            length=real(self.length),
            straight_length=real(self.straight_length),
            improvement=real(torch.where(self.straight_length > 0, improvement, 0)),
            energy=real(self.energy),
            converged=shaped(torch.isin(self.status, self.status.new_tensor(CERTIFIED))),
            residual=real(self.residual),
            refinement_gain=real(self.promise),
            speed_variation=real((1 / ratio - 1).sqrt()),
            length_squared_over_energy=real(ratio),
            length_error=real(self.length_error),
            status=shaped(self.status),
            n_iterations=shaped(self.n_iterations),
            n_control=shaped(n_control[self.level]),
            n_rows=real(self.n_rows),
            n_minima=shaped(self.n_minima),
            history=ShortenHistory(energy=real(self.energies), length=real(self.lengths)),
        )
