"""The notebooks of the documentation run from top to bottom; the site shows them."""

import re
from pathlib import Path

import jax
import matplotlib
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_script_of_cells_that_begins_with_its_title(path):
    before, *cells = re.split(r"^# %%", path.read_text(), flags=re.MULTILINE)
    assert not before
    assert cells[0].startswith(" [markdown]\n# # ")
    for cell in cells:
        kind, *lines = cell.rstrip("\n").split("\n")
        assert kind in ("", " [markdown]")
        assert lines and (not kind or all(line.startswith("#") for line in lines))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, quick):
    """As a script, and what it says of itself holds."""
    # Notebooks are run by people whose JAX promotes ranks.
    try:
        with jax.numpy_rank_promotion("allow"), matplotlib.rc_context():
            exec(compile(path.read_text(), str(path), "exec"), {"__name__": "__main__"})
        assert len(plt.get_fignums()) >= 2
    finally:
        plt.close("all")
