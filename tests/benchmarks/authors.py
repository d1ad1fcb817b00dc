"""Algorithm 1 on the authors' own weights, d = 16: the VAE with its RBF network, and the BiGAN.

    LGI_DATA=... .venv/bin/python tests/benchmarks/authors.py [--samples N]

Their weights (LGI_DATA/authors, from the public repository github.com/mmichelis/GenerativeLatentSpace) are not part of
this project; what is measured on them is written to data/results/authors.safetensors, which notebook 04 shows. A study
that is interrupted goes on from runs/authors_<name>.
"""

import argparse

import torch
from walls import authors

import lgi
from lgi import artifacts


def main() -> None:
    parser = argparse.ArgumentParser(description="Algorithm 1 on the authors' own weights.")
    parser.add_argument("--samples", type=int, default=100)
    n, found = parser.parse_args().samples, {}
    for name, label in {"vae16": "VAE", "bigan": "BiGAN"}.items():
        generator, d = authors(name, lgi)
        found[label] = lgi.worst_case_improvement(
            lgi.PullbackMetric(generator, latent_dim=d),
            n,
            settings=lgi.SolverSettings(n_control=35),
            folder=artifacts.runs_folder() / f"authors_{name}",
            about={"model": f"authors, {name}"},
        )
        print(label, found[label])
    artifacts.save(
        artifacts.data_folder() / "results" / "authors",
        {label: study.improvement for label, study in found.items()},
        {label: study.record for label, study in found.items()},
        name="authors",
        settings={"samples": n, "step_size": 1.0, "n_control": 35},
        version=1,
        provenance=artifacts.provenance(seed=0, command=f"python tests/benchmarks/authors.py --samples {n}"),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
