"""Mask losses and overlaps against the formulas, the authors' code and pycocotools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import cases, load

import jaxiou

BINARY = load("mask_losses")["inputs"]["binary"]


def ids(case):
    return case["id"]


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)


def axes_of(case):
    axes = case["kwargs"]["axes"]
    return None if axes is None else tuple(axes.astype(int).tolist())


@pytest.mark.parametrize("name", ["jaccard", "dice"])
@pytest.mark.parametrize("case", cases("mask_losses", "soft_jaccard"), ids=ids)
def test_soft_jaccard_and_dice(case, name, x64):
    predictions, targets = BINARY[case["pred_key"]], BINARY[case["target_key"]]
    function = getattr(jaxiou, f"{name}_loss")
    # On hard labels both forms are the formula, gradients at equal pixels included.
    hard = np.isin(targets, (0, 1)).all()
    for soft_labels in (False, True) if hard else (False,):

        def loss(predictions, soft_labels=soft_labels):
            options = {"axis": axes_of(case), "soft_labels": soft_labels}
            return function(predictions, targets, **options)

        expected = case["losses"]["0.0"]
        close(loss(predictions), expected[f"{name}_loss"])
        gradient = jax.grad(lambda p, loss=loss: loss(p).sum())(predictions)
        close(gradient, expected[f"grad_{name}"])


@pytest.mark.parametrize("case", cases("mask_losses", "tversky"), ids=ids)
def test_tversky(case, x64):
    kwargs = case["kwargs"]
    assert kwargs["smooth"] == 1 and axes_of(case) == (1, 2)
    weights = {"alpha": kwargs["alpha_fp"], "beta": kwargs["beta_fn"]}

    def loss(predictions):
        # 1 on both sides of the fraction is one more pixel that is right.
        pair = (x.reshape(len(x), -1) for x in (predictions, targets))
        p, t = (jnp.pad(x, ((0, 0), (0, 1)), constant_values=1) for x in pair)
        return jaxiou.tversky_loss(p, t, axis=1, **weights)

    predictions, targets = BINARY[case["pred_key"]], BINARY[case["target_key"]]
    close(loss(predictions), case["output"])
    gradient = jax.grad(lambda p: loss(p).sum())(predictions)
    close(gradient, case["grad_pred"])


def lovasz_inputs(case):
    """Predictions, labels and which pixels count."""
    arrays = load("lovasz")["inputs"][case["input"]]
    key, _, factor = case["target_key"].partition("*")
    labels, ignore = arrays[key] * float(factor or 1), case["kwargs"]["ignore"]
    where = np.ones(labels.shape, bool) if ignore is None else labels != ignore
    return arrays[case["pred_key"]], np.where(where, labels, 0), where


def check_lovasz(case, loss, predictions):
    value, gradient = jax.value_and_grad(loss)(predictions)
    close(value, case["output"])
    # Of equal errors another pixel may be taken first.
    if "quantised" not in case["pred_key"]:
        close(gradient, case["grad_pred"])


@pytest.mark.parametrize("case", cases("lovasz", "lovasz_hinge"), ids=ids)
def test_lovasz_hinge(case, x64):
    logits, labels, where = lovasz_inputs(case)
    axis = (1, 2) if case["kwargs"]["per_image"] else None

    def loss(logits):
        return jaxiou.lovasz_hinge(logits, labels, axis=axis, where=where).mean()

    check_lovasz(case, loss, logits)


@pytest.mark.parametrize("case", cases("lovasz", "lovasz_softmax"), ids=ids)
def test_lovasz_softmax(case, x64):
    probabilities, labels, where = lovasz_inputs(case)
    count = probabilities.shape[1]
    targets = np.stack([labels == k for k in range(count)], axis=1) & where[:, None]
    axis = (2, 3) if case["kwargs"]["per_image"] else (0, 2, 3)
    classes = case["kwargs"]["classes"]
    if isinstance(classes, str):
        kept = targets.any(axis) if classes == "present" else np.ones(count, bool)
    else:
        kept = np.isin(np.arange(count), classes)

    def loss(probabilities):
        found = jaxiou.lovasz_softmax(
            probabilities, targets, axis=axis, where=where[:, None]
        )
        chosen = jnp.broadcast_to(kept, found.shape)
        total = jnp.sum(found, axis=-1, where=chosen)
        return jnp.mean(total / jnp.maximum(chosen.sum(-1), 1))

    check_lovasz(case, loss, probabilities)


@pytest.mark.parametrize("case", cases("coco_iou"), ids=ids)
def test_coco_masks(case):
    masks = load("coco_iou")["inputs"]["masks"]
    first, second = masks["dt_masks"] == 1, masks["gt_masks"] == 1
    crowd = case["kwargs"]["iscrowd"].astype(bool)
    found = jaxiou.pairwise_mask_iou(first, second, crowd=crowd)
    np.testing.assert_allclose(found, case["output"], rtol=1.2e-7)
    if not crowd.any():
        for i, j in np.ndindex(found.shape):
            alone = jaxiou.mask_iou(first[i], second[j], axis=None)
            np.testing.assert_array_equal(alone, found[i, j])
