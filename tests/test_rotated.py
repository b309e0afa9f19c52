"""Boxes that turn against exact references, and their formats."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_turned
import pytest
from goldens import cases, load
from test_turned import compiled, evaluate
from turning import boxes, degenerate, sides_of

import jaxiou

EXACT = {"iou": jaxiou.rotated_iou, "iof1": jaxiou.rotated_iof}
EXACT["giou_hull"] = jaxiou.rotated_giou


def golden():
    """All exact pairs, `(218, 5)` twice, and their file."""
    content = load("rotated_iou")["elementwise"]
    return content["boxes1"], content["boxes2"], content


@pytest.mark.parametrize("key", EXACT)
def test_values_are_exact_in_every_category(key, x64):
    a, b, content = golden()
    wanted = content[key].copy()
    # Nothing over nothing: the contract says 0.
    undefined = np.isnan(wanted)
    flat = {"iof1": {"zero_width", "zero_height"}}.get(key, set())
    assert set(content["category"][undefined]) <= {"both_zero_area"} | flat
    hulls = np.where(content["hull_area"] > 0, -1.0, 0.0)
    wanted[undefined] = hulls[undefined] if key == "giou_hull" else 0
    found = evaluate(EXACT[key], a, b)[0]
    worst = np.abs(found - wanted)
    assert worst.max() <= 1e-12, content["category"][worst.argmax()]


def test_float32_is_right_for_the_rounded_input(x64):
    a, b, content = golden()
    narrow = [x.astype(np.float32) for x in (a, b)]
    found = evaluate(jaxiou.rotated_iou, *narrow)[0]
    wanted = evaluate(jaxiou.rotated_iou, *(x.astype(np.float64) for x in narrow))[0]
    assert found.dtype == np.float32 and found.max() <= 1
    # Of boxes much longer than wide the place itself depends on the angle's last bit:
    # the distance of centres, over the short side, times a rounding of sine and cosine.
    distance = np.hypot(*(narrow[0] - narrow[1]).astype(float)[:, :2].T)
    short = np.minimum(narrow[0][:, 2:4].min(axis=1), narrow[1][:, 2:4].min(axis=1))
    lever = np.divide(distance, short, out=np.zeros(len(a)), where=short > 0)
    near = (content["iou"] > 0) & (lever > 20)
    assert set(content["category"][near]) <= {
        "elongated_1000to1_near_parallel",
        "elongated_1000to1_cross",
        "elongated_vs_box",
        "size_mismatch_1e4",
    }
    bound = np.where(near, 1e-6 + 2.0**-25 * lever, 1e-6)
    excess = np.abs(found - wanted) - bound
    assert excess.max() <= 0, content["category"][excess.argmax()]


@pytest.mark.parametrize("shift", [0.0, 3000.0, 60000.0])
def test_real_boxes_in_pixels(shift, x64):
    content = load("real_rotated_iou")
    a, b = (content[k] + [shift, shift, 0, 0, 0] for k in ("a", "b"))
    narrow = [x.astype(np.float32) for x in (a, b)]
    found = evaluate(jaxiou.rotated_iou, *narrow)[0]
    exact = evaluate(jaxiou.rotated_iou, *(x.astype(np.float64) for x in narrow))[0]
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6)
    if not shift:
        # Annotations have many digits: what rounding them to float32 makes of it.
        np.testing.assert_allclose(found, content["iou"], rtol=0, atol=5e-6)


def test_gradients_are_exact_away_from_kinks(x64):
    content = load("rotated_iou_grad")
    smooth = ~content["kink"]
    assert smooth.sum() > 120
    a, b = content["boxes1"][smooth], content["boxes2"][smooth]
    for found, key in zip(
        evaluate(jaxiou.rotated_iou, a, b)[1:], ("boxes1", "boxes2"), strict=True
    ):
        wanted = content[f"grad_iou_{key}"][smooth]
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=3e-12)


def test_the_matrix_is_exact_and_matchers_use_it(x64):
    ties_free = False
    for case in load("rotated_iou")["pairwise"].values():
        a, b = case["boxes1"], case["boxes2"]
        found = jaxiou.pairwise(a, b, measure=jaxiou.rotated_iou)
        np.testing.assert_allclose(found, case["iou"], rtol=0, atol=1e-12)
        best = jaxiou.best_match(a, b, measure=jaxiou.rotated_iou)
        np.testing.assert_allclose(best.values1, case["iou"].max(axis=1), atol=1e-12)
        # Of equal overlaps rounding makes one the best: the value it stands for counts.
        chosen = case["iou"][best.indices2, np.arange(len(b))]
        np.testing.assert_allclose(chosen, case["iou"].max(axis=0), atol=1e-12)
        if np.ptp(np.sort(case["iou"], axis=1)[:, -2:], axis=1).min() < 1e-9:
            continue
        ties_free = True
        matched = jaxiou.match_anchors(
            a, b, measure=jaxiou.rotated_iou, positive=0.3, negative=0.2
        )
        wanted = oracle.match(case["iou"], 0.3, 0.2, force=True)
        np.testing.assert_array_equal(matched.indices, wanted)
    assert ties_free


def test_suppression_and_losses_of_boxes_that_turn():
    detections = boxes(5, 3, 40, extent=40.0, dtype=np.float32)
    scores = np.random.default_rng(0).uniform(size=40).astype(np.float32)
    kept = jaxiou.nms(
        detections, scores, threshold=0.3, max_outputs=40, measure=jaxiou.rotated_iou
    )
    iou = lambda a, b: oracle_turned.rotated_iou(np.array(a), np.array(b))  # noqa: E731
    wanted = oracle.nms(detections, scores, 0.3, measure=iou)
    assert 5 < len(wanted) < 40
    np.testing.assert_array_equal(np.asarray(kept.indices)[: len(wanted)], wanted)
    assert not np.asarray(kept.valid)[len(wanted) :].any()
    loss = jaxiou.box_loss(detections, detections[::-1], measure=jaxiou.rotated_giou)
    pairs = zip(detections, detections[::-1], strict=True)
    wanted = [oracle_turned.rotated_giou(*p) for p in pairs]
    np.testing.assert_allclose(loss, 1 - np.array(wanted), atol=2e-6)


@pytest.mark.parametrize("name", list(load("reported_cases")["rotated"]))
def test_boxes_on_which_others_were_reported_to_fail(name):
    case = load("reported_cases")["rotated"][name]
    if case["kind"] != "cxcywh_angle_pair":
        pytest.skip("not a pair of rotated boxes")
    a, b = np.array([case["a"], case["b"]])
    unit = math.pi / 180 if case["angle_unit"] == "deg" else 1.0
    sign = -1.0 if "ccw" in case["angle_positive"] else 1.0
    for box in (a, b):
        box[4] *= unit * sign
    value = evaluate(jaxiou.rotated_iou, *(x[None].astype(np.float32) for x in (a, b)))
    np.testing.assert_allclose(value[0], case["expected_iou"], atol=case["tol"])


def test_at_angle_zero_it_is_the_axis_aligned_measure(x64):
    a, b = boxes(4, 1, 50), boxes(4, 2, 50)
    b[:10, [0, 2]] = a[:10, [0, 2]]
    b[10:15] = a[10:15]

    def turned(x):
        x = jaxiou.convert(x, "xyxy", "cxcywh")
        return jnp.concatenate([x, jnp.zeros((len(x), 1))], axis=1)

    for measure, other in (
        (jaxiou.rotated_iou, jaxiou.iou),
        (jaxiou.rotated_diou, jaxiou.diou),
    ):
        found = compiled(measure)(turned(a), turned(b))
        wanted = compiled(other)(a, b)
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-14)
        # dx1 + dx2 is the shift. Ties between edges count half in both.
        for g, w in zip(found[1:], wanted[1:], strict=True):
            np.testing.assert_allclose(g[:, :2], w[:, :2] + w[:, 2:], atol=1e-13)


def test_a_flat_box_has_the_gradient_that_makes_it_grow(x64):
    target = np.array([[2.0, 3, 6, 8, -0.4]])
    flat = np.array([[2.5, 3.5, 0, 4, 0.3]])
    wide = flat + np.array([0, 0, 1e-6, 0, 0])
    value, gradient, _ = evaluate(jaxiou.rotated_iou, flat, target)
    slope = evaluate(jaxiou.rotated_iou, wide, target)[0] / 1e-6
    np.testing.assert_allclose(gradient[0, 2], slope, rtol=1e-5)
    assert value == 0 and gradient[0, 2] > 0.05
    inverted = evaluate(jaxiou.rotated_iou, flat - np.array([0, 0, 1, 0, 0]), target)
    assert inverted[0] == 0 and not inverted[1].any()


@pytest.mark.parametrize("measure", [jaxiou.rotated_iou, jaxiou.rotated_iof], ids=repr)
def test_the_closed_form_is_the_derivative_of_the_formula(measure, x64):
    """Of the chain from areas to the ratio; the slopes of the area are both's."""
    pairs = [[boxes(5, seed, 60, extent=12.0) for seed in (7, 8)], degenerate(5)]
    a, b = (np.concatenate(x) for x in zip(*pairs, strict=True))
    weights = np.random.default_rng(3).normal(size=len(a))

    def both(a, b):
        cotangents = (
            measure.pairs_vjp(tuple(a.T), tuple(b.T), weights),
            jax.vjp(measure.planes, tuple(a.T), tuple(b.T))[1](weights),
        )
        return [jnp.stack([*x, *y], axis=1) for x, y in cotangents]

    found, wanted = jax.jit(both)(a, b)
    size = np.abs(wanted).max(axis=1, keepdims=True)
    assert (size[:60] > 0).sum() > 30
    # A box that stays inside has a ratio of 1 and a slope of rounding errors.
    longest = np.maximum(sides_of(a).max(axis=1), sides_of(b).max(axis=1))[:, None]
    size = np.maximum(size, 1 / np.where(longest > 0, longest, 1))
    np.testing.assert_allclose(found / size, wanted / size, atol=1e-9)


def test_second_derivatives_are_of_ordinary_size_where_edges_coincide():
    """There the slopes jump by half an edge; what makes them do so has none."""
    a = np.float32([[2, 3, 6, 8, -0.4], [0, 0, 4, 3, 0.0]])
    b = np.float32([[2, 3, 6, 8, -0.4], [1, 0, 2, 3, 0.0]])
    slope = jax.grad(lambda a, b: jaxiou.rotated_iou(a, b).sum())
    curvature = jax.jit(jax.grad(lambda a: jnp.sum(slope(a, b)[:, :3])))(a)
    assert np.isfinite(curvature).all() and np.abs(curvature).max() < 10


def test_equal_boxes_have_no_gradient(x64):
    a = boxes(5, 7, 30)
    for gradient in evaluate(jaxiou.rotated_iou, a, a)[1:]:
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


# Formats


def test_corners_and_degrees_are_those_of_torchvision(x64):
    forth, back = cases("rotated_formats")
    undone = jaxiou.from_corners(back["boxes"].reshape(-1, 4, 2))
    again = jaxiou.convert_angle(back["output"], "degrees_ccw", "radians")
    np.testing.assert_allclose(
        evaluate(jaxiou.rotated_iou, np.asarray(undone), np.asarray(again))[0],
        np.where(back["output"][:, 2:4].min(axis=1) > 0, 1, 0),
        atol=1e-9,
    )
    turned = jaxiou.convert_angle(forth["boxes"], "degrees_ccw", "radians")
    found = jaxiou.corners(turned).reshape(-1, 8)
    np.testing.assert_allclose(found, forth["output"], atol=1e-11)
    for i in range(len(forth["boxes"])):
        np.testing.assert_allclose(
            found[i].reshape(4, 2), oracle_turned.rectangle(turned[i]), atol=1e-11
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_corners_are_undone(dtype, x64):
    a = boxes(5, 4, 200, dtype=dtype)
    found = jaxiou.from_corners(jaxiou.corners(a))
    assert found.dtype == dtype
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found[:, :4], a[:, :4], atol=tolerance)
    turns = (np.asarray(found[:, 4], float) - a[:, 4]) / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=tolerance)
    # Mirrored, and begun at another corner.
    other = jaxiou.from_corners(jaxiou.corners(a)[:, [2, 1, 0, 3]])
    np.testing.assert_allclose(evaluate(jaxiou.rotated_iou, a, other)[0], 1, atol=1e-5)


def test_a_quadrilateral_gets_the_rectangle_of_least_area(x64):
    quads = np.random.default_rng(2).normal(size=(60, 4, 2)) * 10 + 1000
    found = np.asarray(jaxiou.from_corners(quads))
    angles = np.linspace(0, np.pi / 2, 2001)
    u = np.stack([np.cos(angles), np.sin(angles)])
    v = np.stack([-np.sin(angles), np.cos(angles)])
    areas = np.ptp(quads @ u, axis=1) * np.ptp(quads @ v, axis=1)
    assert (found[:, 2] * found[:, 3] <= areas.min(axis=1) * (1 + 1e-9)).all()
    # It holds the quadrilateral: no corner is outside.
    cos, sin = np.cos(found[:, 4]), np.sin(found[:, 4])
    dx, dy = np.moveaxis(quads - found[:, None, :2], -1, 0)
    along = np.abs(cos[:, None] * dx + sin[:, None] * dy)
    across = np.abs(cos[:, None] * dy - sin[:, None] * dx)
    assert (along <= found[:, 2:3] / 2 + 1e-9).all()
    assert (across <= found[:, 3:4] / 2 + 1e-9).all()


def test_degenerate_corners():
    points = np.full((4, 2), 3.0, np.float32)
    np.testing.assert_array_equal(jaxiou.from_corners(points), [3, 3, 0, 0, 0])
    flat = jaxiou.from_corners(jaxiou.corners(np.float32([3, 4, 0, 7, 0.3])))
    np.testing.assert_allclose(flat[2] * flat[3], 0, atol=1e-5)
    np.testing.assert_allclose(jnp.maximum(flat[2], flat[3]), 7, rtol=1e-6)
    grad = jax.grad(lambda p: jaxiou.from_corners(p)[:4].sum())(points)
    assert np.isfinite(grad).all()
    with pytest.raises(ValueError, match=r"^jaxiou\.from_corners: .*\(2, 8\), wanted"):
        jaxiou.from_corners(np.zeros((2, 8)))


def test_the_box_around_holds_the_corners(x64):
    a = boxes(5, 5, 100)
    points = np.asarray(jaxiou.corners(a))
    wanted = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
    np.testing.assert_allclose(jaxiou.to_xyxy(a), wanted, atol=1e-12)


RANGES = {
    "le90": (-np.pi / 2, np.pi),
    "le135": (-np.pi / 4, np.pi),
    "oc": (0, np.pi / 2),
}


@pytest.mark.parametrize("target", ["degrees_ccw", *RANGES])
def test_conventions_write_the_same_rectangle(target, x64):
    a = boxes(5, 6, 200)
    a[:8, 4] = np.arange(-4, 4) * np.pi / 4
    found = np.asarray(jaxiou.convert_angle(a, "radians", target))
    back = jaxiou.convert_angle(found, target, "radians")
    np.testing.assert_allclose(evaluate(jaxiou.rotated_iou, a, back)[0], 1, atol=1e-12)
    if target in RANGES:
        start, length = RANGES[target]
        assert (found[:, 4] >= start).all() and (found[:, 4] < start + length).all()
    if target.startswith("le"):
        assert (found[:, 2] >= found[:, 3]).all()


def test_an_unknown_convention_is_refused():
    with pytest.raises(ValueError, match=r"^jaxiou\.convert_angle: `target` is 'ccw'"):
        jaxiou.convert_angle(np.zeros(5), "radians", "ccw")
