"""Directions: which of the vectors of an eigenspace, and eigenvectors by Lanczos iterations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_algorithm1 import Decoder

from lgi import directions
from lgi.directions import largest_eigenvectors, towards_origin
from lgi.metric import ExplicitMetric, PullbackMetric


def random_rotation(d, seed=0):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


@settings(max_examples=30)
@given(d=st.integers(1, 5), data=st.data())
def test_towards_origin_depends_on_the_space_alone(d, data):
    k = data.draw(st.integers(1, d))
    seed = data.draw(st.integers(0, 1000))
    basis = random_rotation(d, seed)[:, :k]
    z = torch.randn(d, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    v = towards_origin(basis, z)
    assert abs(v.norm().item() - 1) < 1e-12
    # In the space, and the best of it: the projection of -z.
    projection = basis @ (basis.T @ -z)
    torch.testing.assert_close(v, projection / projection.norm(), rtol=0, atol=1e-9)
    other = basis @ random_rotation(k, seed + 2)
    torch.testing.assert_close(towards_origin(other, z), v, rtol=0, atol=1e-9)
    # Columns that are 0 are none.
    torch.testing.assert_close(towards_origin(torch.cat([basis, 0 * basis], dim=1), z), v, rtol=0, atol=1e-12)


def test_sign_is_fixed_where_the_origin_decides_nothing():
    diagonal = torch.tensor([1.0, 1.0], dtype=torch.float64) / math.sqrt(2)
    across = torch.tensor([2.0, -2.0], dtype=torch.float64)
    for sign in (1, -1):
        for z in (torch.zeros_like(across), across, across + 1e-12 * diagonal, across - 1e-12 * diagonal):
            torch.testing.assert_close(towards_origin((sign * diagonal)[:, None], z), diagonal)
    # The first axis that is not nearly perpendicular, not the longest component by a hair.
    for e in (1e-9, -1e-9):
        v = towards_origin(
            (diagonal * torch.tensor([1 + e, -1 + e], dtype=torch.float64))[:, None], torch.zeros(2).double()
        )
        assert v[0] > 0
        assert v[1] < 0
    v = towards_origin(torch.tensor([[-1e-7], [-1.0]]).double(), torch.tensor([1.0, 0.0]).double())
    assert v[1] > 0


@pytest.mark.parametrize("d", [1, 2, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanczos_equals_eigh(d, dtype):
    metric = PullbackMetric(Decoder(d, dtype=dtype))
    z = torch.randn(20, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = torch.randn(20, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = largest_eigenvectors(metric, z.to(dtype), first)
    expected = metric.eigh(z.to(dtype))[1][..., -1].double()
    tolerance = 1e-3 if dtype == torch.float32 else 1e-7
    assert (1 - (found * expected).sum(-1).abs()).abs().max() < tolerance**2 * 10
    assert (found.norm(dim=1) - 1).abs().max() < 1e-6


def test_lanczos_takes_few_products_and_any_spectrum():
    d = 300
    eigenvalues = torch.linspace(0, 1, d, dtype=torch.float64)
    eigenvalues[0] = 1.5
    Q = random_rotation(d)
    calls = 0

    class Counted(ExplicitMetric):
        def apply(self, z, v):
            nonlocal calls
            calls += 1
            return super().apply(z, v)

    metric = Counted(lambda z: (Q * eigenvalues @ Q.T).expand(len(z), d, d))
    first = torch.randn(3, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = largest_eigenvectors(metric, torch.zeros(3, d, dtype=torch.float64), first)
    assert calls < 50
    torch.testing.assert_close((found @ Q[:, 0]).abs(), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    # Of rank one, exact after two products; of rank none, any direction will do.
    for scale in (1.0, 0.0):
        metric = ExplicitMetric(lambda z, scale=scale: scale * torch.outer(Q[0], Q[0]).expand(len(z), d, d))
        found = largest_eigenvectors(metric, torch.zeros(3, d, dtype=torch.float64), first)
        assert (found.norm(dim=1) - 1).abs().max() < 1e-9
        if scale:
            torch.testing.assert_close((found @ Q[0]).abs(), torch.ones(3, dtype=torch.float64))


def test_lanczos_says_when_it_is_not_exact(monkeypatch):
    d = 150
    eigenvalues = 1 - 1e-6 * torch.linspace(0, 1, d, dtype=torch.float64) ** 0.5
    metric = ExplicitMetric(lambda z: torch.diag(eigenvalues).expand(len(z), d, d))
    first = torch.randn(2, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(directions, "_MOST_PRODUCTS", 5)
    with pytest.warns(UserWarning, match="2 of 2 maximal eigenvectors are not exact after 5 products"):
        largest_eigenvectors(metric, torch.zeros(2, d, dtype=torch.float64), first)
