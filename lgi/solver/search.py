"""The search from one start for each pair of a chunk: level by level, until a curve is certified or nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lgi.checks import NotFiniteError
from lgi.solver.certificate import DOUBLINGS, KNOWN, length_error, projected_gradient, unresolved, within_rounding
from lgi.solver.energy import Basis, Energy, Sample
from lgi.solver.grid import Grid
from lgi.solver.methods import METHODS
from lgi.solver.methods.base import Group, Method, Stage, Steps
from lgi.solver.refinement import Level, Levels, prolongation
from lgi.solver.result import Found, Status
from lgi.solver.settings import SolverSettings
from lgi.solver.starts import line

# A step that is taken unseen mostly leaves a small residual. Where it is not small enough, but below so many times the
# tolerance, so many more steps are taken on the measuring grid.
_NEAR, _CORRECTIONS = 30, 3


class Search:
    """Search for the shorter curves of one chunk of pairs, from one start each."""

    def __init__(self, energy: Energy, settings: SolverSettings, levels: Levels, start: Tensor, end: Tensor) -> None:
        self.energy, self.settings, self.levels, self.start, self.end = energy, settings, levels, start, end
        self.method = METHODS[settings.method]
        self.found = Found.nothing(start, len(levels.all[-1].knots) - 4)
        self.history: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def run(self, first: int, control: Tensor, advance: Callable[[int], object]) -> Found:
        """Search from control points (c, n_control, d) with the knots of level ``first``.

        ``advance`` is told, whenever curves are finished, how many.
        """
        waiting: list[list[Group]] = [[] for _ in self.levels.all]
        index = torch.arange(len(control), device=control.device)
        waiting[first].append(Group(index, control.double(), torch.zeros_like(index)))
        for number, groups in enumerate(waiting):
            if groups:
                group = Group.joined(groups)
                for target, part in (refined := self._visit(number, first, group)):
                    waiting[target].append(part)
                advance(len(group.index) - sum(len(part.index) for _, part in refined))
        self.found.remember(self.history)
        return self.found

    def _sample(self, grid: Grid, basis: Basis, index: Tensor, control: Tensor, order: int) -> Sample:
        """Energies of the curves ``index``, and note what that has cost."""
        self.found.n_rows[index] += self.energy.cost(grid, order)
        return self.energy.sample(grid, basis, control, order)

    def _visit(self, number: int, first: int, group: Group) -> list[tuple[int, Group]]:
        """Optimise curves at one level; return those to be refined, with the levels where they go on."""
        level, index = self.levels.all[number], group.index
        self.found.n_iterations[index] += number != first
        order = self.method.order if number == first else 1
        basis = self.energy.basis(level.grid, level.knots)
        sample = self._sample(level.grid, basis, index, group.control, order)
        if number == first:
            _refuse_nonfinite(sample.energy, self.start[index], self.end[index])
            group.curvature, sample.curvature = sample.curvature, None
        self._note(index, sample)
        stage = Stage(
            energy=self.energy,
            level=level,
            first=self.levels.all[first],
            grid=level.grid,
            basis=basis,
            group=group,
            sample=sample,
            gradient=sample.gradient(basis),
            tolerance=self.settings.tolerance,
            length_tolerance=self.settings.length_tolerance,
            has_finer_knots=self.levels.has_finer_knots(number),
            has_finer_grid=self.levels.has_finer_grid(number),
        )
        method = self.method(stage)
        live = torch.arange(len(index), device=index.device)
        while len(live := method.going(stage, live)):
            self._renew(stage, method, method.stale(live))
            live = self._iterate(stage, method, live)
        group.learnt = method.learnt()
        return self._conclude(number, stage, method)

    def _renew(self, stage: Stage, method: Method, stale: Tensor) -> None:
        """Compute second derivatives of the curves ``stale`` anew."""
        if len(stale):
            group = stage.group[stale]
            sample = self._sample(stage.grid, stage.basis, group.index, group.control, 2)
            assert sample.curvature is not None
            method.renew(stage, stale, sample.curvature)

    def _iterate(self, stage: Stage, steps: Steps, live: Tensor) -> Tensor:
        """Try one step of the curves ``live``; return those for which another may make sense."""
        index, noise = stage.group.index, 4 * torch.finfo(self.energy.dtype).eps
        live = live[self.found.n_iterations[index[live]] < self.settings.n_iterations]
        step, promised = steps.propose(live, stage.gradient[live])
        energy = stage.sample.energy[live]
        hopeful = promised > 1e-3 * noise * energy
        live, step, promised, energy = live[hopeful], step[hopeful], promised[hopeful], energy[hopeful]
        if len(live) == 0:
            return live
        trial = stage.group.control[live]
        trial[:, 1:-1] += step.unflatten(1, (-1, self.energy.d))
        trial = self.energy.rounded(trial)
        self.found.n_iterations[index[live]] += 1
        tried = self._sample(stage.grid, stage.basis, index[live], trial, 1)
        gradient = tried.gradient(stage.basis)
        steps.learn(live, step, gradient - stage.gradient[live], (energy - tried.energy) / promised)
        # Within rounding a step is trusted: the gradient is still right where differences of energy are not.
        better = (tried.energy <= energy * (1 + noise)) & gradient.isfinite().all(-1)
        won = live[better]
        stage.group.control[won], stage.gradient[won] = trial[better], gradient[better]
        stage.sample[won] = tried[better]
        self._note(index[live], stage.sample[live])
        return live

    def _note(self, index: Tensor, sample: Sample) -> None:
        self.history.append((index, self.found.n_iterations[index], sample.energy.clone(), sample.length.clone()))

    def _conclude(self, number: int, stage: Stage, method: Method) -> list[tuple[int, Group]]:
        """Certify the curves that are done and refine the others."""
        settings, found, levels, group = self.settings, self.found, self.levels, stage.group
        index, length, tail = group.index, stage.sample.length, stage.sample.tail
        can_go_on = found.n_iterations[index] < settings.n_iterations
        promise = method.gain(found.length[index], length)
        found.length[index], found.promise[index] = length, promise
        refine = can_go_on & (promise > settings.length_tolerance) & stage.has_finer_knots
        resolve = can_go_on & (tail > settings.tolerance) & stage.has_finer_grid
        last = method.last_step(stage)
        if last is not None:
            live, step = last
            group.control[live, 1:-1] += step.unflatten(1, (-1, self.energy.d))
        done = (~(refine | resolve)).nonzero()[:, 0]
        if len(done):
            again = can_go_on[done] & (stage.has_finer_grid or stage.has_finer_knots)
            failed, longer = self._certify(number, stage, done, method, again)
            # What fails on the measuring grid needs more nodes; what is longer than the line, more control points.
            (resolve if stage.has_finer_grid else refine)[done[failed & again]] = True
            refine[done[longer & again]] = stage.has_finer_knots
        much = settings.length_tolerance if method.foretells else torch.inf
        target = levels.targets(number, refine, resolve, promise, tail, tolerance=settings.tolerance, much=much)
        return [
            (to, _carried(group[(target == to).nonzero()[:, 0]], levels.all[number], levels.all[to]))
            for to in target[target > number].unique().tolist()
        ]

    def _certify(self, number: int, stage: Stage, done: Tensor, method: Method, again: Tensor) -> tuple[Tensor, Tensor]:
        """Measure the curves ``done`` on the measuring grid; tells which fail, and which are longer but may improve.

        Curves that may go on (``again``) and fail in the norm of the search are not looked at further.
        """
        energy, level = self.energy, stage.level
        group = stage.group[done]
        index, control = group.index, group.control
        straight = line(self.start[index], self.end[index], level.knots)
        moved = ((control - straight).abs() > 1e-12 * straight.abs().amax((1, 2), keepdim=True)).any(-1).any(-1)
        control[:] = energy.rounded(torch.where(moved[:, None, None], control, straight))
        basis = energy.basis(level.measuring, level.knots)
        sample = self._sample(level.measuring, basis, index, control, 1)
        measured = replace(
            stage, grid=level.measuring, basis=basis, group=group, sample=sample, gradient=sample.gradient(basis)
        )
        keep = self._correct(measured, method, done, again)
        stage.group.control[done] = control
        failed, longer = ~keep, torch.zeros_like(keep)
        if not bool(keep.any()):
            return failed, longer
        self.found.level[index[keep]] = number
        coarse, rough = stage.sample.length[done], torch.zeros_like(keep)
        failed[keep], longer[keep], rough[keep] = self._record(
            level, index[keep], control[keep], sample[keep], coarse[keep]
        )
        # What the measuring grid does not resolve is measured on finer ones: a length must be one, converged or not.
        coarse = sample.length.clone()
        for _ in range(DOUBLINGS):
            rough &= ~(again & (failed | longer))
            if not bool(rough.any()):
                break
            level = level.halved()
            basis = energy.basis(level.measuring, level.knots)
            sample = self._sample(level.measuring, basis, index[rough], control[rough], 1)
            finer = sample.length.clone()
            failed[rough], longer[rough], still = self._record(
                level, index[rough], control[rough], sample, coarse[rough]
            )
            coarse[rough] = finer
            rough[rough.clone()] = still
        return failed, longer

    def _correct(self, measured: Stage, method: Method, done: Tensor, again: Tensor) -> Tensor:
        """Take the steps on the measuring grid that small residuals still lack; tells which curves to certify."""
        corrections = method.corrections(done)
        if corrections is None:
            return torch.ones_like(again)
        steps, norm = corrections
        tolerance = self.settings.tolerance
        residual = norm.residual(slice(None), measured.gradient, measured.sample.energy)
        # Above the tolerance, or there is nothing to correct; not far above, or a finer level is the better place.
        live = ((residual > tolerance) & (residual < _NEAR * tolerance)).nonzero()[:, 0]
        for _ in range(_CORRECTIONS):
            live = self._iterate(measured, steps, live)
            residual[live] = norm.residual(live, measured.gradient[live], measured.sample.energy[live])
            live = live[residual[live] > tolerance]
        # The norm of the search is rougher than that of the certificate: what is a little above may still pass.
        return ~again | (residual <= 1.5 * tolerance)

    def _record(
        self, level: Level, index: Tensor, control: Tensor, sample: Sample, coarse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compare measured curves with the line, certify the shorter of both and note the result.

        Tells as `_certify`, and of which curves the grid does not resolve the length or that of the line.
        """
        found, energy, settings = self.found, self.energy, self.settings
        grid, basis = level.measuring, energy.basis(level.measuring, level.knots)
        straight = energy.rounded(line(self.start[index], self.end[index], level.knots))
        moved = (control != straight).any(-1).any(-1)
        straight_length, straight_tail = sample.length.clone(), sample.length_tail.clone()
        if bool(moved.any()):
            on_line = self._sample(grid, basis, index[moved], straight[moved], 0)
            straight_length[moved], straight_tail[moved] = on_line.length, on_line.length_tail
        longer = moved & ~(sample.length < straight_length)
        excess = sample.length / straight_length - 1
        if bool(longer.any()):
            control[longer] = straight[longer]
            sample[longer] = self._sample(grid, basis, index[longer], straight[longer], 1)
            straight_length[longer] = sample.length[longer]
        if energy.embedded is not None:
            # The line that is kept has no length on the coarser grid; its highest modes say enough.
            coarse = torch.where(longer, sample.length, coarse)
        found.n_rows[index] += energy.tensor_cost * len(level.weighing.t)
        points = energy.basis(level.weighing, level.knots)[0] @ control
        residual, _ = projected_gradient(energy, level, points, sample)
        error = length_error(sample, coarse)
        before = found.straight_length[index]
        straight_error = torch.maximum(straight_tail, torch.where(before > 0, (straight_length - before).abs(), 0))
        wanted = max(settings.length_tolerance, KNOWN)
        lengths = ((error, sample.length), (straight_error, straight_length))
        rough = unresolved(lengths, sample.noise, wanted)
        error = error + sample.noise
        drowned = within_rounding(error, sample.noise)
        converged, promise = residual <= settings.tolerance, found.promise[index]
        found.status[index] = Status.of(
            converged=converged,
            unknown=~(error <= wanted * sample.length) & (converged | drowned),
            longer=longer,
            exhausted=found.n_iterations[index] >= settings.n_iterations,
            refinable=promise > settings.length_tolerance,
        )
        found.control[index, : control.shape[1]] = control
        found.length[index], found.straight_length[index] = sample.length, straight_length
        found.energy[index], found.residual[index] = sample.energy, residual
        found.length_error[index] = error + 4 * torch.finfo(energy.dtype).eps * sample.length
        hopeful = longer & (promise > excess / 2) & (promise > settings.length_tolerance / 100)
        return ~converged & ~longer, hopeful, rough


def _carried(group: Group, level: Level, finer: Level) -> Group:
    """Curves of one level as curves of another."""
    T = prolongation(level.knots, finer.knots).to(group.control.device)
    learnt = group.learnt
    if learnt is not None:
        # R T = 1: on the curves of the coarse level, the matrix stays what it was.
        R = torch.linalg.pinv(T[1:-1, 1:-1])
        R = torch.kron(R, torch.eye(group.control.shape[-1], dtype=R.dtype, device=R.device))
        learnt = R.T @ learnt @ R
    return replace(group, control=T @ group.control, learnt=learnt)


def _refuse_nonfinite(energy: Tensor, start: Tensor, end: Tensor) -> None:
    bad = ~energy.isfinite()
    if bool(bad.any()):
        raise NotFiniteError(
            f"the energy of {int(bad.sum())} of {len(bad)} initial curves is not finite, first from "
            f"{start[bad][0].tolist()} to {end[bad][0].tolist()}: the generator gives NaN or infinity on the way"
        )
