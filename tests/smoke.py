"""Numbers of the smoke run, compared with recorded ones; `python tests/smoke.py [FOLDER]` records them anew.

FOLDER is a smoke run, such as runs/smoke after `make reproduce PARAMS=smoke`; without it the series is run first. The
numbers are what the notebooks record in ``results/*.json``, and are kept in smoke.json beside this file.
tests/test_notebooks.py compares those of its own smoke run with them, within the tolerances of recorded.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import recorded

ROOT = Path(__file__).resolve().parents[1]
RECORDED = Path(__file__).with_name("smoke.json")
REMEDY = "if this is meant to be so, record it: python tests/smoke.py"


def results_of(folder: Path) -> dict[str, Any]:
    """Results of all notebooks of a run."""
    files = sorted((folder / "results").glob("[0-9][0-9]_*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def recorded_results() -> dict[str, Any]:
    """Results of all notebooks, as recorded."""
    return json.loads(RECORDED.read_text(encoding="utf-8"))["results"]


def differences(results: dict[str, Any]) -> list[str]:
    """What differs from the recorded results beyond the tolerances."""
    return recorded.differences(results, recorded_results(), recorded.SMOKE, recorded.SMOKE_NOT_COMPARED)


def record(folder: Path) -> None:
    """Write the results of a run to where they are compared with, and say what has changed."""
    from lgi import artifacts

    file = folder / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if summary.get("params") != "smoke" or not summary["ok"]:
        sys.exit(f"{folder} is no complete smoke run")
    results = results_of(folder)
    if RECORDED.exists():
        print("\n".join(differences(results)) or "nothing has changed beyond the tolerances")
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
