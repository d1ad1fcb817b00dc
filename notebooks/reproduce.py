"""Execute the numbered notebooks in order with papermill, or renew their committed state.

    python notebooks/reproduce.py                          the default run, the paper's: runs/default/
    python notebooks/reproduce.py --params smoke           parameters of notebooks/params/NN_smoke.yaml: runs/smoke/
    python notebooks/reproduce.py --only 01,02 --run mine -p seed 3
    python notebooks/reproduce.py commit [--only 01]       format, execute by default, clean, write back to notebooks/,
                                                           with the solutions of the same numbers; figures to figures/

A run writes its figures to runs/NAME/figures/ and nothing outside runs/: figures/ shows the committed state, and only
commit renews it.

What a notebook writes lies in runs/NAME/unfinished/ until it has run without fault, and then moves to
runs/NAME/; until then, what an earlier run left there stays.

Exit status: 0 all ran; 1 a notebook failed, or its results could not be written; 2 refused before anything ran; 130
interrupted; 143 terminated. A notebook whose metadata says ``{"lgi": {"reproduce": false}}`` (an interactive one) is
left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import nbformat
import papermill
import psutil  # which ipykernel needs too
import yaml
import zmq
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from papermill.exceptions import PapermillExecutionError, strip_color
from tqdm import tqdm
from traitlets.config import Config

from lgi import artifacts
from lgi.progress import as_command, exit_status

DEFAULT_RUN = "default"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "list": (list,), "dict": (dict,),
}  # fmt: skip


class Refusal(Exception):  # noqa: N818 (it is the answer to a request, not an error of the program)
    """What was asked for cannot be run; nothing has been executed."""


# --- what to run -----------------------------------------------------------------------------------------------------


def numbered_notebooks(folder: Path, only: str | None = None) -> list[Path]:
    """Paths of the numbered notebooks in order, without those that opt out; `only`: numbers, comma-separated."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        if (other := paths.setdefault(path.name[:2], path)) is not path:
            raise Refusal(f"{other.name} and {path.name} have the same number")
    if only is not None:
        numbers = [number.strip() for number in only.split(",")]
        if unknown := [number for number in numbers if number not in paths]:
            raise Refusal(f"no notebook with number {', '.join(unknown)} in {folder}: there are {', '.join(paths)}")
        return [path for number, path in paths.items() if number in numbers]
    runs = [path for path in paths.values() if nbformat.read(path, 4).metadata.get("lgi", {}).get("reproduce", True)]
    if not runs:
        raise Refusal(f"no numbered notebook (NN_name.ipynb) in {folder}")
    return runs


def solutions_to(notebooks: Sequence[Path]) -> list[Path]:
    """Solutions to the exercises of these notebooks, as far as there are any."""
    paths = [path.parent / "solutions" / f"{path.name[:2]}_solutions.ipynb" for path in notebooks]
    return [path for path in paths if path.is_file()]


def conforms(value: Any, annotation: str) -> bool:
    """Whether a value fits an annotation such as ``float`` or ``list[int]``; one that is not in TYPES allows all."""
    kind, _, element = annotation.partition("[")
    if kind not in TYPES:
        return True
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
        return False
    return kind != "list" or not element or all(conforms(item, element.removesuffix("]")) for item in value)


def checked(where: str, parameter: Mapping[str, str], value: Any) -> Any:
    """Return the value, or refuse it where it does not fit what the parameters cell declares."""
    annotation = parameter["inferred_type_name"]
    if conforms(value, annotation) or (value is None and parameter["default"] == "None"):
        return value
    hint = ": YAML reads 1e-3 as text, write 1.0e-3" if annotation == "float" and isinstance(value, str) else ""
    raise Refusal(f"{where}: {parameter['name']} is declared {annotation}, got {value!r}, {type(value).__name__}{hint}")


def from_text(text: str, annotation: str) -> Any:
    """Value of a command-line text for a parameter of that type."""
    if annotation == "str":
        return text
    if annotation == "float":
        try:
            return float(text)
        except ValueError:
            return text
    return yaml.safe_load("null" if text == "None" else text)


def plan(
    notebooks: Sequence[Path], variant: str | None, overrides: Mapping[str, str], run: str
) -> list[tuple[Path, dict[str, Any]]]:
    """Pair each notebook with its parameters, names and types checked against its parameters cell.

    Values from the variant's YAML come first and the command line's after them; a command-line name goes to every
    notebook that declares it. `run` is passed where it is declared with another default.
    """
    jobs = []
    unused = set(overrides)
    for path in notebooks:
        declared = papermill.inspect_notebook(path)
        parameters: dict[str, Any] = {}
        if variant is not None:
            file = path.parent / "params" / f"{path.name[:2]}_{variant}.yaml"
            if not file.is_file():
                known = sorted({other.stem.split("_", 1)[1] for other in file.parent.glob("[0-9][0-9]_*.yaml")})
                raise Refusal(f"{file} does not exist, which {path.name} needs; known variants: {', '.join(known)}")
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            if not isinstance(values, dict):
                raise Refusal(f"{file}: expected lines 'name: value', got {values!r}")
            refuse_unknown(str(file), set(values), declared, path)
            parameters |= {name: checked(str(file), declared[name], value) for name, value in values.items()}
        for name in overrides.keys() & declared.keys():
            value = from_text(overrides[name], declared[name]["inferred_type_name"])
            parameters[name] = checked(f"-p for {path.name}", declared[name], value)
            unused.discard(name)
        if "run" in parameters:
            raise Refusal("the run is named by --run, not by a parameter")
        if "run" in declared and ast.literal_eval(declared["run"]["default"]) != run:
            parameters["run"] = run
        jobs.append((path, parameters))
    if unused:
        refuse_unknown("-p", unused, {}, *notebooks)
    return jobs


def defaults(path: Path) -> dict[str, Any]:
    """Values of the parameters cell; what is no literal, as text."""
    values = {}
    for name, parameter in papermill.inspect_notebook(path).items():
        values[name] = parameter["default"]
        with suppress(ValueError, SyntaxError):
            values[name] = ast.literal_eval(parameter["default"])
    return values


def refuse_unknown(where: str, names: set[str], declared: Mapping[str, Any], *notebooks: Path) -> None:
    """Refuse names that are not declared."""
    if unknown := sorted(names - declared.keys()):
        known = sorted({name for path in notebooks for name in papermill.inspect_notebook(path)})
        raise Refusal(f"{where}: unknown parameter {', '.join(unknown)}; known are {', '.join(known) or 'none'}")


def check_kernel() -> None:
    """Refuse a kernel ``python3`` of another environment: the notebooks would import another `lgi`, or none."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    try:
        spec = KernelSpecManager().get_kernel_spec(KERNEL["name"])
    except NoSuchKernel as error:
        raise Refusal(f"no Jupyter kernel {KERNEL['name']}: install ipykernel into {sys.prefix}") from error
    program = spec.argv[0]
    # jupyter_client starts sys.executable for these names.
    if program in {"python", "python3", f"python3.{sys.version_info.minor}"}:
        return
    code = "import sys; print(sys.prefix)"
    answer = subprocess.run([program, "-c", code], capture_output=True, text=True, check=False)
    if answer.stdout.strip() != sys.prefix:
        raise Refusal(
            f"the Jupyter kernel {KERNEL['name']} ({spec.resource_dir}) starts {program}, which is not the Python of "
            f"{sys.prefix}. Remove that kernel (jupyter kernelspec remove {KERNEL['name']}) or unset JUPYTER_PATH"
        )


# --- running ---------------------------------------------------------------------------------------------------------


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the run's folder; the operating system lets go of it however the process ends."""
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise Refusal(f"another process is writing into {folder}: wait for it, or name this run with --run") from None
    except OSError as error:
        raise Refusal(cannot_write(folder, error)) from error
    try:
        yield
    finally:
        lock.release()


def cannot_write(path: Path, error: OSError) -> str:
    """What to say of a file or folder of a run, and what to do."""
    reason = error.strerror or str(error)
    return f"cannot write to {path}: {reason}. Free space, or make it writable; LGI_RUNS names another folder for runs"


@contextmanager
def connection() -> Iterator[dict[str, str]]:
    """How to talk to a kernel: by files instead of ports of the network, of which there may be none."""
    if zmq.has("ipc"):
        # In a folder of its own. By default they are in the current one, where two runs, or this one and the kernel of
        # one that was killed, would take each other's.
        with tempfile.TemporaryDirectory(prefix="lgi-", ignore_cleanup_errors=True) as sockets:
            try:
                yield {"transport": "ipc", "ip": str(Path(sockets, "kernel"))}
            finally:
                end_kernels()
    else:
        # On Windows it must be ports, and recent kernels warn, in each run's output, of ports without encryption.
        can_encrypt = "transport_encryption" in KernelManager.class_trait_names() and zmq.has("curve")
        yield {"transport_encryption": "auto"} if can_encrypt else {}


def end_kernels() -> None:
    """Kill a kernel that was being started when somebody stopped this, before it misses its sockets and says so."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if "ipykernel_launcher" in process.cmdline():
                process.kill()
                process.wait()


# Else a kernel that is told to end in the middle of a word logs, as errors, that its sockets are gone.
QUIET_END = [
    "--IPKernelApp.log_level=CRITICAL",
    "--IPKernelApp.exec_lines=__import__('logging').getLogger('tornado').setLevel('CRITICAL')",
]


def execute(path: Path, parameters: Mapping[str, Any], folder: Path) -> None:
    """Execute one notebook into `folder`; raises what papermill raises."""
    try:
        with connection() as kernel_manager:
            executed = papermill.execute_notebook(
                path,
                folder / path.name,
                parameters,
                kernel_name=KERNEL["name"],
                progress_bar={"desc": f"  {path.stem}", "position": 1, "leave": False, "disable": None},
                coalesce_streams=True,
                start_timeout=300,  # of the kernel: on a busy machine importing takes its time
                extra_arguments=QUIET_END,
                config=Config(KernelManager=kernel_manager),
            )
    finally:
        remove_if_cut_off(folder / path.name)
    for index, cell in enumerate(executed.cells):
        for output in cell.get("outputs", []):
            # Papermill takes SystemExit(0) for success and leaves out the cells after it.
            if output.output_type == "error":
                count, trace = cell.execution_count, output.traceback
                raise PapermillExecutionError(index, count, cell.source, output.ename, output.evalue, trace)


def remove_if_cut_off(output: Path) -> None:
    """Delete what is no notebook: papermill writes in place, and a full disk or an interrupt leaves half of it."""
    try:
        json.loads(output.read_bytes())
    except (ValueError, RecursionError):
        output.unlink()
    except OSError:
        pass


def describe_failure(path: Path, output: Path, folder: Path, error: Exception) -> str:
    """Notebook, cell, source and traceback of a failure of a run into `folder`, without colour codes."""
    if isinstance(error, PapermillExecutionError):
        index, source, trace = error.cell_index, error.source, "\n".join(error.traceback)
    else:
        # The kernel died or did not start: the cell is the last one that was begun.
        cells = nbformat.read(output, 4).cells if output.exists() else []
        begun = [i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
        index, source = (begun[-1], cells[begun[-1]].source) if begun else (None, "")
        trace = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError):
            trace += f"\n{cannot_write(folder, error)}"
    original = nbformat.read(path, 4)
    where = "before its first cell"
    if index is not None:
        # The number that the reader counts to in the notebook itself, which has no cell of injected parameters.
        places = [i for i in (index, index - 1) if 0 <= i < len(original.cells) and original.cells[i].source == source]
        where = f"in cell {places[0] + 1} of {len(original.cells)}" if places else "in the injected parameters"
    return "\n".join(
        ["=" * 100, f"FAILED: {path.name} {where}", "-" * 100, source, "-" * 100, strip_color(trace).strip(), "=" * 100]
    )


def take_in(folder: Path) -> None:
    """Move what a notebook has written, now in `folder`/.new, to its place; goes on where a kill has stopped it."""
    new = folder / ".new"
    for file in sorted(path for path in new.rglob("*") if path.is_file()):
        target = folder / file.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(new, ignore_errors=True)


def records_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What the summary of an earlier run says of each notebook; nothing if there is none."""
    try:
        return {
            record["notebook"]: record for record in json.loads((folder / "summary.json").read_bytes())["notebooks"]
        }
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def run_series(jobs: Sequence[tuple[Path, dict[str, Any]]], folder: Path, about: Mapping[str, Any]) -> set[str] | None:
    """Execute the jobs into `folder` up to the first failure; write ``summary.json`` and print the table.

    Of a notebook that did not run without fault, the folder keeps what an earlier run has left, and the summary what it
    said of that ("kept").

    Returns
    -------
    set of str or None
        Names of the figures that were drawn; None if not all of the jobs ran.
    """
    # A folder of runs in this folder, for the run of the same name, which is what notebooks are told.
    unfinished = folder / "unfinished" / folder.name
    earlier, figures, failure = records_of(folder), set[str](), ""
    records: list[dict[str, Any]] = [
        {"notebook": path.stem, "status": "skipped", "seconds": None, "headline": None, "parameters": parameters}
        for path, parameters in jobs
    ]
    # For lgi.collect: what was left alone, and where this was computed.
    provenance = artifacts.provenance(command=" ".join(["python", *sys.argv]))
    for record, (path, _) in zip(records, jobs, strict=True):
        record |= {"defaults": defaults(path), "provenance": provenance}
    runs = os.environ.get("LGI_RUNS")
    try:
        take_in(folder)
        os.environ["LGI_RUNS"] = str(unfinished.parent)
        for record, (path, parameters) in zip(records, tqdm(jobs, desc="notebooks", disable=None), strict=True):
            start = time.perf_counter()
            record["status"] = "interrupted"
            try:
                if unfinished.exists():  # left by a notebook that failed
                    shutil.rmtree(unfinished)
                unfinished.mkdir(parents=True)
                execute(path, parameters, unfinished)
                results = Path("results", f"{path.stem}.json")
                if (unfinished / results).is_file():
                    record["headline"] = artifacts.read_results(path.stem, folder.name).get("headline")
                else:
                    (folder / results).unlink(missing_ok=True)  # of an earlier version of the notebook
                figures |= {figure.name for figure in unfinished.glob("figures/[!.]*")}
                unfinished.rename(folder / ".new")
                take_in(folder)
                record["status"] = "ok"
            except Exception as error:
                record["status"] = "failed"
                failure = describe_failure(path, unfinished / path.name, folder, error)
                record["error"] = failure
            finally:
                record["seconds"] = round(time.perf_counter() - start, 1)
            tqdm.write(f"{path.stem}: {record['status']}, {record['seconds']} s")
            if failure:
                break
    finally:
        os.environ.pop("LGI_RUNS")
        if runs is not None:
            os.environ["LGI_RUNS"] = runs
        with suppress(OSError):
            unfinished.parent.rmdir()  # empty, if all went well
        print(f"\n{table(records)}\n")
        ok = conclude(records, earlier, folder, about)
    if failure:
        print(f"\n{failure}", file=sys.stderr)
        if skipped := [record["notebook"] for record in records if record["status"] == "skipped"]:
            print(f"Not run because of it: {', '.join(skipped)}", file=sys.stderr)
        if unfinished.exists():
            print(f"What it has written lies in {unfinished}", file=sys.stderr)
    return figures if ok else None


def conclude(
    records: Sequence[dict[str, Any]], earlier: Mapping[str, dict[str, Any]], folder: Path, about: Mapping[str, Any]
) -> bool:
    """Write ``summary.json``, where it said more keep that, and return whether all notebooks ran and it is written."""
    for record in records:
        before = earlier.get(record["notebook"], {})
        if record["status"] != "ok" and (kept := before if before.get("status") == "ok" else before.get("kept")):
            record["kept"] = kept
            print(f"{record['notebook']}: {folder} still holds what an earlier run has left")
    if earlier and {record["status"] for record in records} <= {"interrupted", "skipped"}:
        print(f"{folder} is as it was")
        return False
    together = dict(sorted((earlier | {record["notebook"]: record for record in records}).items()))
    summary = {**about, "ok": all(record["status"] == "ok" for record in together.values())}
    summary["notebooks"] = list(together.values())
    try:
        with artifacts.replacing(folder / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written to {folder}")
    except OSError as error:
        print(f"reproduce: {cannot_write(folder / 'summary.json', error)}", file=sys.stderr)
        return False
    return all(record["status"] == "ok" for record in records)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Notebook, seconds, ok, headline: one line each."""
    words = {"ok": "yes", "failed": "NO", "skipped": "not run", "interrupted": "stopped"}
    rows = [("notebook", "seconds", "ok", "headline")]
    for record in records:
        seconds = "" if record["seconds"] is None else f"{record['seconds']:.1f}"
        rows.append((record["notebook"], seconds, words[record["status"]], str(record["headline"] or "-")))
    name, second, ok = (max(len(row[i]) for row in rows) for i in range(3))
    return "\n".join(f"{row[0]:<{name}}  {row[1]:>{second}}  {row[2]:<{ok}}  {row[3]}" for row in rows)


def publish_figures(names: set[str], source: Path, target: Path) -> None:
    """Copy the figures of the default run to where they are committed."""
    for name in sorted(names):
        with artifacts.replacing(target / name) as temporary:
            shutil.copyfile(source / name, temporary)


# --- the committed state ---------------------------------------------------------------------------------------------


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take off an executed notebook what differs from run to run; outputs, counts and ids stay."""
    own = {name: value for name, value in notebook.metadata.items() if name == "lgi"}
    language = {"name": "python", **notebook.metadata.get("language_info", {})}
    language.pop("version", None)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": language, **own})
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": tags} if (tags := cell.metadata.get("tags")) else {})
    nbformat.validate(notebook)
    return notebook


def tidy_sources(notebooks: Sequence[Path]) -> None:
    """Format the notebooks by ruff and refuse those that its rules refuse."""
    for command in (["format", "--quiet"], ["check", "--quiet"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *map(str, notebooks)], check=False)
        if done.returncode:
            raise Refusal(f"ruff {command[0]} refuses the notebooks (above); nothing was executed")


def write_back(notebooks: Mapping[Path, bytes], folder: Path) -> None:
    """Replace each notebook by its cleaned executed copy, unless it was edited since `notebooks` were read."""
    if edited := [path.name for path, content in notebooks.items() if path.read_bytes() != content]:
        raise Refusal(f"{', '.join(edited)} was edited while it ran; nothing was written, run again")
    for path in notebooks:
        with artifacts.replacing(path) as temporary:
            text = nbformat.writes(clean(nbformat.read(folder / path.name, 4))) + "\n"
            temporary.write_text(text, encoding="utf-8")


def renew_solutions(solutions: Sequence[Path], folder: Path) -> bool:
    """Execute solutions, which have no parameters to set, and write them back; whether all of them ran."""
    contents = {path: path.read_bytes() for path in solutions}
    folder.mkdir(exist_ok=True)
    ok = run_series([(path, {}) for path in solutions], folder, {"run": DEFAULT_RUN, "params": None}) is not None
    if ok:
        write_back(contents, folder)
    return ok


# --- command line ----------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; see the module's docstring."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("run", "commit"), default="run")
    parser.add_argument("--params", metavar="VARIANT", help="parameters from params/NN_VARIANT.yaml")
    parser.add_argument("--run", metavar="NAME", help="folder under runs/; default: VARIANT, 'custom' with -p")
    parser.add_argument("--only", metavar="01,02", help="numbers of the notebooks to run")
    parser.add_argument("--notebooks", metavar="FOLDER", type=Path, default=Path(__file__).parent)
    parser.add_argument(
        "-p", dest="overrides", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="one parameter"
    )
    args = parser.parse_args(argv)
    args.overrides = dict(args.overrides)
    plain = args.params is None and not args.overrides
    args.run = args.run or args.params or (DEFAULT_RUN if plain else "custom")
    if not re.fullmatch(r"\w[\w .,=+-]*", args.run):
        parser.error(f"expected a run name of letters, digits and any of ' .,=+-_', got {args.run!r}")
    if args.run == DEFAULT_RUN and not plain:
        parser.error(f"the run {DEFAULT_RUN!r} is that of the default parameters: give this one another name")
    if args.action == "commit" and args.run != DEFAULT_RUN:
        parser.error("what is committed is the default run: commit takes no --params, --run or -p")
    return args


@as_command()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    args = arguments(argv)
    try:
        check_kernel()
        notebooks = numbered_notebooks(args.notebooks.resolve(), args.only)
        folder = artifacts.runs_folder().resolve() / args.run
        with sole_writer(folder):
            solutions = solutions_to(notebooks) if args.action == "commit" else []
            if args.action == "commit":
                tidy_sources([*notebooks, *solutions])
            contents = {path: path.read_bytes() for path in notebooks}
            jobs = plan(notebooks, args.params, args.overrides, args.run)
            figures = run_series(jobs, folder, {"run": args.run, "params": args.params})
            ok = figures is not None
            if figures is not None and args.action == "commit":
                write_back(contents, folder)
                publish_figures(figures, folder / "figures", args.notebooks.resolve().parent / "figures")
            if ok and solutions:
                ok = renew_solutions(solutions, folder / "solutions")
    except Refusal as refusal:
        print(f"reproduce: {refusal}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"reproduce: {error}. Free space there, or change its permissions", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("\nreproduce: interrupted", file=sys.stderr)
        return exit_status(stop)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
