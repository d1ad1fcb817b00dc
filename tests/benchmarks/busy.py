"""What waiting threads cost, quiet and beside busy processes: Algorithm 1 by one process under several settings.

    python tests/benchmarks/busy.py --write                 both halves, into tests/benchmarks/busy.json
    python tests/benchmarks/busy.py --only quiet --write    one half; the other one in the file stays

Each measurement is a fresh process, because torch's OpenMP reads its variables once, when it is loaded; the settings
take turns, so that a machine that changes meanwhile is the same for all. Seconds are those of
`lgi.worst_case_improvement` alone, medians, by the wall clock and of the processor. `make` and the commands of lgi take
one thread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lgi import artifacts

FILE = Path(__file__).with_name("busy.json")
# Threads that wait look for work before they sleep: 300,000 times by GNU OpenMP's own choice.
SETTINGS: dict[str, dict[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "OpenMP's own": {},
    "1000 looks": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
WORK = """\
import sys, time
import lgi
metric = lgi.PullbackMetric(lgi.load_model("vae1").decoder)
lgi.worst_case_improvement(metric, 4, progress=False)
wall, processor = time.perf_counter(), time.process_time()
lgi.worst_case_improvement(metric, int(sys.argv[1]), progress=False)
print(time.perf_counter() - wall, time.process_time() - processor)"""


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute without end, until the block does."""
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in beside:
            process.kill()
            process.wait()


def seconds(setting: dict[str, str], samples: int, limit: float) -> tuple[float, float] | None:
    """Wall and processor seconds of a process with these variables; nothing if it takes longer than the limit."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= setting
    command = [sys.executable, "-c", WORK, str(samples)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=limit, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return None
    wall, processor = map(float, done.stdout.split())
    return wall, processor


def measure(processes: int, samples: int, repetitions: int, limit: float, names: list[str]) -> dict[str, object]:
    """Medians for each setting beside so many busy processes."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    with busy(processes):
        for _ in range(repetitions):
            for name in names:
                one = seconds(SETTINGS[name], samples, limit)
                found[name].append(one or (float("inf"), float("inf")))
                print(f"{name}, {processes} busy processes: {one or f'over {limit:.0f} s'}", flush=True)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    return {
        name: {"wall": f"over {limit:.0f}"} if wall == float("inf") else {"wall": wall, "processor": processor}
        for name, (wall, processor) in medians.items()
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("quiet", "busy"))
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--processes", type=int, default=4, help="busy ones beside")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a process is stopped")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--write", action="store_true", help="the record, busy.json")
    options = parser.parse_args()
    record = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for half in ("quiet", "busy"):
        if options.only in (None, half):
            processes = options.processes if half == "busy" else 0
            seconds_of = measure(processes, options.samples, options.repetitions, options.limit, options.settings)
            record[half] = {
                "busy processes": processes,
                "samples": options.samples,
                "repetitions": options.repetitions,
                "load before": os.getloadavg()[0],
                "seconds": seconds_of,
                "provenance": artifacts.provenance(command=" ".join(["python", *sys.argv])),
            }
    print(json.dumps(record, indent=1))
    if options.write:
        FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
