"""Formats, coding, matching, suppression and masks against other libraries' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import cases, load
from test_golden import MEASURES, TORCHVISION, close

import jaxiou


def ids(case):
    return case["id"]


# Formats, areas, clipping.


@pytest.mark.parametrize("case", cases("torchvision_misc", "box_convert"), ids=ids)
def test_convert(case, x64):
    source, target = case["kwargs"]["in_fmt"], case["kwargs"]["out_fmt"]
    close(jaxiou.convert(case["boxes"], source, target), case["output"])
    # torchvision has no y-first format: it is ours with the axes exchanged.
    if "xyxy" in (source, target):
        exchange = [1, 0, 3, 2]
        boxes = case["boxes"][:, exchange] if source == "xyxy" else case["boxes"]
        output = case["output"][:, exchange] if target == "xyxy" else case["output"]
        y_first = [form.replace("xyxy", "yxyx") for form in (source, target)]
        close(jaxiou.convert(boxes, *y_first), output)


@pytest.mark.parametrize("case", cases("torchvision_misc", "box_area"), ids=ids)
def test_area(case, x64):
    boxes = jaxiou.convert(case["boxes"], case["kwargs"]["fmt"], "xyxy")
    close(jaxiou.area(boxes), case["output"])


@pytest.mark.parametrize("case", cases("torchvision_misc", "clip_boxes"), ids=ids)
def test_clip(case, x64):
    height, width = case["kwargs"]["size_hw"]
    close(jaxiou.clip(case["boxes"], height, width), case["output"])


@pytest.mark.parametrize("case", cases("torchvision_misc", "remove_small"), ids=ids)
def test_is_valid(case, x64):
    valid = jaxiou.is_valid(case["boxes"], min_size=case["kwargs"]["min_size"])
    np.testing.assert_array_equal(np.flatnonzero(valid), case["output"])


# Boxes as offsets from anchors.


@pytest.mark.parametrize("case", cases("torchvision_misc", "BoxCoder"), ids=ids)
def test_torchvision_coder(case, x64):
    weights, limit = case["kwargs"]["weights"], case["kwargs"]["bbox_xform_clip"]
    weights = tuple(weights.tolist())
    encoded = jaxiou.encode(case["reference_boxes"], case["proposals"], weights=weights)
    close(encoded, case["encode"])
    decoded = jaxiou.decode(
        case["rel_codes"], case["proposals"], weights=weights, max_log_scale=limit
    )
    close(decoded, case["decode"])


DELTAS = [c for c in cases("mmdet_coders", "DeltaXYWH") if "multiclass" not in c["id"]]


@pytest.mark.parametrize("case", DELTAS, ids=ids)
def test_mmdet_coder(case, x64):
    """Means, stds and the image border are theirs to add."""
    inputs, options = load("mmdet_coders")["inputs"]["boxes"], case["kwargs"]
    priors, deltas = inputs["priors"], inputs["deltas"]
    means, stds = options["target_means"][None], options["target_stds"][None]
    limit = -np.log(options["wh_ratio_clip"])
    # The shift is limited, in pixels, or the logarithm from below.
    if options["add_ctr_clamp"]:
        bounds = {"max_shift": float(options["ctr_clamp"])}
    else:
        bounds = {"min_log_scale": -limit}

    def decode(deltas):
        deltas = deltas * stds + means
        boxes = jaxiou.decode(deltas, priors, max_log_scale=limit, **bounds)
        if options["clip_border"] and options["max_shape_hw"] is not None:
            boxes = jaxiou.clip(boxes, *options["max_shape_hw"])
        return boxes

    close(decode(deltas), case["decode"])
    gradient = jax.grad(lambda deltas: decode(deltas).sum())(deltas)
    close(gradient, case["grad_deltas"])
    if "encode" in case:
        close((jaxiou.encode(inputs["gt"], priors) - means) / stds, case["encode"])
        # Their means are zero but once; then the stds alone are our weights.
        if not means.any():
            weights = tuple((1 / stds[0]).tolist())
            encoded = jaxiou.encode(inputs["gt"], priors, weights=weights)
            close(encoded, case["encode"])


def test_mmdet_coder_with_a_class_axis(x64):
    case = load("mmdet_coders")["cases"]["DeltaXYWH/multiclass_Nx8"]
    priors = load("mmdet_coders")["inputs"]["boxes"]["priors"]
    limit = -np.log(case["kwargs"]["wh_ratio_clip"])
    deltas = case["deltas"].reshape(-1, 2, 4)
    bounds = {"max_log_scale": limit, "min_log_scale": -limit}
    decoded = jaxiou.decode(deltas, priors[:, None], **bounds)
    close(decoded.reshape(-1, 8), case["decode"])


@pytest.mark.parametrize("case", cases("mmdet_coders", "DistancePoint"), ids=ids)
def test_mmdet_distances(case, x64):
    inputs, options = load("mmdet_coders")["inputs"]["points"], case["kwargs"]
    if "encode" in case:
        encoded = jaxiou.encode_ltrb(inputs["gt"], inputs["points"])
        if options["max_dis"] is not None:
            encoded = jnp.clip(encoded, 0, options["max_dis"] - options["eps"])
        close(encoded, case["encode"])
        return

    def decode(distances):
        boxes = jaxiou.decode_ltrb(distances, inputs["points"])
        size = options["max_shape_hw"]
        return boxes if size is None else jaxiou.clip(boxes, *size)

    close(decode(inputs["distances"]), case["decode"])
    gradient = jax.grad(lambda distances: decode(distances).sum())(inputs["distances"])
    close(gradient, case["grad_distances"])


def test_detectron2_distances():
    case = load("detectron2_match")["cases"]["pairwise_point_box_distance"]
    boxes, points = (case[key].astype("f4") for key in ("boxes", "points"))
    got = jaxiou.encode_ltrb(boxes[None], points[:, None])
    close(got, case["output"], atol=0, rtol=1e-7)


# Matching. A target that touches nothing claims no anchor here and all in the others;
# in these files every target is touched, which the tests assert.


@pytest.mark.parametrize("case", cases("torchvision_misc", "Matcher"), ids=ids)
def test_torchvision_matcher(case, x64):
    options = case["kwargs"]
    assert (case["match_quality_matrix"].max(1) > 0).all()
    indices, values, _ = jaxiou.match_anchors(
        case["anchors"],
        case["gt_boxes"],
        positive=options["high_threshold"],
        negative=options["low_threshold"],
        force_match=options["allow_low_quality_matches"],
    )
    np.testing.assert_array_equal(indices, case["output"])
    close(values, case["match_quality_matrix"].max(0))


MATCHERS = [c for c in cases("detectron2_match", "Matcher") if "anchors" in c]


@pytest.mark.parametrize("case", MATCHERS, ids=ids)
def test_detectron2_matcher(case):
    options = case["kwargs"]
    negative, positive = options["thresholds"][0], options["thresholds"][-1]
    assert (case["match_quality_matrix"].max(1) > 0).all()
    indices, values, _ = jaxiou.match_anchors(
        case["anchors"].astype("f4"),
        case["gt_boxes"].astype("f4"),
        positive=float(positive),
        negative=float(negative),
        force_match=options["allow_low_quality_matches"],
    )
    # Their label of what is below the thresholds, between them and above.
    below, *between, above = options["labels"]
    between = between[0] if between else below
    labels = np.select([indices == -1, indices == -2], [below, between], above)
    np.testing.assert_array_equal(labels, case["match_labels"])
    positives = indices >= 0
    np.testing.assert_array_equal(indices[positives], case["matches"][positives])
    close(values, case["match_quality_matrix"].max(0), atol=1e-6)


def test_detectron2_matcher_without_targets():
    case = load("detectron2_match")["cases"]["Matcher/no_gt"]
    anchors = np.array([[0, 0, i + 2, i + 1] for i in range(len(case["matches"]))])
    indices, *_ = jaxiou.match_anchors(anchors, np.zeros((0, 4)), force_match=False)
    assert (case["match_labels"] == 0).all()
    np.testing.assert_array_equal(indices, -1)


# Suppression.


suppress = jax.jit(jaxiou.nms, static_argnames="max_outputs")


def kept(case, threshold, dtype):
    """What `nms` keeps of a case, its padding checked; few shapes compile few times."""
    boxes = case["boxes"].reshape(-1, 4).astype(dtype)
    n, labels = len(boxes), case.get("idxs")
    size = next(size for size in (16, 64, 256, 1024) if size > n)

    def padded(x):
        return np.pad(x, [(0, size - n)] + [(0, 0)] * (x.ndim - 1), mode="constant")

    indices, valid = suppress(
        padded(boxes),
        padded(case["scores"].astype(dtype)),
        threshold=threshold,
        max_outputs=size,
        labels=None if labels is None else padded(labels.astype(int)),
        where=np.arange(size) < n,
    )
    assert (np.asarray(indices)[~np.asarray(valid)] == -1).all()
    count = int(valid.sum())
    assert valid[:count].all()
    return indices[:count]


@pytest.mark.parametrize("case", cases("torchvision_nms"), ids=ids)
def test_torchvision_nms(case, x64):
    threshold = case["kwargs"]["iou_threshold"]
    np.testing.assert_array_equal(kept(case, threshold, "f8"), case["output"])


@pytest.mark.parametrize("case", cases("torchvision_nms"), ids=ids)
def test_torchvision_nms_in_float32(case):
    # Every decision is further from its threshold than float32 rounds, or is exact.
    distance = case.get("min_abs_iou_minus_thr", 1.0)
    assert distance == 0 or distance > 1e-4
    threshold = case["kwargs"]["iou_threshold"]
    np.testing.assert_array_equal(kept(case, threshold, "f4"), case["output"])


# Boxes on which users of other libraries reported failures.


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou"])
@pytest.mark.parametrize(
    "case", load("reported_cases")["axis_aligned"].values(), ids=ids
)
def test_reported_boxes(case, name):
    measure, dtype = MEASURES[name], jnp.dtype(case["dtype"])
    a, b = (jnp.asarray(case[key], dtype) for key in "ab")
    value = measure(a, b)
    floating = jnp.issubdtype(dtype, jnp.floating)
    assert value.dtype == (dtype if floating else jnp.float32)
    assert measure.minimum <= value <= measure.maximum
    # An answer of None is a matter of convention: in range and finite, above and below.
    if case["expected"][name] is not None:
        assert abs(float(value) - case["expected"][name]) <= case["tol"]
    a, b = (x.astype(value.dtype) for x in (a, b))
    gradients = jax.grad(measure, (0, 1))(a, b)
    assert np.isfinite(np.stack(gradients).astype(np.float32)).all()


@pytest.mark.parametrize("case", load("reported_cases")["nms"].values(), ids=ids)
def test_reported_nms(case):
    np.testing.assert_array_equal(kept(case, case["thr"], "f4"), case["keep"])


# Masks.


# torchvision's own test-suite, with its tolerances.


def suite(*prefixes):
    return cases("suites_torchvision", *prefixes)


def check(got, case):
    bound = case["atol"] + case["rtol"] * np.abs(case["expected"])
    assert np.shape(got) == np.shape(case["expected"])
    assert (np.abs(np.asarray(got, np.float64) - case["expected"]) <= bound).all()


@pytest.mark.parametrize("case", suite("Test"), ids=ids)
def test_suite_matrices(case):
    measure = MEASURES[TORCHVISION[case["function"].removeprefix("torchvision.ops.")]]
    dtypes = ["int16", "int32"] if case["id"].endswith("int") else ["float32"]
    for dtype in dtypes:
        boxes1, boxes2 = (case["inputs"][k].astype(dtype) for k in ("boxes1", "boxes2"))
        check(jaxiou.pairwise(boxes1, boxes2, measure=measure), case)


@pytest.mark.parametrize(
    "case", suite("generalized_", "distance_", "complete_"), ids=ids
)
def test_suite_losses(case):
    name = case["function"].removeprefix("torchvision.ops.").removesuffix("_loss")
    measure = MEASURES[TORCHVISION[name]]
    boxes = (case["inputs"][key].astype("f4") for key in ("boxes1", "boxes2"))
    losses = jaxiou.box_loss(
        *(x if x.size else x.reshape(0, 4) for x in boxes), measure=measure
    )
    reduction = case["kwargs"]["reduction"]
    if reduction != "none":
        losses = losses.sum() / (max(losses.size, 1) if reduction == "mean" else 1)
    check(losses, case)


@pytest.mark.parametrize("case", suite("box_convert"), ids=ids)
def test_suite_convert(case):
    boxes = case["inputs"]["boxes"].astype("f4")
    options = case["kwargs"]
    check(jaxiou.convert(boxes, options["in_fmt"], options["out_fmt"]), case)


@pytest.mark.parametrize("case", suite("box_area"), ids=ids)
def test_suite_area(case, x64):
    dtype = "f2" if case["id"].endswith("float16") else "f8"
    check(jaxiou.area(case["inputs"]["boxes"].astype(dtype)), case)


@pytest.mark.parametrize("case", suite("nms", "batched_nms"), ids=ids)
def test_suite_nms(case):
    boxes = case["inputs"]["boxes"].reshape(-1, 4)
    threshold = case["kwargs"].get("iou_threshold", 0.5)
    inputs = {"boxes": boxes, "scores": np.zeros(0)}
    if case["id"] == "batched_nms/empty":
        assert boxes.size == 0
        inputs["idxs"] = np.zeros(0)
    else:
        inputs["scores"] = case["inputs"]["scores"]
    for dtype in ("float16", "float32"):
        np.testing.assert_array_equal(kept(inputs, threshold, dtype), case["expected"])
