"""Arrays spread over eight devices: the same results, and no error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_boxes
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxiou

IMAGES, ANCHORS, TARGETS = 8, 24, 8


def everything(anchors, targets, where):
    """Matching, a loss, a matrix, their gradients, and suppression."""
    found = jaxiou.match_anchors(anchors, targets, where=where, ignore=~where)
    wanted = jaxiou.take_targets(targets, found, fill=0.0)

    def total(anchors):
        loss = jaxiou.giou_loss(anchors, wanted, where=found.indices >= 0)
        matrix = jaxiou.pairwise(anchors, targets, where2=where)
        return jnp.sum(loss) + jnp.sum(matrix**2)

    kept = jaxiou.nms(anchors, anchors[..., 0], threshold=0.3, max_outputs=9)
    return found, kept, *jax.value_and_grad(total)(anchors)


@pytest.fixture(scope="module")
def images():
    anchors = random_boxes(1, IMAGES, ANCHORS, extent=60)
    targets = random_boxes(2, IMAGES, TARGETS, extent=60)
    where = np.random.default_rng(3).random((IMAGES, TARGETS)) < 0.6
    return (anchors, targets, where), jax.jit(everything)(anchors, targets, where)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    "specs",
    [(P("d"), P("d"), P("d")), (P(None, "d"), P(), P())],
    ids=["images", "anchors"],
)
def test_sharded_arrays_give_the_same_results(images, axes, specs):
    arguments, wanted = images
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axes,))
    with jax.set_mesh(mesh):
        spread = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(arguments, specs, strict=True)
        ]
        assert len(spread[0].sharding.device_set) == 8
        found = jax.jit(everything)(*spread)
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        if jnp.issubdtype(y.dtype, jnp.floating):
            # Sums over devices add in another order.
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(x, y)


def test_works_on_the_shards_themselves(images):
    (anchors, targets, where), wanted = images
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    found = jax.jit(
        jax.shard_map(
            # The total is a sum over images, so shards give parts of it.
            lambda *x: everything(*x)[:2] + everything(*x)[3:],
            mesh=mesh,
            in_specs=P("d"),
            out_specs=P("d"),
        )
    )(anchors, targets, where)
    wanted = wanted[:2] + wanted[3:]
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def parts(anchors, targets, where, axis_name=None):
    """What needs the best of all anchors, wherever they are."""
    best = jaxiou.best_match(anchors, targets, where2=where, axis_name=axis_name)
    found = jaxiou.match_anchors(
        anchors, targets, where=where, force_minimum=0.05, axis_name=axis_name
    )
    return (best.values1, best.indices1, *found[:2]), (best.values2, best.indices2)


def check_parts(mesh, arguments, wanted):
    names = mesh.axis_names
    spread = P(None, names if len(names) > 1 else names[0])
    program = jax.jit(
        jax.shard_map(
            lambda *x: parts(*x, axis_name=names if len(names) > 1 else names[0]),
            mesh=mesh,
            in_specs=(spread, P(), P()),
            out_specs=(spread, P()),
        )
    )
    found = program(*arguments)
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_array_equal(x, y)
    return program.lower(*arguments).compile().as_text()


@pytest.mark.parametrize("shape", [(8,), (2, 4)], ids=str)
def test_anchors_in_parts_match_as_a_whole(images, shape):
    """Every box twice, so that the parts tie; nothing but the targets' best travels."""
    anchors, targets, where = images[0]
    # Whole numbers: the same quotient in every program.
    anchors, targets = np.round(anchors), np.round(targets)
    anchors[:, ANCHORS // 2 :] = anchors[:, : ANCHORS // 2]
    arguments = anchors, targets, where
    mesh = jax.make_mesh(
        shape, ("d", "e")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape)
    )
    wanted = jax.jit(parts)(*arguments)
    text = check_parts(mesh, arguments, wanted)
    assert "all-reduce" in text and "all-gather" not in text
    forced = np.asarray(wanted[0][2]) >= 0
    assert (
        forced.any() and (forced[:, ANCHORS // 2 :] == forced[:, : ANCHORS // 2]).all()
    )


def test_an_axis_that_is_none_is_named():
    boxes = random_boxes(1, 3, extent=9)
    for function in (jaxiou.best_match, jaxiou.match_anchors):
        name = function.__name__
        with pytest.raises(ValueError, match=f"{name}: `axis_name` is 'd', wanted an"):
            function(boxes, boxes, axis_name="d")
