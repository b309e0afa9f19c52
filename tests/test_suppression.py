"""Non-maximum suppression equals the greedy loop, always."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_boxes

import jaxiou
from jaxiou import suppression


def greedy(boxes, scores, threshold, *, labels=None, measure=jaxiou.iou, allowed=None):
    """The definition: best score first, kept unless a kept one overlaps too much."""
    matrix = np.asarray(jaxiou.pairwise(boxes, boxes, measure=measure))
    return greedy_of(matrix, scores, threshold, labels=labels, allowed=allowed)


def greedy_of(matrix, scores, threshold, *, labels=None, allowed=None):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = []
    for i in order:
        if allowed is not None and not allowed[i]:
            continue
        rivals = [j for j in kept if labels is None or labels[i] == labels[j]]
        if not any(matrix[j, i] > threshold for j in rivals):
            kept.append(i)
    return kept


def kept_of(result):
    assert np.array_equal(np.asarray(result.valid), np.asarray(result.indices) >= 0)
    return np.asarray(result.indices)[np.asarray(result.valid)].tolist()


def clusters(rng, n, extent=100):
    centre = rng.uniform(-extent, extent, (max(1, n // 8), 2))
    centre = centre[rng.integers(len(centre), size=n)] + rng.normal(0, 4, (n, 2))
    size = rng.uniform(8, 30, (n, 2))
    return np.concatenate([centre - size / 2, centre + size / 2], 1).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 7, 127, 128, 129, 400])
@pytest.mark.parametrize("labelled", [False, True])
def test_equals_the_greedy_loop(n, labelled):
    rng = np.random.default_rng(n)
    boxes = clusters(rng, n)
    scores = rng.integers(0, max(2, n // 3), n).astype(np.float32)  # many ties
    labels = rng.integers(-3, 4, n) if labelled else None
    result = jax.jit(
        lambda b, s: jaxiou.nms(b, s, threshold=0.4, max_outputs=n + 3, labels=labels)
    )(boxes, scores)
    assert kept_of(result) == greedy(boxes, scores, 0.4, labels=labels)


@pytest.mark.parametrize("sizes", [(8, 4, 1), (16, 32, 4)], ids=str)
def test_many_small_blocks_and_chunks(monkeypatch, sizes):
    monkeypatch.setattr(suppression, "_CPU", suppression.Sizes(*sizes))
    rng = np.random.default_rng(0)
    boxes, scores = clusters(rng, 150), rng.uniform(size=150)
    result = jaxiou.nms(boxes, scores, threshold=0.3, max_outputs=150)
    assert kept_of(result) == greedy(boxes, scores, 0.3)


def test_a_chain_in_which_every_box_depends_on_the_one_before():
    # Box k overlaps only k - 1 and k + 1 by more than 1/3: every second one survives.
    left = np.arange(60.0)
    boxes = np.stack([left, 0 * left, left + 2, 0 * left + 1], 1).astype(np.float32)
    scores = -left
    result = jaxiou.nms(boxes, scores, threshold=0.3, max_outputs=60)
    assert kept_of(result) == list(range(0, 60, 2))


def test_every_order_of_ties_on_a_small_grid():
    sides = list(itertools.combinations(range(3), 2))
    boxes = np.array(
        [(x1, y1, x2, y2) for x1, x2 in sides for y1, y2 in sides], np.float32
    )
    for threshold in (0.0, 0.25, 0.5, 1.0):
        for seed in range(6):
            scores = np.random.default_rng(seed).integers(0, 3, len(boxes))
            result = jaxiou.nms(boxes, scores, threshold=threshold, max_outputs=9)
            assert kept_of(result) == greedy(boxes, scores, threshold)


def test_the_threshold_is_strict():
    boxes = np.array([[0, 0, 2, 1], [0, 0, 4, 1]], np.float32)  # IoU exactly 1/2
    keep = jaxiou.nms(boxes, [0.9, 0.8], threshold=0.5, max_outputs=2)
    drop = jaxiou.nms(boxes, [0.9, 0.8], threshold=0.49999, max_outputs=2)
    assert kept_of(keep) == [0, 1]
    assert kept_of(drop) == [0]


def test_stops_at_max_outputs_and_fills_with_minus_one():
    boxes = np.array([[k, 0, k + 1, 1] for k in range(6)], np.float32)
    scores = np.array([1, 6, 3, 5, 2, 4], np.float32)
    few = jaxiou.nms(boxes, scores, threshold=0.5, max_outputs=2)
    np.testing.assert_array_equal(few.indices, [1, 3])
    many = jaxiou.nms(boxes, scores, threshold=0.5, max_outputs=8)
    np.testing.assert_array_equal(many.indices, [1, 3, 5, 2, 4, 0, -1, -1])
    none = jaxiou.nms(boxes, scores, threshold=0.5, max_outputs=0)
    assert none.indices.shape == (0,)


def test_score_threshold_is_strict_and_where_is_exact():
    boxes = np.array([[k, 0, k + 1, 1] for k in range(4)], np.float32)
    boxes[3] = np.nan
    result = jaxiou.nms(
        boxes,
        [0.5, 0.6, 0.9, np.inf],
        threshold=0.5,
        max_outputs=4,
        score_threshold=0.5,
        where=np.array([True, True, True, False]),
    )
    np.testing.assert_array_equal(result.indices, [2, 1, -1, -1])


def test_nan_neither_suppresses_nor_takes_part_by_score():
    boxes = np.array([[0, 0, 2, 2], [np.nan, 0, 2, 2], [0, 0, 2, 2]], np.float32)
    result = jaxiou.nms(boxes, [0.5, 0.9, 0.4], threshold=0.1, max_outputs=3)
    np.testing.assert_array_equal(result.indices, [1, 0, -1])
    result = jaxiou.nms(boxes, [np.nan, 0.9, 0.4], threshold=0.1, max_outputs=3)
    np.testing.assert_array_equal(result.indices, [1, 2, -1])


def test_negative_zero_and_zero_scores_tie():
    boxes = np.array([[0, 0, 2, 2], [5, 5, 6, 7]], np.float32)
    result = jaxiou.nms(boxes, [-0.0, 0.0], threshold=0.5, max_outputs=2)
    np.testing.assert_array_equal(result.indices, [0, 1])


@pytest.mark.parametrize("content", [np.nan, np.inf, 0.0, 3.0])
def test_contents_of_padding_change_nothing(content):
    rng = np.random.default_rng(8)
    boxes, scores = clusters(rng, 40), rng.uniform(size=40)
    padded = np.concatenate([boxes, np.full((9, 4), content, np.float32)])
    result = jaxiou.nms(
        padded,
        np.concatenate([scores, np.full(9, content)]),
        threshold=0.4,
        max_outputs=40,
        where=np.arange(49) < 40,
    )
    assert kept_of(result) == greedy(boxes, scores, 0.4)


def test_labels_are_ids_not_offsets():
    # Offsets of label * extent would need 2e9 * 4000 here, far beyond float32.
    boxes = np.array([[3000, 3000, 3500, 3600]] * 3, np.float32)
    labels = np.array([2_000_000_000, 1_999_999_999, 2_000_000_000])
    result = jaxiou.nms(
        boxes, [0.9, 0.8, 0.7], threshold=0.5, max_outputs=3, labels=labels
    )
    assert kept_of(result) == [0, 1]


def test_half_precision_decides_in_float32():
    # Areas of these boxes overflow float16.
    boxes = np.array([[0, 0, 600, 600], [10, 10, 610, 610]], np.float16)
    scores = np.array([0.9, 0.8], np.float16)
    result = jaxiou.nms(boxes, scores, threshold=0.93, max_outputs=2)
    assert kept_of(result) == [0]  # IoU 0.936


@pytest.mark.parametrize("measure", [jaxiou.giou, jaxiou.diou, jaxiou.iof], ids=repr)
def test_any_measure(measure):
    rng = np.random.default_rng(11)
    boxes, scores = clusters(rng, 90), rng.uniform(size=90)
    result = jaxiou.nms(boxes, scores, threshold=-0.1, max_outputs=90, measure=measure)
    assert kept_of(result) == greedy(boxes, scores, -0.1, measure=measure)


def test_batch_equals_vmap_equals_loop():
    rng = np.random.default_rng(12)
    boxes = np.stack([clusters(rng, 30) for _ in range(3)])
    scores = rng.uniform(size=(3, 30))
    where = np.arange(30) < np.array([[0], [10], [30]])

    def one(b, s, w):
        return jaxiou.nms(b, s, threshold=0.4, max_outputs=12, where=w).indices

    loop = np.stack([one(*row) for row in zip(boxes, scores, where, strict=True)])
    np.testing.assert_array_equal(jax.vmap(one)(boxes, scores, where), loop)
    np.testing.assert_array_equal(one(boxes, scores, where), loop)
    assert np.all(loop[0] == -1)


def test_no_box_at_all():
    result = jaxiou.nms(np.zeros((0, 4)), np.zeros(0), threshold=0.5, max_outputs=3)
    np.testing.assert_array_equal(result.indices, [-1, -1, -1])


def test_no_buffer_of_all_pairs_exists():
    n = 4096
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, 4), (n,))]
    lowered = jax.jit(
        lambda b, s: jaxiou.nms(b, s, threshold=0.5, max_outputs=n)
    ).lower(*shapes)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < n * n / 8


def test_errors_name_the_argument():
    boxes = np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"nms: `scores` has shape \(2,\)"):
        jaxiou.nms(boxes, np.zeros(2), threshold=0.5, max_outputs=3)
    with pytest.raises(TypeError, match=r"nms: `labels` has dtype float"):
        jaxiou.nms(boxes, np.zeros(3), threshold=0.5, max_outputs=3, labels=np.zeros(3))
    with pytest.raises(ValueError, match=r"nms: `max_outputs` is -1"):
        jaxiou.nms(boxes, np.zeros(3), threshold=0.5, max_outputs=-1)


@pytest.mark.parametrize("kind", ["int32", "uint32", "int8", "uint8"])
def test_integer_scores_are_ranked_exactly(kind):
    info = np.iinfo(kind)
    scores = np.array([info.min, info.max - 1, info.max, info.min + 1], kind)
    boxes = np.arange(16, dtype=np.float32).reshape(4, 4) * [100, 100, 1, 1]
    kept = jaxiou.nms(boxes, scores, threshold=0.5, max_outputs=4)
    np.testing.assert_array_equal(kept.indices, [2, 1, 3, 0])


def test_labels_that_would_be_truncated_are_refused():
    boxes = [[0.0, 0.0, 4.0, 2.0]] * 2
    labels = np.array([1, 2**32 + 1])
    with pytest.raises(ValueError, match="`labels` reach from 1 to 4294967297"):
        jaxiou.nms(boxes, [0.9, 0.8], threshold=0.5, max_outputs=2, labels=labels)
    with jax.enable_x64(True):
        kept = jaxiou.nms(
            boxes, [0.9, 0.8], threshold=0.5, max_outputs=2, labels=labels
        )
    np.testing.assert_array_equal(kept.indices, [0, 1])


def test_thresholds_may_be_traced_and_mapped_over_and_slots_may_not():
    boxes, scores = random_boxes(5, 30, extent=20), np.arange(30, dtype=np.float32)

    def kept(threshold):
        return jaxiou.nms(boxes, scores, threshold=threshold, max_outputs=30).indices

    thresholds = np.array([0.1, 0.4, 0.7], np.float32)
    found = jax.jit(jax.vmap(kept))(thresholds)
    np.testing.assert_array_equal(found, np.stack([kept(t) for t in thresholds]))
    for slots in (2.0, None):
        with pytest.raises(ValueError, match=r"`max_outputs` is .*, wanted an integer"):
            jaxiou.nms(boxes, scores, threshold=0.5, max_outputs=slots)


def test_thresholds_are_single_numbers():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 3]], np.float32)
    run = functools.partial(jaxiou.nms, boxes, [0.1, 0.2], max_outputs=2)
    for name, more in (("threshold", {}), ("score_threshold", {"threshold": 0.5})):
        with pytest.raises(ValueError, match=rf"nms: `{name}` has shape \(2,\)"):
            run(**{name: [0.9, 0.1]}, **more)
    with pytest.raises(ValueError, match=r"soft_nms: `score_threshold` has shape"):
        jaxiou.soft_nms(boxes, [0.1, 0.2], score_threshold=[0.9, 0.1], max_outputs=2)
    none = jaxiou.nms([], np.zeros(0), threshold=0.5, max_outputs=2, labels=[])
    assert none.indices.tolist() == [-1, -1]


def test_a_threshold_has_no_derivative():
    boxes = jnp.array([[0, 0, 2, 2], [0, 0, 2, 2.5]])

    def kept(threshold):
        found = jaxiou.nms(boxes, [0.5, 0.6], threshold=threshold, max_outputs=2)
        return (found.valid * 1.0).sum()

    assert jax.grad(kept)(0.3) == 0


def test_labels_beyond_every_integer_are_named():
    with pytest.raises((ValueError, OverflowError), match=r"jaxiou\.nms: `labels`"):
        jaxiou.nms(
            [[0.0, 0, 1, 1]], [0.5], threshold=0.5, max_outputs=1, labels=[2**40]
        )
