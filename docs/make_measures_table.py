"""Writes docs/measures.md from the docstrings and what the measures do.

    python docs/make_measures_table.py

A test compares the file with what this makes. A new public measure gets its row without
a line here; add the libraries that have it to ELSEWHERE.
"""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxiou

PAGE = Path(__file__).parent / "measures.md"
# Members of families whose parameters have no defaults.
PARAMETERS = {
    "mpdiou": {"image_size": (640, 480)},
    "inner_iou": {"ratio": 0.7},
    "nwd": {"constant": 12.8},
    "rotated_nwd": {"constant": 12.8},
}
ELSEWHERE = {
    "iou": "torchvision, mmdetection, detectron2, ultralytics, keras",
    "iof": "mmdetection; detectron2 and ultralytics by the second area",
    "giou": "torchvision, mmdetection, fvcore, ultralytics",
    "diou": "torchvision, mmdetection, detectron2, ultralytics",
    "ciou": "torchvision, detectron2, ultralytics, keras",
    "gated_ciou": "mmdetection",
    "eiou": "copies",
    "siou": "mmyolo, PaddleDetection; mmdetection with `neg_gamma=True`",
    "extended_iou": "inside mmdetection's `eiou_loss`",
    "smooth_iou": "mmdetection (`eiou_loss`)",
    "bounded_iou": "mmdetection, as four numbers",
    "mpdiou": "copies",
    "shape_iou": "the authors' code",
    "piou": "the authors' code",
    "piou_v2": "the authors' code",
    "wiou": "the authors' code",
    "nwd": "the authors' code",
    "alpha_iou": "the authors' code",
    "inner_iou": "the authors' code",
    "focaler": "the authors' code",
}
HEAD = """# Measures

Larger is better; a box with itself has the maximum. Every row works aligned, in
`pairwise`, `best_match`, `match_anchors`, `nms` and `box_loss`. *Apart*: whether a box
that does not touch its target is drawn towards it. This page is made by
`python docs/make_measures_table.py` from the docstrings, which say more, and from what
the measures do; the properties are those of the default parameters.

| measure | formula | range | symmetric | scale-free | apart | reference | elsewhere |
|---|---|---|---|---|---|---|---|
"""


def members():
    """Public measures, families by the member of default parameters."""
    for name, value in sorted(vars(jaxiou).items()):
        if hasattr(value, "measure_family"):
            value = value(**PARAMETERS.get(name, {}))
        if isinstance(value, jaxiou.Measure):
            yield name, value


def signature(name):
    """The name as it is written in code, with the parameters of a family."""
    value = getattr(jaxiou, name)
    if not hasattr(value, "measure_family"):
        return f"`{name}`"
    return f"`{name}({', '.join(inspect.signature(value).parameters)})`"


def section(text, title):
    """The words of one section of a docstring."""
    found = re.search(rf"\n{title}:\n(.*?)(\n\n|\Z)", text, re.DOTALL)
    return " ".join(found[1].split())


def formula(text):
    """What stands between the first line and the arguments, without line breaks."""
    words = text[text.index("\n\n") : text.index("\n\nArgs:")]
    return " ".join(words.split()).replace("|", "\\|")


def reference(text):
    """The paper's number as a link, or the first words of the reference."""
    words = section(text, "Reference")
    number = re.search(r"arXiv:(\d+\.\d+)", words)
    if number:
        return f"[{number[1]}](https://arxiv.org/abs/{number[1]})"
    return words.split(". Other")[0].split(". The ")[0].rstrip(".")


def drawn(measure):
    """Whether the measure grows as a disjoint box comes nearer, on all four sides."""
    target = jnp.array([10.0, 20.0, 16.0, 29.0])
    moves = jnp.array([[9.0, 1.0], [-9.0, 1.0], [1.0, 13.0], [1.0, -13.0]])
    boxes = target[None] + jnp.concatenate([moves, moves], axis=1)
    gradient = jax.vmap(jax.grad(measure), (0, None))(boxes, target)
    nearer = -(gradient[:, :2] + gradient[:, 2:]) * moves
    return bool((nearer.sum(axis=1) > 0).all())


def build():
    """The text of the page."""
    rows = []
    for name, measure in members():
        if measure.coordinates != 4:
            continue
        text = inspect.cleandoc(measure.__doc__)
        cells = [
            signature(name),
            formula(text),
            f"[{measure.minimum:.4g}, {measure.maximum:.4g}]".replace("[-inf", "(-∞"),
            "yes" if measure.symmetric else "no",
            "yes" if measure.scale_free else "no",
            "yes" if drawn(measure) else "no",
            reference(text),
            ELSEWHERE.get(name, ""),
        ]
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(build())
