"""The pictures of the studies."""

import io
import math
import statistics

from matplotlib.figure import Figure
from PIL import Image


def draw_curves(path, title, curves):
    """Total errors by iteration, `{name: numbers}`, in the order of the legend."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        style = ("-", "--", ":")[number // 10 % 3]
        axes.plot(curve, style, color=f"C{number % 10}", label=name)
    axes.set(xlabel="iteration", ylabel="total error", yscale="log", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right", fontsize="small")
    figure.savefig(path, dpi=120)


def draw_surfaces(path, centres, errors):
    """Final errors over the disc, `{name: errors}`; heights differ between panels."""
    rows = math.ceil(len(errors) / 3)
    figure = Figure(figsize=(12, 3.8 * rows))
    for number, (name, error) in enumerate(errors.items(), 1):
        axes = figure.add_subplot(rows, 3, number, projection="3d")
        axes.plot_trisurf(*centres.T, error, cmap="viridis")
        axes.set(title=f"{name}, at most {error.max():.2g}", xlabel="x", ylabel="y")
        axes.set_zlim(0, max(error.max(), 1e-6))
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    # Thousands of shaded triangles: with a palette the file is a third as large.
    Image.open(picture).convert("RGB").quantize(256).save(path, optimize=True)


def draw_slopes(path, gaps, slopes):
    """Gradients by the gap between two boxes, `{name: slopes}`; 0 is on the axis."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, slope) in enumerate(slopes.items()):
        style = "--" if number % 2 else "-"
        axes.plot(gaps, slope, style, label=name, lw=2)
    axes.set(
        xscale="log", xlabel="gap between two boxes of side 1", ylabel="|gradient|"
    )
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.set(title="How strongly boxes apart are drawn together", ylim=(-2e-5, 4))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.1))
    figure.savefig(path, dpi=120)


def draw_runs(path, label, panels):
    """Runs as dots and their mean as a bar: `{title: {name: values}}`."""
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(every, panels.items(), strict=True):
        for place, values in enumerate(rows.values()):
            axes.plot([place] * len(values), values, "o", color="C0", alpha=0.6)
            axes.plot(place, statistics.mean(values), "_", ms=24, mew=2, color="C1")
        axes.set_xticks(range(len(rows)), map(str, rows), rotation=30)
        axes.set(title=title)
        axes.grid(alpha=0.3)
    every[0].set(ylabel=label)
    figure.savefig(path, dpi=120)
