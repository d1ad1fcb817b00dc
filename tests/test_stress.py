"""The stress suite itself: its measure against closed forms, that it notices what is not so, and a small part of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import stress
import torch
from scipy.integrate import fixed_quad, quad
from scipy.special import ellipe
from stress import Surface

import lgi


def _waves(frequency, amplitude, length):
    """Length of ``a sin(f x)`` over whole periods, by the complete elliptic integral."""
    slope = (amplitude * frequency) ** 2
    return length * 2 / math.pi * math.sqrt(1 + slope) * ellipe(slope / (1 + slope))


def _border(b):
    """Length of a line along x under ``steep`` in eq. 4, by the probability p, which goes from 0 to 1."""

    def speed(p):
        x = 0.137 + np.log(p / (1 - p)) / b
        return math.sqrt(2) * np.sqrt(1 + (7.6 * np.cos(4 * x)) ** 2)

    return fixed_quad(speed, 0, 1, n=400)[0]


# Of a Gaussian of width w, in units of w; beyond 9 it is flat.
RIDGE = 2 + 2e-4 * quad(lambda u: math.hypot(1, u * math.exp(-(u**2) / 2) / 1e-4) - 1, 0, 9, limit=500)[0]
WAVES = lambda amplitude, frequency: stress.graph(lambda x, y: amplitude * torch.sin(frequency * x))  # noqa: E731
LOG = lambda z: torch.eye(2).to(z) / z[:, 1, None, None] ** 2  # noqa: E731
CASES = {
    "thin ridge": ({"generator": stress.graph(lambda x, y: torch.exp(-(x**2) / 2e-8))}, (-1, 0), (1, 0), RIDGE),
    "waves": ({"generator": WAVES(0.05, 200)}, (0, 0), (math.pi, 0), _waves(200, 0.05, math.pi)),
    "more waves than chords": ({"generator": WAVES(5e-7, 2e6)}, (0, 0), (math.pi, 0), _waves(2e6, 5e-7, math.pi)),
    "a border, eq. 4": (
        {"generator": stress.steep, "features": stress.two_classes(2000)}, (-1.05, 0), (1.07, 0), _border(2000)
    ),
    "a kink": ({"generator": stress.graph(lambda x, y: 3 * x.abs())}, (-1, 0), (2, 0), 3 * math.sqrt(10)),
    "half plane": ({"tensor": LOG}, (0, 1e-3), (0, 10), math.log(1e4)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_measure_is_right_in_closed_form(case):
    what, start, end, wanted = CASES[case]
    a, b = torch.tensor([start, end], dtype=torch.float64)
    length, error = stress.measured(Surface(name=case, first=1024, **what), lambda t: a + t[:, None] * (b - a))
    assert abs(length - wanted) <= max(error, stress.AGREED * wanted)
    assert error <= 3e-4 * wanted


def _named(name):
    return next(surface for surface in stress.surfaces() if surface.title == name)


def test_what_is_not_so_is_noticed():
    surface = _named("bump, saddles")
    start, end = (x[3:4] for x in surface.pairs(4))
    result = lgi.shorten(surface.metric(), start, end)
    bent = result.curve.control_points.clone()
    bent[:, 1:-1] += torch.tensor([0.0, 2.0])
    wrong = {
        "certified": replace(result, length=result.length * 1.002),
        "improvement": replace(result, improvement=result.improvement + 0.002),
        "longer": replace(result, curve=lgi.CubicBSpline(bent, result.curve.knots)),
        "broken": replace(result, length_error=result.length_error * torch.nan),
    }
    kinds = {kind: {x["kind"] for x in stress.judged(surface, start[0], end[0], r, 0)[0]} for kind, r in wrong.items()}
    assert all(kind in found for kind, found in kinds.items()), kinds
    assert stress.judged(surface, start[0], end[0], result, 0)[0] == []


def test_a_crash_is_a_violation_of_its_own_pair():
    holes = Surface(name="holes", generator=lambda z: torch.cat([z, (z[:, :1] + 0.5).sqrt()], 1))
    report = stress.checked(holes, 4, lgi.SolverSettings())
    broken = {x["pair"] for x in report["violations"]}
    assert broken == {i for i, x in enumerate(torch.minimum(*holes.pairs(4))[:, 0]) if x < -0.5}
    assert 0 < len(broken) < 4


QUICK = ("bump, saddles", "hills x 1e-10, float32", "half plane", "ridge of height 1, width 0.02")
QUICK += ("|x|, across", "eq. 4, steep, borders of 1000, bend 0", "waves of 0.001 and 3000 on hills")


@pytest.mark.parametrize("name", QUICK)
def test_no_number_that_is_not_so(name):
    assert stress.checked(_named(name), 2, lgi.SolverSettings())["violations"] == []
