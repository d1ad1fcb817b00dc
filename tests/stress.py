"""Shows that no number of the solver is not so: `python tests/stress.py [--pairs 20] [--only NAME] [--json FILE]`.

Pairs of points on surfaces that are hard to measure (walls, cliffs, thin ridges, sharp classifiers, high frequencies,
extreme scales, float32) are joined by :func:`lgi.shorten`. What it says is compared with the lengths of the same curves
by another measure, in float64: polygons, bisected wherever that changes them. Per pair, these are violations:

- certified: a converged curve whose length is off by more than a thousandth;
- improvement: one that is overstated by more than 0.001, converged or not;
- longer: a curve that is longer than the straight line, by more than the stated error;
- broken: an exception, a value that is not finite, a curve whose length nobody can tell.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import analytic
import numpy as np
import torch
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


# --- surfaces --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A metric, and pairs of points.

    Either a generator ``(n, d) -> (n, m)`` or ``-> (mean, std)``, and perhaps a feature map, for any dtype of points;
    or ``tensor``, ``(n, d) -> (n, d, d)``. Starts are uniform in a cube of half width ``spread`` around 0; so are ends,
    on the other side of ``x = 0`` with ``across``, or they are ``apart`` from the starts. ``given`` pairs come first.
    """

    name: str
    generator: Callable[[Tensor], Any] | None = None
    features: Callable[[Tensor], Tensor] | None = None
    tensor: Callable[[Tensor], Tensor] | None = None
    d: int = 2
    spread: float = 1.0
    centre: float = 0.0
    apart: float | None = None
    across: bool = False
    given: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = ()
    dtype: torch.dtype = torch.float64
    first: int = FIRST

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
        start, end = self.centre + self.spread * start, self.centre + self.spread * end
        if self.apart is not None:
            direction = draws.standard_normal((n, self.d))
            end = start + self.apart * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        for i, (a, b) in enumerate(self.given[:n]):
            start[i], end[i] = a, b
        return torch.tensor(start, dtype=self.dtype), torch.tensor(end, dtype=self.dtype)

    def chords(self, a: Tensor, middle: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Lengths (n,) of small steps between points (n, d), and what rounding adds to them; in float64."""
        if self.tensor is not None:
            step = b - a
            squared = torch.einsum("ni,nij,nj->n", step, self.tensor(middle), step)
            return squared.clamp_min(0).sqrt(), torch.zeros_like(squared)
        (one, one_std), (other, other_std) = (split(self.generator(z)) for z in (a, b))
        if self.features is None:
            one, other = (x if s is None else torch.cat([x, s], 1) for x, s in ((one, one_std), (other, other_std)))
            one_std = None
        else:
            one, other = (self.features(x).flatten(1) for x in (one, other))
        squared = (other - one).square().sum(1)
        if one_std is not None:
            J = torch.func.vmap(torch.func.jacrev(lambda x: self.features(x[None])[0]))(split(self.generator(middle))[0])
            squared = squared + (J.square().sum(1) * (other_std - one_std).square()).sum(1)
        return squared.sqrt(), 4 * torch.finfo(torch.float64).eps * torch.linalg.vector_norm(one, dim=1)


def split(output: Any) -> tuple[Tensor, Tensor | None]:
    mean, std = output if isinstance(output, tuple) else (output, None)
    return mean.flatten(1), None if std is None else std.flatten(1)


# --- the other measure -----------------------------------------------------------------------------------------------


def measured(surface: Surface, curve: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Length of a curve ``t (n,) -> (n, d)`` in float64, and how far it may be off."""
    n = surface.first
    before, missed = _polygon(surface, curve, n)
    length, error = before, missed
    while not missed > AGREED * length and n < 30 * surface.first:
        n = 3 * n
        length, missed = _polygon(surface, curve, n)
        error = max(missed, abs(length - before))
        if not error > AGREED * length:
            break
        before = length
    if error > AGREED * length:
        # More oscillations than intervals, or jumps. Random steps see the former rightly, and say how rightly.
        sampled, spread = _sampled(surface, curve)
        if spread < error:
            return sampled, 3 * spread
    return length, error


def _steps(surface: Surface, curve: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    parts = zip(a.split(1 << 15), b.split(1 << 15), strict=True)
    found = [surface.chords(curve(a), curve((a + b) / 2), curve(b)) for a, b in parts]
    length, noise = zip(*found, strict=True)
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
        halves, noise = _steps(surface, curve, torch.stack([a, middle], 1).flatten(), torch.stack([middle, b], 1).flatten())
        halves, noise = halves.unflatten(0, (-1, 2)), noise.unflatten(0, (-1, 2)).amax(1)
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
        a, middle, b = a[rough], middle[rough], b[rough]
        a, b = torch.stack([a, middle], 1).flatten(), torch.stack([middle, b], 1).flatten()
        coarse = halves[rough].flatten()
    return settled, missed


def _sampled(surface: Surface, curve: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Mean speed at random parameters, one in each of many equal intervals, and its standard error."""
    n, step = 1 << 22, 1e-10
    t = (torch.arange(n) + torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)) / n
    t = t.clamp(max=1 - step)
    speed = _steps(surface, curve, t, t + step)[0] / step
    return float(speed.mean()), float(speed.unflatten(0, (-1, 2)).diff(dim=1).square().sum().sqrt() / n)


# --- checks ----------------------------------------------------------------------------------------------------------


def checked(surface: Surface, n_pairs: int, settings: lgi.SolverSettings) -> dict[str, Any]:
    """What the solver says of the pairs of a surface, and what is wrong with it."""
    start, end = surface.pairs(n_pairs)
    report: dict[str, Any] = {"surface": surface.name, "pairs": len(start), "violations": []}
    worst = dict.fromkeys(KINDS[:3], 0.0)
    certified, improvements, seconds = [], [], time.perf_counter()
    for first, result in _results(surface, start, end, settings):
        for i, index in enumerate(range(first, first + len(result.length) if not isinstance(result, str) else first + 1)):
            ends = {"pair": index, "start": start[index].tolist(), "end": end[index].tolist()}
            if isinstance(result, str):
                report["violations"].append(ends | {"kind": "broken", "why": result})
                continue
            certified.append(bool(result.converged[i]))
            improvements.append(float(result.improvement[i]))
            found, excess = judged(surface, start[index], end[index], result, i)
            worst = {kind: max(worst[kind], excess[kind]) for kind in worst}
            report["violations"] += [ends | what for what in found]
    report |= {"certified": float(np.mean(certified or [0])), "improvement": float(np.mean(improvements or [0]))}
    return report | {"worst": worst, "seconds": time.perf_counter() - seconds}


def _results(surface: Surface, start: Tensor, end: Tensor, settings: lgi.SolverSettings) -> Iterator[tuple[int, Any]]:
    """First pair and result, or what was raised, of all pairs at once; one by one where one of them stops all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="latent dimension")
        metric = surface.metric()
        try:
            yield 0, lgi.shorten(metric, start, end, settings)
        except Exception as error:  # what it raises is what is looked for
            if len(start) == 1:
                yield 0, f"{type(error).__name__}: {error}"
                return
            for i in range(len(start)):
                for _, result in _results(surface, start[i : i + 1], end[i : i + 1], settings):
                    yield i, result


def judged(
    surface: Surface, start: Tensor, end: Tensor, result: lgi.solver.ShortenResult, i: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Violations of curve i of a result, and by how much it is off in each way."""
    names = ("length", "straight_length", "improvement", "length_error", "residual", "speed_variation")
    told = {name: float(getattr(result, name)[i]) for name in names}
    words = {"status": str(result.message[i]).partition(":")[0], "n_control": int(result.n_control[i])}
    words |= {"converged": bool(result.converged[i])}
    none = dict.fromkeys(KINDS[:3], 0.0)
    control = result.curve.control_points[i].double().numpy()
    if not (np.isfinite(control).all() and all(map(math.isfinite, told.values()))):
        return [{"kind": "broken", "why": "not finite"} | told | words], none
    spline, a, b = BSpline(result.curve.knots.double().numpy(), control, 3), start.double(), end.double()
    length, error = measured(surface, lambda t: torch.as_tensor(spline(t.numpy())))
    straight, straight_error = measured(surface, lambda t: a + t[:, None] * (b - a))
    scale, straight_scale = length or 1.0, straight or 1.0
    allowed = error / scale + straight_error / straight_scale
    facts = told | words | {"true_length": length, "true_straight": straight, "allowed": allowed}
    if not allowed < 5 * TOLERANCE:
        return [{"kind": "broken", "why": "nobody can tell the length"} | facts], none
    excess = {
        "certified": abs(told["length"] - length) / scale if words["converged"] else 0.0,
        "improvement": told["improvement"] - (1 - length / straight_scale if straight else 0.0),
        "longer": (length - straight - told["length_error"]) / straight_scale,
    }
    limits = {"certified": TOLERANCE, "improvement": TOLERANCE, "longer": AGREED}
    return [{"kind": kind} | facts for kind in limits if excess[kind] > limits[kind] + allowed], excess


def told(report: dict[str, Any]) -> str:
    counts = Counter(violation["kind"] for violation in report["violations"])
    worst = " ".join(f"{x:8.1e}" for x in report["worst"].values())
    numbers = f"{report['pairs']:4d} {100 * report['certified']:5.0f} % {100 * report['improvement']:7.2f} % {worst}"
    wrong = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    return f"{report['surface']:34s} {numbers} {report['seconds']:7.1f} s  {wrong}"


# --- the table -------------------------------------------------------------------------------------------------------


def graph(*heights: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The plane, and functions of x and y above it."""
    return lambda z: torch.cat([z, torch.stack([height(z[:, 0], z[:, 1]) for height in heights], 1)], 1)


def scaled(generator: Callable[[Tensor], Tensor], scale: float) -> Callable[[Tensor], Tensor]:
    return lambda z: scale * generator(z)


def module(net: nn.Module) -> Callable[[Tensor], Any]:
    """The same network for points of either dtype."""
    nets = {dtype: _copy(net).to(dtype).eval().requires_grad_(False) for dtype in (torch.float32, torch.float64)}
    return lambda z: nets[z.dtype](z)


def _copy(net: nn.Module) -> nn.Module:
    from copy import deepcopy

    return deepcopy(net)


def mlp(d: int, activation: type[nn.Module], gain: float = 1.5, width: int = 64, out: int = 50) -> Callable[[Tensor], Any]:
    draws = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for n, m in ((d, width), (width, width), (width, out)):
        layers += [nn.Linear(n, m), activation()]
        layers[-2].weight.data = gain / n**0.5 * torch.randn(m, n, generator=draws)
        layers[-2].bias.data = 0.3 * torch.randn(m, generator=draws)
    return module(nn.Sequential(*layers[:-1]))


class Walls(nn.Module):
    """A decoder by the public recipe whose standard deviation rises steeply (LGI_DATA/walls)."""

    def __init__(self, rbf: str) -> None:
        super().__init__()
        weights = load_file(Path(os.environ.get("LGI_DATA", "data")) / "walls/recipe_seed0.safetensors")
        up = [nn.ConvTranspose2d(32, 32, 3, stride=2), nn.ELU(), nn.ConvTranspose2d(32, 32, 4, stride=2), nn.ELU()]
        self.net = nn.Sequential(nn.Linear(2, 1152), nn.Unflatten(1, (32, 6, 6)), *up, nn.Conv2d(32, 1, 1), nn.Tanh())
        for i, name in ((0, "lin"), (2, "c.1.0"), (4, "c.2.0"), (6, "c.3")):
            self.net[i].weight.data = weights[f"decoder.{name}.weight"]
            self.net[i].bias.data = weights[f"decoder.{name}.bias"]
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


def steep(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([z, 0 * z], 1), 2 + 1.9 * torch.sin(4 * torch.cat([z, z], 1))


def noisy(z: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([z, 0 * z], 1), 0.05 + 0.02 * (1 + torch.tanh(torch.cat([z.flip(1), z], 1)))


def wall(height: float) -> Callable[[Tensor], Any]:
    """The standard deviation grows as the precision of a Gaussian falls."""
    return lambda z: (graph(torch.mul)(z), 1 / (height**-2 + torch.exp(-3 * z.square().sum(1, keepdim=True))).sqrt() + 0 * graph(torch.mul)(z))


def surfaces() -> list[Surface]:
    """All of them, cheap ones first."""
    f32 = torch.float32
    hills = graph(lambda x, y: torch.sin(2 * x) * torch.cos(y), lambda x, y: torch.cos(x + y**2) / 2)
    bump = graph(lambda x, y: torch.exp(-4 * (x**2 + y**2)))
    found = [
        Surface(name="constant", generator=lambda z: 0 * z[:, :1] + torch.ones(3).to(z)),
        Surface(name="constant, float32", generator=lambda z: 0 * z[:, :1] + torch.ones(3).to(z), dtype=f32),
        Surface(name="flat along y", generator=lambda z: torch.stack([z[:, 0], z[:, 0] ** 2, z[:, 0] * 0], 1)),
        Surface(name="d = 1", d=1, generator=lambda z: torch.cat([z, torch.sin(3 * z)], 1)),
        Surface(name="d = 1, frequency 100", d=1, generator=lambda z: torch.cat([z, torch.sin(100 * z)], 1)),
        Surface(name="d = 1, classifier", d=1, across=True, generator=lambda z: torch.cat([z, z], 1), features=two_classes(500)),
        Surface(name="hills", generator=hills, spread=2),
        Surface(name="bump, saddles", generator=bump, across=True, given=(((-1.5, 0.0), (1.5, 0.0)), ((-0.8, 0.0), (0.8, 0.0)), ((0.0, -1.0), (0.0, 1.0)))),
        Surface(name="torus", generator=analytic.torus_embed, spread=2.5, given=(((0.0, -1.2), (0.0, 1.2)), ((math.pi, -2.0), (math.pi, 2.0)))),
        Surface(name="torus, outer equator", generator=analytic.torus_embed, spread=2.5, given=tuple(((0.0, -x), (0.0, x)) for x in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0))),
    ]  # fmt: skip
    found += [
        Surface(name=f"hills x {scale:g}{', float32' * (dtype is f32)}", generator=scaled(hills, scale), dtype=dtype)
        for scale in (1e-20, 1e-10, 1e10, 1e20)
        for dtype in (torch.float64, f32)
    ]
    found += [
        Surface(name=f"hills, {apart:g} apart{', float32' * (dtype is f32)}", generator=hills, apart=apart, dtype=dtype)
        for apart in (1e-1, 1e-3, 1e-5, 1e-7)
        for dtype in (torch.float64, f32)
    ]
    found += [
        Surface(name=f"latent units of {unit:g}", generator=lambda z, unit=unit: hills(z / unit), spread=unit)
        for unit in (1e-12, 1e-3, 1e6)
    ]
    found += [
        Surface(name=f"bump of height {h:g}, width {w:g}", across=True,
                generator=graph(lambda x, y, h=h, w=w: h * torch.exp(-(x**2 + y**2) / w**2)))
        for h, w in ((1, 0.5), (10, 0.3), (100, 0.2), (1, 0.03))
    ]  # fmt: skip
    found += [
        Surface(name=f"ridge of width {w:g}, height {h:g}", across=True,
                generator=graph(lambda x, y, h=h, w=w: h * torch.exp(-(x - 0.1 * y) ** 2 / (2 * w**2))))
        for h, w in ((1, 0.05), (1, 0.02), (1, 0.01), (1, 0.005), (5, 0.01))
    ]  # fmt: skip
    found += [
        Surface(name=f"cliff of width {w:g}, height {h:g}{', float32' * (dtype is f32)}", across=True, dtype=dtype,
                generator=graph(lambda x, y, h=h, w=w: h * torch.tanh((x - 0.1 * torch.sin(3 * y)) / w)))
        for h, w, dtype in ((1, 0.1, torch.float64), (1, 0.01, torch.float64), (10, 0.01, torch.float64), (1000, 0.03, torch.float64), (1, 0.001, torch.float64), (10, 0.01, f32))
    ]  # fmt: skip
    found += [
        Surface(name=f"frequency {f:g}, amplitude {a:g}{', float32' * (dtype is f32)}", dtype=dtype,
                generator=graph(lambda x, y, f=f, a=a: a * torch.sin(f * x) * torch.cos(f * y)))
        for f, a, dtype in ((5, 0.3, torch.float64), (20, 0.1, torch.float64), (50, 0.1, torch.float64), (100, 0.02, torch.float64), (200, 0.05, torch.float64), (200, 0.05, f32))
    ]  # fmt: skip
    found += [
        Surface(name="|x|, across", across=True, generator=graph(lambda x, y: 3 * (x - 0.2 * y).abs())),
        Surface(name="stairs of ReLU", generator=graph(lambda x, y: sum(torch.relu(20 * (x + 0.3 * y - k / 5)).clamp(max=1) for k in range(-3, 4)))),
        Surface(name="ReLU net", d=4, generator=mlp(4, nn.ReLU), first=2048),
        Surface(name="LeakyReLU net, float32", d=3, generator=mlp(3, nn.LeakyReLU), first=2048, dtype=f32),
        Surface(name="max pooling", generator=lambda z: torch.nn.functional.max_pool1d(torch.sin(z @ torch.linspace(-3, 5, 40).reshape(2, 20).to(z))[:, None], 2)[:, 0]),
        Surface(name="half plane", centre=1.2, tensor=analytic.half_plane_tensor),
        Surface(name="conformal ridge", across=True, tensor=lambda z: torch.eye(2).to(z) * (1 + 400 * torch.exp(-(((z[:, 0] - 0.21) / 0.02) ** 2)))[:, None, None]),
        Surface(name="conformal waves", tensor=lambda z: torch.eye(2).to(z) * (1.5 + torch.sin(40 * z).prod(1))[:, None, None]),
        Surface(name="SiLU net", d=4, generator=mlp(4, nn.SiLU), spread=2, first=512),
        Surface(name="tanh net, float32", generator=mlp(2, nn.Tanh, 3), spread=2, first=512, dtype=f32),
        Surface(name="SiLU net, d = 16, float32", d=16, generator=mlp(16, nn.SiLU), first=512, dtype=f32),
        Surface(name="sharp net, d = 8", d=8, generator=mlp(8, nn.Tanh, 6), first=2048),
        Surface(name="std wall of 3", generator=wall(3), spread=1.5),
        Surface(name="std wall of 100", generator=wall(100), spread=1.5),
        Surface(name="std wall of 100, float32", generator=wall(100), spread=1.5, dtype=f32),
        Surface(name="std of exp(r^2)", spread=2.5, generator=lambda z: (graph(torch.mul)(z), (z.square().sum(1, keepdim=True)).exp() + 0 * graph(torch.mul)(z))),
    ]  # fmt: skip
    mean = lambda generator: lambda z: generator(z)[0]  # noqa: E731
    found += [
        Surface(name=f"eq. 3, borders of {b:g}{', bent' * (bend > 0)}{', float32' * (dtype is f32)}", across=True,
                generator=mean(noisy), features=two_classes(b, bend), dtype=dtype)
        for b, bend, dtype in ((20, 0.3, torch.float64), (100, 0.3, torch.float64), (500, 0, torch.float64), (2000, 0.1, torch.float64), (500, 0.3, f32))
    ]  # fmt: skip
    found += [
        Surface(name=f"eq. 4, borders of {b:g}{', bent' * (bend > 0)}{', steep std' * (std is steep)}{', float32' * (dtype is f32)}", across=True,
                generator=std, features=two_classes(b, bend), dtype=dtype, given=(((-1.05, 0.0), (1.07, 0.01)),))
        for b, bend, std, dtype in (
            (20, 0.3, noisy, torch.float64), (100, 0.3, noisy, torch.float64), (500, 0, steep, torch.float64), (1000, 0, steep, torch.float64),
            (2000, 0, steep, torch.float64), (500, 0.3, steep, torch.float64), (2000, 0.1, noisy, torch.float64), (500, 0, steep, f32))
    ]  # fmt: skip
    found += [
        Surface(name="eq. 3, three classes of 200", generator=mean(noisy), features=three_classes(200)),
        Surface(name="eq. 4, three classes of 100", generator=noisy, features=three_classes(100)),
        Surface(name="ridge of width 0.0025, height 1", across=True, generator=graph(lambda x, y: torch.exp(-(x**2) / (2 * 0.0025**2)))),
    ]  # fmt: skip
    found += [Surface(name=f"hills, {apart:g} apart", generator=hills, apart=apart) for apart in (100, 1000, 1e4)]
    if (Path(os.environ.get("LGI_DATA", "data")) / "walls").exists():
        found += [
            Surface(name=f"decoder with walls, {rbf}", generator=module(Walls(rbf)), spread=2.5, apart=1.0, dtype=f32, first=256)
            for rbf in ("k8.c0.7", "k8.c0.5", "k64.c0.7")
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--only", help="surfaces whose names contain this")
    parser.add_argument("--json", type=Path, help="where the reports go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [surface for surface in surfaces() if (options.only or "") in surface.name]
    print(f"{'surface':34s} pairs certif. improvem. {' '.join(f'{kind:>11s}' for kind in KINDS[:3])}")
    reports = []
    for surface in chosen:
        reports.append(checked(surface, options.pairs, lgi.SolverSettings(progress=False)))
        print(told(reports[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(reports, indent=1))
    count = sum(len(report["violations"]) for report in reports)
    print(f"{len(reports)} surfaces, {sum(report['pairs'] for report in reports)} pairs, {count} violations")
    return 1 if count else 0


if __name__ == "__main__":
    raise SystemExit(main())
