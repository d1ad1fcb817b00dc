"""Splines: equal to scipy's at every parameter, knots included; insertion keeps the curve; errors are readable."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.interpolate import BSpline

from lgi.spline import CubicBSpline, basis, uniform_knots


@st.composite
def clamped_knots(draw: st.DrawFn) -> torch.Tensor:
    """Inner knots on a grid of 32nds, so that equal ones (up to three times) are common and none are nearly equal."""
    inner = draw(st.lists(st.integers(1, 31), max_size=12))
    inner = sorted(u for i, u in enumerate(inner) if inner[:i].count(u) < 3)
    return torch.tensor([0, 0, 0, 0, *(u / 32 for u in inner), 1, 1, 1, 1], dtype=torch.float64)


@st.composite
def splines(draw: st.DrawFn) -> CubicBSpline:
    knots = draw(clamped_knots())
    coordinates = st.floats(-10, 10, allow_subnormal=False)
    points = draw(arrays(np.float64, (len(knots) - 4, 2), elements=coordinates))
    return CubicBSpline(torch.from_numpy(points), knots)


def parameters(curve: CubicBSpline) -> torch.Tensor:
    """A grid, all knots, and their floating-point neighbours."""
    knots = curve.knots.numpy()
    beside = np.concatenate([np.nextafter(knots, 0), np.nextafter(knots, 1)])
    return torch.from_numpy(np.concatenate([np.linspace(0, 1, 41), knots, beside]))


@settings(max_examples=300)
@given(splines(), st.integers(0, 4))
def test_equals_scipy_everywhere(curve: CubicBSpline, order: int) -> None:
    t = parameters(curve)
    expected = BSpline(curve.knots.numpy(), curve.control_points.numpy(), 3)(t.numpy(), nu=order)
    # Derivatives scale with the inverse spans (32nds here) to their order.
    scale = 10 * 32.0**order
    np.testing.assert_allclose(curve.derivative(t, order).numpy(), expected, rtol=1e-12, atol=1e-13 * scale)


@settings(max_examples=300)
@given(splines(), st.integers(0, 16))
def test_insertion_keeps_the_curve(curve: CubicBSpline, where: int) -> None:
    t = parameters(curve)
    finer = curve.insert_knot()
    assert finer.n_control == curve.n_control + 1
    assert (finer(t) - curve(t)).abs().max() <= 1e-12
    # At a parameter of choice, which may be a knot already.
    u = (where + 0.5) / 17 if where % 2 else 8 / 32
    if int((curve.knots == u).sum()) < 3:
        assert (curve.insert_knot(u)(t) - curve(t)).abs().max() <= 1e-12


def test_default_insertion_halves_the_largest_interval() -> None:
    knots = torch.tensor([0, 0, 0, 0, 0.25, 0.75, 1, 1, 1, 1], dtype=torch.float64)
    assert CubicBSpline(torch.zeros(6, 1), knots).insert_knot().knots[5] == 0.5


@given(clamped_knots())
def test_basis_is_a_partition_of_unity(knots: torch.Tensor) -> None:
    t = torch.cat([knots, torch.linspace(0, 1, 33, dtype=torch.float64)])
    B = basis(knots, t)
    assert (B >= 0).all()
    assert (B.sum(1) - 1).abs().max() <= 1e-14
    assert basis(knots, t, 1).sum(1).abs().max() <= 1e-10


def test_ends_are_interpolated_exactly() -> None:
    points = torch.randn(7, 9, 3, generator=torch.Generator().manual_seed(1))
    ends = CubicBSpline(points)(torch.tensor([0.0, 1.0]))
    assert torch.equal(ends, points[:, [0, -1]])


@pytest.mark.parametrize("n_control", [4, 5, 9, 20])
def test_line_has_constant_speed(n_control: int) -> None:
    start, end = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    curve = CubicBSpline.line(start, end, n_control)
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    assert curve.control_points.shape == (6, n_control, 3)
    assert torch.equal(curve.control_points[:, 0], start)
    assert torch.equal(curve.control_points[:, -1], end)
    expected = start[:, None] + t[:, None] * (end - start)[:, None]
    assert (curve(t) - expected).abs().max() <= 1e-13
    assert (curve.derivative(t) - (end - start)[:, None]).abs().max() <= 1e-12


def test_line_broadcasts_end_points() -> None:
    assert CubicBSpline.line(torch.zeros(2), torch.ones(5, 2)).control_points.shape == (5, 4, 2)


@pytest.mark.parametrize("leading", [(), (3,), (2, 0), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_follow_the_control_points(leading: tuple[int, ...], dtype: torch.dtype) -> None:
    curve = CubicBSpline(torch.zeros(*leading, 5, 2, dtype=dtype))
    for t in (torch.linspace(0, 1, 7), torch.linspace(0, 1, 7, dtype=torch.float64)):
        for value in (curve(t), curve.derivative(t), curve.derivative(t, order=2)):
            assert value.shape == (*leading, 7, 2)
            assert value.dtype == dtype
    assert curve.insert_knot().control_points.shape == (*leading, 6, 2)
    assert curve.insert_knot().dtype == dtype


def test_no_parameters_give_no_points() -> None:
    assert CubicBSpline(torch.zeros(3, 4, 2))(torch.zeros(0)).shape == (3, 0, 2)


def test_float32_is_as_good_as_float32_can_be() -> None:
    curve = CubicBSpline(torch.randn(50, 12, 2, generator=torch.Generator().manual_seed(3)))
    t = torch.linspace(0, 1, 100)
    assert (curve(t) - CubicBSpline(curve.control_points.double())(t)).abs().max() <= 1e-6


def test_batch_equals_single_curves() -> None:
    points = torch.randn(4, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    t = torch.linspace(0, 1, 11)
    single = torch.stack([CubicBSpline(p)(t) for p in points])
    assert (CubicBSpline(points)(t) - single).abs().max() <= 1e-14


def test_differentiable_in_the_control_points() -> None:
    points = torch.randn(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    t = torch.linspace(0, 1, 6, dtype=torch.float64)

    def values(points: torch.Tensor) -> torch.Tensor:
        curve = CubicBSpline(points).insert_knot()
        return torch.cat([curve(t), curve.derivative(t)])

    assert torch.autograd.gradcheck(values, (points,))


def test_basis_is_computed_once() -> None:
    knots, t = uniform_knots(7), torch.linspace(0, 1, 13)
    assert basis(knots, t).data_ptr() == basis(knots.clone(), t.clone()).data_ptr()
    assert basis(knots, t, 1).data_ptr() != basis(knots, t).data_ptr()
    with torch.inference_mode():
        first_seen_in_inference_mode = basis(uniform_knots(8), t)
    assert not first_seen_in_inference_mode.is_inference()


def test_inputs_are_never_changed() -> None:
    points, knots = torch.randn(5, 2, dtype=torch.float64), uniform_knots(5)
    before = points.clone(), knots.clone()
    curve = CubicBSpline(points, knots)
    curve.insert_knot()(torch.linspace(0, 1, 3))
    assert torch.equal(points, before[0])
    assert torch.equal(knots, before[1])
    knots[4] = 0.9
    assert curve.knots[4] == 0.5


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(3, 2), r"at least 4 control points, got 3"),
        (torch.zeros(5), r"\(\.\.\., n_control, d\)"),
        (torch.zeros(5, 2, dtype=torch.int64), "floating-point"),
        (np.zeros((5, 2)), r"\(\.\.\., n_control, d\), got a ndarray: use torch.as_tensor"),
        ([[0.0, 0.0]] * 5, "got a list: use torch.as_tensor"),
    ],
)
def test_wrong_control_points(points: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CubicBSpline(points)


@pytest.mark.parametrize(
    ("knots", "message"),
    [
        ([0.0, 0, 0, 0, 1, 1, 1, 1], r"expected 10 knots .* of shape \(6, 2\), got 8"),
        ([0, 0, 0, 0.1, 0.2, 0.3, 1, 1, 1, 1], "clamped"),
        ([0, 0, 0, 0, 0, 0.3, 1, 1, 1, 1], "clamped"),
        ([0, 0, 0, 0, 0.2, float("nan"), 1, 1, 1, 1], "clamped"),
        ([0, 0, 0, 0, 0.6, 0.3, 1, 1, 1, 1], "non-decreasing"),
    ],
)
def test_wrong_knots(knots: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CubicBSpline(torch.zeros(6, 2), torch.tensor(knots))
    for wrong, kind in ((knots, "list"), (np.array(knots), "ndarray")):
        with pytest.raises(ValueError, match=rf"knots as a floating-point vector, got a {kind}: use torch.as_tensor"):
            CubicBSpline(torch.zeros(6, 2), wrong)
        with pytest.raises(ValueError, match=rf"knots as a floating-point vector, got a {kind}: use torch.as_tensor"):
            basis(wrong, torch.zeros(1))


def test_knot_repeated_too_often() -> None:
    knots = torch.tensor([0, 0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1, 1])
    CubicBSpline(torch.zeros(7, 2), knots)
    with pytest.raises(ValueError, match="tears"):
        CubicBSpline(torch.zeros(8, 2), torch.cat([knots[:4], torch.tensor([0.5]), knots[4:]]))
    with pytest.raises(ValueError, match="tear"):
        CubicBSpline(torch.zeros(7, 2), knots).insert_knot(0.5)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([0.0, 1.0001]), r"in \[0, 1\]"),
        (torch.tensor([-1e-6]), r"in \[0, 1\]"),
        (torch.tensor([float("nan")]), r"in \[0, 1\]"),
        (torch.tensor([0, 1]), "floating-point"),
        (torch.tensor(0.5), r"\(n_t,\)"),
        (torch.tensor([0.5], requires_grad=True), "derivative"),
        (0.5, r"\(n_t,\), got a float: use torch.as_tensor"),
        (np.linspace(0, 1, 5), r"\(n_t,\), got a ndarray: use torch.as_tensor"),
    ],
)
def test_wrong_parameters(t: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CubicBSpline(torch.zeros(4, 2))(t)


def test_wrong_orders_and_new_knots() -> None:
    curve = CubicBSpline(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="at least 0, got -1"):
        curve.derivative(torch.tensor([0.5]), order=-1)
    for u in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="inside"):
            curve.insert_knot(u)


def test_wrong_lines() -> None:
    with pytest.raises(ValueError, match="same d"):
        CubicBSpline.line(torch.zeros(2), torch.zeros(3))
    for start, end in (([0, 0], [1, 1]), (torch.zeros(2), [1, 1]), ([0, 0], torch.zeros(2))):
        with pytest.raises(ValueError, match=r"end points \(\.\.\., d\).*a list: use torch.as_tensor"):
            CubicBSpline.line(start, end)
    with pytest.raises(ValueError, match=r"dtype and device, .* torch.float32 .* torch.float64"):
        CubicBSpline.line(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="got 3"):
        CubicBSpline.line(torch.zeros(2), torch.zeros(2), n_control=3)
