"""Measures, matrices and losses against exact references and other libraries' numbers.

`close` is the check the vectors were made for: 1e-10 + 1e-9 |expected| + 20 noise in
float64, where noise is how far the expected number moves when its input does by 1e-14.

The others guard denominators by adding an eps or by max(·, eps). Rather than loosen the
check, `bend` puts their guard into our numbers: a ratio x / y becomes x / y · y / (y +
eps), with y computed here. Gradients flow through it, so ours are checked in passing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from goldens import cases, load

import jaxiou

MEASURES = {
    "iou": jaxiou.iou,
    "iof": jaxiou.iof,
    "giou": jaxiou.giou,
    "diou": jaxiou.diou,
    "ciou": jaxiou.ciou,
    "eiou": jaxiou.eiou,
}
TORCHVISION = {
    "box_iou": "iou",
    "generalized_box_iou": "giou",
    "distance_box_iou": "diou",
    "complete_box_iou": "ciou",
    "fvcore.nn.giou_loss": "giou",
    "detectron2.layers.diou_loss": "diou",
    "detectron2.layers.ciou_loss": "ciou",
}


def measure_of(case):
    name = case["function"].removeprefix("torchvision.ops.")
    return TORCHVISION.get(name) or TORCHVISION[name.removesuffix("_loss")]


def close(got, expected, noise=0.0, *, atol=1e-10, rtol=1e-9):
    got, expected = np.asarray(got, np.float64), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.isfinite(expected).all(), "rows without an answer must be named"
    bound = atol + rtol * np.abs(expected) + 20 * np.asarray(noise)
    excess = np.abs(got - expected) - bound
    worst = np.unravel_index(np.argmax(excess), excess.shape) if excess.size else ()
    assert (excess <= 0).all(), f"at {worst}: {got[worst]}, not {expected[worst]}"


def pairs(name):
    """The pairs of a file: predictions, targets, categories and the smooth ones."""
    entry = load(name)["inputs"]["pairs"]
    smooth = entry["smooth_basic"]
    return entry["pred"], entry["target"], entry["category"], smooth


# The exact references: no eps anywhere.


@pytest.mark.parametrize("name", MEASURES)
def test_values_are_exact(name, x64):
    predictions, targets, category, _ = pairs("exact_axis_aligned")
    expected = load("exact_axis_aligned")["metrics"][name].copy()
    got = MEASURES[name](predictions, targets)

    # 0/0 has no exact value. It occurs where we promise one, which the oracle states.
    undefined = np.isnan(expected)
    points = {"identical_points", "distinct_points"}
    empty = {"iof": {"zero_width_pred", "zero_height_pred", "point_pred"} | points}.get(
        name, points
    )
    assert set(category[undefined]) == empty
    promised = oracle.elementwise(getattr(oracle, name), predictions, targets)
    expected[undefined] = promised[undefined]
    close(got, expected)


@pytest.mark.parametrize("name", MEASURES)
def test_values_in_float32(name):
    predictions, targets, category, _ = pairs("exact_axis_aligned")
    predictions, targets = predictions.astype("f4"), targets.astype("f4")
    expected = load("exact_axis_aligned")["metrics"][name].copy()
    # Rounding these inputs moves the answer; the oracle answers for the rounded ones.
    moved = np.isin(category, ["offset_1e5", "elongated", "elongated_cross"])
    moved |= np.isnan(expected)
    promised = oracle.elementwise(getattr(oracle, name), predictions, targets)
    expected[moved] = promised[moved]
    got = MEASURES[name](predictions, targets)
    assert got.dtype == jnp.float32
    close(got, expected, atol=3e-6, rtol=0)
    close(got, promised, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou", "eiou"])
def test_gradients_are_exact(name, x64):
    predictions, targets, _, smooth = pairs("exact_axis_aligned")
    key = "ciou_alpha_detached" if name == "ciou" else name
    expected = load("exact_axis_aligned")["grad_pred"][key]
    assert np.isfinite(expected[smooth]).all()
    assert smooth.sum() == 76
    got = jax.grad(lambda p: MEASURES[name](p, targets).sum())(predictions)
    close(got[smooth], expected[smooth])
    # The other rows have kinks and no exact answer: finite, that is all.
    assert np.isfinite(got).all()


# Denominators as the others guard them.


def wholes(a, b):
    """Union, hull area and squared hull diagonal, which the others divide by."""
    edges = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    hull = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    intersection = jnp.maximum(edges, 0).prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return areas - intersection, hull.prod(-1), (hull**2).sum(-1)


def added(eps):
    return lambda whole: whole + eps


def unguarded(whole):
    return whole


def bent(name, compare, a, b, *, iou=unguarded, hull=unguarded, alpha=0.0):
    """A measure as one with guarded denominators computes it.

    `compare(measure)` evaluates ours for the boxes `a` and `b`; `iou` and `hull` guard
    the union and the hull, `alpha` is the eps in the weight of CIoU.
    """

    def bend(value, whole, guard):
        return value if guard is unguarded else value * whole / guard(whole)

    union, enclosing, diagonal = wholes(a, b)
    ours = compare(jaxiou.iou)
    value = bend(ours, union, iou)
    if name == "giou":
        value -= bend(ours - compare(jaxiou.giou), enclosing, hull)
    if name in ("diou", "ciou"):
        value -= bend(ours - compare(jaxiou.diou), diagonal, hull)
    if name == "ciou":
        # The term α v with α = v / (1 - IoU + v) tells v, and v the others' α.
        term = compare(jaxiou.diou) - compare(jaxiou.ciou)
        held, rest = jax.lax.stop_gradient((jnp.maximum(term, 0), 1 - ours))
        v = (held + jnp.sqrt(held * held + 4 * held * rest)) / 2
        guarded = 1 - jax.lax.stop_gradient(bend(ours, union, iou)) + v + alpha
        value -= term * jnp.where(v > 0, (rest + v) / jnp.where(v > 0, guarded, 1), 0)
    return value


# torchvision: matrices. IoU and GIoU divide by the bare union and hull, so two empty
# boxes give NaN; DIoU adds eps to the diagonal, CIoU to its weight as well.


def matrix_case(case):
    """The matrix as torchvision computes it, from ours, as a function of the boxes."""
    name, eps = measure_of(case), case["kwargs"].get("eps", 0)

    def function(boxes1, boxes2):
        return bent(
            name,
            lambda measure: jaxiou.pairwise(boxes1, boxes2, measure=measure),
            boxes1[..., :, None, :],
            boxes2[..., None, :, :],
            hull=added(eps) if eps else unguarded,
            alpha=eps,
        )

    inputs = load("torchvision_pairwise")["inputs"][case["input"]]
    boxes1, boxes2 = inputs["boxes1"], inputs["boxes2"]
    # An empty array has lost its last axis in the file.
    boxes1, boxes2 = (x if x.size else x.reshape(0, 4) for x in (boxes1, boxes2))
    return jax.jit(function), boxes1, boxes2


@pytest.mark.parametrize(
    "case", cases("torchvision_pairwise"), ids=lambda case: case["id"]
)
def test_torchvision_matrices(case, x64):
    function, boxes1, boxes2 = matrix_case(case)
    if "fmt" in case["kwargs"]:
        # torchvision converts before it compares; so do we, there and back.
        boxes1, boxes2 = (
            jaxiou.convert(
                jaxiou.convert(boxes, "xyxy", case["box_format"]),
                case["box_format"],
                "xyxy",
            )
            for boxes in (boxes1, boxes2)
        )
    got = np.array(function(boxes1, boxes2))
    expected = case["output"].copy().reshape(got.shape)
    # NaN, ours is what the oracle says: 0/0 of two empty boxes, and in CIoU the aspect
    # ratio of a point.
    undefined = np.isnan(expected)
    if undefined.any():
        assert case["input"] == "edge_cases_all_pairs"
        name = measure_of(case)
        sides1, sides2 = (boxes[:, 2:] - boxes[:, :2] for boxes in (boxes1, boxes2))
        empty = (sides1.prod(-1) == 0)[:, None] & (sides2.prod(-1) == 0)
        if name == "ciou":
            empty |= ((sides1 == 0).all(-1))[:, None] | (sides2 == 0).all(-1)
        np.testing.assert_array_equal(undefined, empty)
        plain = jaxiou.pairwise(boxes1, boxes2, measure=MEASURES[name])
        promised = oracle.matrix(getattr(oracle, name), boxes1, boxes2)
        close(plain[undefined], promised[undefined])
    close(got[~undefined], expected[~undefined])


@pytest.mark.parametrize(
    "case",
    [case for case in cases("torchvision_pairwise") if "grad_weights" in case],
    ids=lambda case: case["id"],
)
def test_torchvision_matrix_gradients(case, x64):
    function, boxes1, boxes2 = matrix_case(case)
    _, pullback = jax.vjp(function, jnp.asarray(boxes1), jnp.asarray(boxes2))
    gradient1, gradient2 = pullback(jnp.asarray(case["grad_weights"]))
    close(gradient1, case["grad_boxes1"])
    close(gradient2, case["grad_boxes2"])


# torchvision, fvcore and detectron2: losses. eps is added to the union, hull and
# diagonal; `complete_box_iou_loss(eps=)` uses it in alpha alone and 1e-7 elsewhere.


def loss_case(case):
    name, eps = measure_of(case), case["kwargs"]["eps"]
    elsewhere = 1e-7 if name == "ciou" else eps

    def function(predictions, targets):
        return 1 - bent(
            name,
            lambda measure: 1 - jaxiou.box_loss(predictions, targets, measure=measure),
            predictions,
            targets,
            iou=added(elsewhere),
            hull=added(elsewhere),
            alpha=eps,
        )

    return jax.jit(function)


LOSSES = [c for c in cases("torchvision_losses") if c["kwargs"]["reduction"] == "none"]


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case["id"])
def test_torchvision_losses(case, x64):
    predictions, targets, category, smooth = pairs("torchvision_losses")
    function = loss_case(case)
    # Finite but in CIoU the aspect ratio of a point: ours is finite there too.
    defined = np.isfinite(case["output"])
    points = {"point_pred", "identical_points", "distinct_points"}
    assert set(category[~defined]) == (points if measure_of(case) == "ciou" else set())
    got = function(predictions, targets)
    assert np.isfinite(got).all()
    close(got[defined], case["output"][defined], case["out_noise"][defined])

    for argument, key in enumerate(("grad_pred", "grad_target")):
        if key in case:
            gradient = jax.jit(jax.grad(lambda p, t: function(p, t).sum(), argument))(
                predictions, targets
            )
            noise = case["grad_noise"] if key == "grad_pred" else np.zeros(len(targets))
            noise = np.broadcast_to(noise[:, None], gradient.shape)
            close(gradient[smooth], case[key][smooth], noise[smooth])


REDUCED = [c for c in cases("torchvision_losses") if c["kwargs"]["reduction"] != "none"]


@pytest.mark.parametrize("case", REDUCED, ids=lambda case: case["id"])
def test_torchvision_reductions(case, x64):
    """We reduce nothing: their sum and mean are the caller's, the empty mean too."""
    predictions, targets, _, _ = pairs("torchvision_losses")
    rows = case.get("rows", np.zeros(0)).astype(int)
    predictions, targets = jnp.asarray(predictions[rows]), targets[rows]

    def reduced(predictions):
        total = loss_case(case)(predictions, targets).sum()
        mean = case["kwargs"]["reduction"] == "mean"
        return total / max(len(rows), 1) if mean else total

    value, gradient = jax.jit(jax.value_and_grad(reduced))(predictions)
    close(value, case["output"])
    close(gradient, case.get("grad_pred", np.zeros((0, 4))))


# mmdetection: denominators are max(x, eps), and so is the union inside GIoU's hull
# term, which `bent` leaves alone.


@pytest.mark.parametrize("case", cases("mmdet_overlaps"), ids=lambda case: case["id"])
def test_mmdet_overlaps(case, x64):
    inputs = load("mmdet_overlaps")["inputs"][case["input"]]
    aligned, eps = case["kwargs"]["is_aligned"], case["kwargs"]["eps"]
    name = case["kwargs"]["mode"]

    def guard(whole):
        return jnp.maximum(whole, eps)

    @jax.jit
    def function(boxes1, boxes2):
        if aligned:
            compare, a, b = lambda m: m(boxes1, boxes2), boxes1, boxes2
        else:
            compare = lambda m: jaxiou.pairwise(boxes1, boxes2, measure=m)  # noqa: E731
            a, b = boxes1[..., :, None, :], boxes2[..., None, :, :]
        if name == "iof":
            areas = jaxiou.area(a)
            return compare(jaxiou.iof) * areas / guard(areas)
        value = bent(name, compare, a, b, iou=guard, hull=guard)
        if name == "giou":
            union, hull, _ = wholes(a, b)
            value -= ((guard(hull) - hull) - (guard(union) - union)) / guard(hull)
        return value

    close(function(inputs["boxes1"], inputs["boxes2"]), case["output"])


# detectron2 computes in float32 and divides by selection, as we do.


@pytest.mark.parametrize("name", ["intersection", "iou", "ioa"])
def test_detectron2_matrices(name):
    case = load("detectron2_match")["cases"][f"pairwise_{name}"]
    boxes1, boxes2 = case["boxes1"].astype("f4"), case["boxes2"].astype("f4")
    if name == "iou":
        got = jaxiou.pairwise(boxes1, boxes2)
    else:
        # Intersection over the *second* area.
        got = jaxiou.pairwise(boxes2, boxes1, measure=jaxiou.iof).T
        if name == "intersection":
            got *= jaxiou.area(boxes2)[None, :]
    close(got, case["output"], atol=1e-6, rtol=2e-6)


def test_detectron2_aligned():
    case = load("detectron2_match")["cases"]["matched_pairwise_iou"]
    got = jaxiou.iou(case["boxes1"].astype("f4"), case["boxes2"].astype("f4"))
    undefined = np.isnan(case["output"])
    # 0/0 is NaN in this one function of theirs, 0 in all of ours.
    assert set(case["category"][undefined]) == {"identical_points"}
    close(got, np.where(undefined, 0, case["output"]), atol=1e-6, rtol=2e-6)
