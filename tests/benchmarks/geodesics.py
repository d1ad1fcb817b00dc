"""Seconds, decoder rows and final length of shorter curves, side by side on VAE1 with the pairs of Algorithm 1.

    .venv/bin/python tests/benchmarks/geodesics.py [--threads N] [--device cpu|cuda] [--pairs N] [--original N]
        [--memory]

One process, one decoder (the fused VAE1, eq. 2), the same pairs: start from the prior, end one step along the maximal
eigenvector turned towards the origin. Compared are the methods of `lgi.shorten` and the geodesic equation, and

- original: the scheme of the paper's code, written anew: metric tensors at 16 points through D copies of each (one
  output pixel of each copy differentiated by reverse mode), two free control points, 20 steps of Adam on the energy,
  one pair at a time. Its step size is not in the paper; 0.05 here;
- stochman: `EmbeddedManifold.connecting_geodesic` as it is (150 steps of Adam, 20 points, 5 nodes), all pairs at once;
  50 of them, and 200, whose working set no longer fits the cache;
- latent-geometry: `LatentManifold.shortest_path` as it is (the geodesic equation as a boundary value problem), one pair
  at a time;
- geomstats: `PathStraightening` of a `PullbackMetric` (the energy of a path of points by L-BFGS, Jacobians row by row
  in reverse mode), one pair, with 10 points and not 100, which would take an hour.

The last three are optional: what cannot be imported is left out, and said why. geomstats 2.8 does not import with numpy
2.4. All three come with `uv pip install stochman latent-geometry geomstats "numpy<2.4"` in an environment of their own.

All lengths are measured in the same way, 256 quadrature nodes with forward derivatives, and all curves are certified in
the same way, by `lgi.certify` among variations on 16 spans: a curve counts as certified when its energy is within a
quarter of a percent (the square of the tolerance) of that of a stationary curve. What a method says of itself is listed
as `own verdict`. Rows are counted in forward
passes: a derivative counts as many as it was measured to take (`row_cost`, processor time on one thread); for
latent-geometry and geomstats they are the processor time over that of a forward pass. Of the slow ones few pairs are
run, and their lengths are compared with lgi's on the same pairs. Before and after each of the others, lgi runs again on
200 pairs: the ratio of the times is taken to these, since the load of a shared machine changes. Writes geodesics.json
beside it.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read when geomstats is imported.
os.environ.setdefault("GEOMSTATS_BACKEND", "pytorch")

import torch
from torch import Tensor

import lgi
from lgi import zoo
from lgi.artifacts import provenance
from lgi.metric import PullbackMetric, curve_length
from lgi.solver import SolverSettings, certify, shorten, solve_geodesic_ode
from lgi.spline import CubicBSpline


def algorithm_1_pairs(metric: PullbackMetric, n: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    start = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(device)
    direction = metric.eigh(start)[1][..., -1]
    outward = (direction * start).sum(-1, keepdim=True) > 0
    return start, start + torch.where(outward, -direction, direction)


class Clock:
    """Seconds that have passed on the wall and of processor time."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    @contextmanager
    def running(self):
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor


def row_cost(metric: PullbackMetric, z: Tensor, v: Tensor) -> tuple[dict[str, float], float]:
    """Processor time of each evaluation, relative to a forward pass, and that of a forward pass in seconds."""

    def value_and_gradient() -> None:
        for part in z.split(256):
            leaf = part.clone().requires_grad_()
            torch.autograd.grad(metric.embed(leaf).square().sum(), leaf)

    calls = {
        "value": lambda: metric.embed(z),
        "value and gradient": value_and_gradient,
        "value and 2 forward derivatives": lambda: metric.linearise(z),
        "speed": lambda: metric.speed(z, v),
        "speed and gradients": lambda: metric.squared_speed_and_gradient(z, v),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(7):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            times[name].append(time.process_time() - begin)
    base = statistics.median(times["value"])
    return {name: round(statistics.median(t) / base, 2) for name, t in times.items()}, base / len(z)


def original_scheme(decoder, start: Tensor, end: Tensor) -> tuple[Tensor, int]:
    """Control points of one pair, and the forward rows it took."""
    line = CubicBSpline.line(start, end).control_points
    free = line[1:-1].clone().requires_grad_()
    optimiser = torch.optim.Adam([free], lr=0.05)
    t = torch.linspace(0, 1, 16, device=start.device)
    rows = 0
    for _ in range(20):
        optimiser.zero_grad()
        curve = CubicBSpline(torch.cat([line[:1], free, line[-1:]]))
        points, velocities = curve(t), curve.derivative(t)
        for point, velocity in zip(points, velocities, strict=True):
            copies = point.expand(784, 2)
            rows += 784
            energy = 0.0
            for output in decoder(copies):
                (jacobian,) = torch.autograd.grad(output.flatten(1).diagonal().sum(), copies, create_graph=True)
                energy = energy + (jacobian @ velocity).square().sum()
            # Point by point, or the graphs of all copies would not fit into memory; the sum is the same.
            (energy / 16).backward(retain_graph=True)
        optimiser.step()
    return torch.cat([line[:1], free.detach(), line[-1:]]), rows


def stochman_paths(decoder, start: Tensor, end: Tensor) -> tuple[Tensor, int]:
    """Points along the curves (n, 1025, d), and the forward rows they took."""
    from stochman.manifold import EmbeddedManifold

    rows = 0

    class Decoded(EmbeddedManifold):
        def embed(self, points, jacobian=False):
            nonlocal rows
            flat = points.reshape(-1, points.shape[-1])
            rows += len(flat)
            return torch.cat([part.flatten(1) for part in decoder(flat)], dim=1).reshape(*points.shape[:-1], -1)

    curve, _ = Decoded().connecting_geodesic(start, end)
    with torch.no_grad():
        return curve(torch.linspace(0, 1, 1025, device=start.device)), rows


def flattened(decoder, points: Tensor) -> Tensor:
    """Mean and standard deviation (..., 1568) at points (..., d)."""
    parts = decoder(points.reshape(-1, points.shape[-1]))
    return torch.cat([part.flatten(1) for part in parts], dim=1).reshape(*points.shape[:-1], -1)


def latent_geometry_path(decoder, start: Tensor, end: Tensor) -> Tensor:
    """Points along the curve of one pair (1025, d)."""
    from latent_geometry.manifold import LatentManifold
    from latent_geometry.mapping import TorchModelMapping
    from latent_geometry.metric import EuclideanMetric

    mapping = TorchModelMapping(decoder, (2,), (1568,), batch_size=256, call_fn=lambda z: flattened(decoder, z))
    path = LatentManifold(mapping, EuclideanMetric()).shortest_path(start.double().numpy(), end.double().numpy())
    return torch.stack([torch.as_tensor(path(k / 1024)) for k in range(1025)]).to(start)


def geomstats_path(decoder, start: Tensor, end: Tensor) -> Tensor:
    """Points along the curve of one pair (10, d)."""
    from geomstats.geometry.base import ImmersedSet
    from geomstats.geometry.euclidean import Euclidean
    from geomstats.numerics.geodesic import PathStraightening

    class Decoded(ImmersedSet):
        def __init__(self):
            super().__init__(dim=2)

        def _define_embedding_space(self):
            return Euclidean(1568)

        def immersion(self, point):
            return flattened(decoder, point.float()).double()

    return PathStraightening(Decoded(), n_nodes=10).discrete_geodesic_bvp(end.double(), start.double()).to(start)


def certificates(metric: PullbackMetric, curve) -> dict[str, float]:
    found = certify(metric, curve, n_control=19, tolerance=0.05)
    return {
        "certified": found.stationary.double().mean().item(),
        "minima": found.minimum.double().mean().item(),
        "median residual, 16 spans": found.residual.median().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--original", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="also 10,000 pairs in one call, with the peak memory")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    decoder = zoo.load_model("vae1", arguments.device).decoder
    metric = PullbackMetric(decoder)
    start, end = algorithm_1_pairs(metric, arguments.pairs, arguments.device)
    torch.set_num_threads(1)
    cost, row_seconds = row_cost(metric, start[:512], (end - start)[:512])
    torch.set_num_threads(arguments.threads)
    print("row cost:", cost)

    methods: dict[str, dict] = {}
    straight = curve_length(metric, CubicBSpline.line(start, end))
    best = None

    def note(name: str, n: int, clock: Clock, rows: float, curve, **more) -> None:
        nonlocal best
        length = curve_length(metric, curve, 256 if not isinstance(curve, Tensor) else 1024)
        best = length if best is None else best
        methods[name] = {
            "pairs": n,
            "seconds a pair": clock.wall / n,
            "processor seconds a pair": clock.processor / n,
            "decoder rows a pair": rows,
            "mean length": length.mean().item(),
            "relative to gauss-newton, same pairs": (length.mean() / best[:n].mean() - 1).item(),
            "longer than straight": int((length > straight[:n] * (1 + 1e-6)).sum()),
            "mean improvement": (1 - length / straight[:n]).mean().item(),
            **certificates(metric, curve),
            **more,
        }
        print(name, json.dumps(methods[name]), flush=True)

    runs = [
        ("lgi gauss-newton", arguments.pairs, SolverSettings()),
        ("lgi gauss-newton, length_tolerance 1e-5", 100, SolverSettings(length_tolerance=1e-5)),
        ("lgi newton-cg", 100, SolverSettings(method="newton-cg")),
        ("lgi gradient (the paper's)", 20, SolverSettings(method="gradient", n_iterations=300)),
        ("lgi gauss-newton, 4 starts", 100, SolverSettings(starts="multi")),
    ]
    shorten(metric, start[:2], end[:2])
    for name, wanted, settings in runs:
        n = min(wanted, arguments.pairs)
        clock = Clock()
        with clock.running():
            result = shorten(metric, start[:n], end[:n], settings)
        note(
            name,
            n,
            clock,
            result.n_rows.mean().item(),
            result.curve,
            **{"own verdict": result.converged.double().mean().item()},
            median_residual=result.residual.median().item(),
            median_speed_variation=result.speed_variation.median().item(),
            rows_95=result.n_rows.double().quantile(0.95).item(),
        )

    n, clock = min(5, arguments.pairs), Clock()
    with clock.running():
        ode = solve_geodesic_ode(metric, start[:n], end[:n])
    # The acceleration: speed with gradients, two more reverse passes through them, and the tensor.
    per_point = 3 * cost["speed and gradients"] + cost["value and 2 forward derivatives"]
    rows = ode.n_evaluations.double().mean().item() * per_point
    note("lgi geodesic equation", n, clock, rows, ode.curve, **{"own verdict": ode.success.double().mean().item()})

    many: dict[str, float] = {}
    if arguments.memory:
        more_start, more_end = algorithm_1_pairs(metric, 10_000, arguments.device, seed=1)
        result = shorten(metric, more_start, more_end)
        many = {
            "certified": result.converged.double().mean().item(),
            # Of the process, with all that lgi did before (Linux, kilobytes).
            "peak memory in GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        print(many)

    left_out: dict[str, str] = {}

    def lgi_again() -> tuple[float, float]:
        clock, n = Clock(), min(200, arguments.pairs)
        with clock.running():
            shorten(metric, start[:n], end[:n])
        return clock.wall / n, clock.processor / n

    def other(name: str, wanted: int, run: Callable[[int], tuple[Any, Clock, float | None]]) -> None:
        n = min(wanted, arguments.pairs)
        before = lgi_again()
        try:
            curve, clock, rows = run(n)
        except ImportError as error:
            left_out[name] = str(error)
            print(f"{name} is left out: {error}")
            return
        beside = [(a + b) / 2 for a, b in zip(before, lgi_again(), strict=True)]
        rows = clock.processor / row_seconds if rows is None else rows
        times = {"times lgi": clock.wall / n / beside[0], "processor times lgi": clock.processor / n / beside[1]}
        note(name, n, clock, rows / n, curve, **times)

    def stochman(n: int) -> tuple[Tensor, Clock, float]:
        import stochman.manifold  # noqa: F401

        clock = Clock()
        with clock.running():
            paths, rows = stochman_paths(decoder, start[:n], end[:n])
        return paths, clock, rows * cost["value and gradient"]

    def one_by_one(path: Callable[..., Tensor]) -> Callable[[int], tuple[Tensor, Clock, None]]:
        def run(n: int) -> tuple[Tensor, Clock, None]:
            clock = Clock()
            with clock.running():
                paths = [path(decoder, a, b) for a, b in zip(start[:n], end[:n], strict=True)]
            return torch.stack(paths), clock, None

        return run

    def original(n: int) -> tuple[CubicBSpline, Clock, float]:
        clock = Clock()
        with clock.running():
            found = [original_scheme(decoder, a, b) for a, b in zip(start[:n], end[:n], strict=True)]
        per_row = cost["value and gradient"] + 2 * cost["speed and gradients"] - cost["speed"]
        return CubicBSpline(torch.stack([curve for curve, _ in found])), clock, sum(n for _, n in found) * per_row

    other("stochman", 50, stochman)
    other("stochman, 200 at once", 200, stochman)
    if arguments.original:
        other("original scheme", arguments.original, original)
    if arguments.device == "cpu":
        other("latent-geometry", 5, one_by_one(latent_geometry_path))
        if arguments.original:
            other("geomstats, 10 points", 1, one_by_one(geomstats_path))

    record = {
        "row cost": cost,
        "methods": methods,
        "10,000 pairs": many,
        "left out": left_out,
        "threads": arguments.threads,
        "device": arguments.device,
    }
    record["provenance"] = provenance(seed=0, command="tests/benchmarks/geodesics.py")
    record["lgi"] = lgi.__version__
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
