"""Shows that no number of the solver is not so: `python tests/stress.py [--pairs 20] [--only NAME] [--json FILE]`.

Pairs of points on surfaces that are hard to measure (walls, cliffs, thin ridges, sharp classifiers, high frequencies,
extreme scales, float32) are joined by :func:`lgi.shorten`. What it says is compared with the lengths of the same curves
by another measure, in float64: polygons, bisected wherever that changes them. Per pair, these are violations:

- certified: a converged curve whose length is off by more than a thousandth;
- improvement: one that is overstated by more than 0.001, converged or not;
- longer: a curve that is longer than the straight line, by more than the stated error;
- broken: an exception, a value that is not finite (the residual of a curve that is not certified may be unknown), a
  curve that is certified or shorter although nobody can tell its length.

A refusal is no violation if it says that float32 cannot square what the metric gives there.

Surfaces come in the order of their cost, the whole takes about half an hour. The exit status is 1 if there are any.
"""

import argparse
import json
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import analytic
import numpy as np
import torch
from benchmarks.walls import images
from safetensors.torch import load_file
from scipy.interpolate import BSpline
from torch import Tensor, nn

import lgi
from lgi.metric import ExplicitMetric, Metric, PullbackMetric
from lgi.models import RBFPrecision

KINDS = ("certified", "improvement", "longer", "broken")
TOLERANCE = 1e-3
# Of a length by the other measure: two of its refinements agree so well.
AGREED = 1e-5
# A curve is cut into so many intervals before any is bisected, and into so many at most.
FIRST, MOST = 4096, 1 << 19
F64, F32 = BOTH = torch.float64, torch.float32
WALLS = Path(os.environ.get("LGI_DATA", "data")) / "walls/recipe_seed0.safetensors"
# Heights and widths.
SIZES = {
    "bump": [(1, 0.5, F64), (10, 0.3, F64), (100, 0.2, F64), (1, 0.03, F64)],
    "ridge": [(1, 0.05, F64), (1, 0.02, F64), (1, 0.01, F64), (1, 0.005, F64), (5, 0.01, F64), (1, 0.0025, F64)],
    "cliff": [(1, 0.1, F64), (1, 0.01, F64), (10, 0.01, F64), (1000, 0.03, F64), (1, 0.001, F64), (10, 0.01, F32)],
}
# Frequencies and amplitudes.
WAVES = [(5, 0.3, F64), (20, 0.1, F64), (50, 0.1, F64), (100, 0.02, F64), (200, 0.05, F64), (200, 0.05, F32)]


# --- surfaces --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A metric, and pairs of points.

    Either a generator ``(n, d) -> (n, m)`` or ``-> (mean, std)``, and perhaps a feature map, for any dtype of points;
    or ``tensor``, ``(n, d) -> (n, d, d)``. Starts are uniform in a cube of half width ``spread`` around 0; so are ends,
    on the other side of ``x = 0`` with ``across``, or they are ``apart`` from the starts. ``given`` pairs come first.
    What goes wrong at a documented ``limit`` is shown, but not counted.
    """

    name: str
    generator: Callable[[Tensor], Any] | None = None
    features: Callable[[Tensor], Tensor] | None = None
    tensor: Callable[[Tensor], Tensor] | None = None
    d: int = 2
    spread: float = 1.0
    apart: float | None = None
    across: bool = False
    given: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    dtype: torch.dtype = torch.float64
    first: int = FIRST
    limit: bool = False

    @property
    def title(self) -> str:
        return self.name + ", float32" * (self.dtype is torch.float32)

    def metric(self) -> Metric:
        if self.tensor is not None:
            return ExplicitMetric(self.tensor, latent_dim=self.d)
        return PullbackMetric(self.generator, self.features, latent_dim=self.d)

    def pairs(self, n: int) -> tuple[Tensor, Tensor]:
        """Starts and ends (n, d)."""
        draws = np.random.default_rng(0)
        start, end = draws.uniform(-1, 1, (2, n, self.d))
        if self.across:
            start[:, 0], end[:, 0] = -0.2 - 0.8 * abs(start[:, 0]), 0.2 + 0.8 * abs(end[:, 0])
        start, end = self.spread * start, self.spread * end
        if self.apart is not None:
            direction = draws.standard_normal((n, self.d))
            end = start + self.apart * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        for i, (a, b) in enumerate(self.given[:n]):
            start[i], end[i] = a, b
        return torch.tensor(start, dtype=self.dtype), torch.tensor(end, dtype=self.dtype)

    def chords(self, a: Tensor, middle: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Lengths (n,) of small steps between points (n, d), and what rounding adds to them; in float64."""
        if self.tensor is not None:
            squared = torch.einsum("ni,nij,nj->n", b - a, self.tensor(middle), b - a)
            return squared.clamp_min(0).sqrt(), torch.zeros_like(squared)
        (one, std), (other, other_std) = (split(self.generator(z)) for z in (a, b))
        squared = 0 if std is None else (other_std - std).square()
        if self.features is not None:
            if std is not None:
                x = split(self.generator(middle))[0].requires_grad_()
                outputs = self.features(x).unbind(1)
                rows = (torch.autograd.grad(output.sum(), x, retain_graph=True)[0] for output in outputs)
                squared = squared * sum(row.square() for row in rows)
            one, other = self.features(one), self.features(other)
        squared = (other - one).square().sum(1) + (0 if std is None else squared.sum(1))
        return squared.sqrt(), 4 * torch.finfo(torch.float64).eps * torch.linalg.vector_norm(one, dim=1)


def split(output: Any) -> tuple[Tensor, Tensor | None]:
    mean, std = output if isinstance(output, tuple) else (output, None)
    return mean.flatten(1), None if std is None else std.flatten(1)


# --- the other measure -----------------------------------------------------------------------------------------------


def measured(surface: Surface, curve: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Length of a curve ``t (n,) -> (n, d)`` in float64, and how far it may be off."""
    length, error = before, missed = _polygon(surface, curve, surface.first)
    for finer in (3, 9, 27):
        # Where rounding or jumps are what is missed, finer polygons miss more.
        if missed > AGREED * length:
            break
        length, missed = _polygon(surface, curve, finer * surface.first)
        error, before = max(missed, abs(length - before)), length
        if error <= AGREED * length:
            break
    # A polygon sees no oscillation that is small beside its chords, nor all of very many. Random steps see them.
    sampled, spread = _sampled(surface, curve, FIRST)
    if (error > TOLERANCE * length and spread < length) or sampled - length > 6 * spread:
        sampled, spread = _sampled(surface, curve, 1 << 22)
        # But jumps they do not: less than the polygon's length no curve has.
        if 3 * spread < max(error, abs(sampled - length)) and sampled + 3 * spread >= length * (1 - AGREED):
            return sampled, 3 * spread
    return length, error


def _steps(surface: Surface, curve: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Chords (n,) between parameters (n,), and their rounding."""
    ends = zip(a.split(1 << 15), b.split(1 << 15), strict=True)
    length, noise = zip(*(surface.chords(curve(a), curve((a + b) / 2), curve(b)) for a, b in ends), strict=True)
    return torch.cat(length), torch.cat(noise)


def _polygon(surface: Surface, curve: Callable[[Tensor], Tensor], n: int) -> tuple[float, float]:
    """Length of a polygon, at first of n chords equal in the parameter and n in latent length, and what it misses."""
    t = torch.linspace(0, 1, 4 * n + 1, dtype=torch.float64)
    passed = torch.linalg.vector_norm(curve(t).diff(dim=0), dim=1).cumsum(0)
    # Bisecting never meets the same points again in another polygon: the offset is that of no dyadic grid.
    inner = (torch.arange(n, dtype=torch.float64) + 0.381966) / n
    even = np.interp(inner * passed[-1], np.r_[0.0, passed], t) if passed[-1] > 0 else inner
    nodes = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), inner, torch.as_tensor(even)]).unique()
    a, b = nodes[:-1], nodes[1:]
    coarse, _ = _steps(surface, curve, a, b)
    settled = missed = 0.0
    while len(a):
        middle = (a + b) / 2
        left, right = (torch.stack(pair, 1).flatten() for pair in ((a, middle), (middle, b)))
        halves, noise = (x.unflatten(0, (-1, 2)) for x in _steps(surface, curve, left, right))
        noise = noise.amax(1)
        fine = halves.sum(1)
        total = settled + float(fine.sum())
        change = (fine - coarse).abs()
        rough = (change > noise) & (change > 3e-6 * total / len(nodes)) | (fine > 64 * noise) & (fine > total / 1000)
        # Of a jump there remains an interval that no float64 halves.
        stuck = rough & ((middle <= a) | (middle >= b))
        rough &= ~stuck
        # Rounding is an oscillation across the curve.
        rounding = noise.square() / (2 * fine + noise).clamp_min(1e-300)
        missed += float(fine[stuck].sum() + (change / 3 + rounding)[~rough].sum())
        settled += float(fine[~rough].sum())
        if 2 * int(rough.sum()) > MOST:
            return settled + float(fine[rough].sum()), missed + float(fine[rough].sum())
        a, b = (x.unflatten(0, (-1, 2))[rough].flatten() for x in (left, right))
        coarse = halves[rough].flatten()
    return settled, missed


def _sampled(surface: Surface, curve: Callable[[Tensor], Tensor], n: int) -> tuple[float, float]:
    """Mean speed at random parameters, one in each of n equal intervals, and its standard error with rounding."""
    step = 1e-10
    t = (torch.arange(n) + torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)) / n
    t = t.clamp(max=1 - step)
    speed, noise = (x / step for x in _steps(surface, curve, t, t + step))
    spread = speed.unflatten(0, (-1, 2)).diff(dim=1).square().sum().sqrt() / n
    return float(speed.mean()), float(spread + noise.mean())


# --- checks ----------------------------------------------------------------------------------------------------------


def checked(surface: Surface, n_pairs: int, settings: lgi.SolverSettings) -> dict[str, Any]:
    """What the solver says of the pairs of a surface, and what is wrong with it."""
    start, end = surface.pairs(n_pairs)
    clock, wrong, worst = time.perf_counter(), [], dict.fromkeys(KINDS[:3], 0.0)
    certified, improvements = [0] * n_pairs, [0.0] * n_pairs
    for index, result, i in _results(surface, start, end, settings):
        if isinstance(result, str):
            refused = surface.dtype is F32 and "beyond what torch.float32 can square" in result
            found, excess = [{"kind": "broken", "why": result}] * (not refused), worst
        else:
            certified[index], improvements[index] = int(result.converged[i]), float(result.improvement[i])
            found, excess = judged(surface, start[index], end[index], result, i)
        worst = {kind: max(worst[kind], excess[kind]) for kind in worst}
        ends = {"pair": index, "start": start[index].tolist(), "end": end[index].tolist()}
        wrong += [ends | what for what in found]
    means = {"certified": sum(certified) / n_pairs, "improvement": sum(improvements) / n_pairs}
    found = {"seconds": time.perf_counter() - clock, "worst": worst, "violations": wrong}
    return {"surface": surface.title, "limit": surface.limit, "pairs": n_pairs} | means | found


def _results(surface: Surface, start: Tensor, end: Tensor, settings: Any) -> Iterator[tuple[int, Any, int]]:
    """Pair, result (or what was raised) and its place there; one by one where one of them stops all."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="latent dimension")
            result = lgi.shorten(surface.metric(), start, end, settings)
        yield from ((i, result, i) for i in range(len(start)))
    except Exception as error:  # what it raises is what is looked for
        if len(start) == 1:
            yield 0, f"{type(error).__name__}: {error}", 0
            return
        for i in range(len(start)):
            yield from ((i, *rest) for _, *rest in _results(surface, start[i : i + 1], end[i : i + 1], settings))


def judged(surface: Surface, start: Tensor, end: Tensor, result: Any, i: int) -> tuple[list[Any], dict[str, float]]:
    """Violations of curve i of a :class:`lgi.solver.ShortenResult`, and by how much it is off in each way."""
    names = ("length", "straight_length", "improvement", "length_error", "residual", "speed_variation")
    told = {name: float(getattr(result, name)[i]) for name in names}
    facts: dict[str, Any] = told | {"converged": bool(result.converged[i]), "status": str(result.message[i])}
    none = dict.fromkeys(KINDS[:3], 0.0)
    control = result.curve.control_points[i].double().numpy()
    needed = [value for name, value in told.items() if name != "residual" or facts["converged"]]
    if not (np.isfinite(control).all() and all(map(math.isfinite, needed))):
        return [{"kind": "broken", "why": "not finite"} | facts], none
    spline, a, b = BSpline(result.curve.knots.double().numpy(), control, 3), start.double(), end.double()
    length, error = measured(surface, lambda t: torch.as_tensor(spline(t.numpy())))
    straight, straight_error = measured(surface, lambda t: a + t[:, None] * (b - a))
    allowed = error / (length or 1.0) + straight_error / (straight or 1.0)
    facts |= {"true_length": length, "true_straight": straight, "allowed": allowed}
    if not allowed < 5 * TOLERANCE:
        if not facts["converged"] and told["improvement"] <= TOLERANCE:
            return [], none
        return [{"kind": "broken", "why": "nobody can tell the length"} | facts], none
    excess = {
        "certified": facts["converged"] * abs(told["length"] - length) / (length or 1.0),
        "improvement": told["improvement"] - (1 - length / straight if straight else 0.0),
        "longer": (length - straight - told["length_error"]) / (straight or 1.0),
    }
    limits = {"certified": TOLERANCE, "improvement": TOLERANCE, "longer": AGREED}
    return [{"kind": kind} | facts for kind in limits if excess[kind] > limits[kind] + allowed], excess


def row(report: dict[str, Any]) -> str:
    """A line on a surface."""
    counts = Counter(violation["kind"] for violation in report["violations"])
    worst = " ".join(f"{x:11.1e}" for x in report["worst"].values())
    means = f"{100 * report['certified']:5.0f} % {100 * report['improvement']:7.2f} %"
    wrong = ", ".join(f"{n} {kind}" for kind, n in counts.items()) + " (a documented limit)" * report["limit"]
    return f"{report['surface']:42s} {report['pairs']:5d} {means} {worst} {report['seconds']:7.1f} s  {wrong}"


# --- the table -------------------------------------------------------------------------------------------------------


def graph(*heights: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The plane, and functions of x and y above it."""
    return lambda z: torch.cat([z, torch.stack([height(z[:, 0], z[:, 1]) for height in heights], 1)], 1)


def module(net: nn.Module) -> Callable[[Tensor], Any]:
    """The same network for points of either dtype."""
    nets = {dtype: deepcopy(net).to(dtype).eval().requires_grad_(False) for dtype in BOTH}
    return lambda z: nets[z.dtype](z)


def mlp(d: int, activation: type[nn.Module], gain: float = 1.5) -> Callable[[Tensor], Any]:
    draws, layers = torch.Generator().manual_seed(0), []
    for n, m in ((d, 64), (64, 64), (64, 50)):
        layers += [nn.Linear(n, m), activation()]
        layers[-2].weight.data = gain / n**0.5 * torch.randn(m, n, generator=draws)
        layers[-2].bias.data = 0.3 * torch.randn(m, generator=draws)
    return module(nn.Sequential(*layers[:-1]))


class Walls(nn.Module):
    """A decoder by the public recipe whose standard deviation rises steeply (LGI_DATA/walls)."""

    def __init__(self, rbf: str) -> None:
        super().__init__()
        weights = load_file(WALLS)
        layers = ("c.1.0", "c.2.0", "c.3", "lin")
        self.net = images(2, *([weights[f"decoder.{name}.{part}"] for part in ("weight", "bias")] for name in layers))
        parts = (weights[f"rbf.{rbf}.{name}"] for name in ("centres", "bandwidths", "weight"))
        self.std = RBFPrecision(*parts, floor=float(weights[f"rbf.{rbf}.floor"]), data_shape=(1, 28, 28))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(z), self.std(z)


def two_classes(b: float, bend: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Probabilities that change over 1 / b."""

    def classifier(x: Tensor) -> Tensor:
        border = b * (x[:, 0] - 0.137 + bend * torch.sin(3 * x[:, 1]))
        return torch.stack([torch.sigmoid(border), torch.sigmoid(-border)], 1)

    return classifier


def three_classes(b: float) -> Callable[[Tensor], Tensor]:
    corners = [[math.cos(k), math.sin(k)] for k in (0.3, 2.5, 4.4)]
    return lambda x: torch.softmax(b * x[:, :2] @ x.new_tensor(corners).T, 1)


def twice(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y], 1)


def steep(z: Tensor) -> tuple[Tensor, Tensor]:
    return twice(z, 0 * z), 2 + 1.9 * torch.sin(4 * twice(z, z))


def noisy(z: Tensor) -> tuple[Tensor, Tensor]:
    return twice(z, 0 * z), 0.05 + 0.02 * (1 + torch.tanh(twice(z.flip(1), z)))


def wall(height: float) -> Callable[[Tensor], Any]:
    """The precision falls as a Gaussian does, and the standard deviation rises to a height."""
    std = lambda z: (height**-2 + torch.exp(-3 * z.square().sum(1, keepdim=True))).rsqrt()  # noqa: E731
    return lambda z: (z, std(z).expand_as(z))


def hills(z: Tensor) -> Tensor:
    x, y = z.unbind(1)
    return torch.cat([z, torch.stack([torch.sin(2 * x) * torch.cos(y), torch.cos(x + y**2) / 2], 1)], 1)


def on_hills(height: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.cat([hills(z), height(z[:, :1], z[:, 1:])], 1)


def conformal(factor: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.eye(2).to(z) * factor(z)[:, None, None]


# Inverse widths of the borders between two classes, and how much these bend.
BORDERS = (
    (
        "eq. 3",
        lambda z: noisy(z)[0],
        [(20, 0.3, F64), (100, 0.3, F64), (500, 0, F64), (2000, 0.1, F64), (500, 0.3, F32)],
    ),
    ("eq. 4", noisy, [(20, 0.3, F64), (100, 0.3, F64), (2000, 0.1, F64)]),
    ("eq. 4, steep", steep, [(500, 0, F64), (1000, 0, F64), (2000, 0, F64), (500, 0.3, F64), (500, 0, F32)]),
)


def surfaces() -> list[Surface]:
    """All of them, cheap ones first."""
    bump = lambda h, w: graph(lambda x, y: h * torch.exp(-(x**2 + y**2) / w**2))  # noqa: E731
    ridge = lambda h, w: graph(lambda x, y: h * torch.exp(-((x - 0.1 * y) ** 2) / (2 * w**2)))  # noqa: E731
    cliff = lambda h, w: graph(lambda x, y: h * torch.tanh((x - 0.1 * torch.sin(3 * y)) / w))  # noqa: E731
    waves = lambda a, f: graph(lambda x, y: a * torch.sin(f * x) * torch.cos(f * y))  # noqa: E731
    stairs = lambda x, y: sum(torch.relu(20 * (x + 0.3 * y - k / 5)).clamp(max=1) for k in range(-3, 4))  # noqa: E731
    pooled = lambda z: torch.sin(z @ torch.linspace(-3, 5, 40).reshape(2, 20).to(z)).unflatten(1, (10, 2)).amax(2)  # noqa: E731
    shapes = (("bump", bump), ("ridge", ridge), ("cliff", cliff))
    equator = tuple(((0.0, -x), (0.0, x)) for x in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0))
    saddles = (((-1.5, 0.0), (1.5, 0.0)), ((-0.8, 0.0), (0.8, 0.0)), ((0.0, -1.0), (0.0, 1.0)))
    thin = lambda z: 1 + 400 * torch.exp(-(((z[:, 0] - 0.21) / 0.02) ** 2))  # noqa: E731
    found = [
        *(Surface(name="constant", generator=lambda z: 1 + 0 * twice(z, z), dtype=dtype) for dtype in BOTH),
        Surface(name="flat along y", generator=lambda z: torch.stack([z[:, 0], z[:, 0] ** 2, 0 * z[:, 0]], 1)),
        *(Surface(name=f"d = 1, waves {f}", d=1, generator=lambda z, f=f: twice(z, (f * z).sin())) for f in (3, 100)),
        Surface(name="d = 1, classifier", d=1, across=True, generator=lambda z: twice(z, z), features=two_classes(500)),
        Surface(name="hills", generator=hills, spread=2),
        Surface(name="bump, saddles", generator=bump(1, 0.5), across=True, given=saddles),
        Surface(name="torus, outer equator", generator=analytic.torus_embed, spread=2.5, given=equator),
        # Squares of such values are beyond float32, which is said.
        *(Surface(name=f"hills x {s:g}", generator=lambda z, s=s: s * hills(z), dtype=dtype,
                  limit=dtype is F32 and not 1e-15 < s < 1e15)
          for s in (1e-20, 1e-10, 1e10, 1e20) for dtype in BOTH),
        # The closest are so close that rounding is all that is left of a polygon's chords.
        *(Surface(name=f"hills, {x:g} apart", generator=hills, apart=x, dtype=dtype, limit=x < 1e-6)
          for x in (1e-1, 1e-3, 1e-5, 1e-7) for dtype in BOTH),
        *(Surface(name=f"latent units of {u:g}", generator=lambda z, u=u: hills(z / u), spread=u)
          for u in (1e-12, 1e-3, 1e6)),
        # A certificate has at least 41 nodes: ridges of less than a hundredth of the line go unseen between them.
        *(Surface(name=f"{name} of height {h:g}, width {w:g}", across=True, generator=shape(h, w), dtype=dtype,
                  limit=name == "ridge" and w <= 0.01)
          for name, shape in shapes for h, w, dtype in SIZES[name]),
        *(Surface(name=f"frequency {f}, amplitude {a:g}", dtype=dtype, generator=waves(a, f)) for f, a, dtype in WAVES),
        # Values at nodes hardly show such waves, derivatives do.
        *(Surface(name=f"waves of {a:g} and {f:g} on hills", dtype=dtype, spread=2, first=1 << 15,
                  generator=on_hills(lambda x, y, a=a, f=f: a * torch.sin(f * (x + 0.7 * y))))
          for a, f, dtype in ((1e-3, 3000, F64), (1e-3, 3000, F32), (1e-5, 3e4, F64))),
        Surface(name="|x|, across", across=True, generator=graph(lambda x, y: 3 * (x - 0.2 * y).abs()),
                given=(((-0.22266342586913748, 0.7789756686980005), (0.3923415232246045, 0.9901930104706482)),)),
        Surface(name="stairs of ReLU", generator=graph(stairs)),
        Surface(name="ReLU net", d=4, generator=mlp(4, nn.ReLU), first=2048),
        Surface(name="LeakyReLU net", d=3, generator=mlp(3, nn.LeakyReLU), first=2048, dtype=F32),
        Surface(name="max pooling", generator=pooled),
        Surface(name="half plane", tensor=lambda z: analytic.half_plane_tensor(z + 1.2)),
        Surface(name="conformal ridge", across=True, tensor=conformal(thin)),
        Surface(name="conformal waves", tensor=conformal(lambda z: 1.5 + torch.sin(40 * z).prod(1))),
        Surface(name="SiLU net", d=4, generator=mlp(4, nn.SiLU), spread=2, first=512),
        Surface(name="tanh net", generator=mlp(2, nn.Tanh, 3), spread=2, first=512, dtype=F32),
        Surface(name="SiLU net, d = 16", d=16, generator=mlp(16, nn.SiLU), first=512, dtype=F32),
        Surface(name="SiLU net, d = 64", d=64, generator=mlp(64, nn.SiLU), first=512, dtype=F32),
        Surface(name="sharp net, d = 8", d=8, generator=mlp(8, nn.Tanh, 6), first=2048),
        *(Surface(name=f"std wall of {h}", generator=wall(h), spread=1.5, dtype=dtype)
          for h, dtype in ((3, F64), (100, F64), (100, F32))),
        Surface(name="std of exp(r^2)", spread=2.5,
                generator=lambda z: (z, z.square().sum(1, keepdim=True).exp().expand_as(z))),
        *(Surface(name=f"{name}, borders of {b}, bend {bend:g}", across=True, generator=generator, dtype=dtype,
                  features=two_classes(b, bend), given=(((-1.05, 0.0), (1.07, 0.01)),))
          for name, generator, borders in BORDERS for b, bend, dtype in borders),
        Surface(name="eq. 3, three classes of 200", generator=lambda z: noisy(z)[0], features=three_classes(200)),
        Surface(name="eq. 4, three classes of 100", generator=noisy, features=three_classes(100)),
        *(Surface(name=f"hills, {x:g} apart", generator=hills, apart=x) for x in (100, 1000, 1e4)),
    ]  # fmt: skip
    names = ("k8.c0.7", "k8.c0.5", "k64.c0.7") if WALLS.exists() else ()
    decoders = [(f"decoder with walls, {name}", module(Walls(name))) for name in names]
    return found + [
        Surface(name=name, generator=decoder, spread=2.5, apart=1, dtype=F32, first=256) for name, decoder in decoders
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--only", default="", help="surfaces whose names contain this")
    parser.add_argument("--json", type=Path, help="where the reports go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'surface':42s} pairs certif. improvem. {' '.join(f'{kind:>11s}' for kind in KINDS[:3])}", flush=True)
    reports = []
    for surface in (surface for surface in surfaces() if options.only in surface.title):
        reports.append(checked(surface, options.pairs, lgi.SolverSettings(progress=False)))
        print(row(reports[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(reports, indent=1), encoding="utf-8")
    count = sum(len(report["violations"]) for report in reports if not report["limit"])
    print(f"{len(reports)} surfaces, {options.pairs * len(reports)} pairs, {count} violations")
    return 1 if count else 0


if __name__ == "__main__":
    raise SystemExit(main())
