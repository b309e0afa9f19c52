"""Reads data sets in Pascal VOC and COCO form."""

import json
from collections import defaultdict
from pathlib import Path
from xml.etree.ElementTree import ParseError

import defusedxml
import numpy as np
from defusedxml import ElementTree
from PIL import Image, UnidentifiedImageError

from .records import DataError, Dataset, Record

SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
BOX_TAGS = ("xmin", "ymin", "xmax", "ymax")
COCO_KEYS = ("images", "annotations", "categories")
HELD_OUT = 0.2  # of the images, where a data set brings only a training split


def image_size(path):
    """The height and width of an image, read from its header."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such image") from None
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from None


def _record(source, image, objects, dropped):
    """A record of the objects, `(box, label, ignore, outline)` with an area.

    Boxes are clipped to the image. Those without an area are counted in `dropped`
    under `source`, the name of the annotation.
    """
    height, width = image_size(image)
    boxes = np.array([box for box, *_ in objects], np.float32).reshape(-1, 4)
    inside = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    keep = (inside[:, 2:] > inside[:, :2]).all(1)
    if len(boxes) > keep.sum():
        dropped[source] += len(boxes) - int(keep.sum())
    labels = np.array([label for _, label, *_ in objects], np.int32)[keep]
    ignore = np.array([ignore for *_, ignore, _ in objects], bool)[keep]
    outlines = tuple(objects[index][-1] for index in np.flatnonzero(keep))
    size = (height, width)
    return Record(image.stem, image, size, inside[keep], labels, ignore, outlines)


def _note_dropped(dropped):
    """One line that says which annotations lost boxes, or none."""
    if not dropped:
        return ()
    count, names = sum(dropped.values()), ", ".join(sorted(dropped))
    return (f"left out {count} boxes without area inside the image: {names}",)


def _split(classes, records, notes):
    """A data set in which every split has images, held out of `train` if need be.

    A missing test split is replaced by the validation split and the other way round.
    """
    train, val, test = (records.get(split, []) for split in SPLITS)
    if not train:
        raise DataError("the data set has no training images")
    if not val and not test:
        order = np.random.default_rng(0).permutation(len(train))
        held = max(1, round(HELD_OUT * len(train)))
        if held == len(train):
            raise DataError("the data set needs at least two images")
        val = [train[i] for i in sorted(order[:held])]
        train = [train[i] for i in sorted(order[held:])]
        notes += (f"no val or test split: held {held} images out of train",)
    elif not test or not val:
        missing, used = ("test", "val") if not test else ("val", "test")
        notes += (f"no {missing} split: {used} serves as both",)
    return Dataset(classes, train, val or test, test or val, True, notes)


def read_voc(folder):
    """Reads `Annotations/*.xml`, `JPEGImages/` and `ImageSets/Main/{split}.txt`.

    Difficult objects become boxes to ignore. VOC counts pixels from one and names the
    first and the last pixel inside a box, so an object from 1 to 10 covers 0 to 10.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("Annotations/*.xml"))
    if not paths:
        raise DataError(f"{folder}: there are no Annotations/*.xml")
    parsed = {path.stem: _parse_xml(path) for path in paths}
    names = sorted({name for _, objects in parsed.values() for _, name, _ in objects})
    classes = {name: i for i, name in enumerate(names)}
    dropped, records = defaultdict(int), {}
    for stem, (filename, objects) in parsed.items():
        image = _voc_image(folder / "JPEGImages", stem, filename)
        objects = [(box, classes[name], hard, None) for box, name, hard in objects]
        records[stem] = _record(f"{stem}.xml", image, objects, dropped)
    splits = _voc_splits(folder, records)
    return _split(tuple(names), splits, _note_dropped(dropped))


def _parse_xml(path):
    """The file name of the image and `(box, name, difficult)` of each object."""
    try:
        root = ElementTree.parse(path).getroot()
        objects = []
        for item in root.iter("object"):
            corners = (item.find("bndbox").find(tag) for tag in BOX_TAGS)
            x1, y1, x2, y2 = (float(corner.text) for corner in corners)
            # Equal corners are a slip of the mouse, not an object of one pixel.
            empty = x1 >= x2 or y1 >= y2
            box = (x1, y1, x1, y1) if empty else (x1 - 1, y1 - 1, x2, y2)
            difficult = item.findtext("difficult", "0").strip() == "1"
            objects.append((box, item.find("name").text.strip(), difficult))
        return root.findtext("filename", "").strip(), objects
    except (ParseError, defusedxml.DefusedXmlException) as error:
        raise DataError(f"{path}: malformed XML ({error})") from None
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{path}: an object lacks its name or its box") from None


def _voc_image(folder, stem, filename):
    """The image of an annotation: the one named like it, else the one it names."""
    named = [folder / f"{stem}{suffix}" for suffix in SUFFIXES]
    named += [folder / Path(filename).name] if filename else []
    return next((path for path in named if path.is_file()), named[0])


def _voc_splits(folder, records):
    """The records of each split, as the files in `ImageSets/Main` list them."""
    splits = {}
    for split, names in SPLITS.items():
        names += ("trainval",) if split == "train" else ()
        files = [folder / "ImageSets" / "Main" / f"{name}.txt" for name in names]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            continue
        stems = [line.split()[0] for line in file.read_text().splitlines() if line]
        for stem in stems:
            if stem not in records:
                raise DataError(f"{file}: {stem} has no Annotations/{stem}.xml")
        splits[split] = [records[stem] for stem in stems]
    return splits or {"train": list(records.values())}


def read_coco(annotations, images=None):
    """Reads a COCO annotation file and, where they exist, those of the other splits.

    The other splits are found by replacing `train` in the paths by `val`, `valid` or
    `test`. Category ids may have gaps; crowds become boxes to ignore.
    """
    annotations = Path(annotations)
    images = Path(images) if images else annotations.parent
    files = {"train": (annotations, images)}
    for split in ("val", "test"):
        for name in SPLITS[split]:
            file, folder = _sibling(annotations, name), _sibling(images, name)
            if file != annotations and file.is_file():
                files.setdefault(split, (file, folder if folder.is_dir() else images))
    dropped, splits, first = defaultdict(int), {}, None
    for split, (file, folder) in files.items():
        content = _parse_json(file)
        categories = {item["id"]: item["name"] for item in content["categories"]}
        first = first or categories
        if categories != first:
            raise DataError(f"{file}: its categories differ from {annotations}")
        splits[split] = _coco_records(file, content, sorted(first), folder, dropped)
    names = tuple(first[key] for key in sorted(first))
    return _split(names, splits, _note_dropped(dropped))


def _sibling(path, split):
    """`path` with the last `train` in it replaced by the name of another split."""
    return Path(split.join(str(path).rsplit("train", 1)))


def _parse_json(path):
    """The content of an annotation file, whose three lists are known to be there."""
    try:
        content = json.loads(path.read_text())
        if all(isinstance(content[key], list) for key in COCO_KEYS):
            return content
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise DataError(f"{path}: malformed JSON ({error})") from None
    except (KeyError, TypeError):
        pass
    raise DataError(f"{path}: lacks one of the lists {', '.join(COCO_KEYS)}")


def _coco_records(file, content, category_ids, folder, dropped):
    """The records of one annotation file, one for each of its images."""
    labels = {key: index for index, key in enumerate(category_ids)}
    objects = defaultdict(list)
    try:
        for item in content["annotations"]:
            label, crowd = labels[item["category_id"]], bool(item.get("iscrowd", 0))
            x, y, w, h = map(float, item["bbox"])
            one = ((x, y, x + w, y + h), label, crowd, item.get("segmentation"))
            objects[item["image_id"]].append(one)
        images = {item["id"]: item["file_name"] for item in content["images"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: a faulty entry ({error!r})") from None
    if unknown := objects.keys() - images.keys():
        raise DataError(f"{file}: boxes of unlisted images, ids {sorted(unknown)[:5]}")
    return [
        _record(name, folder / name, objects[key], dropped)
        for key, name in images.items()
    ]
