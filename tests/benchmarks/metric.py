"""Points per second and peak memory of the metric tensor and of the energy with its gradient, side by side on VAE1.

    .venv/bin/python tests/benchmarks/metric.py [--threads N] [--device cpu|cuda] [--quick]

One process, one decoder (the fused VAE1, mean and standard deviation, D = 784 pixels each), the same points. Against

- original: the scheme of the paper's code, written anew: D copies of each point, one output pixel of each copy
  differentiated by reverse mode, J^T J; one curve at a time;
- vmap(jacfwd): torch.func's Jacobian of the whole output;
- stochman: the energy of its EmbeddedManifold, from differences of decoded points (it has no tangents, and its points
  are the nodes of a discretised curve).

A point of the energy is one quadrature node of one curve (64 nodes a curve, 6 control points). Peak memory is what the
process grows by while the call runs (Linux, VmHWM). Needs `pip install -e .[benchmarks]`. Writes metric.json beside it.
"""

import argparse
import ctypes
import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

import lgi
from lgi.artifacts import provenance
from lgi.metric.lengths import _nodes
from lgi.spline import basis

N_NODES, N_CONTROL = 64, 6


def energy_and_gradient(metric, curve: lgi.CubicBSpline):
    """Energy and its gradient with respect to the control points, in memory that does not grow with the curves."""
    t, weights = _nodes(curve, N_NODES)
    B, dB = (basis(curve.knots, t, order, dtype=curve.dtype) for order in (0, 1))
    s, ds_dz, ds_dv = metric.squared_speed_and_gradient(curve(t), curve.derivative(t))
    return s @ weights, B.mT @ (weights[:, None] * ds_dz) + dB.mT @ (weights[:, None] * ds_dv)


def copies_tensor(decoder, z: Tensor, *, create_graph: bool = False) -> Tensor:
    """J_mu^T J_mu + J_sigma^T J_sigma through D copies of each point, one point after the other."""
    tensors = []
    for point in z:
        total = z.new_zeros(2, 2)
        for part in (0, 1):
            copies = point.expand(784, 2)
            copies = copies if create_graph else copies.detach().requires_grad_()
            output = decoder(copies)[part].flatten(1)
            (jacobian,) = torch.autograd.grad(output.diagonal().sum(), copies, create_graph=create_graph)
            total = total + jacobian.T @ jacobian
        tensors.append(total)
    return torch.stack(tensors)


def flat_decoder(decoder) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.cat([part.flatten() for part in decoder(z[None])])


def jacfwd_tensor(decoder, z: Tensor) -> Tensor:
    jacobian = vmap(jacfwd(flat_decoder(decoder)))(z)
    return jacobian.mT @ jacobian


def energy_by_tensor(tensor: Callable[[Tensor], Tensor], control_points: Tensor) -> tuple[Tensor, Tensor]:
    """Energy and its gradient when all there is is a differentiable metric tensor."""
    control_points = control_points.detach().requires_grad_()
    curve = lgi.CubicBSpline(control_points)
    t = (torch.arange(N_NODES, device=control_points.device) + 0.5).to(control_points) / N_NODES
    z, v = curve(t).reshape(-1, 2), curve.derivative(t).reshape(-1, 2)
    energy = torch.einsum("ni,nij,nj->n", v, tensor(z), v).sum() / N_NODES
    return energy.detach(), torch.autograd.grad(energy, control_points)[0]


def stochman_energy(decoder, control_points: Tensor) -> tuple[Tensor, Tensor]:
    from stochman.manifold import EmbeddedManifold

    class Decoded(EmbeddedManifold):
        def embed(self, points, jacobian=False):
            flat = points.reshape(-1, points.shape[-1])
            parts = torch.cat([part.flatten(1) for part in decoder(flat)], dim=1)
            return parts.reshape(*points.shape[:-1], -1)

    control_points = control_points.detach().requires_grad_()
    t = torch.linspace(0, 1, N_NODES, device=control_points.device, dtype=control_points.dtype)
    energy = Decoded().curve_energy(lgi.CubicBSpline(control_points)(t))
    return energy.detach(), torch.autograd.grad(energy, control_points)[0]


def resident() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: float(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def measure(call: Callable[[], object], n_points: int, device: torch.device, repeats: int) -> dict[str, float]:
    """Best of some repeats, and the peak memory of one more."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that the process still holds would hide the peak
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        before = resident()["VmRSS"]
        call()
        peak = resident()["VmHWM"] - before
    return {"points": n_points, "points_per_second": n_points / min(seconds), "peak_MiB": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="few points: a check that it runs; writes nothing")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    decoder = lgi.load_model("vae1", device=device).decoder
    metric = lgi.PullbackMetric(decoder)
    stream = torch.Generator().manual_seed(0)
    scale = 0.05 if settings.quick else 1.0

    def points(n: int) -> Tensor:
        return torch.randn(max(4, int(n * scale)), 2, generator=stream).to(device)

    def curves(n: int) -> Tensor:
        ends = torch.randn(2, max(1, int(n * scale)), 2, generator=stream)
        bent = lgi.CubicBSpline.line(*ends, n_control=N_CONTROL).control_points
        bent[:, 1:-1] += 0.1 * torch.randn(bent[:, 1:-1].shape, generator=stream)
        return bent.to(device)

    tensors = {
        "lgi": (metric.tensor, (1_000, 10_000, 100_000)),
        "original": (lambda z: copies_tensor(decoder, z), (40,)),
        "vmap(jacfwd)": (lambda z: jacfwd_tensor(decoder, z), (1_000,)),
    }
    energies = {
        "lgi": (lambda c: energy_and_gradient(metric, lgi.CubicBSpline(c)), (16, 160, 1_600)),
        "original": (lambda c: energy_by_tensor(lambda z: copies_tensor(decoder, z, create_graph=True), c), (1,)),
        "vmap(jacfwd)": (lambda c: energy_by_tensor(lambda z: jacfwd_tensor(decoder, z), c), (16,)),
        "stochman": (lambda c: stochman_energy(decoder, c), (16, 160)),
    }
    results: dict[str, dict[str, list[dict[str, float]]]] = {"tensor": {}, "energy_and_gradient": {}}
    for quantity, methods, make, factor in (
        ("tensor", tensors, points, 1),
        ("energy_and_gradient", energies, curves, N_NODES),
    ):
        for name, (call, sizes) in methods.items():
            rows = results[quantity][name] = []
            for size in sizes:
                given = make(size)
                repeats = 1 if len(given) * factor > 20_000 else 3
                rows.append(measure(partial(call, given), len(given) * factor, device, repeats))
                row = rows[-1]
                print(
                    f"{quantity:20} {name:14} {row['points']:8d} points {row['points_per_second']:10.0f} points/s "
                    f"{row['peak_MiB']:8.0f} MiB",
                    flush=True,
                )
    agree = points(20)
    torch.testing.assert_close(metric.tensor(agree), copies_tensor(decoder, agree), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(metric.tensor(agree), jacfwd_tensor(decoder, agree), rtol=1e-3, atol=1e-2)
    ratios: dict[str, dict[str, float]] = {}
    for quantity, methods in results.items():
        own = methods["lgi"]
        for name, rows in methods.items():
            # at the size of the other method's last row, or at the nearest that lgi was measured at
            row = min(own, key=lambda r: abs(r["points"] - rows[-1]["points"]))
            if name != "lgi":
                ratio = row["points_per_second"] / rows[-1]["points_per_second"]
                ratios.setdefault(quantity, {})[name] = ratio
    print(json.dumps(ratios, indent=2))
    if not settings.quick:
        document = {"threads": settings.threads, "device": str(device), "results": results, "lgi_over_method": ratios}
        document["provenance"] = provenance(seed=0, command="tests/benchmarks/metric.py")
        name = "metric.json" if device.type == "cpu" else f"metric_{device.type}.json"
        Path(__file__).with_name(name).write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
