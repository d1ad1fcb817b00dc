"""What is found out about the curves of a search: lengths, certificates, minima, kinks; and what that has cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lgi.solver.certificate import (
    KNOWN,
    has_matrices,
    least_curvature,
    length_error,
    projected_gradient,
    unresolved,
    within_rounding,
)
from lgi.solver.energy import Basis, Energy, Sample
from lgi.solver.grid import Grid
from lgi.solver.methods.base import Method, Stage
from lgi.solver.products import Average
from lgi.solver.refinement import Level
from lgi.solver.result import Found, Status
from lgi.solver.rows import located
from lgi.solver.settings import SolverSettings
from lgi.solver.starts import line

# How far a saddle is left, in variations of norm 1 and parts of the root of the energy; the best of them is taken.
_LEAVE = (0.03, 0.1, 0.3, 1.0)
# Lengths of curve and line that differ relatively by no more than this, and by no more than their errors, are equal.
_TIE = 5e-6
# At kinks, and where even the finest nodes are too few, errors are estimated too small. So a curve without certificate
# is kept if it is shorter by so many times the errors of both lengths, or if these are so small, relatively. By the
# third, also where its length or the line's is known less well than was asked for: with an embedding, both are at least
# those of polygons.
_SURELY, _SMALL, _CLEARLY = 4, 1e-5, 20
# Least relative second derivatives that are taken for positive: by what a method has learnt of them, and by what has
# been computed on the grid of the search.
_LEARNT, _SURE = 0.1, 0.02


class Verdict:
    """Judges the curves of one chunk of pairs and keeps the record of them."""

    def __init__(self, energy: Energy, settings: SolverSettings, found: Found, start: Tensor, end: Tensor) -> None:
        self.energy, self.settings, self.found = energy, settings, found
        self.start, self.end = start, end

    def sample(self, grid: Grid, basis: Basis, index: Tensor, control: Tensor, order: int) -> Sample:
        """Energies of the curves ``index``, and note what that has cost."""
        self.found.n_rows[index] += self.energy.cost(grid, order)
        return self.energy.sample(grid, basis, control, order)

    def record(
        self,
        level: Level,
        index: Tensor,
        control: Tensor,
        sample: Sample,
        coarse: Tensor,
        *,
        average: Average | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compare measured curves with the line, certify the shorter of both and note the result.

        Tells as `_certify`, and of which curves the grid does not resolve the length or that of the line.
        """
        found, energy, settings = self.found, self.energy, self.settings
        grid, basis = level.measuring, energy.basis(level.measuring, level.knots)
        straight = energy.rounded(line(self.start[index], self.end[index], level.knots))
        moved = (control != straight).any(-1).any(-1)
        straight_length, straight_tail = sample.length.clone(), sample.length_tail.clone()
        if len(at := located(moved)):
            on_line = self.sample(grid, basis, index[at], straight[at], 0)
            straight_length[at], straight_tail[at] = on_line.length, on_line.length_tail
        # Within the errors, the curve is preferred: it may be the line, run through at constant speed.
        errors = length_error(sample, coarse) + straight_tail + 4 * torch.finfo(energy.dtype).eps * straight_length
        longer = moved & ~(sample.length < straight_length + errors.clamp(max=_TIE * straight_length))
        excess, before = sample.length / straight_length - 1, found.straight_length[index]
        if len(at := located(longer)):
            control[at] = straight[at]
            sample[at] = self.sample(grid, basis, index[at], straight[at], 1)
            straight_length[at] = sample.length[at]
        if energy.embedded is not None:
            # The line that is kept has no length on the coarser grid; its highest modes say enough.
            coarse = torch.where(longer, sample.length, coarse)
        elif len(at):
            on_coarser = torch.where(before[at] > 0, before[at], self._searched(level, index[at], straight[at]))
            coarse = coarse.index_put((at,), on_coarser)
        residual, hidden = torch.empty_like(sample.energy), torch.empty_like(sample.energy)
        everything = torch.arange(len(index), device=index.device)
        for part in self.parts(everything, level.grid, by_products=average is not None):
            at_part, own = placed(energy, level, control[part]), None if average is None else average[part]
            residual[part], _, rows, hidden[part] = projected_gradient(energy, level, at_part, sample[part], own)
            found.n_rows[index[part]] += rows
        error, converged = length_error(sample, coarse, hidden), residual <= settings.tolerance
        straight_error = torch.maximum(straight_tail, torch.where(before > 0, (straight_length - before).abs(), 0))
        wanted = max(settings.length_tolerance, KNOWN)
        lengths = ((error, sample.length), (straight_error, straight_length))
        rough = unresolved(lengths, sample.noise, wanted)
        # At kinks, where finer grids gain little, the estimates of errors are not too small; but fine waves look like
        # kinks.
        at = located(rough)
        kinked = ~self.is_smooth(level, index[at], control[at])
        coarsely = [error[at] > wanted * length[at] for error, length in lengths]
        rough[at] = torch.stack([~kinked, converged[at], *coarsely]).any(0)
        error = error + sample.noise
        promise = found.promise[index]
        found.status[index] = Status.of(
            converged=converged,
            unknown=~(error <= wanted * sample.length) & (converged | within_rounding(error, sample.noise)),
            longer=longer,
            exhausted=found.n_iterations[index] >= settings.n_iterations,
            refinable=promise > settings.length_tolerance,
        )
        found.control[index, : control.shape[1]] = control
        found.length[index] = torch.minimum(sample.length, straight_length)
        found.straight_length[index] = straight_length
        found.energy[index], found.residual[index] = sample.energy, residual
        errors, gained = error + straight_error, straight_length - sample.length
        sure = converged | (gained > _SURELY * errors) | (errors <= _SMALL * straight_length)
        known = sure & (error <= wanted * sample.length) & (straight_error <= wanted * straight_length)
        known |= (gained > _CLEARLY * errors) & (energy.rest is None)
        found.known[index] = ~moved | longer | known
        found.length_error[index] = error + 4 * torch.finfo(energy.dtype).eps * sample.length
        hopeful = promise > (excess / 2).clamp_min(settings.length_tolerance / 100)
        return ~converged & ~longer, longer & hopeful, rough

    def _searched(self, level: Level, index: Tensor, control: Tensor) -> Tensor:
        """Lengths (c,) on the grid of the search."""
        return self.sample(level.grid, self.energy.basis(level.grid, level.knots), index, control, 0).length

    def is_smooth(self, level: Level, index: Tensor, control: Tensor) -> Tensor:
        """Whether decoded curves have no kinks (c,); each is looked at once, when the search has met a difficulty."""
        found, new = self.found, located(self.found.smooth[index] < 0)
        if len(new):
            found.smooth[index[new]] = 1 - self.energy.jumps(level.knots, control[new]).long()
            found.n_rows[index[new]] += self.energy.kink_cost
        return found.smooth[index] == 1

    def renew(self, stage: Stage, method: Method, stale: Tensor) -> None:
        """Compute second derivatives of the curves ``stale`` anew."""
        for part in self.parts(stale, stage.grid):
            group = stage.group[part]
            sample = self.sample(stage.grid, stage.basis, group.index, group.control, 2)
            assert sample.curvature is not None
            method.renew(stage, part, sample.curvature)

    def leave_saddles(self, stage: Stage, method: Method, chosen: Tensor) -> Tensor:
        """Look whether stationary curves are minima, and move those that are not; tells which of ``chosen`` (l,)."""
        found, energy, level, group = self.found, self.energy, stage.level, stage.group
        basis, left = energy.basis(level.grid, level.knots), torch.zeros_like(chosen, dtype=torch.bool)
        known = method.convex(chosen, _LEARNT)
        # Of the line that was kept in place of a longer curve, the method knows nothing.
        here = found.control[group.index[chosen], : group.control.shape[1]]
        same = (here == group.control[chosen]).all(-1).all(-1)
        known &= same
        found.curvature[group.index[chosen[known]]] = _LEARNT
        if method.order == 2:
            # Second derivatives of the search, computed anew, tell the rest but for what is near a saddle.
            doubtful = located(~known & same)
            self.renew(stage, method, chosen[doubtful])
            known[doubtful] = method.convex(chosen[doubtful], _SURE)
            found.curvature[group.index[chosen[doubtful]]] = _SURE
        if not has_matrices(energy, level.grid):
            # Products have said all that is to be known.
            found.curvature[group.index[chosen[~known]]] = torch.nan
            return left
        for part in self.parts(located(~known), level.grid):
            index, control = group.index[chosen[part]], here[part]
            at = placed(energy, level, control)
            measured = self.sample(level.measuring, energy.basis(level.measuring, level.knots), index, control, 1)
            norm = projected_gradient(energy, level, at, measured)[1]
            curvature, x = least_curvature(energy, level, at, measured, norm)
            found.curvature[index] = curvature
            found.n_rows[index] += energy.cost(level.grid, 2) + 2 * energy.cost(level.measuring, 1)
            saddle = located(curvature < -self.settings.tolerance)
            if len(saddle) == 0:
                continue
            x = x[saddle] * measured.energy[saddle].sqrt()[:, None, None]
            chosen_here, index, control = chosen[part[saddle]], index[saddle], control[saddle]
            found.status[index] = Status.SADDLE
            least = self.sample(level.grid, basis, index, control, 0).energy
            for size in (sign * part for part in _LEAVE for sign in (1, -1)):
                trial = control.clone()
                trial[:, 1:-1] += size * x
                value = self.sample(level.grid, basis, index, trial, 0).energy
                better = located(value < least)
                least[better], group.control[chosen_here[better]] = value[better], trial[better]
                left[part[saddle][better]] = True
        method.distrust(chosen[left])
        return left

    def parts(self, curves: Tensor, grid: Grid, *, by_products: bool = False) -> Sequence[Tensor]:
        """So many of some curves at a time that their second derivatives, at all pairs of nodes, fit into memory.

        Where there are only products, that what is recorded for these does.
        """
        n_curves = max(1, 8 * self.energy.budget // (len(grid.t) * self.energy.d) ** 2)
        if by_products or not has_matrices(self.energy, grid):
            n_curves = self.energy.n_curves(len(grid.t))
        return curves.split(n_curves) if len(curves) else ()


def placed(energy: Energy, level: Level, control: Tensor) -> Callable[[Grid], Basis]:
    """Points and velocities (c, n, d), on a grid, of the splines with control points (c, n_control, d)."""

    def at(grid: Grid) -> Basis:
        points, velocities = energy.basis(grid, level.knots)
        return points @ control, velocities @ control

    return at
