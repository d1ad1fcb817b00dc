"""Seconds on a GPU beside the CPU of the same machine: metric, Algorithm 1, walls, high dimension, training, profile.

    LGI_DATA=... python tests/benchmarks/gpu.py [--only PART ...] [--devices cuda cpu] [--smoke] [--out FILE]

Wall-clock seconds of the second of two runs (the first warms up), each waited for. `cpu` computes with all threads of
the machine. --smoke is for trying the script where there is no GPU: few pairs, on the CPU. Writes gpu.json beside it
after each part, so that what was measured stays when the rest is cut off. tests/benchmarks/gpu.sh runs it all.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import walls
from torch import nn

import lgi
from lgi import artifacts, datasets
from lgi.algorithm1 import worst_case_improvement
from lgi.models import VAE, Architecture
from lgi.training import TrainingSettings, train_vae

HERE = Path(__file__).resolve()
QUIET = lgi.SolverSettings(progress=False)
Row = dict[str, Any]


def seconds(function: Callable[[], Any], device: str, *, warm: bool = True) -> tuple[float, Any]:
    """Of the second of two calls, and what it returns."""
    for _ in range(2 if warm else 1):
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - begin
    return taken, result


def memory(device: str) -> Row:
    return {"peak GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2)} if device == "cuda" else {}


def metric(device: str, few: bool) -> Row:
    """Tensors of VAE1, and of it through the class probabilities, at many points."""
    n = 500 if few or device == "cpu" else 100_000
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).to(device)
    decoder, classifier = lgi.load_model("vae1", device).decoder, lgi.load_model("logistic_regression", device)
    found: Row = {"points": n}
    for name, ours in {
        "eq. 2": lgi.PullbackMetric(decoder),
        "eq. 4": lgi.PullbackMetric(decoder, classifier),
    }.items():
        taken, _ = seconds(lambda ours=ours: ours.tensor(z), device)
        found[name] = {"microseconds a point": round(1e6 * taken / n, 2)} | memory(device)
    return found


def algorithm_1(device: str, few: bool) -> Row:
    """Algorithm 1 on VAE1, of the paper's number of samples and of a hundred times as many."""
    ours = lgi.PullbackMetric(lgi.load_model("vae1", device).decoder)
    found: Row = {}
    for n in (20,) if few else (1000,) if device == "cpu" else (1000, 10_000, 100_000):

        def study(n: int = n) -> Any:
            return worst_case_improvement(
                ours, n, device=device, settings=QUIET, chunk_size=max(500, n // 4), progress=False
            )

        taken, result = seconds(study, device, warm=n <= 1000 and device != "cpu")
        found[str(n)] = {
            "seconds": round(taken, 2),
            "mean": round(result.mean, 4),
            "certified": round(result.certified, 4),
        } | memory(device)
        print("  algorithm 1", device, n, found[str(n)], flush=True)
        if taken > 20:
            break
    return found


def _curves(name: str, n: int, device: str, *, warm: bool = True, **settings: Any) -> Row:
    decoder, d = walls.generator(name, lgi)
    pairs = walls.algorithm_1_pairs(lgi, lgi.PullbackMetric(decoder, latent_dim=d), n, d)
    if isinstance(decoder, nn.Module):
        decoder.to(device)
    else:  # a closure over a network and its standard deviation
        for part in decoder.__closure__:
            part.cell_contents.to(device)
    ours, (start, end) = lgi.PullbackMetric(decoder, latent_dim=d), (x.to(device) for x in pairs)
    chosen = lgi.SolverSettings(progress=False, **settings)
    taken, result = seconds(lambda: lgi.shorten(ours, start, end, chosen), device, warm=warm)
    return {
        "pairs": n,
        "seconds": round(taken, 2),
        "milliseconds a pair": round(1e3 * taken / n, 1),
        "certified": round(float(result.converged.double().mean()), 3),
        "mean improvement": round(float(result.improvement.double().mean()), 4),
    } | memory(device)


def hard(device: str, few: bool) -> Row:
    """Walls of the standard deviation, the authors' own models, and many dimensions."""
    found = {}
    for name, n, n_cpu, settings in (
        ("k8.c0.7", 40, 10, {"n_control": 35}),
        ("k8.c0.7", 1000, 0, {"n_control": 35}),
        ("k8.c0.5", 40, 10, {"n_control": 35}),
        ("bigan", 100, 10, {}),
        ("mlp64", 100, 10, {}),
        ("k64.c0.7", 40, 5, {"n_control": 35}),
    ):
        taken = 2 if few else n if device == "cuda" else n_cpu
        if taken:
            found[f"{name}, {n} pairs"] = row = _curves(name, taken, device, warm=False, **settings)
            print("  ", name, device, row, flush=True)
    return found


class Large(nn.Module):
    """A generator of images 3 x 256 x 256 (with 5 doublings) of latent dimension 512, with random weights."""

    latent_dim = 512

    def __init__(self, width: int, doublings: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks: list[nn.Module] = [nn.Linear(512, width * 64), nn.SiLU(), nn.Unflatten(1, (width, 8, 8))]
        for _ in range(doublings):
            blocks += [nn.Upsample(scale_factor=2), nn.Conv2d(width, max(8, width // 2), 3, padding=1), nn.SiLU()]
            width = max(8, width // 2)
        self.net = nn.Sequential(*blocks, nn.Conv2d(width, 3, 3, padding=1), nn.Tanh()).requires_grad_(False)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.net(z)


def large(device: str, few: bool) -> Row:
    """Images 3 x 256 x 256 at d = 512: the metric at a point, and curves by Newton-CG."""
    ours = lgi.PullbackMetric(Large(*(8, 1) if few else (256, 5)).to(device))
    z = torch.randn(2, 512, generator=torch.Generator().manual_seed(0)).to(device)
    settings = lgi.SolverSettings(method="newton-cg", n_iterations=3 if few else 100, n_control=8, progress=False)
    taken, _ = seconds(lambda: ours.squared_speed(z, z.flip(0)), device)
    found: Row = {"milliseconds, speed at 2 points": round(1e3 * taken, 2)} | memory(device)
    if not few and device == "cuda":
        taken, _ = seconds(lambda: ours.tensor(z), device, warm=False)
        found["seconds, tensor at 2 points"] = round(taken, 2)
        found |= {"tensor: peak GiB": memory(device)["peak GiB"]}
    n = 1 if few or device == "cpu" else 8
    ends = torch.randn(2, n, 512, generator=torch.Generator().manual_seed(1)).to(device)
    taken, result = seconds(lambda: lgi.shorten(ours, *ends, settings), device, warm=False)
    found["curves"] = {
        "pairs": n,
        "seconds": round(taken, 2),
        "certified": float(result.converged.double().mean()),
        "mean improvement": round(float(result.improvement.mean()), 4),
        "rows a pair": round(float(result.n_rows.mean())),
    } | memory(device)
    return found


def training(device: str, few: bool) -> Row:
    """An epoch of VAE1's training on digits that need no file."""
    images = [datasets.load("optdigits", split).images for split in ("train", "validation")]
    settings = TrainingSettings(epochs=1 if few else 3, batch_size=128)
    records = list(train_vae(VAE(Architecture(hidden=67)).to(device), *images, settings))
    return {"seconds an epoch": round(records[-1]["seconds"], 3), "images": len(images[0])}


def profile(device: str, few: bool) -> Row:
    """How much of the time of a search is the GPU's own: the rest is launches, and waiting for values."""
    ours, n = lgi.PullbackMetric(lgi.load_model("vae1", device).decoder), 4 if few else 1000
    start, end = torch.randn(2, n, 2, generator=torch.Generator().manual_seed(0)).to(device)
    wall, _ = seconds(lambda: lgi.shorten(ours, start, end, QUIET), device)
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if device == "cuda" else kinds.CPU]) as seen:
        lgi.shorten(ours, start, end, QUIET)
    events = seen.key_averages()
    own = {e.key[:90]: [e.count, round((e.self_device_time_total or e.self_cpu_time_total) / 1e3, 1)] for e in events}
    return {
        "pairs": n,
        "seconds": round(wall, 3),
        "seconds of kernels": round(sum(e.self_device_time_total for e in events) / 1e6, 3),
        "launches": sum(e.count for e in events if "Launch" in e.key),
        "copies": {way: sum(e.count for e in events if f"Memcpy {way}" in e.key) for way in ("DtoH", "HtoD", "DtoD")},
        "synchronisations": sum(e.count for e in events if "Synchronize" in e.key),
        "calls and milliseconds": dict(sorted(own.items(), key=lambda item: -item[1][1])[:15]),
    }


PARTS = {f.__name__: f for f in (metric, algorithm_1, hard, large, training, profile)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--devices", nargs="+", default=["cuda", "cpu"])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE.with_suffix(".json"))
    args = parser.parse_args()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    record: Row = {"provenance": artifacts.provenance(), "gpu": gpu, "threads": torch.get_num_threads()}
    for name in args.only:
        for device in ["cpu"] if args.smoke else args.devices:
            begin = time.perf_counter()
            try:
                row = PARTS[name](device, args.smoke)
            except Exception:  # one part's failure must not cost the others their time on the device
                row = {"failed": traceback.format_exc()[-2000:]}
            record.setdefault(name, {})[device] = row
            print(f"{time.perf_counter() - begin:6.1f} s  {name} on {device}: {json.dumps(row)}", flush=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
