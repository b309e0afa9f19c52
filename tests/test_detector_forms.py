"""Data sets as people download them: the forms that tools write, and their slips."""

import json

import pytest
from test_detector import OBJECTS, coco, picture, voc

from examples.detector import readers
from examples.detector.records import DataError


def arranged(folder, form, words):
    """Writes a VOC data set with images and annotations where a form wants them."""
    voc(folder, OBJECTS, {})
    for stem, word in {"a": words[0], "b": words[0], "c": words[1]}.items():
        image, annotation = (x.format(stem=stem, split=word) for x in form.split())
        picture(folder / "made" / image)
        (folder / "made" / annotation).parent.mkdir(parents=True, exist_ok=True)
        (folder / "Annotations" / f"{stem}.xml").rename(folder / "made" / annotation)
    return folder / "made"


@pytest.mark.parametrize(
    "form",
    [
        "images/{stem}.png annotations/{stem}.xml",
        "Images/{stem}.JPG Annotations/{stem}.xml",
        "{stem}.jpeg {stem}.xml",
        "below/JPEGImages/{stem}.jpg below/Annotations/{stem}.xml",
        "face_mask/images/{stem}.png face_mask/annotations/{stem}.xml",
    ],
)
def test_voc_without_splits(tmp_path, form):
    dataset = readers.read_voc(arranged(tmp_path, form, ("", "")))
    names = [r.name for r in (*dataset.train, *dataset.val)]
    assert sorted(names) == ["a", "b", "c"] and dataset.held_out
    assert dataset.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("{split}/{stem}.jpg {split}/{stem}.xml", ("train", "valid")),
        ("images/{split}/{stem}.jpg images/{split}/{stem}.xml", ("train", "test")),
        ("images/{split}/{stem}.jpg annotations/{split}/{stem}.xml", ("train", "val")),
        ("{split}/Images/{stem}.JPG {split}/Labels/{stem}.XML", ("Train", "Test")),
        ("{split}/{stem}.jpg {split}/{stem}.xml", ("train_set", "validation_set")),
        ("images/{split}/{stem}.jpg annotations/{stem}.xml", ("training", "testing")),
    ],
)
def test_voc_with_folders_as_splits(tmp_path, form, words):
    dataset = readers.read_voc(arranged(tmp_path, form, words))
    names = [[r.name for r in split] for split in (dataset.train, dataset.val)]
    assert names == [["a", "b"], ["c"]] and not dataset.held_out


def test_voc_names_an_image_otherwise(tmp_path):
    voc(tmp_path, OBJECTS, {})
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "0001.jpg")
    path = tmp_path / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("a.jpg", r"C:\\photos\\0001.jpg"))
    dataset = readers.read_voc(tmp_path)
    assert "0001" in [record.name for record in (*dataset.train, *dataset.val)]


def test_the_image_that_an_annotation_names_comes_before_its_mask(tmp_path):
    voc(tmp_path, OBJECTS, {})
    for stem in OBJECTS:
        picture(tmp_path / "JPEGImages" / f"{stem}.bmp", height=9)
    dataset = readers.read_voc(tmp_path)
    assert {r.image.suffix for r in (*dataset.train, *dataset.val)} == {".jpg"}


def test_images_of_the_same_name_in_other_splits_are_not_mixed_up(tmp_path):
    for split, height in {"train": 48, "test": 40}.items():
        voc(tmp_path / split, OBJECTS, {})
        for stem in OBJECTS:
            picture(tmp_path / split / "JPEGImages" / f"{stem}.jpg", height)
    dataset = readers.read_voc(tmp_path)
    assert {r.size for r in dataset.train} == {(48, 64)}
    assert {r.size for r in dataset.test} == {(40, 64)}


@pytest.mark.parametrize(
    "lines", ["a\nb 1", "\ufeffa.jpg\nsub/b", "JPEGImages/a.jpg\nb\nb"]
)
def test_lists_of_splits_as_tools_write_them(tmp_path, lines):
    voc(tmp_path, OBJECTS, {"Validation": ["c"]})
    (tmp_path / "ImageSets" / "Main" / "Train.txt").write_text(lines)
    dataset = readers.read_voc(tmp_path)
    names = [[r.name for r in split] for split in (dataset.train, dataset.val)]
    assert names == [["a", "b"], ["c"]]


def test_a_missing_image_is_not_another_of_its_name(tmp_path):
    for split in ("train", "test"):
        voc(tmp_path / split, OBJECTS, {})
    picture(tmp_path / "train" / "SegmentationClass" / "a.png")
    (tmp_path / "test" / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(
        DataError, match=r"test/Annotations/a\.xml: there is no image a"
    ):
        readers.read_voc(tmp_path)
    (tmp_path / "train" / "JPEGImages" / "a.jpg").unlink()
    dataset = readers.read_voc(tmp_path, skip=True)
    assert [[r.name for r in x] for x in (dataset.train, dataset.test)] == [
        ["b", "c"]
    ] * 2


def test_an_image_that_may_be_either_is_asked_for(tmp_path):
    voc(tmp_path, {"a": OBJECTS["a"]}, {})
    (tmp_path / "JPEGImages").rename(tmp_path / "first")
    picture(tmp_path / "second" / "a.jpg")
    with pytest.raises(
        DataError, match=r"which image is it, .*first/a.jpg or .*second"
    ):
        readers.read_voc(tmp_path)


def test_images_behind_a_link(tmp_path):
    voc(tmp_path / "data", OBJECTS, {})
    (tmp_path / "data" / "JPEGImages").rename(tmp_path / "disk")
    (tmp_path / "data" / "JPEGImages").symlink_to(tmp_path / "disk")
    dataset = readers.read_voc(tmp_path / "data")
    assert len(dataset.train) + len(dataset.val) == 3


def test_kinds_of_things_are_no_splits(tmp_path):
    """Folders of classes, one of which begins like a split."""
    for name in ("test_tube", "flask"):
        voc(tmp_path / name, {f"{name}{k}": OBJECTS["b"] for k in range(5)}, {})
    dataset = readers.read_voc(tmp_path)
    assert dataset.held_out and len(dataset.train) == 8


def test_an_image_is_in_one_split(tmp_path):
    voc(tmp_path, OBJECTS, {"trainval": ["a", "b", "c"], "val": ["c"]})
    dataset = readers.read_voc(tmp_path)
    names = [[r.name for r in split] for split in (dataset.train, dataset.val)]
    assert names == [["a", "b"], ["c"]]
    assert "left out 1 images of train, which other splits have, too" in dataset.notes


def test_lists_with_folders_in_them(tmp_path):
    for kind in ("cat", "dog"):
        voc(tmp_path / kind, {"1": OBJECTS["b"], "2": OBJECTS["a"]}, {})
        for name in ("Annotations", "JPEGImages"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / kind / name).rename(tmp_path / name / kind)
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "train.txt").write_text("cat/1\ncat/2.jpg\n")
    (main / "test.txt").write_text("dog/1 1\ndog/2 -1\n")
    dataset = readers.read_voc(tmp_path)
    for split, kind in ((dataset.train, "cat"), (dataset.test, "dog")):
        assert [r.image.parent.name for r in split] == [kind, kind]
    (main / "train.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"train\.txt: 1 is the name of several"):
        readers.read_voc(tmp_path)


def test_lists_below_the_folder(tmp_path):
    voc(tmp_path / "VOC2007", OBJECTS, {"train": ["a", "b"], "test": ["c"]})
    dataset = readers.read_voc(tmp_path)
    names = [[r.name for r in split] for split in (dataset.train, dataset.test)]
    assert names == [["a", "b"], ["c"]]


def test_images_in_no_split_are_learned_from_or_told_of(tmp_path):
    voc(tmp_path, OBJECTS, {"test": ["c"]})
    assert [r.name for r in readers.read_voc(tmp_path).train] == ["a", "b"]
    voc(tmp_path, OBJECTS, {"train": ["a"], "test": ["c"]})
    notes = readers.read_voc(tmp_path).notes
    assert "left out 1 images, which are in no split" in notes


def test_what_is_no_annotation_is_told_of(tmp_path):
    voc(tmp_path, OBJECTS, {})
    (tmp_path / "Annotations" / "project.xml").write_text("<project/>")
    (tmp_path / "Annotations" / "._a.xml").write_bytes(b"\x00\x05\x16\x07")
    notes = readers.read_voc(tmp_path).notes
    assert "left out XML that is no annotation: project.xml" in notes


def test_corners_in_any_order(tmp_path):
    swapped = [("dog", (10, 1, 1, 20), 0)]
    voc(tmp_path, {"a": swapped, "b": swapped}, {"train": ["a"], "val": ["b"]})
    assert readers.read_voc(tmp_path).train[0].boxes.tolist() == [[0, 0, 10, 20]]


def test_images_of_another_size_than_said_are_told_of(tmp_path):
    voc(tmp_path / "voc", OBJECTS, {"train": ["a", "b"], "val": ["c"]})
    for stem, width in {"a": 64, "b": 640}.items():
        path = tmp_path / "voc" / "Annotations" / f"{stem}.xml"
        size = f"<size><width>{width}</width><height>48</height></size></annotation>"
        path.write_text(path.read_text().replace("</annotation>", size))
    notes = readers.read_voc(tmp_path / "voc").notes
    assert any(note.startswith("1 of 3 images have another size") for note in notes)
    path = tmp_path / "boxes.json"
    coco(path, ("a.png", "b.png"))
    content = json.loads(path.read_text())
    for each, width in zip(content["images"], (64, 32), strict=True):
        each |= {"height": 48, "width": width}
    path.write_text(json.dumps(content))
    notes = readers.read_coco(path).notes
    assert any(note.startswith("1 of 2 images have another size") for note in notes)


def test_boxes_that_leave_their_images_are_told_of(tmp_path):
    path = tmp_path / "boxes.json"
    coco(path, ("a.png", "b.png"))
    assert not any("reach far" in note for note in readers.read_coco(path).notes)
    content = json.loads(path.read_text())
    for each in content["annotations"][:2]:
        each["bbox"] = [30, 10, 50, 20]  # corners, in images 64 wide
    path.write_text(json.dumps(content))
    (note,) = (x for x in readers.read_coco(path).notes if "reach far" in x)
    assert note.startswith("2 of 4 boxes") and "[x, y, width, height]" in note


def test_boxes_as_shares_of_their_images_are_refused(tmp_path):
    path = tmp_path / "boxes.json"
    coco(path, ("a.png", "b.png"))
    content = json.loads(path.read_text())
    for each in content["annotations"]:
        each["bbox"] = [0.25, 0.5, 0.5, 0.5]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"boxes\.json: boxes are in pixels"):
        readers.read_coco(path)
    content["annotations"][0]["bbox"] = [0.25, 0.5, 1, 1]
    path.write_text(json.dumps(content))
    assert len(readers.read_coco(path).train) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("train/annotations_train.json", "val/annotations_val.json"),
        ("annotations/instances_Train.json", "annotations/instances_Validation.json"),
        ("my_training_set/train.json", "my_training_set/test.json"),
    ],
)
def test_coco_siblings(tmp_path, first, second):
    for place, name in ((first, "a.png"), (second, "b.png")):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        coco(tmp_path / place, (name,))
    dataset = readers.read_coco(tmp_path / first)
    assert [r.name for r in dataset.train] == ["a"] and not dataset.held_out
    assert [r.name for r in dataset.val] == ["b"]


@pytest.mark.parametrize(
    "prefix", ["images/", "images\\", "/data/upload/1/", "..\\..\\label-studio\\"]
)
def test_coco_names_images_from_elsewhere(tmp_path, prefix):
    path = tmp_path / "annotations" / "all.json"
    path.parent.mkdir()
    coco(path, ("a.png", "b.png"))
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (path.parent / name).rename(tmp_path / "images" / name)
    content = json.loads(path.read_text())
    for each in content["images"]:
        each["file_name"] = prefix + each["file_name"]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    for given in (None, tmp_path / "images", tmp_path):
        dataset = readers.read_coco(path, given)
        assert len(dataset.train) == len(dataset.val) == 1


def test_coco_an_image_missing_in_its_folder_is_not_another(tmp_path):
    coco(tmp_path / "boxes.json", ("cat/1.png", "dog/1.png", "1.png"))
    assert len(readers.read_coco(tmp_path / "boxes.json").train) == 2
    (tmp_path / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match=r"cat/1\.png: there is no such image"):
        readers.read_coco(tmp_path / "boxes.json")


def test_coco_ids_as_numbers_with_a_point_and_classes_by_their_ids(tmp_path):
    path = tmp_path / "boxes.json"
    coco(path, ("a.png", "b.png"), crowd=1.0, categories=(90, 7))
    content = json.loads(path.read_text())
    for each in content["annotations"]:
        each["category_id"] *= 1.0
        each["image_id"] *= 1.0
    content["images"][0]["height"] = "unknown"
    path.write_text(json.dumps(content))
    dataset = readers.read_coco(path)
    assert dataset.classes == ("kind 7", "kind 90")
    for record in (*dataset.train, *dataset.val):
        assert record.labels.tolist() == [1, 0]
        assert record.ignore.tolist() == [True, False]


def test_coco_ids_as_words_and_labels_of_all_the_image(tmp_path):
    path = tmp_path / "boxes.json"
    coco(path, ("a.png", "b.png"), crowd="0")
    content = json.loads(path.read_text())
    for each in content["annotations"]:
        each["category_id"] = str(each["category_id"])
        each["image_id"] = str(each["image_id"])
    content["annotations"] += [{"image_id": 10, "category_id": 7, "bbox": []}]
    path.write_text(json.dumps(content))
    dataset = readers.read_coco(path)
    for record in (*dataset.train, *dataset.val):
        assert record.labels.tolist() == [0, 1] and not record.ignore.any()
    assert dataset.notes[0].endswith("annotation 4 of boxes.json")


def test_coco_categories_are_the_same_by_their_names(tmp_path):
    (tmp_path / "train").mkdir(), (tmp_path / "val").mkdir()
    coco(tmp_path / "train" / "boxes.json", ("a.png",))
    path = tmp_path / "val" / "boxes.json"
    coco(path, ("b.png",), categories=(90,))
    path.write_text(path.read_text().replace("90", "3").replace("kind 3", "kind 90"))
    dataset = readers.read_coco(tmp_path / "train" / "boxes.json")
    assert dataset.classes == ("kind 7", "kind 90")
    assert dataset.val[0].labels.tolist() == [1]
    path.write_text(path.read_text().replace("kind 90", "kind 91"))
    with pytest.raises(DataError, match=r"val/boxes\.json: .* has no kind 91"):
        readers.read_coco(tmp_path / "train" / "boxes.json")


def test_variations_of_an_image_are_not_held_out_of_each_other(tmp_path):
    path = tmp_path / "boxes.json"
    coco(path, [f"{k}_jpg.rf.{j}.png" for k in range(5) for j in "abc"])
    dataset = readers.read_coco(path)
    sides = [{r.name[0] for r in split} for split in (dataset.train, dataset.val)]
    assert len(dataset.val) == 3 and len(sides[1]) == 1 and not sides[0] & sides[1]
