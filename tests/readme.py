"""Write the generated parts of README.md from what was recorded: `python tests/readme.py` (after `make notebooks`).

Results are the tables that the committed notebooks show; timings are those of tests/benchmarks/*.json.
tests/test_readme.py fails when README.md is stale.
"""

import json
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def results() -> str:
    lines = ["| notebook | claim | paper | measured | verdict |", "|---|---|---|---|---|"]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                table = output.get("data", {}).get("text/markdown", "")
                if table.startswith("| claim | paper |"):
                    lines += [f"| {path.name[:2]} {row}" for row in table.splitlines()[2:]]
    return "\n".join(lines)


def benchmark() -> str:
    recorded = json.loads((ROOT / "tests" / "benchmarks" / "metric.json").read_text())
    lines = ["| | method | points | points/s | peak MiB | points/s of lgi / of this |", "|---|---|---|---|---|---|"]
    for quantity, methods in recorded["results"].items():
        for method, rows in methods.items():
            ratio = recorded["lgi_over_method"][quantity].get(method)
            for row in rows:
                cells = [quantity.replace("_", " "), method, f"{row['points']:,}", f"{row['points_per_second']:,.0f}"]
                cells += [
                    f"{row['peak_MiB']:,.0f}",
                    "" if ratio is None or row is not rows[-1] else f"{ratio:.{0 if ratio > 10 else 2}f}",
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def geodesics() -> str:
    recorded = json.loads((ROOT / "tests" / "benchmarks" / "geodesics.json").read_text())["methods"]
    lines = ["| method | pairs | s a pair | decoder rows a pair | length, relative to the first | certified |"]
    lines += ["|---|---|---|---|---|---|"]
    for method, row in recorded.items():
        longer, certified = row["relative to gauss-newton, same pairs"], row.get("certified")
        cells = [method, str(row["pairs"]), f"{row['seconds a pair']:.2g}", f"{row['decoder rows a pair']:,.0f}"]
        cells += [f"{longer:+.3%}", "" if certified is None else f"{certified:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def algorithm1() -> str:
    recorded = json.loads((ROOT / "tests" / "benchmarks" / "algorithm1.json").read_text())
    lines = ["| method | pairs | s a pair | decoder rows a pair | mean improvement | the same pairs by lgi |"]
    lines += ["|---|---|---|---|---|---|"]
    for method, row in recorded["methods"].items():
        cells = [method, f"{row['pairs']:,}", f"{row['seconds a pair']:.2g}", f"{row['decoder rows a pair']:,.0f}"]
        cells += [f"{row['mean improvement of its pairs']:.2%}", f"{row['the same by lgi']:.2%}"]
        lines.append("| " + " | ".join(cells) + " |")
    low, high = recorded["confidence interval"]
    lines += [
        "",
        f"Mean improvement {recorded['mean improvement']:.2%} [{low:.2%}, {high:.2%}], "
        f"{recorded['certified']:.0%} certified, {recorded['seconds']:.0f} s: "
        f"{recorded['times the floor']:.2f} times the bare decoder passes of as many rows.",
    ]
    return "\n".join(lines)


_PARTS = (("results", results), ("benchmark", benchmark), ("geodesics", geodesics), ("algorithm1", algorithm1))


def generated(text: str) -> str:
    """README's text with its generated parts as they should be."""
    for name, make in _PARTS:
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no part between <!-- {name} --> and <!-- /{name} -->")
        text = pattern.sub(lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(generated(readme.read_text(encoding="utf-8")), encoding="utf-8")
