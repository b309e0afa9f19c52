"""The study of masks: labels from outlines, losses, scores, and a small run."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faster_coco_eval.core import mask as coco
from flax import nnx
from PIL import Image

from examples import mask_pictures, page, segmentation
from examples.detector import data
from examples.detector.digits import digits
from examples.detector.records import DataError, Record

pytestmark = pytest.mark.usefixtures("quick")

SQUARE = [[2.0, 1.0, 8.0, 1.0, 8.0, 7.0, 2.0, 7.0]]  # x from 2 to 8, y from 1 to 7


def record(*outlines, ignore=False):
    """A record of 10 × 12 pixels whose outlines have classes 0, 1, ..."""
    n = len(outlines)
    boxes = np.tile(np.float32([0, 0, 5, 5]), (n, 1)) * (1 + np.arange(n))[:, None]
    image = np.zeros((10, 12, 3), np.uint8)
    flags = np.full(n, ignore)
    return Record("a", image, (10, 12), boxes, np.arange(n), flags, outlines)


def test_outlines_become_labels():
    wanted = np.zeros((10, 12), np.uint8)
    wanted[1:7, 2:8] = 1
    np.testing.assert_array_equal(segmentation.label(record(SQUARE)), wanted)
    small = np.zeros((10, 12), np.uint8)
    small[3:5, 4:10] = 1
    compressed = coco.encode(np.asfortranarray(small))
    runs = [0, *np.diff(np.flatnonzero(np.diff(small.ravel("F"), prepend=0)))]
    runs[0] = int(np.flatnonzero(small.ravel("F"))[0])
    runs.append(small.size - sum(runs))
    listed = {"size": [10, 12], "counts": [int(x) for x in runs]}
    for outline in (compressed, listed):
        # The smaller box is drawn last: the first one.
        found = segmentation.label(record(outline, SQUARE))
        expected = np.where(small == 1, 1, 2 * wanted)
        np.testing.assert_array_equal(found, expected)
    crowd = segmentation.label(record(SQUARE, ignore=True))
    np.testing.assert_array_equal(crowd, 255 * wanted)
    with pytest.raises(DataError, match="a: a box without polygon"):
        segmentation.label(record(None))


def test_polygons_are_read_from_coco(tmp_path):
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(tmp_path / "a.png")
    images = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "a.png"}]
    entry = {"image_id": 7, "category_id": 3, "bbox": [2, 1, 6, 6]}
    empty = entry | {"bbox": [2, 1, 0, 6], "segmentation": [[0, 0, 1, 1, 2, 2]]}
    content = {"images": images, "categories": [{"id": 3, "name": "thing"}]}
    content["annotations"] = [empty, entry | {"segmentation": SQUARE}]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    config = segmentation.Config(data=f"coco:{path}")
    found = segmentation.load(config)
    records = [*found.train, *found.test]
    (outline,) = next(r.outlines for r in records if len(r.boxes))
    assert outline == SQUARE and segmentation.name_of(config) == "train"


def test_digits_have_the_labels_of_their_ink():
    (one,) = digits("test", 1, 0, segmentation.photograph("test"))
    labels = segmentation.label(one)
    shown = set(np.unique(labels)) - {0}
    assert shown == {1 + k for k in one.labels.tolist()}
    inside = np.zeros(one.size, bool)
    for x1, y1, x2, y2 in one.boxes.astype(int):
        inside[y1:y2, x1:x2] = True
    assert not labels[~inside].any() and 0.1 < (labels[inside] > 0).mean() < 0.9


def test_photographs_of_training_and_test_share_no_column():
    train, test = segmentation.BACKGROUNDS.values()
    assert train.stop < test.start
    crop = segmentation.photograph("train")(np.random.default_rng(0))
    assert crop.shape == (96, 96, 3) and crop.std() > 10


def test_images_and_labels_fit_and_move_alike():
    image = np.zeros((10, 12, 3), np.uint8)
    image[1:7, 2:8] = 200
    one = dataclasses.replace(record(SQUARE), image=image)
    fitted, labels = segmentation.fit(one, (32, 32))
    assert (labels[27:] == 255).all() and set(np.unique(labels[:26])) == {0, 1}
    rng = np.random.default_rng(1)
    for _ in range(5):
        moved, found = segmentation.vary(fitted, labels, rng, flips=True, window=32)
        bright = moved[..., 1].astype(int)
        inner, outer = bright[found == 1], bright[found == 0]
        # Labels are cut where the image is smooth: near edges either may be right.
        assert np.median(inner) > np.median(outer) + 50
        limit = (np.median(inner) + np.median(outer)) / 2
        assert (inner > limit).mean() > 0.85 and (outer < limit).mean() > 0.85


def test_losses_of_batches():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
    labels = rng.choice(np.uint8([0, 2, 255]), (2, 4, 5))  # 1 does not occur
    p, counts = np.asarray(jax.nn.softmax(logits), float), labels != 255
    chosen = np.take_along_axis(p, np.where(counts, labels, 0)[..., None], -1)[..., 0]
    entropy = -np.log(chosen[counts]).mean()
    np.testing.assert_allclose(
        segmentation.cross_entropy(logits, labels), entropy, rtol=1e-5
    )
    ious = []
    for k in (0, 2):
        t, q = (labels == k)[counts], p[..., k][counts]
        ious.append((t * q).sum() / (t.sum() + q.sum() - (t * q).sum()))
    jaccard = 1 - np.mean(ious)
    np.testing.assert_allclose(segmentation.jaccard(logits, labels), jaccard, rtol=1e-5)
    both = segmentation.cross_entropy_and_jaccard(logits, labels)
    np.testing.assert_allclose(both, entropy + jaccard, rtol=1e-5)


def test_scores_by_hand():
    wanted = np.zeros((2, 4, 4), np.uint8)
    wanted[0, :2], wanted[1, 3] = 1, 255
    found = np.where(wanted == 255, 2, wanted)
    report = segmentation.scores(found, wanted, 3)
    assert report == {"mIoU": 1, "mIoU per image": 1, "accuracy": 1}
    found[0, 0] = 0  # half of the only object is missed
    report = segmentation.scores(found, wanted, 3)
    # Background: 20 of 24 pixels, 8 of 12 in the first image; the object: 4 of 8.
    assert report["mIoU"] == pytest.approx((20 / 24 + 4 / 8) / 2, abs=1e-4)
    assert report["mIoU per image"] == pytest.approx((7 / 12 + 1) / 2, abs=1e-4)
    assert report["accuracy"] == pytest.approx(24 / 28, abs=1e-4)


def test_every_cell_has_its_own_pixels():
    cells = np.arange(2 * 3 * 4 * 12).reshape(2, 3, 4, 12)
    pixels = segmentation.spread_cells(jnp.asarray(cells))
    assert pixels.shape == (2, 6, 8, 3)
    for row, column in np.ndindex(2, 2):
        first = 3 * (2 * row + column)
        found = pixels[:, row::2, column::2]
        np.testing.assert_array_equal(found, cells[..., first : first + 3])


def test_a_step_learns_whatever_the_loss():
    rng = np.random.default_rng(0)
    labels = np.zeros((4, 16, 16), np.uint8)
    labels[:, 4:11, 5:13] = 1
    images = (80 * labels[..., None] + rng.integers(0, 40, (4, 16, 16, 3))).astype("u1")
    model = segmentation.UNet(2, width=8, halvings=1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    def loss(logits, labels):
        every = [loss(logits, labels) for loss in segmentation.LOSSES.values()]
        return jnp.sum(jnp.stack(every))

    batch = {"images": images, "labels": labels}
    losses = [
        float(segmentation.train_step(model, optimizer, batch, loss)) for _ in range(12)
    ]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_a_study_leaves_its_runs_and_pictures_and_goes_on(tmp_path, monkeypatch):
    config = segmentation.Config(
        losses="jaccard", seeds=1, steps=2, digit_images=6, batch_size=4, width=8,
        out=tmp_path,
    )  # fmt: skip
    monkeypatch.setattr(segmentation, "TEST_DIGITS", 8)
    (made,) = segmentation.run(config)
    assert page.read(tmp_path / "runs.json") == [json.loads(json.dumps(made))]
    assert 0 <= made["mIoU"] <= 1 and made["head"]["images"] == [6, 8]
    for name in ("images", "labels", "jaccard"):
        with Image.open(tmp_path / "digits-2" / f"{name}.png") as picture:
            assert picture.size == (6 * 96 + 5 * 2, 96)
    monkeypatch.setattr(segmentation, "train", None)  # nothing is trained twice
    assert segmentation.run(config) == [json.loads(json.dumps(made))]


def made(loss, seed, score):
    """A run as it is kept."""
    scores = dict.fromkeys(segmentation.METRICS, score)
    head = {
        "command": "python -m it",
        "date": "2026-01-01",
        "device": "a machine",
        "commit": "abc",
        "versions": {"jax": "0"},
        "images": [10, 4],
        "size": [96, 96],
    }
    key = {"data": "digits", "steps": 9, "loss": loss, "seed": seed}
    return {**key, **scores, "seconds": 3.0, "head": head}


def test_tables_are_paired_by_seed():
    scores = {"cross_entropy": (0.5, 0.6), "dice": (0.7, 0.8)}
    runs = [made(n, s, x) for n, values in scores.items() for s, x in enumerate(values)]
    text = segmentation.tables(runs)["segmentation"]
    assert "| `dice` | 0.750 ± 0.071 |" in text
    assert "| +0.200 ± 0.000, better | +0.200 ± 0.000, better | 2 | 3 |" in text
    assert "10 images to learn from and 4 to test, 9 steps" in text
    assert "(masks/digits-9/dice.png)" in text


def test_the_page_holds_what_was_measured(tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text(segmentation.MASKS.read_text())
    folder = segmentation.MASKS.parent
    runs = page.read(folder / "masks" / "runs.json")
    page.fill(segmentation.tables(runs), copy)
    assert copy.read_text() == segmentation.MASKS.read_text()
    for name in re.findall(r"!\[.*?\]\((.*?)\)", copy.read_text()):
        assert (folder / name).stat().st_size < 100_000, name


def test_the_picture_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_pictures, "OUT", tmp_path / "losses.png")
    mask_pictures.main()
    assert 10_000 < (tmp_path / "losses.png").stat().st_size < 100_000


def test_batches_repeat_and_epochs_are_permutations():
    dataset = segmentation.load(segmentation.Config(digit_images=4))
    calls = []

    def fitted(index):
        calls.append(index)
        return segmentation.fit(dataset.train[index], (96, 96))

    batches = segmentation.Batches(dataset, (96, 96), 4, 0, fitted, 64)
    first, again = batches(0), batches(0)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert sorted(calls[:4]) == [0, 1, 2, 3] and isinstance(batches, data.Batches)
    assert first["images"].dtype == first["labels"].dtype == np.uint8
    assert first["images"].shape == (4, 64, 64, 3)
    assert first["labels"].shape == (4, 64, 64)
