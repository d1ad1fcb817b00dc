"""What the search has found so far, and what :func:`lgi.shorten` returns of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lgi import artifacts
from lgi.metric import Metric, PullbackMetric
from lgi.solver.refinement import Levels, prolongation
from lgi.solver.rows import Rows
from lgi.spline import CubicBSpline


class Status(IntEnum):
    """How the search for a curve has ended."""

    CONVERGED = 0
    REFINABLE = 1
    COARSE = 2
    EXHAUSTED = 3
    LONGER = 4
    COINCIDENT = 5
    UNKNOWN = 6
    SADDLE = 7
    KINKED = 8

    @classmethod
    def of(cls, *, converged: Tensor, unknown: Tensor, longer: Tensor, exhausted: Tensor, refinable: Tensor) -> Tensor:
        """Statuses (c,) of curves; ``longer`` are those that have been given up for the line."""
        status = torch.where(exhausted, cls.EXHAUSTED, torch.where(longer, cls.LONGER, cls.COARSE))
        status = torch.where(converged, torch.where(refinable & ~longer, cls.REFINABLE, cls.CONVERGED), status)
        return torch.where(unknown, cls.UNKNOWN, status)


CERTIFIED = (Status.CONVERGED, Status.REFINABLE, Status.COINCIDENT)
UNCERTAIN = (Status.COARSE, Status.EXHAUSTED)


def among(status: Tensor, which: Sequence[Status]) -> Tensor:
    """Whether statuses (c,) are some of these; `torch.isin` would have to send them to a GPU each time."""
    return torch.stack([status == one for one in which]).any(0)


MESSAGES = {
    Status.CONVERGED: "converged",
    Status.REFINABLE: "converged with as many control points as allowed; more would shorten the curve further: raise "
    "n_control",
    Status.COARSE: "the projected gradient on the measuring grid stays above the tolerance: raise nodes or "
    "n_control, or use float64",
    Status.EXHAUSTED: "the iterations are used up: raise n_iterations",
    Status.LONGER: "no curve shorter than the straight line was found: raise n_control, or use other starts",
    Status.COINCIDENT: "the end points coincide",
    Status.KINKED: "the derivatives of the decoder jump along the curve, as those of ReLUs do: the length stands, but "
    "no certificate is to be had",
    Status.SADDLE: "stationary, but no minimum: there are shorter curves on its sides: raise n_iterations, or use "
    "other starts",
    Status.UNKNOWN: "the length is not known to a thousandth or length_tolerance, or a curve without certificate "
    "gained no more than a few times the errors: use float64, or raise nodes",
}


@dataclass(frozen=True, kw_only=True)
class ShortenHistory:
    """Energies and lengths by iteration, on the grids that were optimised on.

    Attributes
    ----------
    energy, length : Tensor, shape (..., n)
        Of the best curve after each iteration; the last value is repeated once a curve is finished.
    """

    energy: Tensor
    length: Tensor


@dataclass(frozen=True, kw_only=True)
class ShortenResult:
    """Shorter curves and what is known about them. Lengths are in the units of the generator's output.

    Attributes
    ----------
    curve : CubicBSpline
        Batch of curves (...,) with common knots; curves that needed fewer control points have been given more, which
        does not change them.
    length, straight_length : Tensor, shape (...)
        Riemannian lengths of the curve and of the straight line, on the same measuring grid.
    improvement : Tensor, shape (...)
        ``(straight_length - length) / straight_length``, never negative; 0 where no shorter curve was found.
    energy : Tensor, shape (...)
        Path energy of the curve on the measuring grid.
    converged : Tensor of bool, shape (...)
        Whether ``residual <= tolerance``, ``length_error`` at most a thousandth of the length or ``length_tolerance``
        of it, whichever is more, and ``curvature``, where it is known, not below ``-tolerance``.
    curvature : Tensor, shape (...)
        Least relative second derivative of the energy of a stationary curve, as in :func:`lgi.certify`: below 0 at a
        saddle. 0.1 and 0.02 stand for at least so much (with ``"newton-cg"`` as far as 24 products with the second
        derivatives tell), NaN for a curve that is not stationary, or where it would take too much memory.
    residual : Tensor, shape (...)
        Relative projected gradient: ``sqrt(g^T N^-1 g / (4 E))``, with the gradient ``g`` of the energy with respect to
        the free control points, on the measuring grid, and ``N`` the matrix of the norm ``integral of |eta'|_M^2 dt``
        of variations. Scales and linear changes of latent coordinates do not matter; the energy is by about
        ``residual**2``, relatively, above that of the nearest stationary curve with as many control points.
    refinement_gain : Tensor, shape (...)
        Estimated relative shortening by more control points, from the gradient of the length with respect to them (for
        ``"gradient"`` unknown, infinite). A more even speed is no gain.
    speed_variation : Tensor, shape (...)
        Standard deviation of the speed along the curve over its mean; 0 for a geodesic.
    length_squared_over_energy : Tensor, shape (...)
        ``L^2 / E <= 1``, 1 for a geodesic; it is ``1 / (1 + speed_variation**2)``.
    length_error : Tensor, shape (...)
        Estimated quadrature error of ``length``, rounding included: the difference to the length on a coarser grid;
        with an embedding, at least the share of the highest mode of the decoded velocity.
    status : Tensor of int, shape (...)
        A :class:`Status`, of which ``message`` tells the meaning.
    n_iterations : Tensor, shape (...)
        Evaluations of the gradient after the first.
    n_control : Tensor, shape (...)
        Control points that the curve needed.
    n_rows : Tensor, shape (...)
        Cost in decoder rows: points, weighted by the measured cost of their derivatives relative to a forward pass,
        certificates and all starts included.
    seconds : Tensor, shape (...)
        On the wall, linear algebra included, of searches and certificates from all starts: of each step for many curves
        at once, the same share for each of these.
    n_minima : Tensor, shape (...)
        Distinct lengths (relative difference above 1e-3) among the converged curves from all starts.
    start_gain : Tensor, shape (...)
        How much shorter the curve is than the one found from the straight line, as a share of the length of that one: 0
        where no other start has led to a shorter curve, or none was tried.
    history : ShortenHistory
    metric : Metric, optional
        In which was searched; None where the result was read from a file without it.
    """

    curve: CubicBSpline
    length: Tensor
    straight_length: Tensor
    improvement: Tensor
    energy: Tensor
    converged: Tensor
    residual: Tensor
    curvature: Tensor
    refinement_gain: Tensor
    speed_variation: Tensor
    length_squared_over_energy: Tensor
    length_error: Tensor
    status: Tensor
    n_iterations: Tensor
    n_control: Tensor
    n_rows: Tensor
    seconds: Tensor
    n_minima: Tensor
    start_gain: Tensor
    history: ShortenHistory
    metric: Metric | None = field(default=None, repr=False)

    def decode(self, n: int = 10, metric: Metric | None = None) -> Tensor:
        """Frames along the curves: outputs of the generator at ``n`` even parameters, both ends included.

        Parameters
        ----------
        n : int
        metric : Metric, optional
            Whose generator decodes; by default that of the search.

        Returns
        -------
        Tensor, shape (..., n, *data_shape)

        Raises
        ------
        ValueError
            If there is no generator: the metric is no `lgi.PullbackMetric`, or was not given with a result from a file.
        """
        metric = self.metric if metric is None else metric
        if not isinstance(metric, PullbackMetric):
            raise ValueError(f"no generator to decode with: give lgi.PullbackMetric(generator), got {metric!r}")
        return metric.decode(self.curve(torch.linspace(0, 1, n, dtype=torch.float64)))

    @property
    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """The tensor fields of all curves as one-dimensional arrays: ``pandas.DataFrame(result.columns)``."""
        table = {name: getattr(self, name).detach().cpu().numpy().reshape(-1) for name in _COLUMNS}
        return {**table, "message": self.message.reshape(-1)}

    def save(self, path: str | Path) -> None:
        """Write ``<path>.safetensors``, all but the metric; :func:`lgi.load_result` reads it back.

        Parameters
        ----------
        path : path
            With the suffix or without.

        Raises
        ------
        lgi.artifacts.ArtifactError
            If the file cannot be written.
        """
        tensors = {name: getattr(self, name) for name in _COLUMNS}
        tensors |= {"control_points": self.curve.control_points, "knots": self.curve.knots}
        tensors |= {"energies": self.history.energy, "lengths": self.history.length}
        artifacts.save(path, tensors, {}, name="shorten", settings={}, version=3)

    @property
    def message(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        """Why each curve ended, and what to do about it; array of str of shape (...)."""
        return np.array([MESSAGES[status] for status in Status])[self.status.cpu().numpy()]


_COLUMNS = tuple(each.name for each in fields(ShortenResult) if each.name not in ("curve", "history", "metric"))


def load_result(path: str | Path, metric: Metric | None = None) -> ShortenResult:
    """Read what :meth:`lgi.solver.ShortenResult.save` has written.

    Parameters
    ----------
    path : path
        With the suffix or without.
    metric : Metric, optional
        That of the search, if ``decode`` is to be called.

    Returns
    -------
    ShortenResult
        On the CPU.

    Raises
    ------
    lgi.artifacts.ArtifactError
        If there is no such file, or it is damaged.
    """
    tensors = artifacts.load(path, name="shorten", version=3).tensors
    return ShortenResult(
        curve=CubicBSpline(tensors.pop("control_points"), tensors.pop("knots")),
        history=ShortenHistory(energy=tensors.pop("energies"), length=tensors.pop("lengths")),
        metric=metric,
        **tensors,
    )


@dataclass(eq=False)
class Found(Rows):
    """What the search has found for c curves."""

    control: Tensor  # (c, n_control of the last level, d), of which a curve of a lower level fills the first rows
    level: Tensor
    length: Tensor
    straight_length: Tensor
    energy: Tensor
    residual: Tensor
    curvature: Tensor
    length_error: Tensor
    smooth: Tensor  # (c,), 1: the decoder is known to be smooth along the curve, 0: its derivatives jump, -1: not known
    known: Tensor  # (c,), whether the lengths of curve and line are known well enough to be compared
    promise: Tensor
    status: Tensor
    n_iterations: Tensor
    n_rows: Tensor
    seconds: Tensor
    n_minima: Tensor
    start_gain: Tensor
    energies: Tensor  # (c, n), by iteration
    lengths: Tensor  # (c, n)

    @classmethod
    def nothing(cls, start: Tensor, n_control: int) -> Found:
        """What is known of curves whose end points coincide."""
        number = torch.zeros(len(start), dtype=torch.float64, device=start.device)
        counts = ("level", "status", "smooth", "n_iterations", "n_minima")
        found = cls(
            **{field.name: (number.long() if field.name in counts else number.clone()) for field in fields(cls)}
        )
        found.control = start[:, None].double().repeat(1, n_control, 1)
        found.status += Status.COINCIDENT
        found.curvature += torch.nan
        found.known = number == 0
        found.smooth -= 1
        found.energies, found.lengths = number.new_zeros(2, len(start), 0)
        return found

    @classmethod
    def stacked(cls, founds: Sequence[Found]) -> Found:
        """Results of several searches, one after the other; the shorter histories end with their last values."""
        n = max(found.energies.shape[1] for found in founds)
        for found in founds:
            found.lengthen(n)
        return cls.joined(founds)

    def remember(self, history: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        """Order by curve and iteration what was noted as (curves, iterations, energies, lengths)."""
        n = int(self.n_iterations.max()) + 1
        table = self.energy.new_full((2, len(self.energy), n), torch.nan)
        for index, iteration, energy, length in history:
            table[0, index, iteration], table[1, index, iteration] = energy, length
        for k in range(1, n):
            table[..., k] = torch.where(table[..., k].isnan(), table[..., k - 1], table[..., k])
        self.energies, self.lengths = table

    def lengthen(self, n: int) -> None:
        """Repeat the last values of the histories up to n columns; zeros where there are none."""
        for name in ("energies", "lengths"):
            history = getattr(self, name)
            last = history[:, -1:] if history.shape[1] else history.new_zeros(len(history), 1)
            setattr(self, name, torch.cat([history, last.expand(-1, n - history.shape[1])], dim=1))

    def result(self, levels: Levels, shape: torch.Size, like: Tensor, metric: Metric) -> ShortenResult:
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
        same = ("length", "straight_length", "energy", "residual", "curvature", "length_error")
        own = ("n_rows", "seconds", "start_gain")
        counts = ("status", "n_iterations", "n_minima")
        return ShortenResult(
            curve=CubicBSpline(real(control), knots),
            improvement=real(torch.where(self.straight_length > 0, improvement, 0)),
            converged=shaped(among(self.status, CERTIFIED)),
            refinement_gain=real(self.promise),
            speed_variation=real((1 / ratio - 1).sqrt()),
            length_squared_over_energy=real(ratio),
            n_control=shaped(n_control[self.level]),
            history=ShortenHistory(energy=real(self.energies), length=real(self.lengths)),
            metric=metric,
            **{name: real(getattr(self, name)) for name in (*same, *own)},
            **{name: shaped(getattr(self, name)) for name in counts},
        )
