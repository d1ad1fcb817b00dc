"""Shows that the tests notice faults: `python tests/mutations.py [--only NAME] [--jobs N] [--list]`.

Each fault of tests/faults.py is made in a copy of the working tree, by itself, and the tests that ought to notice it
run there. A fault counts as caught if one of these tests runs and fails; a fault that only keeps code from being
imported shows nothing, and is reported as broken. The exit status is 0 when all are caught, 1 when one is not, and 2
when nothing is shown, because the copy fails without a fault.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from xml.etree import ElementTree

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]

_SECONDS = 600
# What says that the fault is no working program, and nothing about the tests.
_NO_PROGRAM = re.compile(r"(NameError|UnboundLocalError|ImportError|ModuleNotFoundError|SyntaxError)\b")


class Refusal(Exception):  # noqa: N818 (as in notebooks/reproduce.py)
    """Nothing can be shown."""


@dataclass(frozen=True)
class Outcome:
    """What became of a fault: "caught", "survived", "broken" or "timed out"; by which test, or why."""

    word: str
    detail: str
    seconds: float


def mutated(fault: Fault, text: str) -> str:
    """Text of the file with the fault."""
    if (n := text.count(fault.old)) != 1:
        raise Refusal(f"{fault.name}: expected its old text once in {fault.file}, found it {n} times: {fault.old!r}")
    return text.replace(fault.old, fault.new)


def copy_tree(target: Path) -> Path:
    """Copy what git tracks, and what it would track if it were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        # A file that is deleted and not committed is still listed.
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def run(copy: Path, tests: Sequence[str], *options: str) -> Outcome:
    """Outcome of tests in a copy, with the `lgi` of the copy, because that lies in the current directory."""
    begin, report = time.monotonic(), copy / "report.xml"
    report.unlink(missing_ok=True)
    # A fault of the same size may be written in the same second as the text before it: no bytecode is kept.
    own = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    always = ["-q", "-p", "hypothesispytest", "--hypothesis-seed=0", "-p", "no:cacheprovider", "--assert=plain"]
    command = [sys.executable, "-m", "pytest", *always, *options, f"--junit-xml={report}"]
    command += [f"tests/{test}" for test in tests]
    with (copy / "output").open("w+", encoding="utf-8", errors="replace") as output:
        both = {"stdout": output, "stderr": subprocess.STDOUT}
        try:
            subprocess.run(command, cwd=copy, env=os.environ | own, timeout=_SECONDS, check=False, **both)
        except subprocess.TimeoutExpired:
            return Outcome("timed out", f"after {_SECONDS} s", _SECONDS)
        output.seek(0)
        said = output.read().strip().splitlines() or ["nothing was said"]
    seconds = time.monotonic() - begin
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    # Failures only: what breaks in collection or in a fixture is an error.
    failed = {case.get("name", ""): found.get("message", "") for case in cases for found in case.findall("failure")}
    shown = [name for name, message in failed.items() if not _NO_PROGRAM.match(message)]
    if shown:
        return Outcome("caught", shown[0], seconds)
    passed = sum(len(case) == 0 for case in cases)
    # Not by pytest's status: under load it told of garbage (unraisable warnings) though the only test had passed.
    if failed or not passed or any(case.find("error") is not None for case in cases):
        return Outcome("broken", next(iter(failed.values()), said[-1]), seconds)
    return Outcome("survived", f"{passed} passed", seconds)


def judge(faults: Sequence[Fault], n_jobs: int = 1) -> Iterator[tuple[Fault, Outcome]]:
    """Faults with their outcomes, in their order; first of all, the tests must pass without a fault.

    Raises
    ------
    Refusal
        If they do not, or a fault does not fit its file.
    """
    with tempfile.TemporaryDirectory(prefix="lgi-mutations-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for i in range(n_jobs):
            copies.put(plain := copy_tree(Path(folder).resolve() / f"{i}"))
        for fault in faults:
            mutated(fault, (plain / fault.file).read_text(encoding="utf-8"))
        found = run(plain, sorted({test for fault in faults for test in fault.tests}))
        if found.word != "survived":
            raise Refusal(f"without a fault, the tests do not pass: {found.word}, {found.detail}")
        print(f"without a fault: {found.detail}, {found.seconds:.0f} s", flush=True)

        def judged(fault: Fault) -> Outcome:
            copy = copies.get()
            text = (copy / fault.file).read_text(encoding="utf-8")
            (copy / fault.file).write_text(mutated(fault, text), encoding="utf-8")
            found = run(copy, fault.tests, "-x")
            (copy / fault.file).write_text(text, encoding="utf-8")
            copies.put(copy)
            return found

        with ThreadPoolExecutor(n_jobs) as pool:
            yield from zip(faults, pool.map(judged, faults), strict=True)


def line(fault: Fault, found: Outcome) -> str:
    """Outcome, seconds, file and name of a fault, and the test that has noticed it."""
    word = found.word if found.word == "caught" else found.word.upper()
    return f"{word:<9} {found.seconds:4.0f} s  {fault.file:<20} {fault.name:<48} {found.detail}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this fault alone; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="faults tried at a time")
    parser.add_argument("--list", action="store_true", help="say what the faults are, and try none")
    args = parser.parse_args(argv)
    if unknown := set(args.only or ()) - {fault.name for fault in FAULTS}:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; --list names them")
    faults = [fault for fault in FAULTS if args.only is None or fault.name in args.only]
    if args.list:
        for fault in faults:
            print(f"{fault.file}: {fault.name}: {fault.why}")
        return 0
    begin = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    outcomes: dict[str, Outcome] = {}
    try:
        for fault, found in judge(faults, args.jobs):
            outcomes[fault.name] = found
            print(line(fault, found), flush=True)
    except Refusal as refusal:
        print(f"mutations: {refusal}", file=sys.stderr)
        return 2
    missed = [fault for fault in faults if outcomes[fault.name].word != "caught"]
    print(f"\n{len(faults) - len(missed)} of {len(faults)} faults caught, {time.monotonic() - begin:.0f} s")
    for fault in missed:
        print(f"{line(fault, outcomes[fault.name])}: {fault.why}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
