"""Anchor matching against a loop, and its edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiou
from jaxiou.kernels import xla


def boxes_of(rng, n, *, extent=40, side=20, integer=False):
    corner = rng.uniform(0, extent, (n, 2))
    size = rng.uniform(1, side, (n, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)
    return (np.round(boxes) if integer else boxes).astype(np.float32)


def torchvision_rule(matrix, positive, negative, force):
    """torchvision's `Matcher`, but a target that intersects nothing claims none."""
    n, m = matrix.shape
    result = np.full(n, -1)
    for i in range(n):
        best = int(matrix[i].argmax())
        value = matrix[i, best]
        forced = force and any(
            matrix[i, j] == matrix[:, j].max() and matrix[i, j] > 0 for j in range(m)
        )
        if value >= positive or forced:
            result[i] = best
        elif value >= negative:
            result[i] = -2
    return result


@pytest.fixture(params=[None, 64], ids=["one-block", "many-blocks"])
def block(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(xla, "_BLOCK", request.param)


@pytest.mark.parametrize("integer", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize("force", [False, True])
def test_equals_the_rule_written_as_a_loop(force, integer, block):
    rng = np.random.default_rng(3)
    for n, m in [(1, 1), (37, 5), (50, 9)]:
        anchors = boxes_of(rng, n, integer=integer)
        targets = boxes_of(rng, m, integer=integer)
        found = jax.jit(
            lambda a, t: jaxiou.match_anchors(
                a, t, positive=0.5, negative=0.3, force_match=force
            )
        )(anchors, targets)
        matrix = np.asarray(jaxiou.pairwise(anchors, targets))
        np.testing.assert_array_equal(
            found.indices, torchvision_rule(matrix, 0.5, 0.3, force)
        )
        np.testing.assert_allclose(found.values, matrix.max(1), rtol=1e-6)


def test_all_anchors_tied_for_a_target_are_forced_across_blocks(monkeypatch):
    monkeypatch.setattr(xla, "_BLOCK", 4)
    target = np.array([[0.0, 0, 10, 10]], np.float32)
    # Four quarters of the target tie at 1/4; a fifth anchor overlaps less.
    anchors = np.array(
        [[0, 0, 5, 5], [5, 0, 10, 5], [9, 9, 12, 12], [0, 5, 5, 10], [5, 5, 10, 10]],
        np.float32,
    )
    found = jaxiou.match_anchors(anchors, target)
    np.testing.assert_array_equal(found.indices, [0, 0, -1, 0, 0])


def test_a_forced_anchor_keeps_its_own_best_target():
    anchors = np.array([[0, 0, 10, 10]], np.float32)
    # IoU 0.36 and 0.25: both targets have this anchor as their best one.
    targets = np.array([[0, 0, 5, 5], [0, 0, 6, 6]], np.float32)
    found = jaxiou.match_anchors(anchors, targets)
    np.testing.assert_array_equal(found.indices, [1])


def test_a_target_that_intersects_nothing_claims_no_anchor():
    anchors = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    targets = np.array([[500, 500, 520, 510]], np.float32)
    np.testing.assert_array_equal(
        jaxiou.match_anchors(anchors, targets).indices, [-1, -1]
    )


@pytest.mark.parametrize("m", [0, 3])
def test_no_target_is_all_background(m):
    anchors = boxes_of(np.random.default_rng(0), 6)
    found = jaxiou.match_anchors(
        anchors, np.zeros((m, 4), np.float32), where=np.zeros(m, bool)
    )
    np.testing.assert_array_equal(found.indices, np.full(6, -1))
    assert np.all(np.isneginf(found.values))


def test_anchors_on_ignored_targets_are_neither():
    anchors = np.array(
        [[0, 0, 10, 10], [12, 0, 20, 10], [60, 60, 70, 70], [2, 0, 12, 10]], np.float32
    )
    targets = np.array([[0, 0, 10, 10], [11, 0, 40, 40]], np.float32)
    found = jaxiou.match_anchors(anchors, targets, ignore=np.array([False, True]))
    # The second lies in the crowd region with all of its area but an IoU of 0.07.
    np.testing.assert_array_equal(found.indices, [0, -2, -1, 0])
    without = jaxiou.match_anchors(anchors, targets, where=np.array([True, False]))
    np.testing.assert_array_equal(without.indices, [0, -1, -1, 0])
    padded = jaxiou.match_anchors(
        anchors,
        targets,
        where=np.array([True, False]),
        ignore=np.array([False, True]),
    )
    np.testing.assert_array_equal(padded.indices, without.indices)


def test_an_ignored_target_claims_no_anchor():
    anchors = np.array([[0, 0, 10, 10]], np.float32)
    targets = np.array([[0, 0, 10, 10]], np.float32)
    found = jaxiou.match_anchors(anchors, targets, ignore=np.array([True]))
    np.testing.assert_array_equal(found.indices, [-2])


@pytest.mark.parametrize("content", [0.0, -1.0, np.nan, np.inf, 5.0])
def test_contents_of_padding_change_no_bit(content):
    rng = np.random.default_rng(1)
    anchors, targets = boxes_of(rng, 40), boxes_of(rng, 4)
    padding = np.full((3, 4), content, np.float32)
    where = np.arange(7) < 4
    found = jaxiou.match_anchors(
        anchors, np.concatenate([targets, padding]), where=where
    )
    plain = jaxiou.match_anchors(anchors, targets)
    np.testing.assert_array_equal(found.indices, plain.indices)
    np.testing.assert_array_almost_equal_nulp(found.values, plain.values, 4)


def test_batch_equals_vmap_equals_loop():
    rng = np.random.default_rng(2)
    anchors = boxes_of(rng, 30)
    targets = np.stack([boxes_of(rng, 5) for _ in range(3)])
    where = np.arange(5)[None, :] < np.array([0, 2, 5])[:, None]
    batch = jaxiou.match_anchors(anchors, targets, where=where).indices
    mapped = jax.vmap(lambda t, w: jaxiou.match_anchors(anchors, t, where=w).indices)(
        targets, where
    )
    loop = [
        jaxiou.match_anchors(anchors, t, where=w).indices
        for t, w in zip(targets, where, strict=True)
    ]
    np.testing.assert_array_equal(batch, np.stack(loop))
    np.testing.assert_array_equal(mapped, np.stack(loop))


def test_one_compilation_serves_every_count():
    rng = np.random.default_rng(4)
    anchors, targets = boxes_of(rng, 20), boxes_of(rng, 6)
    traces = []

    @jax.jit
    def match(where):
        traces.append(where)
        return jaxiou.match_anchors(anchors, targets, where=where).indices

    counts = [int((match(np.arange(6) < k) >= 0).sum()) for k in range(7)]
    assert len(traces) == 1
    assert counts[0] == 0 and counts[6] >= 1


def test_nan_boxes_match_nothing():
    anchors = np.array([[0, 0, 10, 10], [np.nan, 0, 10, 10]], np.float32)
    targets = np.array([[0, 0, 10, 10], [0, np.nan, 5, 5]], np.float32)
    np.testing.assert_array_equal(
        jaxiou.match_anchors(anchors, targets).indices, [0, -1]
    )


def test_any_measure_and_thresholds_checked():
    rng = np.random.default_rng(5)
    anchors, targets = boxes_of(rng, 30), boxes_of(rng, 4)
    found = jaxiou.match_anchors(
        anchors, targets, measure=jaxiou.giou, positive=0.2, negative=0.0
    )
    matrix = np.asarray(jaxiou.pairwise(anchors, targets, measure=jaxiou.giou))
    assert np.all(found.indices[matrix.max(1) >= 0.2] >= 0)
    # With GIoU every target has an anchor above the minimum, so each claims one.
    assert set(matrix.argmax(0)) <= set(np.flatnonzero(found.indices >= 0))
    with pytest.raises(ValueError, match=r"match_anchors: `negative` is 0.6"):
        jaxiou.match_anchors(anchors, targets, negative=0.6)


def test_a_wrong_measure_of_ignored_targets_is_refused_by_its_name():
    with pytest.raises(TypeError, match="match_anchors: `ignore_measure` is 'iof'"):
        jaxiou.match_anchors([[0, 0, 4, 2]], [[1, 1, 5, 4]], ignore_measure="iof")


def test_take_targets_gathers_and_fills():
    assignment = jaxiou.Assignment(jnp.array([1, -1, 0, -2]), jnp.zeros(4))
    boxes = np.arange(8.0, dtype=np.float32).reshape(2, 4)
    taken = jaxiou.take_targets(boxes, assignment, fill=0.0)
    np.testing.assert_array_equal(taken, [boxes[1], np.zeros(4), boxes[0], np.zeros(4)])
    labels = jaxiou.take_targets(np.array([7, 9]), assignment, fill=-1)
    np.testing.assert_array_equal(labels, [9, -1, 7, -1])
    assert jnp.issubdtype(labels.dtype, jnp.integer)


def test_take_targets_batched_and_empty():
    indices = jnp.array([[0, -1], [1, 0]])
    assignment = jaxiou.Assignment(indices, jnp.zeros((2, 2)))
    labels = np.array([[3, 4], [5, 6]])
    np.testing.assert_array_equal(
        jaxiou.take_targets(labels, assignment, fill=0), [[3, 0], [6, 5]]
    )
    nothing = jaxiou.Assignment(jnp.full((3,), -1), jnp.zeros(3))
    np.testing.assert_array_equal(
        jaxiou.take_targets(np.zeros((0, 4)), nothing, fill=1.0), np.ones((3, 4))
    )


def test_take_targets_errors_name_the_argument():
    assignment = jaxiou.Assignment(jnp.zeros((2, 3), int), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"take_targets: `targets` has shape \(5, 4\)"):
        jaxiou.take_targets(np.zeros((5, 4)), assignment, fill=0.0)
    with pytest.raises(TypeError, match=r"take_targets: `fill` is 0.5"):
        jaxiou.take_targets(np.zeros((2, 4), np.int32), assignment, fill=0.5)
    with pytest.raises(TypeError, match=r"`fill` is -1, which does not fit .* uint8"):
        jaxiou.take_targets(np.zeros((2, 4), np.uint8), assignment, fill=-1)
    with pytest.raises(ValueError, match=r"`fill` has shape \(3,\), wanted .*\(3, 4\)"):
        one = jaxiou.Assignment(jnp.zeros(3, int), jnp.zeros(3))
        jaxiou.take_targets(np.zeros((2, 4)), one, fill=np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="`assignment` is a ndarray, wanted an Assig"):
        jaxiou.take_targets(np.zeros((2, 4)), np.zeros(3, int), fill=0.0)


def test_take_targets_fills_with_a_row_or_a_row_per_anchor():
    assignment = jaxiou.Assignment(jnp.array([1, -1, 0, -2]), jnp.zeros(4))
    boxes = np.arange(8.0, dtype=np.float16).reshape(2, 4)
    rows = jaxiou.take_targets(boxes, assignment, fill=[9, 8, 7, 6.5])
    np.testing.assert_array_equal(
        rows, [boxes[1], [9, 8, 7, 6.5], boxes[0], [9, 8, 7, 6.5]]
    )
    assert rows.dtype == jnp.float16
    anchors = -np.arange(16, dtype=np.float16).reshape(4, 4)
    own = jaxiou.take_targets(boxes, assignment, fill=anchors)
    wanted = [boxes[1], anchors[1], boxes[0], anchors[3]]
    np.testing.assert_array_equal(own, wanted)


@pytest.mark.parametrize("number", [float, np.float32, np.float64])
def test_thresholds_in_the_wrong_order_are_refused_whatever_their_type(number):
    boxes = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"`negative` is .*, above `positive`"):
        jaxiou.match_anchors(boxes, boxes, positive=number(0.3), negative=number(0.4))


@pytest.mark.parametrize("name", ["positive", "negative"])
def test_one_threshold_may_be_traced(name):
    anchors = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [8, 8, 9, 9]], np.float32)
    given = {"positive": 0.7, "negative": 0.4}
    match = functools.partial(jaxiou.match_anchors, anchors, anchors[:1])
    traced = jax.jit(lambda x: match(**{**given, name: x}).indices)(given[name])
    np.testing.assert_array_equal(traced, [0, -2, -1])


def test_a_target_below_its_minimum_claims_no_anchor():
    anchors = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    # IoU exactly 1/4 and 1/8.
    targets = np.array([[0, 0, 5, 5], [20, 0, 25, 2.5]], np.float32)

    def match(minimum):
        found = jaxiou.match_anchors(anchors, targets, force_minimum=minimum)
        return found.indices.tolist()

    assert match(None) == [0, 1]
    assert match(0.25) == [0, -1]  # A target at the minimum itself does.
    assert match(np.nextafter(np.float32(0.25), np.float32(1)).item()) == [-1, -1]


def test_anchors_left_out_are_neither_and_claimed_by_nobody():
    rng = np.random.default_rng(6)
    anchors, targets = boxes_of(rng, 30), boxes_of(rng, 4)
    where = np.arange(30) % 3 != 0
    found = jaxiou.match_anchors(anchors, targets, where_anchors=where)
    left = jaxiou.match_anchors(anchors[where], targets)
    np.testing.assert_array_equal(found.indices[where], left.indices)
    assert (found.indices[~where] == -2).all()


@functools.partial(jax.jit, static_argnames=("positives", "total"))
def drawn(indices, key, positives=3, total=8):
    found = jaxiou.Assignment(indices, None)
    return jaxiou.sample(found, key, positives=positives, total=total)


@pytest.mark.parametrize(
    "some,others,wanted",
    [(5, 9, (3, 5)), (2, 9, (2, 6)), (0, 20, (0, 8)), (9, 2, (3, 2)), (0, 0, (0, 0))],
)
def test_samples_have_as_many_of_each_kind_as_there_are(some, others, wanted):
    rng = np.random.default_rng(some)
    indices = np.r_[
        np.arange(some), np.full(others, -1), np.full(20 - some - others, -2)
    ]
    indices = rng.permutation(indices).astype(np.int32)
    result = drawn(indices, jax.random.key(others))
    found = np.asarray(result.indices)[np.asarray(result.valid)]
    assert len(set(found)) == len(found) == sum(wanted)
    assert (indices[found[: wanted[0]]] >= 0).all()
    assert (indices[found[wanted[0] :]] == -1).all()
    np.testing.assert_array_equal(result.indices[sum(wanted) :], -1)


def test_samples_are_uniform_also_in_a_batch():
    indices = np.broadcast_to(np.r_[np.arange(6), np.full(14, -1)], (4000, 20))
    result = drawn(indices.astype(np.int32), jax.random.key(1))
    assert result.valid.all()
    counts = np.bincount(np.asarray(result.indices).ravel(), minlength=20) / 4000
    # Each of six is among three in one half of all draws, five standard deviations.
    np.testing.assert_allclose(counts[:6], 3 / 6, atol=0.04)
    np.testing.assert_allclose(counts[6:], 5 / 14, atol=0.04)


def test_sample_errors_name_the_argument():
    found = jaxiou.Assignment(jnp.zeros(3, int), None)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="sample: `positives` is 5, wanted an integer"):
        jaxiou.sample(found, key, positives=5, total=4)
    with pytest.raises(TypeError, match="sample: `assignment` is a ArrayImpl, wanted"):
        jaxiou.sample(found.indices, key, positives=2, total=4)


def test_ignored_boxes_that_turn_want_a_measure_of_theirs():
    boxes = np.array([[2, 1, 4, 2, 0.1], [3, 3, 2, 2, 0.3]], np.float32)
    run = functools.partial(
        jaxiou.match_anchors,
        boxes,
        boxes,
        measure=jaxiou.rotated_iou,
        ignore=[False, True],
    )
    with pytest.raises(ValueError, match="`ignore_measure` is iof, of boxes with 4"):
        run()
    assert run(ignore_measure=jaxiou.rotated_iof).indices.tolist() == [0, -2]


def test_what_is_no_number_is_named():
    found = jaxiou.Assignment(jnp.array([0, -1]), None)
    with pytest.raises(ValueError, match=r"sample: `total` is .*wanted an integer"):
        jax.jit(
            lambda total: jaxiou.sample(
                found, jax.random.key(0), positives=1, total=total
            )
        )(2)
    with pytest.raises(TypeError, match="take_targets: `fill` is None"):
        jaxiou.take_targets(np.zeros((1, 4), np.float32), found, fill=None)
