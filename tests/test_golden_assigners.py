"""Assigners against mmdetection's and ultralytics'.

Where a rule of theirs is not ours, the loop of tests/assigning.py says which: with
their rule it gives their answer, with ours it gives ours.
"""

import functools

import assigning
import jax
import numpy as np
import pytest
from goldens import cases, load

import jaxiou

SIZE = 8  # Targets of a scene, padding included.


def ids(case):
    return case["id"]


def scene(case):
    inputs = dict(load("mmdet_assigners")["inputs"][case["input"]])
    inputs["gt_bboxes"] = inputs["gt_bboxes"].reshape(-1, 4)
    inputs["gt_labels"] = inputs["gt_labels"].astype(int)
    return inputs


def padded(targets):
    n = len(targets)
    rows = np.full((SIZE, *targets.shape[1:]), -1, targets.dtype)
    rows[:n] = targets
    return rows, np.arange(SIZE) < n


def check(found, case, wanted=None):
    """Ours is theirs; or ours is `wanted`, in which only the rules differ."""
    wanted = case["gt_inds"] - 1 if wanted is None else wanted
    np.testing.assert_array_equal(found.indices, wanted)
    theirs = (case["gt_inds"] - 1 == wanted) & (wanted >= 0)
    values = case["max_overlaps"][theirs]
    np.testing.assert_allclose(found.values[theirs], values, rtol=1e-9)
    assert np.isneginf(found.values[wanted < 0]).all()


@pytest.mark.parametrize("case", cases("mmdet_assigners", "ATSS"), ids=ids)
def test_mmdet_atss(case, x64):
    inputs = scene(case)
    sizes = tuple(inputs["num_level_priors"].astype(int).tolist())
    targets, where = padded(inputs["gt_bboxes"])
    match = compiled(jaxiou.match_atss, level_sizes=sizes, topk=topk(case))
    check(match(inputs["anchors"], targets, where=where), case)


@functools.cache
def compiled(function, **options):
    return jax.jit(functools.partial(function, **options))


def topk(case):
    return int(case["kwargs"].get("topk", case["kwargs"].get("candidate_topk")))


@pytest.mark.parametrize("case", cases("mmdet_assigners", "SimOTA"), ids=ids)
def test_mmdet_simota(case, x64):
    inputs, options = scene(case), case["kwargs"]
    targets, where = padded(inputs["gt_bboxes"])
    labels, _ = padded(inputs["gt_labels"])
    points, strides = inputs["point_priors"][:, :2], inputs["point_priors"][:, 2]
    weights = {
        "topk": topk(case),
        "radius": options["center_radius"],
        "class_weight": options["cls_weight"],
        "measure_weight": options["iou_weight"],
    }
    match = compiled(jaxiou.match_simota, **weights)
    predicted = inputs["pred_scores"], inputs["pred_bboxes"], points
    found = match(*predicted, labels, targets, strides=strides, where=where)
    real = inputs["gt_labels"], inputs["gt_bboxes"]
    loop = functools.partial(
        assigning.simota, *predicted, *real, strides=strides, **weights
    )
    np.testing.assert_array_equal(loop(of_all=True), case["gt_inds"] - 1)
    wanted = loop()
    # One anchor, in one case.
    assert (wanted != case["gt_inds"] - 1).sum() == (case["id"] == DIFFERS)
    check(found, case, wanted)


DIFFERS = "SimOTAAssigner/scene1/topk=13-iw=1.0"


@pytest.mark.parametrize("case", cases("mmdet_assigners", "TaskAligned"), ids=ids)
def test_mmdet_task_aligned(case, x64):
    inputs, options = scene(case), case["kwargs"]
    targets, where = padded(inputs["gt_bboxes"])
    labels, _ = padded(inputs["gt_labels"])
    points = (inputs["anchors"][:, :2] + inputs["anchors"][:, 2:]) / 2
    exponents = {
        "topk": topk(case),
        "alpha": float(options["alpha"]),
        "beta": float(options["beta"]),
    }
    match = compiled(jaxiou.match_task_aligned, **exponents)
    predicted = inputs["pred_scores"], inputs["pred_bboxes"], points
    found = match(*predicted, labels, targets, where=where)
    real = inputs["gt_labels"], inputs["gt_bboxes"]
    loop = functools.partial(assigning.task_aligned, *predicted, *real, **exponents)
    np.testing.assert_array_equal(loop(drop_later=True)[0], case["gt_inds"] - 1)
    wanted, soft = loop()
    check(found, case, wanted)
    np.testing.assert_allclose(found.scores, soft, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("case", cases("ultralytics_tal"), ids=ids)
def test_ultralytics_task_aligned(case, x64):
    inputs, options = load("ultralytics_tal")["inputs"][case["input"]], case["kwargs"]
    match = compiled(
        jaxiou.match_task_aligned,
        topk=topk(case),
        alpha=options["alpha"],
        beta=options["beta"],
        measure=jaxiou.ciou,
    )
    targets, least = inputs["gt_bboxes"], options["stride"][1]
    # Sides below the second stride are enlarged to it, for where points may lie.
    centre = (targets[..., :2] + targets[..., 2:]) / 2
    half = np.maximum(targets[..., 2:] - targets[..., :2], least) / 2
    found = match(
        inputs["pd_scores"],
        inputs["pd_bboxes"],
        inputs["anc_points"],
        inputs["gt_labels"][..., 0].astype(int),
        targets,
        regions=np.concatenate([centre - half, centre + half], -1),
        where=inputs["mask_gt"][..., 0] > 0,
    )
    wanted = np.where(case["fg_mask"], case["target_gt_idx"], -1)
    np.testing.assert_array_equal(found.indices, wanted)
    # Theirs have 1e-9 in the denominator of the soft scores and 1e-7 in CIoU's.
    np.testing.assert_allclose(found.scores, case["target_scores"].max(-1), atol=1e-6)
    labels = case["target_scores"].argmax(-1)[case["fg_mask"] > 0]
    taken = jaxiou.take_targets(inputs["gt_labels"][..., 0], found, fill=-1.0)
    np.testing.assert_array_equal(taken[case["fg_mask"] > 0], labels)


def without_targets(case):
    """All is background to them then: also what is ignored, and what none is near."""
    return case["input"] == "scene3" and case["id"].endswith(("-0.2", "ignore_iof_0.5"))


MAX_IOU = [c for c in cases("mmdet_assigners", "MaxIoU") if not without_targets(c)]
max_iou = jax.jit(
    jaxiou.match_anchors, static_argnames=("force_match", "force_minimum")
)


@pytest.mark.parametrize("case", MAX_IOU, ids=ids)
def test_mmdet_max_iou(case, x64):
    """A forced anchor goes to its own best target here, to the forcing one there."""
    options, least = case["kwargs"], case["kwargs"]["min_pos_iou"]
    inputs, anchors = case, case.get("priors")
    if case["input"]:
        inputs = scene(case)
        on_grid = case["input"] == "scene_integer_ties"
        anchors = inputs["anchors" if on_grid else "anchors_jittered"]
    real = inputs["gt_bboxes"]
    ignored = np.zeros((0, 4))
    if "ignore_iof_thr" in options:
        ignored = inputs["gt_bboxes_ignore"]
    targets, where = padded(np.concatenate([real, ignored]))
    n = len(anchors)
    anchors = np.pad(anchors, [(0, 104 - n), (0, 0)], constant_values=np.nan)
    below = np.atleast_1d(options["neg_iou_thr"])
    found = max_iou(
        anchors,
        targets,
        where=where,
        ignore=np.arange(SIZE) >= len(real),
        positive=options["pos_iou_thr"],
        negative=float(below[-1]),
        force_match=options.get("match_low_quality", True),
        force_minimum=None if least == 0 else float(least),
    )
    found = jax.tree.map(lambda x: np.array(x[:n]), found)
    got, theirs = found.indices, case["gt_inds"].astype(int) - 1
    if len(below) == 2:  # Theirs ignore what is below both.
        got[(got == -1) & (found.values < below[0])] = -2
    if len(real):
        claimed_by_others(assigning.matrix_of(anchors[:n], real), got, theirs, case)
    # Values of what they ignore are -1 there.
    free = (found.values > -np.inf) & (case["max_overlaps"] >= 0)
    assert free.sum() >= n - 7 or not len(real)
    wanted = case["max_overlaps"][free]
    np.testing.assert_allclose(found.values[free], wanted, rtol=1e-9, atol=1e-12)


def claimed_by_others(overlaps, got, theirs, case):
    """Whoever differs is claimed there, and goes to its own best target here."""
    # An anchor on an ignored target that overlaps enough with a real one is assigned.
    assigned = (theirs == -2) & (overlaps.max(1) >= case["kwargs"]["pos_iou_thr"])
    np.testing.assert_array_equal(got[assigned], overlaps[assigned].argmax(1))
    assert case["id"].endswith("ignore_iof_0.5") or not assigned.any()
    differs = np.flatnonzero((got != theirs) & ~assigned)
    assert (theirs[differs] >= 0).all() and len(differs) < 8
    best = overlaps.max(0)[theirs[differs]]
    np.testing.assert_array_equal(overlaps[differs, theirs[differs]], best)
    # A target that touches nothing claims all that do not touch it there.
    touched = best > 0
    assert touched.all() or case["id"].endswith("no_overlap_gt/min_pos_iou=0.0")
    own = overlaps[differs].argmax(1)
    np.testing.assert_array_equal(got[differs][touched], own[touched])
