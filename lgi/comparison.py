"""Two models on the same pairs of data: where straight lines are as far from shortest in both (section 3, App. D)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lgi.checks import at_least, describe
from lgi.metric import Metric
from lgi.solver import SolverSettings, shorten
from lgi.spline import CubicBSpline
from lgi.statistics import bootstrap_interval, doubt
from lgi.studies import UncertifiedWarning


class StatisticalTest(NamedTuple):
    """Value of a statistic, and the probability of one at least as extreme without an effect (two-sided)."""

    statistic: float
    p_value: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Relative improvements of two models on the same pairs of data; all on the CPU, first dimension the pairs.

    Attributes
    ----------
    improvement_a, improvement_b : Tensor, shape (n,)
        Relative improvements, never negative.
    straight_length_a, straight_length_b, length_a, length_b : Tensor, shape (n,)
        Riemannian lengths, each in the units of its own model's output (or feature map).
    converged_a, converged_b : Tensor of bool, shape (n,)
        Whether the shorter curve is certified.
    residual_a, residual_b : Tensor, shape (n,)
        Certificates, see :class:`lgi.solver.ShortenResult`.
    curve_a, curve_b : CubicBSpline of n curves
        The shorter curves, each in its own model's latent space.
    threshold : float
        Largest difference of comparable pairs.
    relative : bool
        Whether the threshold is one of the difference relative to the larger of both improvements.
    """

    improvement_a: Tensor
    improvement_b: Tensor
    straight_length_a: Tensor
    straight_length_b: Tensor
    length_a: Tensor
    length_b: Tensor
    converged_a: Tensor
    converged_b: Tensor
    residual_a: Tensor
    residual_b: Tensor
    curve_a: CubicBSpline
    curve_b: CubicBSpline
    threshold: float
    relative: bool

    def __len__(self) -> int:
        return len(self.improvement_a)

    @property
    def difference(self) -> Tensor:
        """``improvement_a - improvement_b`` (n,), float64."""
        return self.improvement_a.double() - self.improvement_b.double()

    @property
    def comparable(self) -> Tensor:
        """Which pairs lie in similar metric neighbourhoods (section 3), bool (n,): difference within the threshold."""
        scale = torch.maximum(self.improvement_a, self.improvement_b).double() if self.relative else 1.0
        return self.difference.abs() <= self.threshold * scale

    @property
    def order(self) -> Tensor:
        """Numbers of the pairs (n,), from the most similar improvements to the least."""
        return self.difference.abs().argsort(stable=True)

    @property
    def mean_difference(self) -> float:
        """Mean of ``difference``."""
        return float(self.difference.mean())

    @property
    def certified(self) -> float:
        """Share of the pairs whose curves are certified in both models."""
        return float((self.converged_a & self.converged_b).double().mean())

    @property
    def mean_difference_certified(self) -> float:
        """Mean of ``difference`` over the pairs certified in both models alone; NaN if there are none."""
        return float(self.difference[self.converged_a & self.converged_b].mean())

    @property
    def warning(self) -> str:
        """What to beware of where fewer than 95 % are certified, and what to do; else empty."""
        return doubt(self.certified, self.mean_difference, self.mean_difference_certified)

    @cached_property
    def confidence_interval(self) -> tuple[float, float]:
        """95 % interval of the mean difference over pairs, see :func:`lgi.statistics.bootstrap_interval`."""
        return bootstrap_interval(self.difference.numpy(), least=-1, most=1)

    @cached_property
    def signed_rank(self) -> StatisticalTest:
        """Wilcoxon's signed-rank test of whether the differences are symmetric about 0; of none but zeros, (0, 1).

        Differences within the rounding of the coarser of the two dtypes are zeros, and left out.
        """
        eps = max(torch.finfo(x.dtype).eps for x in (self.improvement_a, self.improvement_b))
        difference = self.difference.where(self.difference.abs() > 8 * eps, 0.0)
        if not bool(difference.any()):
            return StatisticalTest(0.0, 1.0)
        from scipy.stats import wilcoxon

        found = wilcoxon(difference.numpy())
        return StatisticalTest(float(found.statistic), float(found.pvalue))

    @cached_property
    def rank_correlation(self) -> StatisticalTest:
        """Spearman's rank correlation of the improvements: whether both models agree which lines are far from shortest.

        Raises
        ------
        ValueError
            If there are fewer than 3 pairs or all improvements of a model are equal: then there is none.
        """
        if len(self) < 3 or any(bool((x == x[0]).all()) for x in (self.improvement_a, self.improvement_b)):
            raise ValueError("no rank correlation of fewer than 3 pairs, or of equal improvements")
        from scipy.stats import spearmanr

        found = spearmanr(self.improvement_a.double().numpy(), self.improvement_b.double().numpy())
        return StatisticalTest(float(found.statistic), float(found.pvalue))


def compare_models(  # noqa: PLR0917 - two ends of two models
    metric_a: Metric,
    metric_b: Metric,
    start_a: Tensor,
    end_a: Tensor,
    start_b: Tensor,
    end_b: Tensor,
    threshold: float = 0.02,
    *,
    relative: bool = False,
    settings: SolverSettings = SolverSettings(),  # noqa: B008 - it is frozen
    settings_b: SolverSettings | None = None,
) -> Comparison:
    """Compare straight lines of two models between the same pairs of data (section 3, App. D).

    Interpolations are compared fairly on pairs whose relative improvements are similar: there, the straight lines of
    both models are about as far from shortest.

    Parameters
    ----------
    metric_a, metric_b : Metric
        The models may differ in architecture, latent dimension, dtype and device.
    start_a, end_a : Tensor, shape (n, d_a)
        Codes of the pairs by model a's own encoder, or by inversion of its generator.
    start_b, end_b : Tensor, shape (n, d_b)
        Codes of the same pairs by model b's own.
    threshold : float
        Largest difference of the improvements of comparable pairs. The paper asks for a fixed one and gives no number;
        0.02 are two percentage points.
    relative : bool
        Take the difference relative to the larger of the two improvements instead.
    settings : SolverSettings
        Of the search for shorter curves.
    settings_b : SolverSettings, optional
        Those for model b, if different.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If shapes do not fit, end points of a pair coincide or have no distance in a model (naming the pairs), a metric
        is not finite, or the threshold is negative.
    TypeError
        If ``metric_a`` or ``metric_b`` is not a metric.

    Warns
    -----
    lgi.studies.UncertifiedWarning
        If fewer than 95 % of the pairs are certified in both models.

    Notes
    -----
    A relative improvement has no unit. Lengths do: they are commensurable only where both metrics measure in one space,
    as with generators of the same data, or with one feature map on both.
    """
    at_least(0, threshold=threshold)
    fields: dict[str, Any] = {}
    for model, metric, start, end, how in (
        ("a", metric_a, start_a, end_a, settings),
        ("b", metric_b, start_b, end_b, settings_b or settings),
    ):
        for name, x in ((f"start_{model}", start), (f"end_{model}", end)):
            if not isinstance(x, Tensor) or x.ndim != 2 or len(x) == 0 or len(x) != len(start_a):
                raise ValueError(f"expected {name} as codes (n >= 1, d), as many as start_a, got {describe(x)}")
        try:
            if start.shape == end.shape:
                _refuse_pairs((start == end).all(-1), "identical end points: leave them out, in both models")
            result = shorten(metric, start, end, how)
            _refuse_pairs(result.straight_length.isnan(), "a straight line on which the metric is not finite")
            _refuse_pairs(result.straight_length == 0, "end points without a distance: the generator is constant there")
        except ValueError as error:
            raise ValueError(f"model {model}: {error}") from error
        for name in ("improvement", "straight_length", "length", "converged", "residual"):
            fields[f"{name}_{model}"] = getattr(result, name).cpu()
        fields[f"curve_{model}"] = CubicBSpline(result.curve.control_points.cpu(), result.curve.knots.cpu())
    comparison = Comparison(**fields, threshold=float(threshold), relative=relative)
    if comparison.warning:
        warnings.warn(comparison.warning, UncertifiedWarning, stacklevel=2)
    return comparison


def _refuse_pairs(bad: Tensor, reason: str) -> None:
    numbers = bad.nonzero()[:, 0].tolist()
    if numbers:
        more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
        raise ValueError(f"pairs {', '.join(map(str, numbers[:10]))}{more} have {reason}")
