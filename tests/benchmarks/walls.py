"""Certified share, length and price of shorter curves where the metric is hard: walls, kinks, many dimensions.

    LGI_DATA=... .venv/bin/python tests/benchmarks/walls.py [--only NAME ...] [--pairs N] [--against FOLDER]

Pairs as Algorithm 1 draws them (from the prior, one step along the maximal eigenvector, turned towards the origin), one
thread, in one process. The price `forwards` is the processor time of a pair in bare forward passes of one point through
the same decoder, in batches of 256, so that the load of the machine cancels; `rows` is what the solver counts. The
walls are those of LGI_DATA/walls (2-D, the public recipe; `k8.c0.5`: 8 centres, bandwidth factor 0.5) and, for
`k64.c0.5`, that of the shipped model `published`; `bigan` and `vae16` the authors' own weights (d = 16), `mlp` a random
SiLU network to 28 x 28, `relu` and `silu` twins with and without kinks. What follows a comma in a name says how the row
differs. With --against, the same is run with the lgi of another working tree, for a comparison before and after.
Writes walls.json beside it.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).resolve()
DATA = Path(os.environ.get("LGI_DATA", HERE.parents[3] / "shared" / "data"))
# Name, pairs, and settings other than the default.
RUNS = (
    ("vae1", 200, {}),
    ("k8.c0.7", 40, {"n_control": 35}),
    ("k8.c0.5", 40, {"n_control": 35}),
    ("k64.c0.7", 40, {"n_control": 35}),
    ("k64.c0.5", 20, {"n_control": 35}),
    ("k8.c0.5, two starts", 40, {"n_control": 35, "starts": "multi", "n_starts": 2}),
    ("k64.c0.7, two starts", 40, {"n_control": 35, "starts": "multi", "n_starts": 2}),
    ("k8.c0.3", 20, {"n_control": 35}),
    ("vae16", 20, {}),
    ("bigan", 20, {}),
    ("silu", 10, {}),
    ("relu", 10, {}),
    ("mlp16", 10, {}),
    ("mlp64", 20, {}),
    ("mlp128", 20, {}),
    ("mlp256", 10, {}),
    ("mlp512", 20, {}),
)


def images(d: int, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], last: tuple[Tensor, Tensor], dense):
    """The decoder of the public recipe with given weights, normalisations folded."""
    a, b = first[0].shape[1], second[0].shape[1]
    net = nn.Sequential(
        *(nn.Linear(d, 1152), nn.Unflatten(1, (32, 6, 6)), nn.ConvTranspose2d(32, a, 3, stride=2), nn.ELU()),
        *(nn.ConvTranspose2d(a, b, 4, stride=2), nn.ELU(), nn.Conv2d(b, 1, 1), nn.Tanh()),
    )
    for layer, (weight, bias) in zip((0, 2, 4, 6), (dense, first, second, last), strict=True):
        net[layer].weight.data, net[layer].bias.data = weight, bias
    return net.eval().requires_grad_(False)


def stochastic(net: nn.Module, lgi, centres: Tensor, bandwidths: Tensor, weight: Tensor, floor: Tensor):
    std = lgi.models.RBFPrecision(centres, bandwidths, weight, floor=float(floor), data_shape=(1, 28, 28))
    std.requires_grad_(False)
    return lambda z: (net(z), std(z))


def walls(name: str, lgi):
    w = load_file(DATA / "walls/recipe_seed0.safetensors")
    layers = [(w[f"decoder.{n}.weight"], w[f"decoder.{n}.bias"]) for n in ("c.1.0", "c.2.0", "c.3", "lin")]
    rbf = [w[f"rbf.{name}.{part}"] for part in ("centres", "bandwidths", "weight", "floor")]
    return stochastic(images(2, *layers), lgi, *rbf), 2


def authors(name: str, lgi):
    w = load_file(DATA / f"authors/{'bigan16_generator' if name == 'bigan' else 'vae16_decoder'}.safetensors")

    def folded(i: int) -> tuple[Tensor, Tensor]:
        weight, u, v = (w[f"conv.{i}.ConvTranspose.weight_{part}"] for part in ("orig", "u", "v"))
        norm = {part: w[f"conv.{i}.BatchNorm.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
        scale = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
        bias = norm["bias"] + (w[f"conv.{i}.ConvTranspose.bias"] - norm["running_mean"]) * scale
        return weight / (u @ weight.transpose(0, 1).flatten(1) @ v) * scale[None, :, None, None], bias

    last = "conv.2" if name == "bigan" else "Xmean.0"
    net = images(16, folded(0), folded(1), (w[f"{last}.weight"], w[f"{last}.bias"]), (w["lin.weight"], w["lin.bias"]))
    if name == "bigan":
        return net, 16
    weight = w["rbfNN.W.weight"].T.contiguous().clamp_min(0)
    return stochastic(net, lgi, w["rbfNN.centers"], w["rbfNN.bandwidth"], weight, w["rbfNN.zeta"]), 16


def dense(widths: list[int], activation: type[nn.Module], gains: list[float], last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n, m, gain in zip(widths[:-1], widths[1:], gains, strict=True):
        layers += [nn.Linear(n, m), activation()]
        nn.init.normal_(layers[-2].weight, std=gain / n**0.5)
    return nn.Sequential(*layers[:-1], last).eval().requires_grad_(False)


def generator(name: str, lgi):
    """A generator and its latent dimension."""
    name = name.partition(",")[0]
    if name == "k64.c0.5":
        return lgi.load_model("published", n_centres=64, bandwidth=0.5).decoder, 2
    if name.startswith("k"):
        return walls(name, lgi)
    if name in ("bigan", "vae16"):
        return authors(name, lgi)
    if name.startswith("mlp"):
        d = int(name[3:])
        return dense([d, 256, 256, 784], nn.SiLU, [1.5, 1.6, 1.6], nn.Tanh()), d
    if name in ("relu", "silu"):
        activation = nn.ReLU if name == "relu" else nn.SiLU
        return dense([8, 128, 128, 100], activation, [1.2, 1.2, 1.2], nn.Identity()), 8
    return lgi.load_model(name).decoder, 2


def algorithm_1_pairs(lgi, metric, n: int, d: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    start, first = torch.randn(n, d, generator=draw), torch.randn(n, d, generator=draw)
    direction = metric.eigh(start)[1][..., -1] if d <= 16 else lgi.directions.largest_eigenvectors(metric, start, first)
    outward = (direction * start).sum(-1, keepdim=True) > 0
    return start, start + torch.where(outward, -direction, direction)


def measured(lgi, name: str, n: int, settings: dict) -> dict:
    decoder, d = generator(name, lgi)
    metric = lgi.PullbackMetric(decoder, latent_dim=d)
    start, end = algorithm_1_pairs(lgi, metric, n, d)
    z = start[:1].expand(256, -1).contiguous()
    with torch.no_grad():
        decoder(z)
        begin = time.process_time()
        for _ in range(8):
            decoder(z)
        forward = (time.process_time() - begin) / (8 * len(z))
    begin = time.process_time()
    result = lgi.shorten(metric, start, end, lgi.SolverSettings(progress=False, **settings))
    seconds = (time.process_time() - begin) / n
    names = lgi.solver.result.Status
    return {
        "pairs": n,
        "certified": round(float(result.converged.double().mean()), 3),
        "mean improvement": round(float(result.improvement.double().mean()), 4),
        "mean length": round(float(result.length.double().mean()), 4),
        "rows": round(float(result.n_rows.mean())),
        "forwards": round(seconds / forward),
        "seconds": round(seconds, 3),
        "iterations": round(float(result.n_iterations.double().mean()), 1),
        "statuses": dict(Counter(names(int(s)).name.lower() for s in result.status)),
        "settings": settings,
        "git_commit": lgi.artifacts.provenance()["git_commit"],
    }


def loaded(folder: Path):
    """The lgi of a working tree, in place of the one that is loaded."""
    for name in [name for name in sys.modules if name.split(".")[0] == "lgi"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    lgi = importlib.import_module("lgi")
    for part in ("models", "directions", "solver.result"):
        importlib.import_module(f"lgi.{part}")
    sys.path.remove(str(folder))
    return lgi


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[name for name, _, _ in RUNS])
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--against", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    target = HERE.with_suffix(".json")
    # Rows that are not run again stay, those of before too, each with the commit that it is of.
    found: dict = json.loads(target.read_text(encoding="utf-8"))["results"] if target.exists() else {}
    for name, n, settings in RUNS:
        if name in args.only:
            for version, folder in {"now": HERE.parents[2], "before": args.against}.items():
                if folder is not None:
                    row = measured(loaded(folder), name, args.pairs or n, settings)
                    found.setdefault(name, {})[version] = row
                    print(f"{name:9s} {version:6s} {row}", flush=True)
    lgi = loaded(HERE.parents[2])
    record = {"provenance": lgi.artifacts.provenance(), "threads": 1, "results": found}
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
