"""Reads data sets in Pascal VOC and COCO form."""

import contextlib
import functools
import json
from collections import defaultdict
from pathlib import Path
from xml.etree.ElementTree import ParseError

import defusedxml
import numpy as np
from defusedxml import ElementTree

from .images import SUFFIXES, image_size
from .records import DataError, Dataset, Record

SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
BOX_TAGS = ("xmin", "ymin", "xmax", "ymax")
COCO_KEYS = ("images", "annotations", "categories")
HELD_OUT = 0.2  # of the images, where a data set brings only a training split
LISTED = 20  # faults that are written out
FAR_OUT = 0.05  # of the side of an image
SUSPICIOUS = 0.2  # of all boxes


class Faults(list):
    """What is wrong with the files of a data set, one line each, and with its boxes."""

    def __init__(self):
        self.dropped, self.boxes, self.beyond = defaultdict(int), 0, 0

    @contextlib.contextmanager
    def kept(self):
        """Keeps a fault for later, so that all of them are named at once."""
        try:
            yield
        except DataError as error:
            self.append(str(error))

    def judged(self, skip):
        """The notes of what is left out; raises unless faulty files may be skipped."""
        more = [f"and {len(self) - LISTED} more"] if len(self) > LISTED else []
        lines = [*self[:LISTED], *more]
        if self and not skip:
            text = "\n  ".join(lines)
            raise DataError(f"{text}; --skip-faulty leaves out what is faulty")
        notes = [f"left out: {line}" for line in lines]
        if self.dropped:
            count = sum(self.dropped.values())
            names = ", ".join(sorted(self.dropped)[:LISTED])
            notes.append(
                f"left out {count} boxes without area inside the image: {names}"
            )
        if self.beyond > SUSPICIOUS * self.boxes:
            notes.append(
                f"{self.beyond} of {self.boxes} boxes reach far out of their images: "
                "COCO's are [x, y, width, height], VOC's two corners, both in pixels"
            )
        return tuple(notes)


def _record(source, image, objects, faults):
    """A record of the objects, `(box, label, ignore, outline)` with an area.

    Boxes are clipped to the image. Those without an area are counted in `faults` under
    `source`, the name of the annotation.
    """
    height, width = image_size(image)
    boxes = np.array([box for box, *_ in objects], np.float32).reshape(-1, 4)
    size = np.array([width, height, width, height], np.float32)
    inside = np.clip(boxes, 0, size)
    keep = (inside[:, 2:] > inside[:, :2]).all(1)
    if len(boxes) > keep.sum():
        faults.dropped[source] += len(boxes) - int(keep.sum())
    faults.boxes += len(boxes)
    faults.beyond += int((abs(boxes - inside) > FAR_OUT * size).any(1).sum())
    labels = np.array([label for _, label, *_ in objects], np.int32)[keep]
    ignore = np.array([ignore for *_, ignore, _ in objects], bool)[keep]
    outlines = tuple(objects[index][-1] for index in np.flatnonzero(keep))
    return Record(
        image.stem, image, (height, width), inside[keep], labels, ignore, outlines
    )


def _split(source, classes, records, notes):
    """A data set in which every split has images, held out of `train` if need be.

    A missing test split is replaced by the validation split and the other way round.
    """
    train, val, test = (records.get(split, []) for split in SPLITS)
    if all(record.ignore.all() for record in train):
        raise DataError(f"{source}: there is no training image with a box")
    if not val and not test:
        order = np.random.default_rng(0).permutation(len(train))
        held = max(1, round(HELD_OUT * len(train)))
        if held == len(train):
            raise DataError(f"{source}: at least two images are needed")
        val = [train[i] for i in sorted(order[:held])]
        train = [train[i] for i in sorted(order[held:])]
        notes += (f"no val or test split: {held} images of train serve as both",)
    elif not test or not val:
        missing, used = ("test", "val") if not test else ("val", "test")
        notes += (f"no {missing} split: {used} serves as both",)
    return Dataset(classes, train, val or test, test or val, True, notes)


def read_voc(folder, skip=False):
    """Reads annotations in `Annotations/`, or else wherever in the folder they are.

    Their images are beside them, or in a folder `JPEGImages` or `images` beside theirs.
    The files `ImageSets/Main/{split}.txt` name the images of the splits; or the folders
    that annotations are in do. Difficult objects become boxes to ignore. VOC counts
    pixels from one and names the first and the last pixel inside a box, so an object
    from 1 to 10 covers 0 to 10.
    """
    folder = Path(folder)
    named = [folder / name for name in ("Annotations", "annotations")]
    root = next((place for place in named if place.is_dir()), folder)
    paths = sorted(root.rglob("*.xml"))
    if not paths:
        raise DataError(f"{folder}: there are no Annotations/*.xml and no other *.xml")
    parsed, faults = {}, Faults()
    for path in paths:
        with faults.kept():
            parsed[path] = _parse_xml(path)
    names = sorted({name for _, objects in parsed.values() for _, name, _ in objects})
    classes = {name: i for i, name in enumerate(names)}
    records, listed = {}, functools.cache(_images_in)
    for path, (filename, objects) in parsed.items():
        image = _voc_image(
            folder, path, path.parent.relative_to(root), filename, listed
        )
        objects = [(box, classes[name], hard, None) for box, name, hard in objects]
        with faults.kept():
            records[path] = _record(path.name, image, objects, faults)
    notes = faults.judged(skip)
    splits = _voc_splits(folder, root, records, paths)
    return _split(folder, tuple(names), splits, notes)


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


def _images_in(folder):
    """The images in a folder, by their names without the ending."""
    files = sorted(folder.iterdir())
    return {file.stem: file for file in files if file.suffix.lower() in SUFFIXES}


def _voc_image(folder, path, below, filename, listed):
    """The image of an annotation: the one named like it, else the one it names."""
    beside = [folder / "JPEGImages", folder / "images"]
    places = [place / below for place in beside] + [path.parent, *beside]
    places = [place for place in places if place.is_dir()]
    found = [listed(place).get(path.stem) for place in places]
    name = Path(filename).name or f"{path.stem}.jpg"
    found += [place / name for place in places if (place / name).is_file()]
    return next(filter(None, found), places[0] / name)


def _voc_splits(folder, root, records, paths):
    """The records of each split, as lists in `ImageSets/Main` or folders name them.

    `paths` are all annotations, readable or not.
    """
    splits, by_stem = {}, {path.stem: path for path in paths}
    for split, names in SPLITS.items():
        also = ("trainval",) if split == "train" else ()
        files = [folder / "ImageSets" / "Main" / f"{n}.txt" for n in names + also]
        if file := next((file for file in files if file.is_file()), None):
            lines = file.read_text().splitlines()
            stems = [line.split()[0] for line in lines if line.strip()]
            for stem in stems:
                if stem not in by_stem:
                    raise DataError(f"{file}: {stem} has no Annotations/{stem}.xml")
            listed = [by_stem[stem] for stem in stems]
        else:
            within = {path: path.relative_to(root).parts[:-1] for path in paths}
            listed = [p for p in paths if not {*names}.isdisjoint(within[p])]
        if listed:
            splits[split] = [records[path] for path in listed if path in records]
    return splits or {"train": list(records.values())}


def read_coco(annotations, images=None, skip=False):
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
    splits, first, faults = {}, None, Faults()
    for split, (file, folder) in files.items():
        content = _parse_json(file)
        categories = _categories(file, content["categories"])
        first = first or categories
        if categories != first:
            raise DataError(f"{file}: its categories differ from {annotations}")
        splits[split] = _coco_records(file, content, sorted(first), folder, faults)
    names = tuple(first[key] for key in sorted(first))
    return _split(annotations, names, splits, faults.judged(skip))


def _categories(file, entries):
    """The names of the categories by their ids."""
    try:
        categories = {int(item["id"]): str(item["name"]) for item in entries}
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{file}: a category lacks its id or its name") from None
    if not entries or len(categories) < len(entries):
        raise DataError(f"{file}: no categories, or two with the same id")
    return categories


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


def _coco_records(file, content, category_ids, folder, faults):
    """The records of one annotation file, one for each of its images."""
    labels = {key: index for index, key in enumerate(category_ids)}
    objects = defaultdict(list)
    for number, item in enumerate(content["annotations"]):
        try:
            label, crowd = labels[item["category_id"]], bool(item.get("iscrowd", 0))
            x, y, w, h = map(float, item["bbox"])
            one = ((x, y, x + w, y + h), label, crowd, item.get("segmentation"))
            objects[item["image_id"]].append(one)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            faults.append(f"{file}: annotation number {number} is faulty ({error!r})")
    try:
        images = {item["id"]: Path(item["file_name"]) for item in content["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: a faulty entry of `images` ({error!r})") from None
    if unknown := objects.keys() - images.keys():
        ids = sorted(unknown, key=str)[:5]
        faults.append(f"{file}: boxes of unlisted images, ids {ids}")
    records = []
    for key, name in images.items():
        with faults.kept():
            records.append(_record(str(name), folder / name, objects[key], faults))
    return records
