"""Render the committed notebooks to a static site that opens from the file system and loads nothing from the network.

    python notebooks/book.py                      everything, solutions and instructor's page included: runs/book/
    python notebooks/book.py --edition student    without these two, and with exercises to fill in: runs/book_student/

One page for each of ``NN_*.ipynb``, ``glossary.md``, ``solutions/NN_*.ipynb`` and ``instructor.md``, for each module of
``lgi`` that one of them links to, and an index made of README.md and of the notebooks' title cells and results. Nothing
is executed: pages show the committed outputs, rendered by nbconvert through ``book/page.html.j2``. Equations become
MathML, which browsers draw without a script. HTML among the outputs is shown as it is: a page's policy lets the browser
run no script but the page's own, and load from nowhere but the book.
What would be wrong in the book is refused, and the former one stays: a notebook that was not executed, a link to
nothing, an equation that cannot be converted, an image without a description.

Exit status: 0 written; 2 refused.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

import math_core
import nbformat
import student
from bs4 import BeautifulSoup, Tag
from fontTools import subset
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES
from traitlets.config import Config

from lgi import artifacts

HERE = Path(__file__).resolve().parent
# Sections of README.md that the index keeps, beside what precedes the first of them.
README_SECTIONS = ("Two commands", "Cite")
# Columns of the notebooks' tables of results that the index shows; what decides a verdict stands in the notebook.
RESULTS = ("claim", "paper", "measured", "verdict")
# Groups of the pages that show modules of lgi, and notebooks to fill in.
SOURCE, EXERCISES = "Source", "Exercises"
# Colours of code in the light and in the dark scheme.
CODE_STYLES = ("default", "github-dark")
# Drawn in equations without standing in the text: roots, and the italics that stand for single letters.
DRAWN = {"√", *map(chr, [0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C)])}


class Refusal(Exception):  # noqa: N818 (it is the answer to a request, not an error of the program)
    """What was asked for would not make a sound book; nothing has been written."""


@dataclass(eq=False)
class Page:
    """One page: what it is made of, and what rendering finds out about it."""

    source: Path
    group: str
    notebook: nbformat.NotebookNode
    contents: list[tuple[str, str]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    links: list[tuple[str, Path, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        if self.group == SOURCE:
            return f"{self.title.removesuffix('.py').replace('/', '_')}.html"
        return "index.html" if self.group == "" else f"{self.source.stem}.html"

    @property
    def number(self) -> str:
        """The two digits that a notebook and its solutions share."""
        return found[0] if (found := re.match(r"\d\d", self.source.name)) else ""

    @property
    def title(self) -> str:
        return self.notebook.cells[0].source.splitlines()[0].removeprefix("# ").strip()


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Return a notebook that has its outputs, or refuse."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if any(cell.execution_count is None for cell in code):
        raise Refusal(f"{path} has cells without outputs: execute it first (`make notebooks` does)")
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        raise Refusal(f"{path} has an error in its outputs")
    return notebook


def collect(folder: Path, edition: str) -> list[Page]:
    """Pages of an edition in their order, index first."""
    series = [Page(path, "The series", read_notebook(path)) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]
    if not series:
        raise Refusal(f"no numbered notebook (NN_name.ipynb) in {folder}")
    pages = [*series, *text_page(folder / "glossary.md", "Words")]
    if edition == "student":
        pages += exercises(folder)
    else:
        solutions = sorted((folder / "solutions").glob("[0-9][0-9]_*.ipynb"))
        pages += [Page(path, "Solutions", read_notebook(path)) for path in solutions]
        pages += text_page(folder / "instructor.md", "Teaching")
    for page in pages:
        if not page.notebook.cells[0].source.startswith("# "):
            raise Refusal(f"{page.source} does not begin with its title")
    return [index(folder.parent / "README.md", series), *pages, *modules(pages, folder.parent)]


def exercises(folder: Path) -> list[Page]:
    """Notebooks to fill in, of which there are no files: those that are made of the solutions."""
    pages = []
    for path in sorted((folder / "solutions").glob("[0-9][0-9]_*.ipynb")):
        if (notebook := student.fill_in(read_notebook(path), path.name[:2])) is not None:
            pages.append(Page(folder / "exercises" / f"{path.name[:2]}_exercises.ipynb", EXERCISES, notebook))
    return pages


def text_page(path: Path, group: str) -> list[Page]:
    """Page of a Markdown file, if there is one."""
    if not path.is_file():
        return []
    return [Page(path, group, new_notebook(cells=[new_markdown_cell(path.read_text(encoding="utf-8"))]))]


def modules(pages: Sequence[Page], root: Path) -> list[Page]:
    """Pages of the modules of lgi that these pages link to, so that a name can be followed without a network."""
    links = {
        (page.source.parent / unquote(link)).resolve()
        for page in pages
        for cell in page.notebook.cells
        if cell.cell_type == "markdown"
        for link in re.findall(r"\]\(([^)\s#]+\.py)\b", cell.source)
    }
    found = []
    for path in sorted(path for path in links if path.is_file() and path.is_relative_to(root / "lgi")):
        title = new_markdown_cell(f"# {path.relative_to(root).as_posix()}")
        code = new_code_cell(path.read_text(encoding="utf-8"), execution_count=1)
        found.append(Page(path, SOURCE, new_notebook(cells=[title, code])))
    return found


def index(readme: Path, series: Sequence[Page]) -> Page:
    """First page: parts of README.md, and between them what the notebooks say of themselves, and their results."""
    start, *sections = re.split(r"(?m)^(?=## )", readme.read_text(encoding="utf-8"))
    cards = ["## The series"]
    rows = ["## Results\n", f"| | {' | '.join(RESULTS)} |", "|---" * (len(RESULTS) + 1) + "|"]
    for page in series:
        href = page.source.relative_to(readme.parent)
        about = page.notebook.cells[0].source.partition("\n")[2]
        # The run time up to its first comma; what it depends on is the notebook's to say.
        about = re.sub(r"(\*\*Run time:\*\* [^;,.]*).*", r"\1.", about, flags=re.DOTALL)
        about = re.sub(r"\]\((?!https:|#)", f"]({href.parent.as_posix()}/", about)
        cards.append(f"### [{page.title}]({href})\n\n{about}")
        for output in (output for cell in page.notebook.cells for output in cell.get("outputs", [])):
            table = output.get("data", {}).get("text/markdown", "")
            if table.startswith("| claim | paper |"):
                titles, _, *claims = (line.strip("| ").split(" | ") for line in table.splitlines())
                for claim in claims:
                    told = dict(zip(titles, claim, strict=True))
                    cells = [f"[{page.number}]({href}#results)", *map(told.__getitem__, RESULTS)]
                    rows.append(f"| {' | '.join(cells)} |")
    kept = [part for part in sections if part.partition("\n")[0].removeprefix("## ") in README_SECTIONS]
    parts = [start, "\n\n".join(cards), "\n".join(rows), *kept]
    return Page(readme, "", new_notebook(cells=[new_markdown_cell(part) for part in parts]))


def mathml(tex: str, *, display: bool) -> str:
    """Convert an equation; a display gets its ``\\tag`` at the right."""
    bare, tags = re.sub(r"\\tag\{(.*?)\}", "", tex).strip(), re.findall(r"\\tag\{(.*?)\}", tex)
    converter = math_core.LatexToMathML(fancy_error=False)
    try:
        html = converter.convert_with_local_state(bare, displaystyle=display)
    except math_core.LatexError as error:
        raise Refusal(f"cannot convert the equation ${bare}$: {error}") from error
    html = html.replace("<math", f'<math alttext="{escape(bare)}"', 1)
    number = "".join(f'<span class="number">({escape(tag)})</span>' for tag in tags)
    # A span, because a paragraph can hold no block.
    return f'<span class="equation">{html}{number}</span>' if display else html


class Renderer(IPythonRenderer):
    """nbconvert's Markdown with equations in MathML."""

    def inline_math(self, body: str) -> str:
        return mathml(body, display=False)

    def block_math(self, body: str) -> str:
        return mathml(body, display=True)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", display=True)


def markdown(text: str) -> str:
    return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(text)


def png_size(png: bytes) -> str:
    """Attributes of an image element that keep its place free while it loads."""
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    return f'width="{width}" height="{height}" style="--width:{width}px"'


def slug(text: str) -> str:
    """Anchor of a heading, as GitHub makes it; JupyterLab's are made equal to it."""
    return re.sub(r"[^\w-]", "", unquote(text).strip().lower().replace(" ", "-"))


class Book:
    """The pages of an edition on their way into `folder`."""

    def __init__(self, notebooks: Path, edition: str, folder: Path):
        self.edition, self.folder = edition, folder
        self.pages = collect(notebooks, edition)
        self.by_source = {page.source: page for page in self.pages}
        if len({page.name for page in self.pages}) < len(self.pages):
            raise Refusal(f"two notebooks of the same name: {', '.join(sorted(page.name for page in self.pages))}")

    def write(self) -> None:
        """Render all pages, check the links between them, then style sheet and font."""
        exporter = HTMLExporter(
            template_file=str(HERE / "book" / "page.html.j2"),
            filters={"markdown2html": markdown, "png_size": png_size},
            config=Config({"ExtractOutputPreprocessor": {"enabled": True}}),
        )
        texts = []
        for page in self.pages:
            # Not in `resources`, of which nbconvert makes deep copies.
            exporter.environment.globals |= {"book": self, "page": page}
            try:
                html, made = exporter.from_notebook_node(page.notebook, {"unique_key": f"figures/{page.source.stem}"})
            except Refusal as refusal:
                raise Refusal(f"{page.source}: {refusal}") from refusal
            files = {page.name: html.encode(), **made.get("outputs", {})}
            if page.group == EXERCISES:
                files[f"notebooks/{page.source.name}"] = nbformat.writes(page.notebook).encode()
            for name, content in files.items():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(content)
            texts.append(html)
        for page in self.pages:
            for href, target, fragment in page.links:
                if fragment and fragment not in self.by_source[target].ids:
                    raise Refusal(f"{page.source}: the link to {href} names a heading that is not there")
        css = (HERE / "book" / "book.css").read_text(encoding="utf-8")
        css += code_css() + font_css(DRAWN.union(*texts))
        (self.folder / "book.css").write_text(css, encoding="utf-8")

    @staticmethod
    def policy(script: str) -> str:
        """Content security policy of a page with this one script; ``file:``, because it may be opened from a disk."""
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return (
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'self' file: 'unsafe-inline'; "
            "img-src 'self' file: data:; font-src data:; base-uri 'none'; form-action 'none'"
        )

    def finish(self, page: Page, html: str) -> str:
        """Give the content of a page its anchors, links and descriptions, and its wide tables their frames."""
        soup = BeautifulSoup(html, "html.parser")
        for heading in soup(["h1", "h2", "h3", "h4"]):
            text, anchor = heading.get_text(), slug(heading.get_text())
            while anchor in page.ids:
                anchor += "-again"
            page.ids.add(anchor)
            heading["id"] = anchor
            if heading.name != "h1":
                heading.append(soup.new_tag("a", attrs={"class": "anchor", "href": f"#{anchor}", "aria-label": text}))
            if heading.name == "h2":
                page.contents.append((anchor, text))
        page.ids |= {element["id"] for element in soup(id=True)}
        for style in soup("style"):
            style.decompose()  # what pandas adds to each table
        for table in soup("table"):
            table.attrs.pop("border", None)
            table.wrap(soup.new_tag("div", attrs={"class": "wide", "tabindex": "0"}))
        for name in soup("strong", string=re.compile(r"^(Paper|Figures?|Run time):$")):
            name.parent["class"] = "facts"
        for link in soup.select("a[href]:not(figure.output a)"):
            self.rewrite(page, link, "href")
        plots = soup.select("figure.output img")
        for i, image in enumerate(plots, start=1):
            section, text = describe(image, soup)
            image["alt"] = f"{section} (plot {i} of {len(plots)}): {text}"
        for image in soup.select("img:not(figure.output img)"):
            self.rewrite(page, image, "src")
            if not image.get("alt"):
                raise Refusal(f"the image {image['src']} has no description: ![description](...)")
        return str(soup)

    def rewrite(self, page: Page, element: Tag, attribute: str) -> None:
        """Turn a link to a notebook into one to its page; take links off what the book does not hold; copy images."""
        href = str(element[attribute])
        url = urlsplit(href)
        if url.scheme or url.netloc:
            if attribute == "src":
                raise Refusal(f"{href} would be loaded from the network")
            return
        target = (page.source.parent / unquote(url.path)).resolve() if url.path else page.source
        if target in self.by_source:
            fragment = slug(url.fragment)
            page.links.append((href, target, fragment))
            name = self.by_source[target].name if url.path else ""
            element[attribute] = name + (f"#{fragment}" if fragment else "")
        elif not target.exists():
            raise Refusal(f"the link to {href} leads nowhere: there is no {target}")
        elif attribute == "src":
            element["src"] = f"figures/{target.name}"
            (self.folder / "figures").mkdir(exist_ok=True)
            shutil.copyfile(target, self.folder / "figures" / target.name)
        else:
            element.unwrap()


def describe(image: Tag, soup: BeautifulSoup) -> tuple[str, str]:
    """Section of a plot, and in words what it shows: its caption and the sentence below it, else the last one above.

    Emphasised words with which the prose below begins (``*Fig. 3 ...*``) are the caption and move to the figure.
    """

    def words(element: Tag) -> str:
        clone = BeautifulSoup(str(element), "html.parser")
        for formula in clone("math"):
            formula.replace_with(str(formula["alttext"]))
        return " ".join(clone.get_text().split())

    def opening(text: str) -> str:
        # One sentence, or two where the first is a word or two; "Fig." and "eq." end none.
        return re.match(r".{25,}?[^\W\d]{4}[.!?](?!\S)|.*", text)[0]

    figure, cell = image.find_parent("figure"), image.find_parent(class_="cell")
    section = cell.find_previous(["h1", "h2", "h3"]).get_text()
    below, above = cell.find_next_sibling(class_="prose"), cell.find_previous_sibling(class_="prose")
    # Words that the cell itself has written below its figure come before the prose below the cell.
    written = figure.find_next_sibling(class_="output")
    written = written if written and written.select_one("p > em") else None
    first = written.p if written else below.find(True) if below else None
    text = ""
    if first is not None and first.name == "p":
        text = opening(words(first))
        start = next((child for child in first.contents if str(child).strip()), None)
        if isinstance(start, Tag) and start.name == "em" and start.get_text().startswith("Fig"):
            rest = words(first).removeprefix(words(start)).strip()
            text = f"{words(start)} {opening(rest)}".strip()
            # The last figure of the cell has it.
            if figure is cell.find_all("figure")[-1] and (written or cell.find_next_sibling() is below):
                caption = soup.new_tag("figcaption")
                caption.extend(list(start.contents))
                (written or start).decompose()
                figure.append(caption)
    if not text and above is not None:
        text = re.split(r"(?<=[^\W\d]{4}[.!?])\s", words(above.find_all(["p", "li"])[-1]))[-1]
    return section.strip(), text


def code_css() -> str:
    """Pygments' colours for both schemes, one rule a token."""
    styles = [get_style_by_name(name) for name in CODE_STYLES]
    rules = []
    for token, short in STANDARD_TYPES.items():
        light, dark = (style.style_for_token(token) for style in styles)
        if short and (light["color"] or dark["color"]):
            colours = [f"#{style['color']}" if style["color"] else "currentColor" for style in (light, dark)]
            rules.append(f".highlight .{short}{{color:light-dark({colours[0]},{colours[1]})}}")
    return "\n".join(rules) + "\n"


def font_css(characters: set[str]) -> str:
    """STIX Two Math (SIL Open Font License), cut to `characters`, inside the style sheet.

    Without a font made for it a browser draws neither tall brackets nor roots well, and many machines have none. A page
    opened from a file may not load a font file in every browser; what the style sheet holds, it may.
    """
    options = subset.Options(flavor="woff", name_IDs=["*"], notdef_outline=True)
    content = io.BytesIO()
    path = distribution("ziamath").locate_file("ziamath/fonts/STIXTwoMath-Regular.ttf")
    with subset.load_font(str(path), options) as font:
        subsetter = subset.Subsetter(options)
        subsetter.populate(text="".join(sorted(characters)))
        subsetter.subset(font)
        subset.save_font(font, content, options)
    data = base64.b64encode(content.getvalue()).decode()
    return f'@font-face{{font-family:"Book Math";src:url(data:font/woff;base64,{data}) format("woff")}}\n'


def build(notebooks: Path, edition: str, folder: Path) -> list[Page]:
    """Write the book beside `folder` and put it in its place when it is complete."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "book.css").is_file():
        raise Refusal(f"{folder} holds something that is not a book: move it away, or name another with --output")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".book-") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        book = Book(notebooks, edition, new)
        book.write()
        try:
            if folder.exists():
                folder.rename(Path(temporary) / "old")
            new.rename(folder)
        except BaseException:  # in between, by an interrupt: no book would be left
            with suppress(OSError):
                (Path(temporary) / "old").rename(folder)
            raise
    return book.pages


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edition", choices=("full", "student"), default="full")
    parser.add_argument("--notebooks", metavar="FOLDER", type=Path, default=HERE)
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="default: book or book_student, where runs are")
    args = parser.parse_args(argv)
    folder = args.output or artifacts.runs_folder() / ("book" if args.edition == "full" else "book_student")
    try:
        pages = build(args.notebooks.resolve(), args.edition, folder.resolve())
    except (Refusal, OSError) as refusal:
        print(f"book: {refusal}", file=sys.stderr)
        return 2
    print(f"{len(pages)} pages, first one {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
