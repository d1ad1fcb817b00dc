"""Peak memory does not grow with the number of points (Linux: the kernel's high-water mark of the process)."""

import ctypes
import gc
import sys
from pathlib import Path

import analytic
import pytest
import torch

import lgi

STATUS = Path("/proc/self/status")


def status(key):
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) / 1024


def peak_growth(call):
    """MiB by which the process grows at most while the call runs."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
@pytest.mark.parametrize("quantity", ["tensor", "squared_speed_and_gradient"])
def test_peak_memory_is_flat_in_the_number_of_points(quantity):
    metric = lgi.PullbackMetric(lgi.load_model("vae2").decoder)
    stream = torch.Generator().manual_seed(0)

    def run(n):
        z, v = torch.randn(2, n, 2, generator=stream)
        return metric.tensor(z) if quantity == "tensor" else metric.squared_speed_and_gradient(z, v)

    run(2000)  # buffers that a first call allocates once and for all
    few, many = (peak_growth(lambda n=n: run(n)) for n in (2_000, 30_000))
    # Results of 28,000 points take under 1 MiB; one Jacobian kept for each would take 340.
    assert many < few + 40, (few, many)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_forty_thousand_nodes_need_little_memory():
    """One rule of so many nodes would be an eigenproblem of 12.8 GB."""
    metric = lgi.PullbackMetric(analytic.sphere_embed, latent_dim=2)
    curve = lgi.CubicBSpline.line(*torch.tensor([[0.6, 0.3], [2.5, 0.3]], dtype=torch.float64))
    lgi.curve_length(metric, curve, n_t=40)  # what a first call imports and allocates once and for all
    lengths = []
    growth = peak_growth(lambda: lengths.append(lgi.curve_length(metric, curve, n_t=40_000)))
    assert growth < 100, growth
    # A part of a meridian.
    assert abs(lengths[0] / (1.9 * analytic.SPHERE_RADIUS) - 1) < 1e-12
