"""Write the generated parts of README.md and tests/benchmarks/README.md from records: `python tests/readme.py`.

Results are the tables that the committed notebooks show; timings are those of tests/benchmarks/*.json. With `--times`,
as `make notebooks` calls it, the run times of the notebooks are taken over from runs/default first.
tests/test_readme.py fails when a page is stale.
"""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nbformat

from lgi import artifacts

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "tests" / "benchmarks"

# Of every notebook: its question, and the parts of the paper that it answers.
_SERIES = """\
01 | where the generative models and their standard deviations come from | 2.2, app. B, D
02 | how far apart are two latent points, and in which directions | 2.1-2.3, eqs 1-4, app. E; Fig. 1, background of Fig. 2
03 | what a shorter curve is, how good it is, and what a classifier or VGG-19 on top changes | 2.1, 2.2, app. A, B; Fig. 3
04 | Algorithm 1: the 10.20 %, and what it depends on | 2.3, app. C; Figs 2, 4
05 | which interpolations of two models may be compared; a generator without an encoder | 3, app. D; Figs 5-8
06 | what the paper's code did differently, and what that changes | 2.1-3, app. A, C, D
07 | one pair at a time: click two points in JupyterLab, see both curves and their certificate | 2.1, 2.2, 3
"""  # noqa: E501
_KEPT = ("claim", "paper", "measured", "verdict")
# The paper's claims in its own order, and the rows of the notebooks' tables that answer each.
_CLAIMS = """\
P1 | the metric of a deterministic generator is J^T J (eq. 1)
P2 | eq. 2 is the expected metric
P3 | a feature map on a deterministic generator (eq. 3)
P4 | eq. 4 is the expected metric (app. E)
P5 | cubic B-spline, knots inserted without moving it (app. A)
P6 | least energy is a geodesic (2.1)
P7 | it agrees with the geodesic equation (2.1)
P8 | RBF variance improves the estimate (Figs 1, 7)
P9 | logistic regression tells the digits apart (app. B)
P9 | Fig. 3: fewer digits through the classifier
P9 | geodesics pass as few clusters as possible (app. B)
P10 | VGG-19 as a feature map (2.2)
P11 | the metric is highly anisotropic (Fig. 1)
P11 | maximal eigenvectors vary in direction
P12 | where large improvements lie (Fig. 2)
P13 | mean relative improvement over 1000 samples (Algorithm 1, Figs 2, 4)
P13 | the maximal eigenvector is the worst direction (2.3)
P13 | interpolations between data points
P14 | VAE1 has 16 times the parameters of VAE2 (app. D)
P14 | improvements of two models can differ vastly (Fig. 6)
P14 | some pairs are comparable (app. D)
P14 | similar improvements show similar neighbourhoods (section 3)
P15 | without an encoder, codes can be searched for (section 3)
P16 | the optimiser is not a global one (section 4)
"""


def _rows(text: str) -> list[list[str]]:
    """Cells of the lines of a table."""
    return [line.strip("| ").split(" | ") for line in text.splitlines()]


def _table(titles: str, rows: Iterable[Sequence[str]]) -> str:
    """Markdown of a table whose titles are given as one line."""
    lines = [titles, "|---" * (titles.count("|") - 1) + "|", *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines)


def _recorded(benchmark: str) -> Any:
    """What a script of tests/benchmarks has measured."""
    return json.loads((BENCHMARKS / f"{benchmark}.json").read_text(encoding="utf-8"))


def _notebooks(numbers: str) -> list[Path]:
    return sorted((ROOT / "notebooks").glob(f"{numbers}_*.ipynb"))


def _shown(notebook: Path) -> str:
    """The notebook's table of results."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            table = output.get("data", {}).get("text/markdown", "")
            if table.startswith("| claim | paper |"):
                return table
    raise ValueError(f"{notebook.name} shows no table that begins with '| claim | paper |': run make notebooks")


def _claims(notebook: Path) -> list[list[str]]:
    """Claim, paper, measured and verdict of each row of the table of results; criteria stand in the notebook."""
    titles, _, *rows = _rows(_shown(notebook))
    return [[dict(zip(titles, row, strict=True))[title] for title in _KEPT] for row in rows]


def record_times() -> None:
    """Keep the run times of the notebooks that `make notebooks` has just run, and where that was."""
    summary = json.loads((artifacts.runs_folder() / "default" / "summary.json").read_text())
    times = {run["notebook"][:2]: run["seconds"] for run in summary["notebooks"] if run["status"] == "ok"}
    times = _recorded("notebooks")["seconds"] | times
    document = {
        "seconds": dict(sorted(times.items())),
        "provenance": artifacts.provenance(seed=0, command="make reproduce"),
    }
    (BENCHMARKS / "notebooks.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def minutes(number: str) -> str:
    """Run time of notebook `number` as recorded, to the half minute."""
    seconds = _recorded("notebooks")["seconds"][number]
    return f"{max(0.5, round(seconds / 30) / 2):g} min"


def idea() -> str:
    """The drawing of notebook 02, once it is there."""
    text = "The straight line and a shorter curve in latent space, and on the surface of images that the decoder makes"
    return f"![{text}](figures/idea.png)" if (ROOT / "figures" / "idea.png").exists() else ""


def results() -> str:
    """The tables of the committed notebooks, in the order of the paper's claims."""
    found = {
        claim: [*rest, f"[{path.name[:2]}](notebooks/{path.name}), {minutes(path.name[:2])}"]
        for path in _notebooks("0[1-5]")
        for claim, *rest in _claims(path)
    }
    claims = _rows(_CLAIMS)
    if unplaced := set(found) - {claim for _, claim in claims}:
        raise ValueError(f"tests/readme.py does not know which claim of the paper these rows answer: {unplaced}")
    methods = _recorded("geodesics")["methods"]
    ours, original = (methods[name]["decoder rows a pair"] for name in ("lgi gauss-newton", "original scheme"))
    cost = f"decoder rows a curve: {original:,.0f} by copies of each point, {ours:,.0f} by `lgi`"
    # As the paper computes it, it is; a hundredth of the price is another order of things.
    verdict = "partly reproduced" if 100 * ours < original else "reproduced"
    last = ["P16", "the Jacobian is expensive (section 4)", "stated", cost, verdict]
    rows = [[number, claim, *found[claim]] for number, claim in claims]
    rows.append([*last, "[geodesics.py](tests/benchmarks/geodesics.py)"])
    return _table("| | claim | paper | measured | verdict | notebook, run time |", rows)


def departures() -> str:
    """What the original code's choices change: the table of notebook 06."""
    (path,) = _notebooks("06")
    return _table(f"| {' | '.join(_KEPT)} |", _claims(path))


def series() -> str:
    """Notebooks in their order."""
    rows = []
    for number, question, paper in _rows(_SERIES):
        (path,) = _notebooks(number)
        title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ").replace("· ", "")
        rows.append([f"[{title}](notebooks/{path.name})", question, paper, minutes(number), "not measured"])
    return _table("| notebook | question | paper | one CPU core | GPU |", rows)


def speed() -> str:
    """What a user waits for, beside the scheme of the paper's code."""
    metric, curves, study = _recorded("metric")["results"]["tensor"], _recorded("geodesics"), _recorded("algorithm1")
    methods = curves["methods"]
    ours, original = (methods[name] for name in ("lgi gauss-newton", "original scheme"))
    per_second = [metric[name][-1]["points_per_second"] for name in ("lgi", "original")]
    rows = [
        ["metric tensors a second", *(f"{number:,.0f}" for number in per_second)],
        ["a shorter curve, s", *(f"{row['processor seconds a pair']:.2g}" for row in (ours, original))],
        ["the same, decoder rows", *(f"{row['decoder rows a pair']:,.0f}" for row in (ours, original))],
        ["Algorithm 1, 1000 samples, s", f"{study['seconds']:.0f}", ""],
    ]
    return _table("| | lgi | original scheme |", rows)


def when(recorded: Any) -> str:
    """When, and of which commit."""
    by = recorded["provenance"]
    return f"Measured {by['date'][:10]} at `{by['git_commit'][:7]}`."


def benchmark() -> str:
    """Points a second of the metric."""
    recorded, rows = _recorded("metric"), []
    for quantity, methods in recorded["results"].items():
        for method, measured in methods.items():
            ratio = recorded["lgi_over_method"][quantity].get(method)
            for row in measured:
                times = "" if ratio is None or row is not measured[-1] else f"{ratio:.{0 if ratio > 10 else 2}f}"
                numbers = (row["points"], row["points_per_second"], row["peak_MiB"])
                rows.append([quantity.replace("_", " "), method, *(f"{number:,.0f}" for number in numbers), times])
    titles = "| | method | points | points/s | peak MiB | points/s of lgi / of this |"
    return f"{_table(titles, rows)}\n\n{when(recorded)}"


def geodesics() -> str:
    """Shorter curves by every method."""
    recorded, rows = _recorded("geodesics"), []
    for method, row in recorded["methods"].items():
        seconds, times = row["processor seconds a pair"], row.get("processor times lgi")
        cells = [method, f"{row['pairs']:,}", f"{seconds:.2g}" if seconds < 100 else f"{seconds:,.0f}"]
        cells += ["" if times is None else f"{times:,.0f}", f"{row['decoder rows a pair']:,.0f}"]
        cells += [f"{row['relative to gauss-newton, same pairs']:+.3%}"]
        own = row.get("own verdict")
        cells += ["" if own is None else f"{100 * own:.4g}%", f"{row['median residual, 16 spans']:.1g}"]
        rows.append([*cells, f"{100 * row['certified']:.4g}%"])
    many = recorded["10,000 pairs"]
    titles = (
        "| method | pairs | s a pair | relative to lgi's | decoder rows | length | own verdict | residual | certified |"
    )
    return _table(titles, rows) + (
        f"\n\n10,000 pairs in one call: {100 * many['certified']:.4g}% certified, "
        f"{many['peak memory in GiB']:.1f} GiB at most. {when(recorded)}"
    )


def walls() -> str:
    """Shorter curves where the metric is hard, before and after."""
    rows = []
    for name, versions in _recorded("walls")["results"].items():
        for version, row in versions.items():
            shares = [f"{row[title]:.{digits}%}" for title, digits in (("certified", 0), ("mean improvement", 1))]
            numbers = [f"{row['mean length']:.3f}", *(f"{row[title]:,}" for title in ("rows", "forwards"))]
            rows.append([f"`{name}`", version, str(row["pairs"]), *shares, *numbers, f"{row['seconds']:.2f}"])
    titles = "| metric | | pairs | certified | improvement | mean length | decoder rows | forward passes | s a pair |"
    return _table(titles, rows)


def gpu() -> str:
    """A GPU beside the processor of the same machine."""
    recorded = _recorded("gpu")
    metric, study = recorded["metric"], recorded["algorithm_1"]
    rows, both = [], ("cuda", "cpu")
    for eq in ("eq. 2", "eq. 4"):
        times = (f"{metric[device][eq]['microseconds a point']:.3g}" for device in both)
        rows.append([f"metric of VAE1, {eq}, \N{MICRO SIGN}s a point", *times])
    times = (f"{study[device]['1000']['seconds']:.0f}" for device in both)
    rows.append(["Algorithm 1 on VAE1, 1000 samples, s", *times])
    for name, row in recorded["hard"]["cuda"].items():
        beside = recorded["hard"]["cpu"].get(name)
        other = "" if beside is None else f"{beside['milliseconds a pair']:.0f} ({beside['pairs']} pairs)"
        what, where, *_ = name.split(",")
        rows.append([f"curves, `{what}`,{where}, ms a pair", f"{row['milliseconds a pair']:.0f}", other])
    large = recorded["large"]["cuda"]
    curves, seconds = large["curves"], large["seconds, tensor at 2 points"]
    titles = f"| {recorded['gpu']}, torch {recorded['provenance']['versions']['torch']} | GPU | CPU, 6 threads |"
    return _table(titles, rows) + (
        f"\n\nImages 3 x 256 x 256 at d = 512: the metric at two points in {seconds} s, curves of "
        f"{curves['pairs']} pairs in {curves['seconds']:.0f} s "
        f"({curves['certified']:.0%} certified), {curves['peak GiB']:.1f} GiB at most. {when(recorded)}"
    )


def algorithm1() -> str:
    """Algorithm 1 by every method."""
    recorded, rows = _recorded("algorithm1"), []
    for method, row in recorded["methods"].items():
        cells = [method, f"{row['pairs']:,}", f"{row['seconds a pair']:.2g}", f"{row['decoder rows a pair']:,.0f}"]
        rows.append([*cells, f"{row['mean improvement of its pairs']:.2%}", f"{row['the same by lgi']:.2%}"])
    low, high = recorded["confidence interval"]
    titles = "| method | pairs | s a pair | decoder rows a pair | mean improvement | the same pairs by lgi |"
    return _table(titles, rows) + (
        f"\n\nMean improvement {recorded['mean improvement']:.2%} [{low:.2%}, {high:.2%}], "
        f"{100 * recorded['certified']:.4g}% certified, {recorded['seconds']:.0f} s: "
        f"{recorded['times the floor']:.2f} times the bare decoder passes of as many rows. {when(recorded)}"
    )


def comparison() -> str:
    """Pairs of both models, and inversion."""
    recorded = _recorded("comparison")
    seconds, error, as_good = recorded["seconds"], recorded["mean error"], recorded["error at most the encoder's"]
    return (
        f"{recorded['pairs']} pairs of test digits compared in both VAEs: {seconds['comparison']:.0f} s, certified "
        f"{' and '.join(f'{100 * share:.4g}%' for share in recorded['certified'])}. Codes of {recorded['digits']} test "
        f"digits by inverting VAE1's decoder: {seconds['inversion']:.1f} s, error at most the encoder's for "
        f"{100 * as_good:.4g}% of them (mean {error['inversion']:.3f} against "
        f"{error['encoder']:.3f}). {when(recorded)}"
    )


PAGES = {
    ROOT / "README.md": (idea, series, results, departures, speed),
    BENCHMARKS / "README.md": (benchmark, geodesics, walls, gpu, algorithm1, comparison),
}


def generated(page: Path, text: str) -> str:
    """A page's text with its generated parts as they should be."""
    for make in PAGES[page]:
        name = make.__name__
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{page.name} has no part between <!-- {name} --> and <!-- /{name} -->")
        text = pattern.sub(lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    if "--times" in sys.argv[1:]:
        record_times()
    for page in PAGES:
        page.write_text(generated(page, page.read_text(encoding="utf-8")), encoding="utf-8")
