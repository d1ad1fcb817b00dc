"""How often the search from the straight line misses a shorter curve: a rival start that owes nothing to the line.

    .venv/bin/python tests/benchmarks/missed.py [--pairs N] [--out FILE]

Between test codes of different digits, in every model the same, curves are searched for from the straight line, and
from Dijkstra's shortest path through a mesh of the latent plane (41 x 41 points over the codes, each joined to its 16
nearest); from there on by derivatives. Writes straight length, length and error of the length, of both searches, to
data/results/missed.safetensors, which notebook 03 shows; eight minutes.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import lgi
from lgi import artifacts, zoo

# Of the last, whose metric has walls, a quarter of the pairs.
MODELS = ("vae1", "vae2", "gan", "published-t2-k8-c0.55")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--out", type=Path, default=artifacts.data_folder() / "results" / "missed")
    args = parser.parse_args()
    labels, found = lgi.load_codes("vae1").label, {}
    candidates = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rows = torch.stack([candidates[:1500], candidates[1500:3000]])
    rows = rows[:, labels[rows[0]] != labels[rows[1]]]
    for name in MODELS:
        kind, options = zoo.variant(name)
        model = lgi.load_model(kind, **options)
        metric = lgi.PullbackMetric(model.generator if kind == "gan" else model.decoder)
        n = args.pairs // 4 if kind == "published" else args.pairs
        z = lgi.load_codes(kind, seed=options.get("seed")).z
        sides = [torch.linspace(low - 0.5, high + 0.5, 41) for low, high in zip(z.amin(0), z.amax(0), strict=True)]
        mesh = torch.cartesian_prod(*sides)
        default = lgi.SolverSettings(n_control=35 if kind == "published" else 20, progress=False)
        rival = replace(default, starts="graph", n_neighbours=16)
        for label, settings, points in (("default", default, None), ("mesh", rival, mesh)):
            result = lgi.shorten(metric, *z[rows[:, :n]], settings, points=points)
            found[f"{name}, {label}"] = torch.stack([result.straight_length, result.length, result.length_error])
            print(name, label, f"mean improvement {result.improvement.mean():.2%}", flush=True)
    artifacts.save(
        args.out,
        found,
        {},
        name="missed",
        settings={"pairs": args.pairs, "mesh": 41, "n_neighbours": 16},
        version=1,
        provenance=artifacts.provenance(seed=0, command=f"python tests/benchmarks/missed.py --pairs {args.pairs}"),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
