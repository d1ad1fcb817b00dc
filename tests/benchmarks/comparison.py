"""Two models on the same pairs of test digits, and codes of test digits by inversion: seconds, certificates, errors.

    .venv/bin/python tests/benchmarks/comparison.py [--threads N] [--device cpu|cuda] [--pairs N] [--digits N]

Inversion needs the images of MNIST (LGI_DATA); its error is compared with that of VAE1's own encoder on the same
digits. Writes comparison.json beside it.
"""

import argparse
import json
from pathlib import Path

import torch
from algorithm1 import Stopwatch

import lgi
from lgi import datasets
from lgi.artifacts import provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--digits", type=int, default=500)
    arguments = parser.parse_args()
    device = arguments.device
    stopwatches = {what: Stopwatch(device) for what in ("comparison", "inversion")}
    torch.set_num_threads(arguments.threads)

    decoders = {name: lgi.load_model(name, device=device).decoder for name in ("vae1", "vae2")}
    metrics = {name: lgi.PullbackMetric(decoder) for name, decoder in decoders.items()}
    codes = {name: lgi.load_codes(name) for name in decoders}
    rows = torch.randperm(len(codes["vae1"].z), generator=torch.Generator().manual_seed(0))
    pairs = rows[: 2 * arguments.pairs].reshape(-1, 2)
    ends = {name: codes[name].z[pairs].to(device).unbind(1) for name in decoders}
    for name, metric in metrics.items():
        lgi.shorten(metric, *(z[:2] for z in ends[name]))
    with stopwatches["comparison"]:
        found = lgi.compare_models(metrics["vae1"], metrics["vae2"], *ends["vae1"], *ends["vae2"])

    chosen = rows[: arguments.digits]
    images = datasets.load("mnist", "test").images[chosen].to(device)

    def mean(z: torch.Tensor) -> torch.Tensor:
        return decoders["vae1"](z)[0]

    with stopwatches["inversion"]:
        inverted = lgi.invert(mean, images, latent_dim=2, progress=False)
    encoder_error = (mean(codes["vae1"].z[chosen].to(device)) - images).flatten(1).square().mean(1).sqrt()
    record = {
        "pairs": len(found),
        "digits": len(chosen),
        "seconds": {what: stopwatch.wall for what, stopwatch in stopwatches.items()},
        "certified": [found.converged_a.double().mean().item(), found.converged_b.double().mean().item()],
        "mean difference": found.mean_difference,
        "error at most the encoder's": (inverted.residual <= encoder_error).double().mean().item(),
        "mean error": {"inversion": inverted.residual.mean().item(), "encoder": encoder_error.mean().item()},
        "threads": arguments.threads,
        "device": device,
        "provenance": provenance(seed=0, command="tests/benchmarks/comparison.py"),
    }
    print(json.dumps(record, indent=1))
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
