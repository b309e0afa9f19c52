"""What the site needs besides the pages; loaded by `mkdocs.yml`, not published.

Pages link to files outside of `docs/` as they lie in the repository, so that links work
there too. Here those files join the site below `repository/`, and links lead to them.

Notebooks are scripts in the percent format. They are run, and become pages with what
they print and draw; one that fails, fails the site.

The reference is made of docstrings without importing the package. `Docstrings` says
which arguments a decorated formula is called with.
"""

import base64
import functools
import os
import posixpath
import re
from pathlib import Path

import griffe
import jupytext
import nbclient
from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]
OUTSIDE = "repository/"
NOTEBOOKS = "docs/notebooks/"
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s:#]+)(#[^()\s]*)?\)")


def _in_repository(file):
    """Where a file of the site lies in the repository."""
    name = file.src_uri
    return name.removeprefix(OUTSIDE) if name.startswith(OUTSIDE) else f"docs/{name}"


def _in_site(name):
    """Where a file of the repository lies in the site."""
    if name.startswith(NOTEBOOKS):
        name = name.removesuffix(".py") + ".md"
    return name.removeprefix("docs/") if name.startswith("docs/") else OUTSIDE + name


def _target(file, link):
    """The file of the repository that a link of a page means."""
    here = posixpath.dirname(_in_repository(file))
    return posixpath.normpath(posixpath.join(here, link))


@functools.cache
def _page_of(text, folder):
    """A notebook as Markdown, and its pictures by name; `mkdocs serve` runs it once."""
    notebook = jupytext.reads(text, fmt="py:percent")
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT / NOTEBOOKS)}},
        coalesce_streams=True,
    )
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    client.execute(env=os.environ | inline)
    parts, pictures, title = [], {}, [folder]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            title = re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE)[-1:] or title
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            # What goes to stderr is of the machine; warnings are errors in the tests.
            if output.get("name") == "stdout":
                parts.append(f"```text\n{output.text}```")
            elif "image/png" in output.get("data", {}):
                name = f"{folder}/{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(output.data["image/png"])
                parts.append(f"![{title[0]}]({name})")
    return "\n\n".join(parts), pictures


def _add_notebooks(files, config):
    """Adds their pages and pictures."""
    for path in sorted((ROOT / NOTEBOOKS).glob("*.py")):
        text, pictures = _page_of(path.read_text(), path.stem)
        folder = NOTEBOOKS.removeprefix("docs/")
        for name, content in {f"{path.stem}.md": text, **pictures}.items():
            files.append(File.generated(config, folder + name, content=content))


def on_files(files, config):
    """Adds notebooks, what pages link to outside of `docs/`, and what that links to."""
    _add_notebooks(files, config)
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        page = waiting.pop()
        for link in LINK.finditer(page.content_string):
            name = _target(page, link[2])
            known = files.get_file_from_path(_in_site(name))
            if known or name.startswith("docs/") or not (ROOT / name).is_file():
                continue
            added = File.generated(
                config,
                _in_site(name),
                abs_src_path=str(ROOT / name),
                inclusion=InclusionLevel.NOT_IN_NAV,
            )
            files.append(added)
            if added.is_documentation_page():
                waiting.append(added)
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads links between the repository and the site to their new places."""
    outside = page.file.src_uri.startswith(OUTSIDE)

    def lead(link):
        name = _target(page.file, link[2])
        inside = name.startswith("docs/") and not name.startswith(NOTEBOOKS)
        if inside and not outside:
            return link[0]
        if (ROOT / name).is_dir():
            return link[1][1:-1]  # A folder has no page: the words alone.
        if files.get_file_from_path(_in_site(name)) is None:
            return link[0]  # MkDocs will complain.
        start = posixpath.dirname(page.file.src_uri)
        place = posixpath.relpath(_in_site(name), start or ".")
        return f"{link[1]}({place}{link[3] or ''})"

    return LINK.sub(lead, markdown)


class Docstrings(griffe.Extension):
    """Measures have the signatures they are called with; all sections look alike."""

    def on_function(self, *, func, **_):
        decorators = {str(d.value).split("(")[0] for d in func.decorators}
        kinds = {"measure": "measure", "_distance": "distance"}
        for decorator in decorators & set(kinds):
            options = [
                p
                for p in func.parameters
                if p.kind is griffe.ParameterKind.keyword_only
            ]
            if options:
                # A family: those without a default may be given by position.
                for option in options:
                    if option.default is None:
                        option.kind = griffe.ParameterKind.positional_or_keyword
                options.sort(key=lambda option: option.default is not None)
                func.returns = "Measure"
                func.labels.add(f"family of {kinds[decorator]}s")
            else:
                kind = griffe.ParameterKind.positional_or_keyword
                options = [
                    griffe.Parameter(name, annotation="Boxes", kind=kind)
                    for name in ("boxes1", "boxes2")
                ]
                func.returns = 'Float[Array, "*batch"]'
                func.labels.add(kinds[decorator])
            func.parameters = griffe.Parameters(*options)

    def on_object(self, *, obj, **_):
        if obj.docstring is None:
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
        sections = r"^(At the edge|Reference):\n((?:    .*\n?|\n)+)"
        text = re.sub(sections, self._titled, text, flags=re.M)
        link = r"[arXiv:\1](https://arxiv.org/abs/\1)"
        obj.docstring.value = re.sub(r"\barXiv:(\d+\.\d+)", link, text)

    @staticmethod
    def _titled(found):
        body = re.sub(r"^    ", "", found[2], flags=re.M)
        title = f'<p><span class="doc-section-title">{found[1]}:</span></p>'
        return f"{title}\n\n{body}"
