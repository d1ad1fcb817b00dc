"""The search from one start for each pair of a chunk: level by level, until a curve is certified or nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from lgi.checks import NotFiniteError
from lgi.solver.certificate import DOUBLINGS, KNOWN
from lgi.solver.energy import Energy, Sample
from lgi.solver.methods import METHODS, chosen
from lgi.solver.methods.base import Group, Method, Stage, Steps
from lgi.solver.refinement import Level, Levels, evened, prolongation
from lgi.solver.result import CERTIFIED, UNCERTAIN, Found, Status, among
from lgi.solver.rows import located
from lgi.solver.settings import SolverSettings
from lgi.solver.starts import line
from lgi.solver.verdict import Verdict

# A step that is taken unseen mostly leaves a small residual. Where it is not small enough, but below so many times the
# tolerance, so many more steps are taken on the measuring grid.
_NEAR, _CORRECTIONS = 30, 3
# Elements of this degree follow a smooth curve as a rule; where they do not, kinks are looked for.
_HARD = 8
# Control points of a curve are no further from its start than so many times its end is.
_FAR = 1e3
# Before second derivatives are computed anew, curves of which at least this share of the energy is due to uneven speed
# are run through at constant speed: that takes one sample, by steps it takes many where the metric grows steeply. With
# more than the second, the metric nearly vanishes on a part of the way, for which no control points would be left.
_UNEVEN, _VANISHING = 0.01, 0.5

# What the energy of an initial curve is where it leads through a hole.
_UNDEFINED = "is not finite: the generator gives NaN or infinity on the way"


class Search:
    """Search for the shorter curves of one chunk of pairs, from one start each."""

    def __init__(self, energy: Energy, settings: SolverSettings, levels: Levels, start: Tensor, end: Tensor) -> None:
        self.energy, self.settings, self.levels, self.start, self.end = energy, settings, levels, start, end
        self.method = METHODS[chosen(settings.method, energy.d)]
        self.found = Found.nothing(start, len(levels.all[-1].knots) - 4)
        self.verdict = Verdict(energy, settings, self.found, start, end)
        self.history: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def run(self, first: int, control: Tensor, advance: Callable[[int], object]) -> Found:
        """Search from control points (c, n_control, d) with the knots of level ``first``.

        ``advance`` is told, whenever curves are finished, how many.
        """
        waiting: list[list[Group]] = [[] for _ in self.levels.all]
        index = torch.arange(len(control), device=control.device)
        waiting[first].append(Group(index, control.double(), torch.zeros_like(index)))
        while any(waiting):
            number = next(number for number, groups in enumerate(waiting) if groups)
            group, waiting[number] = Group.joined(waiting[number]), []
            began = perf_counter()
            for target, part in (refined := self._visit(number, first, group)):
                waiting[target].append(part)
            self.found.seconds[group.index] += (perf_counter() - began) / len(group.index)
            advance(len(group.index) - sum(len(part.index) for _, part in refined))
        self.found.remember(self.history)
        _refuse(~self.found.straight_length.isfinite(), _UNDEFINED, self.start, self.end)
        return self.found

    def _visit(self, number: int, first: int, group: Group) -> list[tuple[int, Group]]:
        """Optimise curves at one level; return those to be refined, with the levels where they go on."""
        level, index = self.levels.all[number], group.index
        self.found.n_iterations[index] += number != first
        order = self.method.order if group.curvature is None else 1
        basis = self.energy.basis(level.grid, level.knots)
        sample = self.verdict.sample(level.grid, basis, index, group.control, order)
        if number == first:
            straight = line(self.start[index], self.end[index], level.knots)
            # A start other than the line may lead where the metric is not defined: the line takes its place.
            lost = located(~_inside(self.energy, sample) & (group.control != straight).any(-1).any(-1))
            if len(lost):
                group.control[lost] = straight[lost]
                sample[lost] = self.verdict.sample(level.grid, basis, index[lost], straight[lost], order)
            _refuse_extreme(self.energy, sample, self.start[index], self.end[index])
        if order == 2:
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
            gained=torch.full_like(sample.energy, torch.inf),
            tolerance=self.settings.tolerance,
            length_tolerance=self.settings.length_tolerance,
            has_finer_knots=self.levels.has_finer_knots(number),
            has_finer_grid=self.levels.has_finer_grid(number),
        )
        method = self.method(stage)
        live = torch.arange(len(index), device=index.device)
        while True:
            # Where derivatives jump, steps never keep their promise: the search ends when it gains no more.
            hopeful = (self.found.smooth[index[live]] != 0) | (stage.gained[live] > self.settings.length_tolerance)
            live = live[method.going(stage, live) & hopeful & self._can_go_on(index[live])]
            if len(live) == 0:
                break
            stale = live[method.stale(live)]
            if len(stale):
                smooth = self.verdict.is_smooth(level, index[stale], group.control[stale])
                _even_out(self.verdict, stage, stale[smooth])
                self.verdict.renew(stage, method, stale[smooth])
            live = self._iterate(stage, method, live)
        self.found.n_rows[index] += method.n_rows
        group.learnt = method.learnt()
        return self._conclude(number, stage, method)

    def _can_go_on(self, index: Tensor) -> Tensor:
        return self.found.n_iterations[index] < self.settings.n_iterations

    def _iterate(self, stage: Stage, steps: Steps, live: Tensor) -> Tensor:
        """Try one step of the curves ``live``; return those for which another may make sense."""
        index, noise = stage.group.index, 4 * torch.finfo(self.energy.dtype).eps
        step, promised = steps.propose(live, stage.gradient[live])
        energy = stage.sample.energy[live]
        hopeful = located(promised > 1e-3 * noise * energy)
        if len(hopeful) == 0:
            return hopeful
        live, step, promised, energy = live[hopeful], step[hopeful], promised[hopeful], energy[hopeful]
        trial = stage.group.control[live]
        trial[:, 1:-1] += step.unflatten(1, (-1, self.energy.d))
        trial = self.energy.rounded(trial)
        self.found.n_iterations[index[live]] += 1
        tried = self.verdict.sample(stage.grid, stage.basis, index[live], trial, 1)
        gradient = tried.gradient(stage.basis)
        # Within rounding a step is trusted: the gradient is still right where differences of energy are not.
        better = (tried.energy <= energy * (1 + noise)) & gradient.isfinite().all(-1)
        # Nothing is known of a generator so far away, where its values may even be rounding.
        far = (trial - trial[:, :1]).abs().amax((1, 2)) > _FAR * (trial[:, -1] - trial[:, 0]).abs().amax(-1)
        better = located(better & ~far)
        quality = torch.where(far, -torch.inf, (energy - tried.energy) / promised)
        steps.learn(live, step, gradient - stage.gradient[live], quality)
        stage.take(live[better], trial[better], tried[better])
        self._note(index[live], stage.sample[live])
        stage.gained[live] = 1 - stage.sample.energy[live] / energy
        return live

    def _note(self, index: Tensor, sample: Sample) -> None:
        self.history.append((index, self.found.n_iterations[index], sample.energy.clone(), sample.length.clone()))

    def _conclude(self, number: int, stage: Stage, method: Method) -> list[tuple[int, Group]]:
        """Certify the curves that are done and refine the others."""
        settings, found, levels, group = self.settings, self.found, self.levels, stage.group
        index, length, tail = group.index, stage.sample.length, stage.sample.tail
        can_go_on = self._can_go_on(index)
        before = found.length[index]
        promise = method.gain(before, length)
        found.length[index], found.promise[index] = length, promise
        refine = can_go_on & (promise > settings.length_tolerance) & stage.has_finer_knots
        resolve = can_go_on & (tail > settings.tolerance) & stage.has_finer_grid
        hard = located(resolve & (stage.grid.degree >= _HARD))
        self.verdict.is_smooth(stage.level, index[hard], group.control[hard])
        kinked = found.smooth[index] == 0
        refine &= ~kinked | ~(before <= (1 + settings.length_tolerance) * length) | (before == 0)
        resolve &= ~kinked
        last = method.last_step(stage)
        if last is not None:
            live, step = last
            group.control[live, 1:-1] += step.unflatten(1, (-1, self.energy.d))
        done, saddles = located(~(refine | resolve)), torch.zeros_like(refine)
        if len(done):
            again = (can_go_on & ~kinked)[done] & (stage.has_finer_grid or stage.has_finer_knots)
            failed, longer, saddles[done] = self._certify(number, stage, done, method, again)
            # What fails on the measuring grid needs more nodes; what is longer than the line, more control points.
            (resolve if stage.has_finer_grid else refine)[done] |= failed & again
            refine[done] |= longer & again & stage.has_finer_knots
        much = settings.length_tolerance if method.foretells else torch.inf
        target = levels.targets(number, refine, resolve, promise, tail, tolerance=settings.tolerance, much=much)
        # Saddles that have been left are looked at once more where they are.
        onwards, target = located(saddles | (target > number)), torch.where(saddles, number, target)
        return [
            (to, _carried(group[onwards[target[onwards] == to]], levels.all[number], levels.all[to]))
            for to in target[onwards].unique().tolist()
        ]

    def _certify(
        self, number: int, stage: Stage, done: Tensor, method: Method, again: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Measure the curves ``done`` on the measuring grid.

        Tells which fail, which are longer but may improve, and which were saddles that have been left. Curves that may
        go on (``again``) and fail in the norm of the search are not looked at further.
        """
        energy, level = self.energy, stage.level
        group = stage.group[done]
        index, control, average = group.index, group.control, group.average
        straight = line(self.start[index], self.end[index], level.knots)
        moved = ((control - straight).abs() > 1e-12 * straight.abs().amax((1, 2), keepdim=True)).any(-1).any(-1)
        control[:] = energy.rounded(torch.where(moved[:, None, None], control, straight))
        basis = energy.basis(level.measuring, level.knots)
        sample = self.verdict.sample(level.measuring, basis, index, control, 1)
        measured = replace(
            stage, grid=level.measuring, basis=basis, group=group, sample=sample, gradient=sample.gradient(basis)
        )
        keep = self._correct(measured, method, done, again)
        stage.group.control[done] = control
        failed, longer, left = ~keep, torch.zeros_like(keep), torch.zeros_like(keep)
        kept = located(keep)
        if len(kept) == 0:
            return failed, longer, left
        self.found.level[index[kept]] = number
        coarse, rough = stage.sample.length[done], torch.zeros_like(keep)
        failed[kept], longer[kept], rough[kept] = self.verdict.record(
            level, index[kept], control[kept], sample[kept], coarse[kept], average=average and average[kept]
        )
        # What the measuring grid does not resolve is measured on finer ones: a length must be one, converged or not.
        coarse = sample.length.clone()
        for _ in range(DOUBLINGS):
            at = located(rough & ~(again & (failed | longer)))
            if len(at) == 0:
                break
            level = level.halved()
            basis = energy.basis(level.measuring, level.knots)
            sample = self.verdict.sample(level.measuring, basis, index[at], control[at], 1)
            finer = sample.length.clone()
            failed[at], longer[at], rough[at] = self.verdict.record(
                level, index[at], control[at], sample, coarse[at], average=average and average[at]
            )
            coarse[at] = finer
        final = keep & ~(again & (failed | longer))
        unknown = located(final & ~self.found.known[index])
        if len(unknown):
            # A length that is not known is no reason to prefer a curve to the line.
            basis = energy.basis(level.measuring, level.knots)
            sample = self.verdict.sample(level.measuring, basis, index[unknown], straight[unknown], 1)
            self.verdict.record(level, index[unknown], energy.rounded(straight[unknown]), sample, sample.length)
            found, wanted = self.found[index[unknown]], max(self.settings.length_tolerance, KNOWN)
            kinked = (found.smooth == 0) & (found.length_error <= wanted * found.length)
            self.found.status[index[unknown]] = torch.where(kinked, Status.KINKED, Status.UNKNOWN)
        status = self.found.status[index]
        lost = located(final & among(status, UNCERTAIN))
        kinked = ~self.verdict.is_smooth(level, index[lost], self.found.control[index[lost], : control.shape[1]])
        self.found.status[index[lost[kinked]]] = Status.KINKED
        live = located(final & among(status, CERTIFIED))
        if len(live):
            left[live] = self.verdict.leave_saddles(stage, method, done[live]) & again[live]
        return failed, longer, left

    def _correct(self, measured: Stage, method: Method, done: Tensor, again: Tensor) -> Tensor:
        """Take the steps on the measuring grid that small residuals still lack; tells which curves to certify."""
        corrections = method.corrections(done)
        if corrections is None:
            return torch.ones_like(again)
        steps, norm = corrections
        tolerance = self.settings.tolerance
        residual = norm.residual(slice(None), measured.gradient, measured.sample.energy)
        # Above the tolerance, or there is nothing to correct; not far above, or a finer level is the better place.
        index = measured.group.index
        live = located((residual > tolerance) & (residual < _NEAR * tolerance) & self._can_go_on(index))
        for _ in range(_CORRECTIONS):
            if len(live) == 0:
                break
            live = self._iterate(measured, steps, live)
            residual[live] = norm.residual(live, measured.gradient[live], measured.sample.energy[live])
            live = live[(residual[live] > tolerance) & self._can_go_on(index[live])]
        # The norm of the search is rougher than that of the certificate: what is a little above may still pass.
        return ~again | (residual <= 1.5 * tolerance)


def _even_out(verdict: Verdict, stage: Stage, live: Tensor) -> None:
    """Run through the curves ``live`` at a more constant speed, where that lowers the energy."""
    sample = stage.sample[live]
    share = 1 - sample.length.square() / sample.energy
    live = live[(share > _UNEVEN) & (share < _VANISHING)]
    if len(live):
        trial = evened(stage.level, stage.group.control[live], stage.sample.squared_speed[live])
        trial = stage.energy.rounded(trial)
        tried = verdict.sample(stage.grid, stage.basis, stage.group.index[live], trial, 1)
        better = located(tried.energy < stage.sample.energy[live])
        stage.take(live[better], trial[better], tried[better])


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


def _inside(energy: Energy, sample: Sample) -> Tensor:
    """Whether energies (c,) are well inside the range of the dtype."""
    limits = torch.finfo(energy.dtype)
    return (sample.energy == 0) | (sample.energy > 1e8 * limits.tiny) & (sample.energy < 1e-8 * limits.max)


def _refuse_extreme(energy: Energy, sample: Sample, start: Tensor, end: Tensor) -> None:
    """Refuse initial curves whose energy is not finite, or whose squares leave the range of the dtype."""
    apart = (end - start).square().sum(-1)
    inside = _inside(energy, sample) & (apart > torch.finfo(energy.dtype).tiny) & apart.isfinite()
    for bad, reason in (
        (~sample.energy.isfinite(), _UNDEFINED),
        (
            ~inside,
            f"or the distance of their ends is beyond what {energy.dtype} can square: use float64, or another unit",
        ),
    ):
        _refuse(bad, reason, start, end)


def _refuse(bad: Tensor, reason: str, start: Tensor, end: Tensor) -> None:
    if bool(bad.any()):
        raise NotFiniteError(
            f"the energy of {int(bad.sum())} of {len(bad)} initial curves {reason}; the first leads from "
            f"{start[bad][0].tolist()} to {end[bad][0].tolist()}"
        )
