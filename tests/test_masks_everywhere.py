"""Mask losses of masks that nobody thought of, over devices, and of real polygons."""

import json
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faster_coco_eval.core import mask as coco
from hypothesis import strategies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_masks import LOSSES, lovasz_extension, masks_of

import jaxiou

SHAPE = (4, 6, 5)  # four masks
HARD = ("lovasz_hinge", "lovasz_softmax")  # what takes hard labels alone


def everything(predictions, targets, where):
    """Losses and gradients of all; Lovász takes the targets above one half."""
    found = {}
    for name, loss in LOSSES.items():
        t = targets > 0.5 if name in HARD else targets

        def total(p, t=t, loss=loss):
            values = loss(p, t, axis=(1, 2), where=where)
            return values.sum(), values

        (_, values), gradient = jax.value_and_grad(total, has_aux=True)(predictions)
        found[name] = values, gradient
    return found


compiled = jax.jit(everything)

# Masks as they come, and those at the ends, one kind per example.
constant = strategies.sampled_from([0.0, 1.0, 0.5]).map(
    lambda x: np.full(SHAPE, x, np.float32)
)
shares = arrays.arrays(np.float32, SHAPE, elements=strategies.floats(0, 1, width=32))
labels = arrays.arrays(bool, SHAPE).map(lambda x: x.astype(np.float32))
anything = arrays.arrays(
    np.float32,
    SHAPE,
    elements=strategies.floats(width=32, allow_nan=False, allow_infinity=False),
)
counts = strategies.one_of(
    strategies.sampled_from([True, False]).map(lambda x: np.full(SHAPE, x)),
    arrays.arrays(bool, SHAPE),
)
# The first example compiles: time must not decide.
unhurried = hypothesis.settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


@unhurried
@hypothesis.given(constant | shares | labels, constant | shares | labels, counts)
def test_probabilities_have_losses_from_0_to_1(predictions, targets, where):
    for name, (values, gradient) in compiled(predictions, targets, where).items():
        assert np.isfinite(values).all() and np.isfinite(gradient).all(), name
        assert (values >= 0).all(), (name, values)
        # The weights of Lovász add up to 1, rounded.
        most = {"lovasz_hinge": np.inf, "lovasz_softmax": 1 + 1e-6}.get(name, 1)
        assert (values <= most).all(), (name, values)
        assert not gradient[~where].any(), name
        assert not values[~where.any((1, 2))].any(), name
    # A mask is as good as itself.
    for name, (values, _) in compiled(targets, targets, where).items():
        if name not in (*HARD, "jaccard product"):
            np.testing.assert_array_equal(values, 0)


@unhurried
@hypothesis.given(anything, labels | anything, counts)
def test_any_finite_numbers_have_a_finite_loss_and_gradient(p, t, where):
    for name, (values, gradient) in compiled(p, t, where).items():
        assert np.isfinite(values).all(), (name, values)
        assert np.isfinite(gradient).all(), (name, gradient)


@unhurried
@hypothesis.given(shares | labels, shares | labels, counts)
def test_what_is_left_out_changes_no_bit(predictions, targets, where):
    wanted = compiled(predictions, targets, where)
    for value in (np.nan, np.inf, -np.inf):
        spoilt = (np.where(where, x, np.float32(value)) for x in (predictions, targets))
        found = compiled(*spoilt, where)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_single_precision_rounded(dtype):
    @hypothesis.settings(unhurried, max_examples=25)
    @hypothesis.given(constant | shares | labels, constant | shares | labels, counts)
    def check(predictions, targets, where):
        p, t = (jnp.asarray(x, dtype) for x in (predictions, targets))
        found = compiled(p, t, where)
        wanted = compiled(p.astype(jnp.float32), t.astype(jnp.float32), where)
        limits = jnp.finfo(dtype)
        for name, results in found.items():
            for x, y in zip(results, wanted[name], strict=True):
                assert x.dtype == dtype and np.isfinite(np.float32(x)).all(), name
                y = np.clip(y, float(limits.min), float(limits.max))
                np.testing.assert_allclose(
                    np.float32(x), y, rtol=float(limits.eps), atol=float(limits.tiny)
                )

    check()


def test_a_batch_of_one_is_what_it_is_among_others():
    predictions, targets = masks_of(SHAPE)
    where = masks_of(SHAPE, seed=5)[1] == 0
    together = compiled(predictions, targets, where)
    alone = compiled(predictions[:1], targets[:1], where[:1])
    for name, results in alone.items():
        for x, y in zip(results, together[name], strict=True):
            np.testing.assert_allclose(x, y[:1], rtol=1e-6, atol=1e-7)


def test_hinge_of_sure_logits_leaves_out_and_forgives():
    # What is right by a margin has no error, and neither has what is left out.
    rng = np.random.default_rng(0)
    logits = 4 * rng.normal(size=SHAPE)
    labels, where = rng.random((2, *SHAPE)) < 0.5
    found = jaxiou.lovasz_hinge(logits, labels, axis=(1, 2), where=where)
    errors = 1 - logits * np.where(labels, 1, -1)
    rows = zip(errors, labels, where, strict=True)
    wanted = [lovasz_extension(e[w], t[w]) for e, t, w in rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "lovasz_hinge"])
def test_something_against_nothing_is_1_on_either_side(name):
    full, empty = np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    for pair in ((full, empty), (empty, full)):
        loss = LOSSES[name](*pair, axis=(1, 2))
        # 30 weights of Lovász add up to 1.
        np.testing.assert_allclose(loss, 1, rtol=1e-6 if name in HARD else 0)
    np.testing.assert_array_equal(LOSSES[name](full, full, axis=(1, 2)), 0)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7)], ids=str)
def test_hard_labels_give_the_dice_and_tversky_of_optax(weights):
    logits = np.random.default_rng(0).normal(size=(3, 6, 5, 4)).astype(np.float32)
    targets = jax.nn.one_hot(np.argmax(logits[..., ::-1], -1), 4)
    alpha, beta = weights
    wanted = optax.losses.dice_loss(
        logits, targets, smooth=0.0, alpha=alpha, beta=beta, reduction="none"
    )
    p = jax.nn.softmax(logits)
    found = jaxiou.tversky_loss(p, targets, axis=(1, 2), alpha=alpha, beta=beta)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    if alpha == beta:
        found = jaxiou.dice_loss(p, targets, axis=(1, 2))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


# Devices


def whole(predictions, targets, where):
    """Losses with gradients, and what hard masks have."""
    a, b = predictions > 0.5, targets > 0.5

    def total(p):
        options = {"axis": (1, 2), "where": where}
        jaccard = jaxiou.jaccard_loss(p, targets, **options)
        lovasz = jaxiou.lovasz_softmax(p, b, **options)
        return jnp.sum(jaccard + lovasz), (jaccard, lovasz)

    losses = jax.value_and_grad(total, has_aux=True)(predictions)
    aligned = jaxiou.mask_iou(a, b, axis=(1, 2), where=where)
    crowd = where.any((1, 2))
    matrix = jaxiou.pairwise_mask_iou(a, b, crowd=crowd)
    batch = jaxiou.pairwise_mask_iou(a[:, None], b[:, None], crowd=crowd[:, None])
    return losses, aligned, matrix, batch, jaxiou.masks_to_boxes(a)


@pytest.fixture(scope="module")
def spread():
    shape = (8, 16, 8)
    masks = (*masks_of(shape), masks_of(shape, seed=5)[1] == 0)
    return masks, jax.jit(whole)(*masks)


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        (AxisType.Auto, P(None, "d")),
        (AxisType.Explicit, P("d")),
        (AxisType.Explicit, P(None, "d")),
        (AxisType.Explicit, P(None, None, "d")),
    ],
    ids=str,
)
def test_masks_over_devices(spread, axes, spec):
    masks, wanted = spread
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axes,))
    with jax.set_mesh(mesh):
        arguments = [jax.device_put(x, NamedSharding(mesh, spec)) for x in masks]
        found = jax.jit(whole)(*arguments)
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        # Sums over devices add in another order.
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


# Real masks

NUTS = Path(__file__).parents[2] / "shared" / "data" / "nuts_masks" / "data"


@pytest.mark.skipif(not NUTS.exists(), reason="the photographs are not here")
def test_real_polygons_agree_with_coco():
    content = json.loads((NUTS / "trainval.json").read_text())
    iou, boxes = jax.jit(jaxiou.pairwise_mask_iou), jax.jit(jaxiou.masks_to_boxes)
    most, pairs, meeting = 13, 0, 0
    for image in content["images"]:
        height, width = image["height"], image["width"]
        outlines = [
            x["segmentation"]
            for x in content["annotations"]
            if x["image_id"] == image["id"]
        ]
        runs = [coco.merge(coco.frPyObjects(x, height, width)) for x in outlines]
        masks = np.moveaxis(coco.decode(runs), -1, 0)
        moved = np.roll(masks, (9, -14), (1, 2))
        others = [coco.encode(np.asfortranarray(mask)) for mask in moved]
        n = len(masks)
        # Padded to one shape: one program.
        padded = [np.pad(x, ((0, most - n), (0, 0), (0, 0))) for x in (masks, moved)]
        for crowd in (np.zeros(most, bool), np.arange(most) % 2 == 0):
            found = iou(*padded, crowd=crowd)
            wanted = coco.iou(runs, others, crowd[:n].astype(np.uint8).tolist())
            # Counts are whole numbers, so the quotient alone is rounded.
            np.testing.assert_allclose(found[:n, :n], wanted, rtol=1.2e-7)
            assert not found[n:].any() and not found[:, n:].any()
        pairs, meeting = pairs + n * n, meeting + (wanted > 0).sum()
        x, y, w, h = coco.toBbox(runs).T
        wanted = np.stack([x, y, x + w, y + h], -1)
        np.testing.assert_array_equal(boxes(padded[0])[:n], wanted)
    assert pairs == 1661 and meeting > 150
