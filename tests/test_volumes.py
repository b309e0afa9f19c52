"""Boxes with depth and intervals against exact references."""

import numpy as np
import oracle_turned
import pytest
from goldens import load
from test_turned import evaluate

import jaxiou


@pytest.mark.parametrize("key", ["iou", "giou"])
def test_axis_aligned_values_are_exact(key, x64):
    content = load("iou3d")["axis_aligned"]
    measure = {"iou": jaxiou.iou_3d, "giou": jaxiou.giou_3d}[key]
    wanted = content[key].copy()
    undefined = np.isnan(wanted)
    assert set(content["category"][undefined]) <= {"both_zero"}
    a, b = content["boxes1"], content["boxes2"]
    promised = getattr(oracle_turned, measure.name)
    for i in np.flatnonzero(undefined):
        wanted[i] = promised(a[i], b[i])
    np.testing.assert_allclose(evaluate(measure, a, b)[0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("key", ["iou", "bev_iou"])
def test_values_of_standing_boxes_are_exact(key, x64):
    content = load("iou3d")["yaw"]
    measure = {"iou": jaxiou.yaw_iou_3d, "bev_iou": jaxiou.bev_iou}[key]
    wanted = content[key].copy()
    undefined = np.isnan(wanted)
    assert set(content["category"][undefined]) <= {"both_zero_volume"}
    wanted[undefined] = 0
    a, b = content["boxes1"], content["boxes2"]
    np.testing.assert_allclose(evaluate(measure, a, b)[0], wanted, rtol=0, atol=1e-12)


def test_gradients_of_standing_boxes_are_exact(x64):
    content = load("iou3d")
    gradients = content["yaw_grad"]
    smooth = ~gradients["kink"]
    rows = gradients["row"].astype(int)[smooth]
    a, b = (content["yaw"][k][rows] for k in ("boxes1", "boxes2"))
    for found, key in zip(
        evaluate(jaxiou.yaw_iou_3d, a, b)[1:], ("boxes1", "boxes2"), strict=True
    ):
        wanted = gradients[f"grad_iou_{key}"][smooth]
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-11)


def test_real_boxes(x64):
    content = load("real_box3d_iou")
    narrow = [content[k].astype(np.float32) for k in ("a", "b")]
    found = evaluate(jaxiou.yaw_iou_3d, *narrow)[0]
    np.testing.assert_allclose(found, content["iou"], rtol=0, atol=5e-6)


def test_volumes_beyond_the_range_of_float32():
    a = np.float32([[0, 0, 0, 2e15, 2e15, 2e15], [0, 0, 0, 2e-15, 2e-15, 2e-15]])
    b = np.concatenate([a[:, :3], a[:, 3:] / 2], axis=1)
    np.testing.assert_allclose(evaluate(jaxiou.iou_3d, a, b)[0], 1 / 8, rtol=1e-6)
    np.testing.assert_allclose(evaluate(jaxiou.giou_3d, a, b)[0], 1 / 8, rtol=1e-6)


def test_two_axes_are_the_plane():
    rng = np.random.default_rng(0)
    a, b = (np.sort(rng.uniform(size=(40, 2, 3)), axis=1) for _ in range(2))
    a[:, :, 2] = b[:, :, 2] = [0, 1]
    first, second = (x.reshape(-1, 6).astype(np.float32) for x in (a, b))
    flat = [0, 1, 3, 4]
    for deep, plane in (
        (jaxiou.iou_3d, jaxiou.iou),
        (jaxiou.giou_3d, jaxiou.giou),
    ):
        wanted = plane(first[:, flat], second[:, flat])
        found = evaluate(deep, first, second)[0]
        np.testing.assert_allclose(found, wanted, atol=1e-6)
