"""The comparison of two models on the same pairs of data."""

import math

import analytic
import numpy as np
import pytest
import scipy.stats
import torch
from test_algorithm1 import QUICK, Decoder
from test_directions import random_rotation

import lgi
from lgi.comparison import Comparison, compare_models
from lgi.metric import PullbackMetric
from lgi.solver import SolverSettings
from lgi.statistics import bootstrap_interval
from lgi.studies import UncertifiedWarning


def pairs(n=12, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))


def test_a_model_equals_itself():
    metric, ends = PullbackMetric(Decoder()), pairs()
    found = compare_models(metric, metric, *ends, *ends, threshold=0.0, settings=QUICK)
    assert torch.equal(found.difference, torch.zeros(12, dtype=torch.float64))
    assert found.comparable.all()
    assert found.improvement_a.max() > 0.01
    assert found.mean_difference == 0
    assert found.confidence_interval == (0, 0)
    assert found.signed_rank == (0, 1)
    assert found.rank_correlation.statistic == pytest.approx(1)
    assert torch.equal(found.order, torch.arange(12))


def test_rotated_latent_space_and_scaled_output_change_nothing():
    decoder, (start, end), R = Decoder(3), pairs(d=3), random_rotation(3)
    exact = SolverSettings(tolerance=1e-4)
    other = PullbackMetric(lambda z: 7 * decoder(z @ R))
    found = compare_models(
        PullbackMetric(decoder), other, start, end, start @ R.T, end @ R.T, threshold=1e-4, settings=exact
    )
    torch.testing.assert_close(found.improvement_a, found.improvement_b, rtol=0, atol=1e-4)
    torch.testing.assert_close(7 * found.straight_length_a, found.straight_length_b, rtol=1e-9, atol=0)
    assert found.comparable.all()
    assert found.converged_a.all()
    assert found.converged_b.all()


def test_permutation_of_pairs_permutes_the_result():
    a, b = PullbackMetric(Decoder()), PullbackMetric(Decoder(seed=1))
    first, second, order = pairs(), pairs(seed=1), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    plain = compare_models(a, b, *first, *second, settings=QUICK)
    mixed = compare_models(a, b, *(x[order] for x in (*first, *second)), settings=QUICK)
    for name in ("improvement_a", "improvement_b", "length_a", "length_b", "difference"):
        torch.testing.assert_close(getattr(mixed, name), getattr(plain, name)[order], rtol=1e-6, atol=1e-9)
    assert torch.equal(order[mixed.order], plain.order)
    assert mixed.signed_rank.p_value == pytest.approx(plain.signed_rank.p_value)


def test_models_may_differ_in_everything():
    a, b = PullbackMetric(Decoder()), PullbackMetric(Decoder(5, seed=1, dtype=torch.float32))
    start, end = (x.float() for x in pairs(d=5, seed=1))
    still = SolverSettings(n_iterations=0)
    with pytest.warns(UncertifiedWarning, match=r"only 0\.0% of the curves are certified \(none at all\)"):
        found = compare_models(a, b, *pairs(), start, end, 0.05, settings=QUICK, settings_b=still)
    assert found.certified == 0
    assert math.isnan(found.mean_difference_certified)
    assert found.improvement_b.max() == 0  # without iterations, the line stays as it is
    difference = found.improvement_a.double() - found.improvement_b.double()
    assert torch.equal(found.difference, difference)
    assert torch.equal(found.comparable, difference.abs() <= 0.05)
    assert 0 < found.comparable.sum() < 12
    assert (difference.abs()[found.order].diff() >= 0).all()
    with pytest.raises(ValueError, match="no rank correlation"):
        _ = found.rank_correlation


def compared(a, b, threshold=0.02):
    """Comparison of improvements that are given."""
    others = ("straight_length", "length", "residual", "curve")
    rest = {f"{name}_{m}": torch.ones(len(a)) for name in others for m in "ab"}
    rest |= {f"converged_{m}": torch.ones(len(a), dtype=torch.bool) for m in "ab"}
    return Comparison(improvement_a=a, improvement_b=b, threshold=threshold, relative=False, **rest)


def test_comparable_whichever_model_improves_more():
    a, b = torch.tensor([0.10, 0.30, 0.20, 0.05]), torch.tensor([0.11, 0.10, 0.50, 0.03])
    found = compared(a, b, threshold=0.015)
    assert found.comparable.tolist() == [True, False, False, False]
    assert found.order.tolist() == [0, 3, 1, 2]


def test_threshold_may_be_relative():
    a, b, first, second = PullbackMetric(Decoder()), PullbackMetric(Decoder(seed=1)), pairs(), pairs(seed=1)
    found = compare_models(a, b, *first, *second, threshold=0.88, relative=True, settings=QUICK)
    x, y = found.improvement_a, found.improvement_b
    assert torch.equal(found.comparable, (x - y).abs() <= 0.88 * torch.maximum(x, y))
    assert not torch.equal(found.comparable, (x - y).abs() <= 0.88 * torch.minimum(x, y))
    assert 0 < found.comparable.sum() < 12
    # Where neither model improves anything, they agree.
    affine = PullbackMetric(analytic.AffineDecoder.random())
    assert compare_models(affine, affine, *first, *first, 0.0, relative=True, settings=QUICK).comparable.all()


def test_paired_statistics():
    found = compare_models(
        PullbackMetric(Decoder()), PullbackMetric(Decoder(seed=1)), *pairs(40), *pairs(40, seed=1), settings=QUICK
    )
    x, y = found.improvement_a.numpy(), found.improvement_b.numpy()
    assert found.mean_difference == pytest.approx((x - y).mean())
    assert (x > y).any()
    assert (x < y).any()
    assert (np.diff(np.abs(x - y)[found.order]) >= 0).all()
    assert found.confidence_interval == bootstrap_interval((x - y).astype(float), least=-1, most=1)
    assert found.signed_rank.p_value == pytest.approx(scipy.stats.wilcoxon(x, y).pvalue)
    assert found.rank_correlation.statistic == pytest.approx(
        np.corrcoef(scipy.stats.rankdata(x), scipy.stats.rankdata(y))[0, 1]
    )


def test_the_curves_are_those_measured():
    metrics = PullbackMetric(Decoder()), PullbackMetric(Decoder(seed=1))
    ends = pairs(5), pairs(5, seed=1)
    found = compare_models(*metrics, *ends[0], *ends[1], settings=QUICK)
    for m, metric, (start, end) in zip("ab", metrics, ends, strict=True):
        curve, length = getattr(found, f"curve_{m}"), getattr(found, f"length_{m}")
        torch.testing.assert_close(curve(torch.tensor([0.0, 1.0], dtype=start.dtype)), torch.stack([start, end], dim=1))
        torch.testing.assert_close(lgi.curve_length(metric, curve), length, rtol=1e-3, atol=0)


def test_differences_within_rounding_are_zeros():
    """A model in two precisions: without effect, however regular the rounding."""
    fine = torch.linspace(0.01, 0.3, 30, dtype=torch.float64)
    assert compared(fine.float(), fine + 2e-7).signed_rank == (0, 1)
    assert compared(fine, fine + 2e-7).signed_rank.p_value < 1e-3
    shift = 0.01 * fine * (fine > 0.15)
    exact = scipy.stats.wilcoxon(shift.numpy())
    assert compared(fine.float(), fine + shift).signed_rank.p_value == pytest.approx(exact.pvalue)


def test_bad_comparisons():
    metric, (start, end) = PullbackMetric(Decoder()), pairs()
    same = end.clone()
    same[[3, 7]] = start[[3, 7]]
    flat = PullbackMetric(lambda z: 0 * z.repeat(1, 3) + 1)
    for message, arguments in (
        ("model a: pairs 3, 7 have identical end points", (metric, metric, start, same, start, end)),
        ("model b: pairs 3, 7 have identical end points", (metric, metric, start, end, start, same)),
        (r"model b: pairs 0, 1, .* and 2 more .* without a distance", (metric, flat, start, end, start, end)),
        (r"start_b as codes .* as start_a, got .* \(5, 2\)", (metric, metric, start, end, start[:5], end[:5])),
        ("start_a as codes", (metric, metric, start[0], end[0], start[0], end[0])),
        ("got a list", (metric, metric, start, end, start, end.tolist())),
        (r"model b: expected points end", (metric, metric, start, end, start, end[:, :1])),
        ("threshold", (metric, metric, start, end, start, end, -0.1)),
    ):
        with pytest.raises(ValueError, match=message):
            compare_models(*arguments, settings=QUICK)
    with pytest.raises(TypeError, match="expected a metric"):
        compare_models(Decoder(), metric, start, end, start, end)
