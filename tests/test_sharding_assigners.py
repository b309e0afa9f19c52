"""Assigners and suppression on arrays spread over eight devices: the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_boxes
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxiou

IMAGES, ANCHORS, TARGETS = 8, 24, 8


def everything(anchors, targets, where, solver=None):
    """Every assigner, a sample, matching one to one, soft and matrix suppression."""
    labels = (targets[..., 0] > 30).astype(int)
    scores = anchors[..., :2] / 128
    points = (anchors[..., :2] + anchors[..., 2:]) / 2
    predicted = scores, anchors, points, labels, targets
    sizes = (16, ANCHORS - 16)
    assigned = (
        jaxiou.match_atss(anchors, targets, level_sizes=sizes, where=where, topk=4),
        jaxiou.match_task_aligned(*predicted, where=where),
        jaxiou.match_simota(*predicted, strides=8 + points[..., 0], where=where),
    )
    drawn = jaxiou.sample(assigned[1], jax.random.key(0), positives=2, total=4)
    cost = jaxiou.measure_cost(anchors[..., :TARGETS, :], targets)
    pairs = jaxiou.match_one_to_one(cost, where=where[..., None, :], solver=solver)
    kept = (
        jaxiou.soft_nms(anchors, scores[..., 0], max_outputs=9),
        jaxiou.matrix_nms(anchors, scores[..., 0], max_outputs=9),
    )
    return assigned, drawn, pairs, kept


@pytest.fixture(scope="module")
def images():
    anchors = random_boxes(1, IMAGES, ANCHORS, extent=60)
    targets = random_boxes(2, IMAGES, TARGETS, extent=60)
    where = np.random.default_rng(3).random((IMAGES, TARGETS)) < 0.6
    return (anchors, targets, where), jax.jit(everything)(anchors, targets, where)


def check(found, wanted):
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        if np.issubdtype(y.dtype, np.floating):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(x, y)


def test_images_and_anchors_spread_over_a_mesh(images):
    """Explicit axes: what has no rule for a sharded axis would be refused."""
    arguments, wanted = images
    mesh = jax.make_mesh((2, 4), ("i", "a"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        specs = P("i", "a"), P("i"), P("i")
        spread = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(arguments, specs, strict=True)
        ]
        assert len(spread[0].sharding.device_set) == 8
        check(jax.jit(everything)(*spread), wanted)


def test_works_on_the_shards_themselves(images):
    """Less the samples, which are drawn anew, and the loops of Optax."""
    arguments, wanted = images
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

    def some(*arguments):
        assigned, _, _, kept = everything(*arguments, solver=straight)
        return assigned, kept

    found = jax.jit(jax.shard_map(some, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(
        *arguments
    )
    check(found, (wanted[0], wanted[3]))


def straight(cost):
    return (jnp.arange(min(cost.shape)),) * 2
