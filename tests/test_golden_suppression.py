"""Suppression against mmcv, detectron2 and mmdetection; torchvision's is elsewhere.

Every case is padded to one shape, with NaN, so that each function compiles once.
"""

import functools

import jax
import numpy as np
import pytest
from goldens import cases

import jaxiou

SIZE = 96


def ids(case):
    return case["id"]


@functools.partial(jax.jit, static_argnames=("function", "measure"))
def run(function, boxes, scores, labels, where, measure, **options):
    return function(
        boxes,
        scores,
        max_outputs=SIZE,
        labels=labels,
        where=where,
        measure=measure,
        **options,
    )


def found(function, case, boxes=None, measure=jaxiou.iou, **options):
    """The result for a padded case, less the empty slots."""
    boxes = case["boxes"] if boxes is None else boxes
    n, labels = len(boxes), case.get("idxs", np.zeros(len(boxes)))
    if case["kwargs"].get("class_agnostic"):
        labels = np.zeros(n)

    def padded(x, fill, dtype):
        rows = np.full((SIZE, *x.shape[1:]), fill, dtype)
        rows[:n] = x
        return rows

    result = run(
        function,
        padded(boxes, np.nan, "f4"),
        padded(case["scores"], np.nan, "f4"),
        padded(labels, 0, "i4"),
        np.arange(SIZE) < n,
        measure,
        **options,
    )
    count = int(result.valid.sum())
    assert not result.valid[count:].any()
    return jax.tree.map(lambda x: np.asarray(x)[:count], result)


HARD = ("mmcv.nms/", "mmcv.nms_match", "mmcv.batched_nms")


@pytest.mark.parametrize("case", cases("nms_extra", *HARD), ids=ids)
def test_mmcv_nms(case):
    # Their offset makes each box one larger; no IoU of theirs is at a threshold.
    options = case["kwargs"]
    boxes = case["boxes"] + [0, 0, options.get("offset", 0), options.get("offset", 0)]
    kept = found(
        jaxiou.nms,
        case,
        boxes=boxes,
        threshold=options["iou_threshold"],
        score_threshold=float(options.get("score_threshold", 0)),
    )
    most = options.get("max_num", -1)
    np.testing.assert_array_equal(
        kept.indices[: most if most > 0 else None], case["keep"]
    )


TURNED = ("nms_rotated", "batched_nms_rotated")


@pytest.mark.parametrize("case", cases("nms_extra", *TURNED), ids=ids)
def test_nms_of_boxes_that_turn(case):
    assert case["min_abs_iou_minus_thr"] > 1e-4
    threshold = case["kwargs"]["iou_threshold"]
    turned = jaxiou.rotated_iou
    kept = found(
        jaxiou.nms, case, measure=turned, threshold=threshold, score_threshold=0.0
    )
    np.testing.assert_array_equal(kept.indices, case["keep"])


SOFT = cases("nms_extra", "mmcv.soft_nms")


@pytest.mark.parametrize("case", SOFT, ids=ids)
def test_mmcv_soft_nms(case):
    options = case["kwargs"]
    least, threshold = options["min_score"], options["iou_threshold"]
    if options["method"] == "naive":
        kept = found(jaxiou.nms, case, threshold=threshold, score_threshold=least)
        np.testing.assert_array_equal(kept.indices, case["keep"])
        return
    decay = (
        jaxiou.LinearDecay(threshold)
        if options["method"] == "linear"
        else jaxiou.GaussianDecay(options["sigma"])
    )
    result = found(jaxiou.soft_nms, case, decay=decay, score_threshold=least)
    np.testing.assert_array_equal(result.indices, case["keep"])
    # Products of up to eighty factors, rounded in another order.
    np.testing.assert_allclose(result.scores, case["dets_scores"], rtol=2e-5)


@jax.jit
def of_masks(masks, scores, labels, where, decay, least):
    return jaxiou.matrix_nms(
        jaxiou.Overlaps(jaxiou.pairwise_mask_iou(masks, masks)),
        scores,
        max_outputs=len(scores),
        decay=decay,
        score_threshold=least,
        labels=labels,
        where=where,
    )


@pytest.mark.parametrize("case", cases("mmdet_matrix_nms"), ids=ids)
def test_mmdet_matrix_nms_of_masks(case):
    """Their sigma multiplies; `nms_pre` and `max_num` cut before and after."""
    options, scores = case["kwargs"], case["scores"]
    n = len(scores)
    first = np.argsort(-scores, kind="stable")[: options.get("nms_pre", n)]
    decay = (
        jaxiou.LinearDecay()
        if options["kernel"] == "linear"
        else jaxiou.GaussianDecay(1 / options["sigma"])
    )
    size = 16

    def padded(x):
        return np.pad(x, [(0, size - n)] + [(0, 0)] * (x.ndim - 1))

    result = of_masks(
        padded(case["masks"].astype(bool)),
        padded(scores.astype("f4")),
        padded(case["labels"].astype(int)),
        np.isin(np.arange(size), first),
        decay,
        float(options.get("filter_thr", -1)),
    )
    count = min(int(result.valid.sum()), options.get("max_num", n))
    np.testing.assert_array_equal(result.indices[:count], case["keep_inds"])
    # Theirs is computed in float32.
    np.testing.assert_allclose(result.scores[:count], case["out_scores"], rtol=2e-5)
