"""What tells studies apart: numbers that metrics and codes leave in the settings, and how settings are compared.

On other machines and devices these numbers differ in rounding, and what is compared allows for that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lgi.checks import NotFiniteError
from lgi.metric import Metric


def fingerprint(
    metric: Metric, anywhere: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], *, codes: Tensor | None
) -> dict[str, list[float]]:
    """Numbers that tell metrics and codes apart.

    Parameters
    ----------
    metric : Metric
    anywhere, own : (Tensor, Tensor), both of shape (n, d)
        Points and vectors at them: the same of all studies, and where the samples of this one are. Speeds that are not
        finite count as -1.
    codes : Tensor, shape (n_codes, d), optional
        Float64, on the CPU.

    Returns
    -------
    dict
        Lists of numbers by what they are called where they differ.

    Raises
    ------
    lgi.checks.NotFiniteError
        If the metric is finite at none of the points of ``anywhere``.
    """
    with torch.no_grad():
        if max(speeds := _squared_speeds(metric, *anywhere)) < 0:
            metric.squared_speed(*anywhere)  # says what is wrong
        # What else is wrong there is told when it is computed, by the numbers of the samples.
        own_speeds = _squared_speeds(metric, *own, ValueError)
        weights = [_norm_and_order(x) for x in parameters(metric)]
    found = {
        "speeds in the metric": speeds,
        "speeds where the samples are": own_speeds,
        "parameters of the metric": [norm for norm, _ in weights],
        "weights of the metric, in order": [order for _, order in weights],
    }
    if codes is None:
        return found | {"codes": [], "order and signs of the codes": []}
    size = codes.norm(dim=0)
    # Sums with random factors: any two rows exchanged, they differ.
    factors = torch.from_numpy(np.random.default_rng(0).standard_normal(len(codes)))
    sums = factors @ codes / size.clamp_min(torch.finfo(size.dtype).tiny)
    return found | {"codes": [len(codes), *size.tolist()], "order and signs of the codes": sums.tolist()}


def _squared_speeds(metric: Metric, z: Tensor, v: Tensor, unknown: type[ValueError] = NotFiniteError) -> list[float]:
    try:
        found: list[float] = metric.squared_speed(z, v).double().tolist()
    except unknown:
        if not (half := len(z) // 2):
            return [-1.0]
        parts = (slice(half), slice(half, None))
        found = [speed for part in parts for speed in _squared_speeds(metric, z[part], v[part], unknown)]
    return found


def parameters(metric: Metric) -> list[Tensor]:
    """Parameters and buffers of all modules that a metric is made of."""
    found: list[Tensor] = []
    for attribute in vars(metric).values():
        value = getattr(attribute, "__self__", attribute)
        if isinstance(value, nn.Module):
            found += value.state_dict().values()
        elif isinstance(value, Metric):
            found += parameters(value)
    return found


def _norm_and_order(parameter: Tensor) -> tuple[float, float]:
    """Norm of a parameter, and in units of it a sum that changes with the order and the signs of its entries."""
    x = parameter.double().flatten()
    norm = torch.linalg.vector_norm(x).item()
    return norm, torch.dot(x, torch.arange(len(x), device=x.device).double().cos()).item() / (norm or 1.0)


def one_computed_again(stored: Mapping[str, Tensor], compute: Callable[..., Mapping[str, Any]]) -> list[str]:
    """Measure the line of a stored sample once more, and say what differs.

    It is the one that lies farthest out, because there another metric is most likely to show, of those whose straight
    line has a length. Its end is taken as it is: where eigenvalues lie close together, other rounding leads elsewhere.

    Parameters
    ----------
    stored : mapping
        Columns of samples of a study.
    compute : callable
        Takes numbers of samples and ends (n, d), and returns the columns of the lines that lead there.

    Returns
    -------
    list of str
        Empty if nothing differs by more than rounding.
    """
    d = sum(re.fullmatch(r"end_\d+", name) is not None for name in stored)
    starts, ends = ([f"{what}_{k}" for k in range(d)] for what in ("start", "end"))
    distance = torch.stack([stored[name].double() for name in starts + ends]).norm(dim=0)
    row = int(distance.where(stored["straight_length"].isfinite(), -1).argmax())
    sample = int(stored["index"][row])
    again, found = compute([sample], torch.stack([stored[name][row] for name in ends])[None]), []
    for name in (*starts, "straight_length"):
        before, now = float(stored[name][row]), float(again[name][0])
        # Coordinates may be near 0; the scale of the prior is 1. Unknown then and unknown now is the same.
        close = abs(now - before) <= 1e-3 * max(abs(before), float(name in starts))
        if not close and not (math.isnan(before) and math.isnan(now)):
            found.append(f"{name} of sample {sample} is {before:.6g}, and {now:.6g} when it is computed again")
    return found


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two studies, rounding of the fingerprint on other machines apart."""
    found: list[str] = []
    for key in sorted(a.keys() | b.keys(), key=lambda key: (key == "fingerprint", key)):
        x: Any = a.get(key)
        y: Any = b.get(key)
        if key == "fingerprint":
            # Earlier versions took fewer; and of other settings the samples are elsewhere anyway.
            both = [name for name in x if name in y and not (found and name == "speeds where the samples are")]
            found += [f"{name} differ" for name in both if not _nearly_equal(x[name], y[name], *_ROUNDING[name])]
        elif key == "lgi" and None in (x, y):  # the package's version, which earlier ones did not keep
            continue
        elif isinstance(x, dict) and isinstance(y, dict):
            found += [f"{key}: {difference}" for difference in differences(x, y)]
        elif x != y:
            found.append(f"{key} is {x!r}, not {y!r}")
    return found


# Relative differences that other machines and devices may make in the numbers of a fingerprint, each one and the median
# of all (a speed in a network of ReLUs may jump by rounding, half of them may not); and absolute ones.
_ROUNDING = {
    "speeds in the metric": (1e-3, 3e-5, 0.0),
    "speeds where the samples are": (1e-3, 3e-5, 0.0),
    "parameters of the metric": (1e-5, 1e-5, 0.0),
    "codes": (1e-5, 1e-5, 0.0),
    # In units of the norms, since sums may cancel.
    "order and signs of the codes": (0.0, 0.0, 1e-5),
    "weights of the metric, in order": (0.0, 0.0, 1e-5),
}


def _nearly_equal(x: Sequence[float], y: Sequence[float], each: float, median: float, absolute: float) -> bool:
    close = [abs(a - b) <= absolute + median * abs(b) for a, b in zip(x, y, strict=False)]
    return len(x) == len(y) and np.allclose(x, y, rtol=each, atol=absolute) and 2 * sum(close) >= len(x)
