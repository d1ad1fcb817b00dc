"""notebooks/sweeps/Snakefile on one machine: shards, merging, and notebook 04 on the result once there is one."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lgi

ROOT = Path(__file__).resolve().parents[1]
(NOTEBOOK,) = (ROOT / "notebooks").glob("04_*.ipynb")

pytestmark = pytest.mark.slow


def sweep(folder, *config):
    command = [sys.executable, "-m", "snakemake", "-s", ROOT / "notebooks" / "sweeps" / "Snakefile", "--cores", "1"]
    # From a directory that is neither the repository nor the folder of runs.
    return subprocess.run(
        [*map(str, command), "--config", "models=[vae2]", "seeds=[3]", "step_sizes=[0.5]", *config],
        cwd=folder,
        env=os.environ | {"LGI_RUNS": str(folder / "the runs")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_shards_are_merged(tmp_path):
    done = sweep(tmp_path, "samples=6", "chunk_size=3", "shards=2", "options=--n-control 5", "notebook=False")
    assert done.returncode == 0, done.stdout + done.stderr
    merged = lgi.load_study(tmp_path / "the runs" / "sweep_vae2_seed3_step0.5")
    assert merged.complete
    assert merged.index.tolist() == [0, 1, 2, 3, 4, 5]
    kept = {name: merged.settings[name] for name in ("seed", "step_size", "about")}
    about = {"model": "vae2", "std": "rbf", "feature_map": None}
    assert kept == {"seed": 3, "step_size": 0.5, "about": about}
    assert merged.settings["solver"]["n_control"] == 5
    (row,) = csv.DictReader((tmp_path / "the runs" / "sweep.csv").read_text(encoding="utf-8").splitlines())
    assert (row["run"], row["notebook"], row["parameters.seed"]) == ("sweep_vae2_seed3_step0.5", "study", "3")
    assert float(row["results.mean"]) == pytest.approx(merged.mean)


def test_networks_of_a_model_by_name(tmp_path):
    names = ["published-t1-k8-c0.6", "published-t2-constant"]
    done = sweep(tmp_path, f"models={names}", "samples=2", "shards=1", "options=--n-control 5", "notebook=False")
    assert done.returncode == 0, done.stdout + done.stderr
    network, constant = (lgi.load_study(tmp_path / "the runs" / f"sweep_{name}_seed3_step0.5") for name in names)
    options = {"seed": 1, "bandwidth": 0.6, "n_centres": 8}
    assert network.settings["about"] == {"model": "published", "std": "rbf", "feature_map": None} | options
    assert constant.settings["about"] == {"model": "published", "std": "constant", "feature_map": None, "seed": 2}


def test_unknown_config_is_refused(tmp_path):
    done = sweep(tmp_path, "sample=6")
    assert done.returncode != 0
    assert "unknown config sample; known are name, models" in done.stdout + done.stderr


def test_notebook_runs_on_the_merged_study(tmp_path):
    done = sweep(tmp_path, "samples=40", "chunk_size=20", "shards=2", "params=smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "the runs" / "sweep_vae2_seed3_step0.5"
    assert (run / NOTEBOOK.name).exists()
    assert (run / "results" / f"{NOTEBOOK.stem}.json").exists()
