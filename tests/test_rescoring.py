"""Soft and matrix suppression equal their definitions, written as loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_suppression import clusters

import jaxiou

SIZE = 90
DECAYS = {
    "linear": jaxiou.LinearDecay(0.3),
    "gaussian": jaxiou.GaussianDecay(0.4),
    "of one's own": jax.tree_util.Partial(lambda overlap: (1 - overlap) ** 2),
}
FUNCTIONS = [jaxiou.soft_nms, jaxiou.matrix_nms]
every_function = pytest.mark.parametrize("function", FUNCTIONS)
every_decay = pytest.mark.parametrize(
    "decay", [DECAYS["linear"], DECAYS["of one's own"]], ids=["linear", "own"]
)


def factor(decay, overlap):
    """The factor of an overlap in float64."""
    if isinstance(decay, jaxiou.LinearDecay):
        return 1 - overlap if overlap >= decay.threshold else 1
    if isinstance(decay, jaxiou.GaussianDecay):
        return np.exp(-(overlap**2) / decay.sigma)
    return decay(overlap)


def matrix_of(boxes, labels, measure):
    """Overlaps in [0, 1], 0 where labels differ."""
    matrix = np.asarray(jaxiou.pairwise(boxes, boxes, measure=measure), float)
    matrix = np.where(matrix > 0, matrix, 0)
    return matrix if labels is None else matrix * np.equal.outer(labels, labels)


def soft(matrix, scores, decay, least):
    left, scores, found = set(range(len(scores))), np.array(scores, float), []
    while left:
        best = min(left, key=lambda i: (-scores[i], i))
        if scores[best] <= least:
            break
        left.remove(best)
        found.append((best, scores[best]))
        for i in left:
            scores[i] *= factor(decay, matrix[best, i])
    return found


def matrix(matrix, scores, decay, least):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    most, found = {}, []
    for j, box in enumerate(order):
        better = order[:j]
        most[box] = max([matrix[i, box] for i in better], default=0)
        ratios = [1.0]
        for i in better:
            own, part = factor(decay, most[i]), factor(decay, matrix[i, box])
            if own > 0:
                ratios.append(part / own)
        found.append((box, scores[box] * min(ratios)))
    found = [pair for pair in found if pair[1] > least]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


LOOPS = {jaxiou.soft_nms: soft, jaxiou.matrix_nms: matrix}


@functools.partial(jax.jit, static_argnames=("function", "measure"))
def compiled(function, boxes, scores, labels, where, decay, least, measure):
    return function(
        boxes,
        scores,
        max_outputs=SIZE + 10,
        labels=labels,
        where=where,
        decay=decay,
        score_threshold=least,
        measure=measure,
    )


def run(
    function,
    boxes,
    scores,
    labels=None,
    where=True,
    *,
    decay=DECAYS["linear"],
    least=-1.0,
    measure=jaxiou.iou,
):
    """Boxes padded to one shape, with NaN, so that little is compiled."""
    n = len(scores)
    labels = np.zeros(n, int) if labels is None else labels
    if not isinstance(boxes, jaxiou.Overlaps):
        boxes = np.pad(boxes, [(0, SIZE - n), (0, 0)], constant_values=np.nan)
    scores = np.pad(np.asarray(scores, "f4"), (0, SIZE - n), constant_values=np.nan)
    where = np.pad(np.broadcast_to(where, n), (0, SIZE - n))
    labels = np.pad(labels, (0, SIZE - n))
    return compiled(function, boxes, scores, labels, where, decay, least, measure)


def check(result, wanted):
    count = len(wanted)
    assert result.valid[:count].all() and not result.valid[count:].any()
    np.testing.assert_array_equal(result.indices[:count], [i for i, _ in wanted])
    np.testing.assert_array_equal(result.indices[count:], -1)
    # Up to ninety factors in float32.
    np.testing.assert_allclose(result.scores[:count], [s for _, s in wanted], rtol=3e-5)
    np.testing.assert_array_equal(result.scores[count:], 0)


@every_function
@every_decay
def test_equals_the_loop(function, decay):
    for seed, labelled in [(0, False), (1, True)]:
        rng = np.random.default_rng(seed)
        boxes, scores = clusters(rng, 90), rng.uniform(size=90).astype("f4")
        labels = rng.integers(-2, 3, 90) if labelled else np.zeros(90, int)
        result = run(function, boxes, scores, labels, decay=decay, least=0.01)
        overlaps = matrix_of(boxes, labels, jaxiou.iou)
        check(result, LOOPS[function](overlaps, scores, decay, 0.01))


def test_many_small_blocks(monkeypatch):
    monkeypatch.setattr(jaxiou.rescoring, "_PAIRS", 300)
    rng = np.random.default_rng(2)
    boxes, scores = clusters(rng, 50), rng.uniform(size=50).astype("f4")
    decay = DECAYS["linear"]
    result = jax.jit(functools.partial(jaxiou.matrix_nms, max_outputs=50, decay=decay))(
        boxes, scores
    )
    check(result, matrix(matrix_of(boxes, None, jaxiou.iou), scores, decay, -1))


@every_function
def test_ties_go_to_the_lower_index(function):
    # Integer boxes of which many coincide, and three scores: ties at every step.
    rng = np.random.default_rng(3)
    corner = rng.integers(0, 3, (90, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 3, (90, 2))], 1)
    scores = (rng.integers(1, 4, 90) / 4).astype("f4")
    # Factors of 1/2 alone, so that sums and products have no rounding.
    half = jax.tree_util.Partial(lambda overlap: np.float32(1) - (overlap > 0.3) / 2)
    result = run(function, boxes.astype("f4"), scores, decay=half)
    overlaps = matrix_of(boxes.astype("f4"), None, jaxiou.iou)
    check(result, LOOPS[function](overlaps, scores, half, -1))


@every_function
@pytest.mark.parametrize("content", [np.nan, np.inf, 0.0, 3.0])
def test_contents_of_padding_change_no_bit(function, content):
    rng = np.random.default_rng(4)
    boxes, scores = clusters(rng, 90), rng.uniform(size=90).astype("f4")
    where = np.arange(90) % 5 != 2
    labels = rng.integers(0, 2, 90)
    wanted = run(function, boxes, scores, labels, where)
    boxes[~where], scores[~where], labels[~where] = content, content, 9
    result = run(function, boxes, scores, labels, where)
    jax.tree.map(np.testing.assert_array_equal, result, wanted)
    assert not set(np.flatnonzero(~where)) & set(np.asarray(result.indices))


@every_function
def test_nan_and_negative_scores_and_infinite_ones(function):
    boxes = np.array(
        [[0, 0, 4, 2], [np.nan, 0, 4, 2], [0, 0, 4, 2], [0, 0, 4, 2], [0, 0, 4, 2]],
        np.float32,
    )
    scores = np.array([np.inf, 0.5, np.inf, -0.1, np.nan], np.float32)
    result = run(function, boxes, scores, decay=jaxiou.LinearDecay())
    # The second infinite score is lowered by a factor 0; NaN overlaps with nothing.
    np.testing.assert_array_equal(result.indices[:5], [0, 1, 2, -1, -1])
    np.testing.assert_array_equal(result.scores[:5], [np.inf, 0.5, 0, 0, 0])


def test_what_is_wiped_out_suppresses_nothing():
    """Three times one box: decay / decay is 0 / 0 for the third."""
    boxes = np.array([[0, 0, 4, 2], [0, 0, 4, 2], [0, 0, 4, 3], [9, 9, 11, 12]], "f4")
    scores = [0.9, 0.8, 0.7, 0.6]
    result = run(jaxiou.matrix_nms, boxes, scores, decay=jaxiou.LinearDecay())
    np.testing.assert_array_equal(result.indices[:5], [0, 3, 2, 1, -1])
    np.testing.assert_allclose(result.scores[:4], [0.9, 0.6, 0.7 / 3, 0], rtol=1e-5)


@every_function
def test_stops_at_max_outputs_and_at_no_box(function):
    boxes = np.array([[k, 0, k + 1, 2] for k in range(6)], np.float32)
    scores = np.array([1, 6, 3, 5, 2, 4], np.float32)
    few = function(boxes, scores, max_outputs=2)
    np.testing.assert_array_equal(few.indices, [1, 3])
    many = run(function, boxes, scores, least=2.0)
    np.testing.assert_array_equal(many.indices[:6], [1, 3, 5, 2, -1, -1])
    for n, slots in [(0, 2), (6, 0)]:
        none = function(boxes[:n], scores[:n], max_outputs=slots)
        assert none.indices.shape == (slots,) and not none.valid.any()


@every_function
def test_any_measure_and_overlaps_of_ones_own(function):
    rng = np.random.default_rng(5)
    boxes, scores = clusters(rng, 90), rng.uniform(size=90).astype("f4")
    decay = DECAYS["gaussian"]
    result = run(function, boxes, scores, measure=jaxiou.giou, decay=decay)
    # GIoU of what is far apart is negative and counts as 0.
    wanted = LOOPS[function](matrix_of(boxes, None, jaxiou.giou), scores, decay, -1)
    check(result, wanted)
    given = jaxiou.Overlaps(jaxiou.pairwise(boxes, boxes, measure=jaxiou.giou))
    check(run(function, given, scores, decay=decay), wanted)


@pytest.mark.parametrize("function", [jaxiou.nms, *FUNCTIONS])
def test_overlaps_are_read_by_row_of_the_kept_one(function):
    # Item 0 covers item 1 entirely, item 1 does nothing to item 0, and 1 is better.
    given = jaxiou.Overlaps(np.array([[1, 1], [0, 1]], np.float32))
    options = {"threshold": 0.5} if function is jaxiou.nms else {}
    result = function(given, [0.8, 0.9], max_outputs=2, **options)
    np.testing.assert_array_equal(result.indices, [1, 0])
    result = function(given, [0.9, 0.8], max_outputs=2, score_threshold=0.5, **options)
    np.testing.assert_array_equal(result.indices, [0, -1])


def test_masks_and_boxes_go_through_the_same_loop():
    rng = np.random.default_rng(6)
    corner = rng.integers(0, 12, (2, 20, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 9, (2, 20, 2))], -1)
    row, column = np.mgrid[:21, :21] + 0.5
    x1, y1, x2, y2 = np.moveaxis(boxes[..., None, None, :], -1, 0)
    masks = (x1 < column) & (column < x2) & (y1 < row) & (row < y2)
    scores, labels = rng.uniform(size=(2, 20)), rng.integers(0, 2, (2, 20))

    options = {"max_outputs": 20, "labels": labels}

    @jax.jit
    def kept(items):
        return jaxiou.nms(items, scores, threshold=0.2, **options).indices

    given = jaxiou.Overlaps(jaxiou.pairwise_mask_iou(masks, masks))
    np.testing.assert_array_equal(kept(given), kept(boxes.astype("f4")))


def test_batch_equals_vmap_equals_loop_also_over_parameters():
    function = jaxiou.matrix_nms
    rng = np.random.default_rng(7)
    boxes = np.stack([clusters(rng, 30) for _ in range(3)])
    scores = rng.uniform(size=(3, 30)).astype("f4")
    where = np.arange(30) < np.array([[0], [10], [30]])
    sigma = np.array([0.2, 0.5, 0.9], np.float32)

    @jax.jit
    def one(boxes, scores, where, sigma):
        decay = jaxiou.GaussianDecay(sigma)
        return function(boxes, scores, max_outputs=12, where=where, decay=decay)

    arguments = boxes, scores, where, sigma
    loop = [one(*(x[k] for x in arguments)) for k in range(3)]
    loop = jax.tree.map(lambda *x: np.stack(x), *loop)
    mapped = jax.jit(jax.vmap(one))(*arguments)
    np.testing.assert_array_equal(mapped.indices, loop.indices)
    np.testing.assert_allclose(mapped.scores, loop.scores, rtol=1e-6)
    assert np.all(loop.indices[0] == -1)


def test_no_buffer_of_all_pairs_exists():
    n, function = 4096, jaxiou.matrix_nms
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, 4), (n,))]
    lowered = jax.jit(lambda b, s: function(b, s, max_outputs=n)).lower(*shapes)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < n * n / 2


def test_errors_name_the_argument():
    boxes, scores = np.zeros((3, 4)), np.zeros(3)
    soft = functools.partial(jaxiou.soft_nms, boxes, scores, max_outputs=3)
    with pytest.raises(TypeError, match=r"soft_nms: `decay` is 'linear', wanted a fun"):
        soft(decay="linear")
    with pytest.raises(ValueError, match=r"soft_nms: `decay` returned shape \(\)"):
        soft(decay=lambda overlap: overlap.sum())
    with pytest.raises(ValueError, match=r"GaussianDecay: `sigma` is 0, wanted"):
        soft(decay=jaxiou.GaussianDecay(0))
    with pytest.raises(ValueError, match=r"LinearDecay: `threshold` is 2, wanted"):
        soft(decay=jaxiou.LinearDecay(2))
    given = jaxiou.Overlaps(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"matrix_nms: `boxes` is an `Overlaps` of"):
        jaxiou.matrix_nms(given, scores, max_outputs=3)
    given = jaxiou.Overlaps(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"nms: `measure` is giou beside `Overlaps`"):
        jaxiou.nms(given, scores, max_outputs=3, threshold=0.5, measure=jaxiou.giou)
