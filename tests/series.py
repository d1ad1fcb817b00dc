"""A series of tiny notebooks, which notebooks/reproduce.py runs in tests."""

import nbformat
import reproduce
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """\
run: str = "default"  # name of the run
seed: int = 0  # of the draws
step: float = 0.1  # step size
fast: bool = False  # leave out
sizes: list[int] = [1, 2]  # of the layers"""

# What artifacts.record_results writes, without the seconds that importing lgi takes.
RECORD = """\
import json, os, pathlib
folder = pathlib.Path(os.environ["LGI_RUNS"]) / run / "results"
folder.mkdir(parents=True, exist_ok=True)
(folder / "NAME.json").write_text(json.dumps({"headline": f"seed {seed!r}, step {step!r}, sizes {sizes!r}"}))"""

# As ruff wants it, since it is committed, too.
FIGURE = """\
import os
import pathlib

figures = pathlib.Path(os.environ["LGI_RUNS"]) / run / "figures"
figures.mkdir(parents=True, exist_ok=True)
length = (figures / f"NAME_{seed}.png").write_text("drawn")"""


class Series:
    """Folders of notebooks and of their runs, with spaces and umlauts in their names; neither is the current one."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.runs = folder / "x y ü" / "project" / "notebooks", folder / "x y ü" / "runs ß"
        self.figures, self.default = self.folder.parent / "figures", self.runs / "default"
        (self.folder / "params").mkdir(parents=True)
        (self.folder / "solutions").mkdir()
        monkeypatch.setenv("LGI_RUNS", str(self.runs))
        monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")  # the runner sets it, in the process of all tests
        monkeypatch.chdir("/")

    def write(self, name, *sources, parameters=PARAMETERS):
        """Write a notebook of a title, parameters and these sources; its path."""
        cells = [new_markdown_cell(f"# {name}"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        cells += [new_code_cell(source.replace("NAME", name)) for source in sources]
        path = self.folder / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": reproduce.KERNEL}), path)
        return path

    def run(self, *options):
        """Exit status of the command with these options."""
        return reproduce.main([*options, "--notebooks", str(self.folder)])
