"""The detector of `examples/detector`: its data, its geometry, and that it learns."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from flax import nnx
from PIL import Image

from examples.detector import __main__ as main
from examples.detector import data, digits, images, precision, readers, state, train
from examples.detector.config import Config
from examples.detector.model import Detector, anchors_for, detect, strides_for
from examples.detector.records import DataError, Dataset, Record

pytestmark = pytest.mark.usefixtures("quick")

BCCD = Path(__file__).parents[2] / "shared" / "data" / "bccd" / "BCCD"


@functools.cache
def tiny():
    """A few digits and a configuration small enough to train in seconds."""
    records = digits.digits("train", 24, seed=0)
    dataset = Dataset(tuple("0123456789"), records, records[:4], records[:4], False)
    config = Config(
        steps=24, batch_size=8, image_size=(96, 96), width=32, learning_rate=5e-3
    )
    return dataset, config


# Digits


def test_digits_are_composed_from_different_samples_in_each_split():
    splits = digits.samples()
    together = np.concatenate(list(splits.values()))
    assert set(splits) == {"train", "val", "test"}
    assert sorted(together) == list(range(1797))


def test_digits_repeat_with_the_seed():
    first, again = (digits.digits("test", 3, seed=5) for _ in range(2))
    other = digits.digits("test", 3, seed=6)
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.boxes, two.boxes)
        assert not np.array_equal(one.image, three.image)


def test_digits_keep_their_size_number_and_visibility():
    choices = digits.samples()["train"]
    crowded = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        image, boxes, labels, shown, _ = digits.compose(rng, choices)
        assert image.shape == (96, 96, 3) and image.dtype == np.uint8
        assert 1 <= len(boxes) == len(labels) <= 8
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (sides.max(1) >= 16).all() and (sides.max(1) <= 44).all()
        assert (boxes >= 0).all() and (boxes <= 96).all()
        assert (shown >= 0.75).all()
        owner = np.full((96, 96), -1)
        for i, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
            owner[y1:y2, x1:x2] = i
        visible = [(owner == i).sum() for i in range(len(boxes))] / sides.prod(1)
        assert (visible >= 0.75).all()
        crowded += (visible < 1).any()
    assert crowded > 10  # the limit was put to the test


def test_boxes_of_digits_are_tight():
    for glyph in digits._glyphs()[0][:50]:
        ink = np.asarray(glyph) > 0
        assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()


# Geometry


def marked(height, width, box):
    """A black image with one white box."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return image


def extent(image):
    """The box around what is bright in an image."""
    rows, columns = (
        np.nonzero(image.max((1, 2)) > 127),
        np.nonzero(image.max((0, 2)) > 127),
    )
    return [columns[0][0], rows[0][0], columns[0][-1] + 1, rows[0][-1] + 1]


@pytest.mark.parametrize("size", [(60, 80), (60, 100), (90, 80)])
def test_fit_moves_image_and_boxes_alike(size):
    image = marked(120, 160, (20, 40, 60, 100))
    fitted, factors = data.fit(image, size)
    assert fitted.shape == (*size, 3)
    boxes = np.array([20, 40, 60, 100]) * np.tile(factors, 2)
    np.testing.assert_array_equal(extent(fitted), boxes)


def test_fit_scales_each_axis_by_what_it_was_resized():
    fitted, factors = data.fit(np.full((33, 100, 3), 255, np.uint8), (64, 64))
    assert extent(fitted) == [0, 0, 64, 21]
    np.testing.assert_allclose(factors, [64 / 100, 21 / 33], rtol=1e-6)


def test_flip_moves_image_and_boxes_alike():
    image, box = marked(40, 70, (5, 10, 25, 30)), np.array([[5, 10, 25, 30.0]])
    flipped, boxes = data.flip(image, box)
    np.testing.assert_array_equal(boxes, [[45, 10, 65, 30]])
    np.testing.assert_array_equal(extent(flipped), boxes[0])
    np.testing.assert_array_equal(data.flip(flipped, boxes)[1], box)


def test_zoom_moves_image_and_boxes_alike():
    image, box = marked(80, 100, (20, 10, 60, 50)), np.array([[20, 10, 60, 50.0]])
    zoomed, boxes, share = data.zoom(image, box, 0.5, (30, 20))
    np.testing.assert_array_equal(boxes, [[40, 25, 60, 45]])
    np.testing.assert_array_equal(extent(zoomed), boxes[0])
    assert share == [1]
    _, boxes, share = data.zoom(image, box, 1.0, (-40, 0))
    np.testing.assert_array_equal(boxes, [[0, 10, 20, 50]])
    assert share == [0.5]


def test_batches_hold_every_box_and_depend_on_the_step_alone():
    dataset, _ = tiny()
    batches = data.Batches(dataset, (96, 96), 8, seed=1)
    first = [batches(step) for step in range(3)]  # one epoch
    count = sum(len(record.boxes) for record in dataset.train)
    assert sum(batch["where"].sum() for batch in first) == count
    again = data.Batches(dataset, (96, 96), 8, seed=1).run(2, 3)
    for name, value in next(again).items():
        np.testing.assert_array_equal(value, first[2][name])


# Readers


def picture(path, height=48, width=64):
    """Writes an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(marked(height, width, (8, 8, 24, 24))).save(path)


def voc(folder, objects, splits):
    """Writes a VOC data set: `objects` by image, `(name, corners, difficult)` each."""
    for name, items in objects.items():
        picture(folder / "JPEGImages" / f"{name}.jpg")
        xml = "".join(
            f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>"
            + "".join(
                f"<{tag}>{corner}</{tag}>"
                for tag, corner in zip(readers.BOX_TAGS, corners, strict=True)
            )
            + "</bndbox></object>"
            for label, corners, difficult in items
        )
        path = folder / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"<annotation><filename>{name}.jpg</filename>{xml}</annotation>"
        )
    for split, names in splits.items():
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n")


OBJECTS = {
    "a": [("dog", (1, 1, 10, 20), 0), ("cat", (5, 6, 70, 30), 1)],
    "b": [("cat", (3, 3, 3, 3), 0), ("cat", (2, 3, 40, 48), 0)],
    "c": [],
}


def test_voc_corners_difficult_splits_and_empty_boxes(tmp_path):
    voc(tmp_path, OBJECTS, {"train": ["a", "b"], "test": ["c"]})
    dataset = data.load(Config(data=f"voc:{tmp_path}"))
    assert dataset.classes == ("cat", "dog")
    first, second = dataset.train
    # 1-based and inclusive: the first pixel is 0, the end of the last is its number.
    np.testing.assert_array_equal(first.boxes, [[0, 0, 10, 20], [4, 5, 64, 30]])
    assert first.labels.tolist() == [1, 0] and first.ignore.tolist() == [False, True]
    np.testing.assert_array_equal(second.boxes, [[1, 2, 40, 48]])
    assert [record.name for record in dataset.test] == ["c"]
    assert dataset.test[0].boxes.shape == (0, 4)
    left_out, far, splits = dataset.notes
    assert left_out == "left out 1 boxes without area inside the image: b.xml"
    assert "val" in splits and far.startswith("1 of 4 boxes")
    assert dataset.most_boxes() == 2


def test_voc_without_splits_holds_images_out(tmp_path):
    voc(tmp_path, {f"{i}": OBJECTS["a"] for i in range(10)}, {})
    dataset = readers.read_voc(tmp_path)
    names = [record.name for record in (*dataset.train, *dataset.test)]
    assert len(dataset.test) == 2 and sorted(names) == sorted(map(str, range(10)))


def coco(path, images, crowd=0, categories=(7, 90)):
    """Writes a COCO file with one box of each category in every image."""
    for name in images:
        picture(path.parent / name)
    content = {
        "images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(images)],
        "categories": [{"id": k, "name": f"kind {k}"} for k in categories],
        "annotations": [
            {"image_id": 10 + i, "category_id": k, "bbox": [k / 9, 2, 20, 30]}
            | ({"iscrowd": crowd} if k == 90 else {})
            for i in range(len(images))
            for k in categories
        ],
    }
    path.write_text(json.dumps(content))


def test_coco_sparse_ids_crowds_and_splits(tmp_path):
    for split, names in {"train": ("a.png", "b.png"), "valid": ("c.png",)}.items():
        (tmp_path / split).mkdir()
        coco(tmp_path / split / "boxes.json", names, crowd=1)
    dataset = data.load(Config(data=f"coco:{tmp_path}/train/boxes.json"))
    assert dataset.classes == ("kind 7", "kind 90")
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [2, 1, 1]
    for record in (*dataset.train, *dataset.val):
        expected = np.array([[7 / 9, 2, 7 / 9 + 20, 32], [10, 2, 30, 32]])
        np.testing.assert_allclose(record.boxes, expected, rtol=1e-6)
        assert record.labels.tolist() == [0, 1]
        assert record.ignore.tolist() == [False, True]


def test_coco_boxes_of_unlisted_images_are_named_or_left_out(tmp_path):
    path = tmp_path / "boxes.json"
    coco(path, ("a.png", "b.png"))
    content = json.loads(path.read_text())
    content["annotations"][0]["image_id"] = "nowhere"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"unlisted images, ids \['nowhere'\]"):
        readers.read_coco(path)
    found = readers.read_coco(path, skip=True)
    counts = [len(record.boxes) for record in (*found.train, *found.val)]
    assert sorted(counts) == [1, 2] and "nowhere" in found.notes[0]


def test_coco_images_in_another_folder(tmp_path):
    (tmp_path / "images").mkdir()
    coco(tmp_path / "images" / "all.json", ("a.png", "b.png"))
    moved = (tmp_path / "images" / "all.json").rename(tmp_path / "all.json")
    dataset = data.load(Config(data=f"coco:{moved}:{tmp_path}/images/"))
    assert len(dataset.train) == len(dataset.test) == 1


def break_voc(folder):
    voc(folder, OBJECTS, {"train": ["a", "b"]})
    return folder / "Annotations" / "b.xml", folder / "JPEGImages" / "b.jpg"


@pytest.mark.parametrize(
    ("which", "content", "message"),
    [
        (0, "<annotation><object>", "malformed XML"),
        (0, "<annotation><object><name>x</name></object></annotation>", "lacks"),
        (0, '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "malformed"),
        (1, None, r"b\.xml: there is no image b\.jpg"),
        (1, "not an image", "not a readable image"),
    ],
)
def test_a_bad_voc_file_is_named(tmp_path, which, content, message):
    path = break_voc(tmp_path)[which]
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        readers.read_voc(tmp_path)
    named = "b.xml: " if content is None else str(path)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "malformed JSON"),
        ("[]", "lacks"),
        (([], [{}], [{"id": 1, "name": "a"}]), "number 0 is faulty"),
        (([{}], [], [{"id": 1, "name": "a"}]), "faulty entry"),
        (([], [], []), "no categories"),
        (([], [], [{"id": 1}]), "lacks its id or its name"),
        (([], [], [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "the same id"),
    ],
)
def test_a_bad_coco_file_is_named(tmp_path, content, message):
    path = tmp_path / "boxes.json"
    if isinstance(content, tuple):
        content = json.dumps(dict(zip(readers.COCO_KEYS, content, strict=True)))
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        readers.read_coco(path)
    assert str(path) in str(error.value)


def test_all_faulty_files_are_named_at_once_or_left_out(tmp_path):
    xml, image = break_voc(tmp_path)
    third = tmp_path / "Annotations" / "a.xml"
    third.write_text("<annotation>")
    image.write_text("not an image")
    with pytest.raises(DataError) as error:
        readers.read_voc(tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and str(third) in lines[0] and str(image) in lines[1]
    assert "--skip-faulty" in lines[1]
    config = Config(data=f"voc:{tmp_path}", skip_faulty=True)
    with pytest.raises(DataError, match="no training image with a box"):
        data.completed(config, data.load(config))
    voc(tmp_path, OBJECTS, {"train": ["a", "b"], "val": ["c"]})
    xml.write_text("<annotation>")
    found = readers.read_voc(tmp_path, skip=True)
    assert [record.name for record in found.train] == ["a"]
    assert any(str(xml) in note for note in found.notes)


def test_a_photograph_taken_on_its_side_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera's right is up
    path = tmp_path / "a.jpg"
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste("black", (0, 0, 20, 20))  # the left half, which is the upper one
    picture.save(path, exif=exif)
    assert images.image_size(path) == (40, 20)
    record = Record("a", path, (40, 20), *(np.zeros(0),) * 3)
    pixels = images.read_image(record)
    assert pixels.shape == (40, 20, 3)
    assert pixels[:18].max() < 60 and pixels[22:].min() > 200


def test_sixteen_bits_of_grey_are_not_cut_off(tmp_path):
    path = tmp_path / "a.png"
    grey = np.uint16([[0, 0x0FFF, 0x80FF, 0xFFFF]])
    Image.fromarray(grey).save(path)
    record = Record("a", path, (1, 4), *(np.zeros(0),) * 3)
    np.testing.assert_array_equal(images.read_image(record)[0, :, 1], grey[0] >> 8)
    Image.fromarray(np.float32([[0.5]])).save(path, "TIFF")
    with pytest.raises(DataError, match=r"a\.png: .*32 bits"):
        images.read_image(record)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    Image.new("1", (600, 600)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"huge\.png: not a readable image"):
        images.image_size(path)


def test_a_truncated_image_is_named(tmp_path):
    voc(tmp_path, OBJECTS, {"train": ["a", "b"], "val": ["c"]})
    path = tmp_path / "JPEGImages" / "a.jpg"
    Image.effect_noise((64, 48), 99).convert("RGB").save(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"a camera's own notes")
    assert len(readers.read_voc(tmp_path).train) == 2
    path.write_bytes(whole[:-500])
    with pytest.raises(DataError, match=r"a\.jpg: not a readable image"):
        readers.read_voc(tmp_path)
    assert len(readers.read_voc(tmp_path, skip=True).train) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_damaged_within_is_named_when_it_is_drawn(tmp_path, workers):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 48), 99).convert("RGB").save(path)
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 200] = bytes(200)
    path.write_bytes(whole)
    box = np.array([[8, 8, 24, 24]], "f4"), np.zeros(1, int), np.zeros(1, bool)
    record = Record("a", path, (48, 64), *box)
    batches = data.Batches(Dataset(("x",), [record], [], [], True), (48, 64), 2, 0)
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        next(batches.run(0, 1, workers))


def test_an_unknown_kind_of_data_is_explained():
    with pytest.raises(DataError, match="expected digits, coco:"):
        data.load(Config(data="imagenet"))


@pytest.mark.skipif(not BCCD.is_dir(), reason="the blood cells are not on this machine")
def test_blood_cells():
    dataset = readers.read_voc(BCCD)
    assert dataset.classes == ("Platelets", "RBC", "WBC")
    splits = (dataset.train, dataset.val, dataset.test)
    assert [len(split) for split in splits] == [205, 87, 72]
    assert sum(len(r.boxes) for split in splits for r in split) == 4888 - 2
    (note,) = dataset.notes
    assert "BloodImage_00338.xml" in note and "BloodImage_00343.xml" in note
    assert data.typical_size(dataset) == (256, 320)


def test_choices_that_were_made_stay():
    dataset, _ = tiny()
    filled = data.completed(Config(), dataset)
    assert (filled.batch_size, filled.image_size) == (16, (96, 96))
    chosen = Config(batch_size=4, image_size=(64, 96))
    assert data.completed(chosen, dataset) == chosen


# Evaluation


def perfect(records):
    return [(r.boxes, r.labels, np.linspace(0.9, 0.5, len(r.boxes))) for r in records]


def test_perfect_detections_have_average_precision_one():
    dataset, _ = tiny()
    records = dataset.train
    report = precision.average_precision(records, perfect(records), dataset.classes)
    assert report["AP"] == report["AP50"] == 1
    assert {row["AP"] for row in report["classes"].values()} <= {1, None}


def test_mistakes_lower_average_precision():
    dataset, _ = tiny()
    records = dataset.train
    shifted = [(b + np.array([4, 0, 4, 0]), *rest) for b, *rest in perfect(records)]
    report = precision.average_precision(records, shifted, dataset.classes)
    assert report["AP"] < report["AP50"] and report["AP"] < 0.7
    wrong = [(b, (y + 1) % 10, s) for b, y, s in perfect(records)]
    assert precision.average_precision(records, wrong, dataset.classes)["AP"] < 0.1
    nothing = [(b[:0], y[:0], s[:0]) for b, y, s in perfect(records)]
    assert precision.average_precision(records, nothing, dataset.classes)["AP"] == 0


def by_coco(records, found, classes):
    """The same numbers by the code of the COCO challenge."""
    truth, answers = [], []
    for image, (record, (boxes, labels, scores)) in enumerate(
        zip(records, found, strict=True), 1
    ):
        for box, label, ignore in zip(
            record.boxes, record.labels, record.ignore, strict=True
        ):
            truth.append(entry(image, box, label) | {"iscrowd": int(ignore)})
        for box, label, score in zip(boxes, labels, scores, strict=True):
            answers.append(entry(image, box, label) | {"score": float(score)})
    for number, each in enumerate(truth, 1):
        each["id"] = number
    images = [{"id": i} for i in range(1, len(records) + 1)]
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, 1)]
    coco = COCO({"images": images, "categories": categories, "annotations": truth})
    evaluation = COCOeval_faster(coco, coco.loadRes(answers), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    # By threshold, recall, class, area and number of detections; -1 is undefined.
    found = evaluation.eval["precision"][..., 0, -1]
    found = np.where(found > -1, found, np.nan)
    each = {name: found[..., k] for k, name in enumerate(classes)}
    numbers = {"AP": found, "AP50": found[0], "AP75": found[5]}
    rows = {name: {"AP": x, "AP50": x[0]} for name, x in each.items()}
    mean = lambda x: float(np.nanmean(x))  # noqa: E731
    return jax.tree.map(mean, numbers | {"classes": rows})


def entry(image, box, label):
    x1, y1, x2, y2 = map(float, box)
    bbox = [x1, y1, x2 - x1, y2 - y1]
    named = {"image_id": image, "category_id": int(label) + 1, "bbox": bbox}
    return named | {"area": bbox[2] * bbox[3]}


def test_average_precision_is_that_of_coco():
    dataset, _ = tiny()
    records, rng = dataset.train, np.random.default_rng(0)
    for record in records[::3]:
        record.ignore[: len(record.ignore) // 2] = True
    found = []
    for boxes, labels, _ in perfect(records):
        twice = np.concatenate([boxes, boxes]) + rng.normal(0, 3, (2 * len(boxes), 4))
        scores = rng.permutation(2 * len(boxes)) / 100
        found.append((twice, np.tile(labels, 2), scores))
    report = precision.average_precision(records, found, dataset.classes)
    assert 0 < report["AP"] < report["AP50"] < 1
    theirs = by_coco(records, found, dataset.classes)
    assert jax.tree.structure(report) == jax.tree.structure(theirs)
    for x, y in zip(jax.tree.leaves(report), jax.tree.leaves(theirs), strict=True):
        assert x == pytest.approx(y, abs=2e-4)


def test_boxes_to_ignore_count_neither_for_nor_against():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40.0]], np.float32)
    labels, ignore = np.array([0, 0]), np.array([False, True])
    record = Record(
        "a", np.zeros((64, 64, 3), np.uint8), (64, 64), boxes, labels, ignore
    )
    scores = np.array([0.5, 0.9])
    for found in ((boxes, labels, scores), (boxes[:1], labels[:1], scores[:1])):
        report = precision.average_precision([record], [found], ("thing", "other"))
        assert report["AP"] == 1 and report["classes"]["other"]["AP"] is None


def test_a_table_has_a_row_per_class():
    report = {"AP": 0.5, "AP50": 0.75, "classes": {"cat": {"AP": None, "AP50": 1.0}}}
    assert precision.table(report).splitlines() == [
        "class      AP    AP50",
        "all     0.500   0.750",
        "cat         -   1.000",
    ]


# Training


def test_training_lowers_the_loss_with_one_compilation(monkeypatch):
    dataset, config = tiny()
    traced = []
    plain = train.detection_loss
    monkeypatch.setattr(
        train, "detection_loss", lambda *args: traced.append(1) or plain(*args)
    )
    parts = state.create(config, dataset.classes)
    batches = data.Batches(dataset, config.image_size, config.batch_size, config.seed)
    losses = []
    for step in range(config.steps):
        batch = batches(0)
        # The number of targets varies from all to none.
        few = np.arange(batches.padding) < (step * 5) % (batches.padding + 1)
        losses.append(train.train_step(parts, batch, config.box_loss))
        fewer = batch | {"where": batch["where"] & few}
        train.train_step(parts, fewer, config.box_loss)
    losses = [float(loss["loss"]) for loss in losses]
    assert len(traced) == 1
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]


def test_ignored_and_absent_targets_teach_no_box():
    dataset, config = tiny()
    model, _ = state.create(config, dataset.classes)
    batch = data.Batches(dataset, config.image_size, 4, 0)(0)
    none = np.zeros_like(batch["where"])
    _, empty = train.detection_loss(model, batch | {"where": none}, config.box_loss)
    _, crowd = train.detection_loss(model, batch | {"ignore": ~none}, config.box_loss)
    assert empty["box_loss"] == crowd["box_loss"] == 0
    # Background beneath a box to ignore is not judged.
    assert 0 < crowd["class_loss"] < empty["class_loss"]


def test_the_pyramid_reaches_as_far_as_the_image_needs():
    assert strides_for((96, 96)) == [8, 16, 32]
    assert strides_for((256, 320)) == strides_for((320, 256)) == [8, 16, 32, 64]
    assert strides_for((20, 500)) == [8]
    # The largest anchors are about as long as the shorter side, and never half of it.
    for side in range(24, 800, 8):
        sides = anchors_for((side, side))[-1]
        assert side / 2 < (sides[2] - sides[0]) / 2**-0.5 < 1.1 * side


@pytest.mark.parametrize("size", [(96, 96), (72, 100)])
def test_the_network_gives_one_answer_per_anchor(size):
    levels = len(strides_for(size))
    model = Detector(3, levels=levels, width=32, depth=1, rngs=nnx.Rngs(0))
    images = np.zeros((2, *size, 3), np.uint8)
    logits, deltas = jax.jit(lambda images: model(images))(images)
    count = len(anchors_for(size))
    assert logits.shape == (2, count, 3) and deltas.shape == (2, count, 4)
    boxes, labels, scores, valid = detect(model, images)
    assert boxes.shape == (2, 100, 4) and valid.dtype == bool
    assert labels.shape == scores.shape == (2, 100)


@pytest.mark.slow
def test_a_run_leaves_its_files(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    config = Config(
        out=tmp_path, steps=4, width=32, digit_images=32, evaluations=2, devices=1
    )
    report = main.run(config)
    told = capsys.readouterr().out
    assert f"{tmp_path}: begins anew" in told
    labels = np.concatenate([r.labels for r in digits.digits("train", 32, 0)])
    counts = ", ".join(f"{k} {(labels == k).sum()}" for k in range(10))
    assert f"boxes to learn: {counts}\n" in told
    assert set(report["classes"]) == set("0123456789")
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line.get("split", "train") for line in lines] == ["val", "train", "test"]
    for name in ("predictions.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 300
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 16
    model, restored, classes = state.restore(tmp_path)
    assert restored.image_size == (96, 96) and classes == tuple("0123456789")
    records = digits.digits("test", 400, 0)
    again, _ = precision.evaluate(model, records, classes, restored.image_size)
    assert again == report
