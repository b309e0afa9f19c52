"""What the studies write: where figures were measured, and the tables of a page."""

import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
from pathlib import Path

import jaxiou
from benchmarks import report
from benchmarks.measure import commit, device

PAGE = Path(__file__).parents[1] / "docs" / "which_loss.md"
PACKAGES = ("jax", "flax", "optax")


def head(module, arguments=None, packages=PACKAGES):
    """Which command made figures, when, where and with which versions."""
    typed = shlex.join(map(str, sys.argv[1:] if arguments is None else arguments))
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "command": f"python -m {module} {typed}".strip(),
        "date": datetime.date.today().isoformat(),
        "device": device(),
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            "jaxiou": jaxiou.__version__,
            **versions,
        },
    }


def heading(head):
    """`head` as a sentence."""
    versions = ", ".join(f"{name} {v}" for name, v in head["versions"].items())
    return (
        f"`{head['command']}`; {head['device']}; {head['date']}; commit "
        f"{head['commit']}; {versions}."
    )


def read(path):
    """A file of results, or None where nothing has been measured."""
    return json.loads(path.read_text()) if path.exists() else None


def fill(blocks, page=PAGE):
    """Writes the figures of each block of a page anew; other blocks stay."""
    page.write_text(report.fill(page.read_text(), blocks))
