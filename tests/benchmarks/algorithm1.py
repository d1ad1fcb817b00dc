"""Algorithm 1 on VAE1: seconds, decoder rows, memory and certificates of the whole study, and what a pair costs others.

    .venv/bin/python tests/benchmarks/algorithm1.py [--threads N] [--device cpu|cuda] [--samples N]

The study is run in parts, and after each part the bare decoder is run on as many rows as that part has cost, in batches
of the size that the metric takes: the floor, on a machine as busy as it was for the study. Beside it, on the first of
the same pairs, the scheme of the paper's code and stochman (both of geodesics.py). Writes algorithm1.json beside it.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from geodesics import original_scheme, row_cost, stochman_paths

from lgi import zoo
from lgi.algorithm1 import worst_case_improvement
from lgi.artifacts import provenance
from lgi.metric import PullbackMetric, curve_length
from lgi.spline import CubicBSpline
from lgi.studies import merge_studies


def peak_memory(device: str) -> float:
    """Of the process or of the GPU, in GiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stopwatch:
    """Wall and processor seconds of what runs inside, summed."""

    def __init__(self, device: str) -> None:
        self.device, self.wall, self.processor = device, 0.0, 0.0

    def __enter__(self) -> None:
        self.begin = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.wall += time.perf_counter() - self.begin[0]
        self.processor += time.process_time() - self.begin[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--stochman", type=int, default=50, help="pairs")
    parser.add_argument("--original", type=int, default=1, help="pairs")
    arguments = parser.parse_args()
    device, n, parts = arguments.device, arguments.samples, arguments.parts
    torch.set_num_threads(1)
    decoder = zoo.load_model("vae1", device).decoder
    metric = PullbackMetric(decoder)
    z = torch.randn(512, 2, generator=torch.Generator().manual_seed(0)).to(device)
    cost, _ = row_cost(metric, z, z.roll(1, 0))
    torch.set_num_threads(arguments.threads)

    batch = torch.randn(metric._prepare(z[:1]), 2).to(device)
    worst_case_improvement(metric, 20, progress=False)
    before = peak_memory(device)
    study_time, floor_time, shards = Stopwatch(device), Stopwatch(device), []
    for i in range(1, parts + 1):
        with study_time:
            part = worst_case_improvement(metric, n, chunk_size=-(-n // parts), shard=(i, parts), progress=False)
        shards.append(part)
        with floor_time, torch.inference_mode():
            for _ in range(round(part.n_rows.sum().item() / len(batch))):
                decoder(batch)
    study = merge_studies(shards)
    record = {
        "samples": n,
        "seconds": study_time.wall,
        "processor seconds": study_time.processor,
        "decoder rows a sample": study.n_rows.double().mean().item(),
        "floor seconds": floor_time.wall,
        "times the floor": study_time.wall / floor_time.wall,
        "times the floor, processor seconds": study_time.processor / floor_time.processor,
        "peak memory in GiB": peak_memory(device),
        "peak memory before, in GiB": before,
        "certified": study.certified,
        "least improvement": study.improvement.min().item(),
        "mean improvement": study.mean,
        "confidence interval": study.confidence_interval,
        "standard deviation": study.std,
    }
    print(json.dumps(record, indent=1), flush=True)

    start, end = study.start.to(device), study.end.to(device)
    methods = {
        "lgi.worst_case_improvement": {
            "pairs": n,
            "seconds a pair": study_time.wall / n,
            "decoder rows a pair": record["decoder rows a sample"],
            "mean improvement of its pairs": study.mean,
            "the same by lgi": study.mean,
        }
    }
    for name, m in (("stochman", arguments.stochman), ("original scheme", arguments.original)):
        if m == 0:
            continue
        watch = Stopwatch(device)
        with watch:
            if name == "stochman":
                curves, rows = stochman_paths(decoder, start[:m], end[:m])
            else:
                found = [original_scheme(decoder, a, b) for a, b in zip(start[:m], end[:m], strict=True)]
                curves, rows = CubicBSpline(torch.stack([curve for curve, _ in found])), sum(r for _, r in found)
        weight = cost["value and gradient"]
        if name == "original scheme":
            weight += 2 * cost["speed and gradients"] - cost["speed"]
        straight = curve_length(metric, CubicBSpline.line(start[:m], end[:m]))
        length = curve_length(metric, curves, 1024 if isinstance(curves, torch.Tensor) else 256)
        methods[name] = {
            "pairs": m,
            "seconds a pair": watch.wall / m,
            "decoder rows a pair": rows / m * weight,
            "mean improvement of its pairs": (1 - length / straight).mean().item(),
            "the same by lgi": study.improvement[:m].mean().item(),
        }
        print(name, json.dumps(methods[name]), flush=True)
    record |= {"methods": methods, "row cost": cost, "threads": arguments.threads, "device": device}
    record["provenance"] = provenance(seed=0, command="tests/benchmarks/algorithm1.py")
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
