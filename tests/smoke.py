"""Numbers of the smoke run, compared with recorded ones; `python tests/smoke.py [FOLDER]` records them anew.

FOLDER is a smoke run, such as runs/smoke after `make reproduce PARAMS=smoke`; without it the series is run first. The
numbers are what the notebooks record in ``results/*.json``, and are kept in smoke.json beside this file.
tests/test_notebooks.py compares those of its own smoke run with them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDED = Path(__file__).with_name("smoke.json")
REMEDY = "if this is meant to be so, record it: python tests/smoke.py"

# What is not compared: sentences made of what is compared, timings, and where a result comes from on this machine.
_IGNORED = ("*/headline", "*seconds*", "03_*/vgg/source", "03_*/vgg/residual")

# Relative and absolute tolerance of what matches; the first pattern counts. They have to let pass another CPU, another
# number of threads (all notebooks but the first use fixed weights), and small changes of the solver: its lengths are
# known to a thousandth, and a single pair or sample may change sides.
_TOLERANCES = (
    ("01_*/n_parameters/*", 0.0, 0.0),
    ("01_*/parameter_ratio", 1e-12, 0.0),
    # Trained anew, in 20 epochs. Nats: what remains of 784 pixels' terms, of either sign.
    ("01_*/elbo/*", 1e-2, 5.0),
    # Of 143 images.
    ("01_*/accuracy", 0.0, 0.015),
    ("02_*", 1e-3, 1e-3),
    # Mean number of changes over 12 pairs and its interval; only straight lines do not depend on the solver.
    ("03_*/changes/straight/*", 0.0, 1e-3),
    ("03_*/changes/*", 0.0, 0.26),
    ("03_*/saved/*", 0.0, 0.35),
    ("03_*/near_chord/*", 0.0, 0.17),
    ("03_*/vgg/straight_length", 1e-3, 0.0),
    ("03_*/vgg/length", 3e-2, 0.0),
    # Shares of 60 and, in the grid, of 6 samples.
    ("04_*/certified", 0.0, 0.1),
    ("04_*/certified/*", 0.0, 0.1),
    ("04_*/grid/*/3", 0.0, 0.34),
    # Mean improvements and what belongs to them.
    ("04_*", 2e-2, 1e-3),
    # Of 12 pairs.
    ("05_*/comparable/*", 0.0, 0.17),
    ("05_*/wrong_encoder", 0.0, 0.09),
    ("05_*/statistics/comparable", 0.0, 17.0),
    ("05_*/statistics/signed-rank p", 0.0, 0.2),
    ("05_*/statistics/rank correlation", 0.0, 0.15),
    # Percentages and lengths as they are printed.
    ("05_*", 2e-2, 0.1),
    # Percentages as they are printed, of 12 samples and an optimiser that is stopped on the way.
    ("06_*/ladder/*", 5e-2, 0.2),
    # Searches that stop after 5 iterations.
    ("07_*/improvements/2 *", 0.0, 0.03),
    ("07_*/improvements/*", 0.0, 0.005),
    ("*", 2e-2, 1e-3),
)

_NUMBER = re.compile(r"([-+−]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?)")


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Names and values of everything in nested mappings and lists, names like paths."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from leaves(item, f"{path}/{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}/{i}")
    else:
        yield path, value


def _agree(found: Any, recorded: Any, relative: float, absolute: float) -> bool:
    if isinstance(found, str) and isinstance(recorded, str):
        a, b = _NUMBER.split(found), _NUMBER.split(recorded)
        # Text and numbers take turns; a number's last digit may be rounded in another way.
        return a[::2] == b[::2] and all(
            _agree(*map(_value, pair), relative, absolute + max(map(_last_digit, pair)) * (1 + 1e-9))
            for pair in zip(a[1::2], b[1::2], strict=True)
        )
    kinds = [isinstance(x, int | float) and not isinstance(x, bool) for x in (found, recorded)]
    return abs(found - recorded) <= absolute + relative * abs(recorded) if all(kinds) else found == recorded


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def _last_digit(text: str) -> float:
    """Value of a one in the last place of a printed number."""
    digits, _, exponent = text.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def differences(found: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """What differs between the results of two runs, by notebook, beyond the tolerances."""
    a, b = (
        dict(leaf for name, value in results.items() for leaf in leaves(value, name)) for results in (found, recorded)
    )
    said = []
    for name in sorted(a.keys() | b.keys()):
        if any(fnmatchcase(name, pattern) for pattern in _IGNORED):
            continue
        relative, absolute = next(tolerance for pattern, *tolerance in _TOLERANCES if fnmatchcase(name, pattern))
        if name not in a or name not in b:
            said.append(f"{name}: {'not there any more' if name in b else 'not recorded'}")
        elif not _agree(a[name], b[name], relative, absolute):
            said.append(f"{name}: {a[name]!r}, recorded {b[name]!r} (relative {relative:g}, absolute {absolute:g})")
    return said


def results_of(folder: Path) -> dict[str, Any]:
    """Results of all notebooks of a run."""
    files = sorted((folder / "results").glob("[0-9][0-9]_*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def recorded_results() -> dict[str, Any]:
    """Results of all notebooks, as recorded."""
    return json.loads(RECORDED.read_text(encoding="utf-8"))["results"]


def record(folder: Path) -> None:
    """Write the results of a run to where they are compared with, and say what has changed."""
    from lgi import artifacts

    file = folder / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if summary.get("params") != "smoke" or not summary["ok"]:
        sys.exit(f"{folder} is no complete smoke run")
    results = results_of(folder)
    if RECORDED.exists():
        print("\n".join(differences(results, recorded_results())) or "nothing has changed beyond the tolerances")
    document = {"provenance": artifacts.provenance(command="python tests/smoke.py"), "results": results}
    RECORDED.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"recorded {', '.join(results)} in {RECORDED}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="a smoke run; by default it is made")
    folder = parser.parse_args().folder
    if folder is not None:
        record(folder)
        return
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, str(ROOT / "notebooks" / "reproduce.py"), "--params", "smoke"]
        subprocess.run(command, env=os.environ | {"LGI_RUNS": runs}, check=True)
        record(Path(runs) / "smoke")


if __name__ == "__main__":
    main()
