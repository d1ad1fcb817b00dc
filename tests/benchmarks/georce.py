"""Curves on walls by GEORCE, another formulation, beside those of `lgi.shorten`.

    LGI_DATA=... .venv/bin/python tests/benchmarks/georce.py [--pairs 4] [--points 64] [--iterations 60]

GEORCE (Rygaard & Hauberg, "A fast control algorithm for constructing geodesics", 2025) takes the energy of a polygon
with n segments u_t, sum_t u_t^T G(x_t) u_t, for an optimal control problem: with the multipliers m_t of
x_{t+1} = x_t + u_t, a stationary polygon has u_t = -G(x_t)^-1 m_t / 2 and m_{t-1} = m_t + d/dx u_t^T G(x) u_t at x_t.
Each iteration solves this with G and the derivatives of the last polygon and goes so far on the way there that the
energy falls. There is no parameter but n. The lengths of its polygons are measured at 16 points a segment. One thread,
processor time; writes georce.json beside it.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor
from walls import algorithm_1_pairs, walls

import lgi
from lgi import artifacts


def georce(metric, start: Tensor, end: Tensor, n: int, iterations: int) -> Tensor:
    """Polygons (c, n + 1, d) between points (c, d)."""
    d = start.shape[1]

    def energy(x: Tensor) -> Tensor:
        return metric.squared_speed(x[:, :-1].reshape(-1, d), x.diff(dim=1).reshape(-1, d)).view(-1, n).sum(1)

    x = start[:, None] + (end - start)[:, None] * torch.linspace(0, 1, n + 1)[:, None]
    least = energy(x)
    for _ in range(iterations):
        z, u = x[:, :-1].reshape(-1, d), x.diff(dim=1).reshape(-1, d)
        inverse = torch.linalg.inv(metric.tensor(z).double()).view(-1, n, d, d)
        slope = metric.squared_speed_and_gradient(z, u)[1].double().view(-1, n, d)
        later = slope.flip(1).cumsum(1).flip(1) - slope  # sum over s > t
        rest = 2 * (start - end) - (inverse @ later[..., None])[..., 0].sum(1)
        m = torch.linalg.solve(inverse.sum(1), rest)[:, None] + later
        moved = start[:, None] - (inverse @ m[..., None])[..., 0].cumsum(1) / 2
        goal = torch.cat([start[:, None], moved.to(x)], dim=1)
        # The largest of 1, 1/2, ..., 1/128 that lowers the energy.
        before = least.clone()
        for size in 0.5 ** torch.arange(8):
            trial = x + size * (goal - x)
            value = energy(trial)
            better = (value < least) & (least == before)
            x, least = torch.where(better[:, None, None], trial, x), torch.where(better, value, least)
        if bool((before - least <= 1e-7 * before).all()):
            break
    return x


def length(metric, x: Tensor) -> Tensor:
    """Lengths (c,) of polygons (c, n + 1, d)."""
    along = (torch.arange(16) + 0.5) / 16
    z, v = x[:, :-1, None] + x.diff(dim=1)[:, :, None] * along[:, None], x.diff(dim=1)[:, :, None]
    return metric.squared_speed(z, v.expand_as(z)).sqrt().mean(2).sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="GEORCE beside lgi on walls.")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=60)
    options, found = parser.parse_args(), {}
    torch.set_num_threads(1)
    for name in ("k8.c0.7", "k8.c0.5"):
        generator, d = walls(name, lgi)
        metric = lgi.PullbackMetric(generator, latent_dim=d)
        pairs = algorithm_1_pairs(lgi, metric, options.pairs, d)
        begin = time.process_time()
        polygons = georce(metric, *pairs, options.points, options.iterations)
        middle = time.process_time()
        result = lgi.shorten(metric, *pairs, lgi.SolverSettings(n_control=35, progress=False))
        end = time.process_time()
        ratio = length(metric, polygons) / result.length
        found[name] = {
            "seconds a pair": {"georce": (middle - begin) / options.pairs, "lgi": (end - middle) / options.pairs},
            "length by georce over length by lgi": [round(r, 5) for r in ratio.tolist()],
            "certified by lgi": result.converged.double().mean().item(),
        }
        print(name, found[name], flush=True)
    record = {"provenance": artifacts.provenance(), "options": vars(options), "results": found}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
