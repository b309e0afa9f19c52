"""Reads data sets in Pascal VOC and COCO form."""

import contextlib
import json
import re
from collections import defaultdict
from pathlib import Path
from xml.etree.ElementTree import ParseError

import defusedxml
import numpy as np
from defusedxml import ElementTree

from .images import SUFFIXES, image_size
from .records import DataError, Dataset, Record

SPLITS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
BOX_TAGS = ("xmin", "ymin", "xmax", "ymax")
SIDES = ("height", "width")
COCO_KEYS = ("images", "annotations", "categories")
HELD_OUT = 0.2  # of the images, where a data set brings only a training split
LISTED = 20  # faults that are written out
FAR_OUT = 0.05  # of the side of an image
SUSPICIOUS = 0.2  # of all boxes


class Faults(list):
    """What is wrong with the files of a data set, one line each, and with its boxes."""

    def __init__(self):
        self.dropped = defaultdict(int)
        self.images = self.resized = self.boxes = self.beyond = 0

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
        if self.resized:
            notes.append(
                f"{self.resized} of {self.images} images have another size than their "
                "annotations say: are the boxes those of a scaled or turned copy?"
            )
        if self.beyond > SUSPICIOUS * self.boxes:
            notes.append(
                f"{self.beyond} of {self.boxes} boxes reach far out of their images: "
                "COCO's are [x, y, width, height], VOC's two corners, both in pixels"
            )
        return tuple(notes)


def _record(source, image, said, objects, faults):
    """A record of the objects, `(box, label, ignore, outline)` with an area.

    Boxes are clipped to the image. Those without an area are counted in `faults` under
    `source`, the name of the annotation, which has `said` what (height, width) are.
    """
    height, width = image_size(image)
    boxes = np.array([box for box, *_ in objects], np.float32).reshape(-1, 4)
    size = np.array([width, height, width, height], np.float32)
    inside = np.clip(boxes, 0, size)
    keep = (inside[:, 2:] > inside[:, :2]).all(1)
    if len(boxes) > keep.sum():
        faults.dropped[source] += len(boxes) - int(keep.sum())
    faults.images += 1
    faults.resized += all(said) and tuple(said) != (height, width)
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
    held_out = not val and not test
    if held_out:
        # Variations of one image, as Roboflow names them, stay together.
        names = [str(record.image).split(".rf.")[0] for record in train]
        order = np.random.default_rng(0).permutation(list(dict.fromkeys(names)))
        held = {*order[: max(1, round(HELD_OUT * len(order)))]}
        pairs = list(zip(train, names, strict=True))
        val = [record for record, name in pairs if name in held]
        train = [record for record, name in pairs if name not in held]
        if all(record.ignore.all() for record in train):
            raise DataError(f"{source}: at least two images with boxes are needed")
        notes += (f"no val or test split: {len(val)} images of train serve as both",)
    elif not test or not val:
        missing, used = ("test", "val") if not test else ("val", "test")
        notes += (f"no {missing} split: {used} serves as both",)
    return Dataset(classes, train, val or test, test or val, True, notes, held_out)


def read_voc(folder, skip=False):
    """Reads annotations in `Annotations/`, or else wherever in the folder they are.

    Their images are found by name, anywhere in the folder. The splits are lists,
    `ImageSets/Main/{split}.txt`, or the folders that annotations are in. Difficult
    objects become boxes to ignore. VOC counts pixels from one and names the first and
    the last pixel inside a box, so an object from 1 to 10 covers 0 to 10.
    """
    folder = Path(folder).expanduser()
    named = [folder / name for name in ("Annotations", "annotations")]
    root = next((place for place in named if place.is_dir()), folder)
    paths = sorted(p for p in root.rglob("[!.]*") if p.suffix.lower() == ".xml")
    parsed, other, faults = {}, [], Faults()
    for path in paths:
        with faults.kept():
            if found := _parse_xml(path):
                parsed[path] = found
            else:
                other.append(path.name)
    if not parsed and not faults:
        raise DataError(f"{folder}: there are no Annotations/*.xml and no other *.xml")
    names = sorted({name for *_, objects in parsed.values() for _, name, _ in objects})
    classes = {name: i for i, name in enumerate(names)}
    images = defaultdict(list)
    for file in sorted(folder.rglob("[!.]*")):
        if file.suffix.lower() in SUFFIXES:
            images[file.stem].append(file)
    records = {}
    for path, (filename, said, objects) in parsed.items():
        objects = [(box, classes[name], hard, None) for box, name, hard in objects]
        with faults.kept():
            image = _voc_image(path, filename, images)
            records[path] = _record(path.name, image, said, objects, faults)
    notes = faults.judged(skip)
    splits = _voc_splits(folder, root, records, paths)
    placed = {record.image for split in splits.values() for record in split}
    rest = [record for record in records.values() if record.image not in placed]
    if rest and splits.setdefault("train", rest) is not rest:
        notes += (f"left out {len(rest)} images, which are in no split",)
    if other:
        notes += (f"left out XML that is no annotation: {', '.join(other[:LISTED])}",)
    return _split(folder, tuple(names), splits, notes)


def _parse_xml(path):
    """Name and (height, width) of the image, `(box, name, difficult)` of each object.

    None where it is no annotation.
    """
    try:
        root = ElementTree.parse(path).getroot()
        if root.tag != "annotation":
            return None
        objects = []
        for item in root.iter("object"):
            corners = (item.find("bndbox").find(tag) for tag in BOX_TAGS)
            x1, y1, x2, y2 = (float(corner.text) for corner in corners)
            (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
            # Equal corners are a slip of the mouse, not an object of one pixel.
            empty = x1 == x2 or y1 == y2
            box = (x1, y1, x1, y1) if empty else (x1 - 1, y1 - 1, x2, y2)
            difficult = item.findtext("difficult", "0").strip() == "1"
            objects.append((box, item.find("name").text.strip(), difficult))
        said = [float(root.findtext(f"size/{side}") or 0) for side in SIDES]
        return root.findtext("filename", "").strip(), said, objects
    except (ParseError, defusedxml.DefusedXmlException) as error:
        raise DataError(f"{path}: malformed XML ({error})") from None
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{path}: an object lacks its name or its box") from None


def _voc_image(path, filename, images):
    """The image of an annotation: named like it, else as it says; the nearest one."""
    name = Path(filename.replace("\\", "/")).name or f"{path.stem}.jpg"
    found = images.get(path.stem) or images.get(Path(name).stem)
    if not found:
        raise DataError(f"{path}: there is no image {name} in the folder")
    around = {*path.parent.parts, "JPEGImages", "images"}
    near = [(len(around & {*file.parts}), file.name == name) for file in found]
    return found[near.index(max(near))]


def _voc_splits(folder, root, records, paths):
    """The records of each split, as lists in `ImageSets/Main` or folders name them.

    `paths` are all annotations, readable or not.
    """
    splits, main = {}, folder / "ImageSets" / "Main"
    places = {path: path.relative_to(root).parent.as_posix() for path in paths}
    for path, record in records.items():
        places[path] += f" {record.image.relative_to(folder).parent}"
    lists = {file.stem.lower(): file for file in sorted(main.glob("*.txt"))}
    below = {path: path.relative_to(root).with_suffix("").as_posix() for path in paths}
    known = {path.stem: path for path in paths} | {below[path]: path for path in paths}
    for split, names in SPLITS.items():
        if file := next((lists[name] for name in names if name in lists), None):
            lines = file.read_text(encoding="utf-8-sig").splitlines()
            listed = []
            for line in filter(None, map(str.strip, lines)):
                tried = line, line.split()[0], Path(line).stem
                if not (stems := [name for name in tried if name in known]):
                    raise DataError(f"{file}: {line} has no Annotations/{line}.xml")
                listed.append(known[stems[0]])
        else:
            words = {p: re.split("[^a-z]+", x.lower()) for p, x in places.items()}
            listed = [path for path in paths if {*names} & {*words[path]}]
        if listed:
            splits[split] = [records[p] for p in dict.fromkeys(listed) if p in records]
    return splits


def read_coco(annotations, images=None, skip=False):
    """Reads a COCO annotation file and, where they exist, those of the other splits.

    The other splits are found by replacing `train` in the paths by their names.
    Category ids may have gaps; crowds become boxes to ignore.
    """
    annotations = Path(annotations).expanduser()
    images = Path(images).expanduser() if images else annotations.parent
    files = {"train": (annotations, images)}
    for split in ("val", "test"):
        found = (p for p in _siblings(annotations, SPLITS[split]) if p.is_file())
        if file := next(found, None):
            places = (p for p in _siblings(images, SPLITS[split]) if p.is_dir())
            files[split] = file, next(places, images)
    splits, names, faults = {}, (), Faults()
    for split, (file, folder) in files.items():
        content = _parse_json(file)
        categories = _categories(file, content["categories"])
        names = names or tuple(dict.fromkeys(categories.values()))
        if unknown := {*categories.values()} - {*names}:
            raise DataError(
                f"{file}: {annotations} has no {', '.join(sorted(unknown))}"
            )
        labels = {key: names.index(name) for key, name in categories.items()}
        splits[split] = _coco_records(file, content, labels, folder, faults)
    return _split(annotations, names, splits, faults.judged(skip))


def _categories(file, entries):
    """The names of the categories by their ids."""
    try:
        categories = {str(item["id"]): str(item["name"]) for item in entries}
    except (KeyError, TypeError):
        raise DataError(f"{file}: a category lacks its id or its name") from None
    if not entries or len(categories) < len(entries):
        raise DataError(f"{file}: no categories, or two with the same id")
    return categories


def _siblings(path, names):
    """`path` with the last one or two `train` in it replaced by each of the names."""
    for name in names:
        for old, new in (("train", name), ("Train", name.title())):
            for k in (2, 1):
                if (other := Path(new.join(str(path).rsplit(old, k)))) != path:
                    yield other


def _parse_json(path):
    """The content of an annotation file, whose three lists are known to be there."""
    try:
        content = json.loads(path.read_bytes())
        if all(isinstance(content[key], list) for key in COCO_KEYS):
            return content
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path}: there is no such file of annotations") from None
    except ValueError as error:
        raise DataError(f"{path}: malformed JSON ({error})") from None
    except (KeyError, TypeError):
        pass
    raise DataError(f"{path}: lacks one of the lists {', '.join(COCO_KEYS)}")


def _coco_records(file, content, labels, folder, faults):
    """The records of one annotation file, one for each of its images."""
    objects, images = defaultdict(list), {}
    for number, item in enumerate(content["annotations"]):
        try:
            if not item.get("bbox", True):  # of an outline, or of all the image
                faults.dropped[f"annotation {number} of {file.name}"] += 1
                continue
            label = labels[str(item["category_id"])]
            crowd = str(item.get("iscrowd")) in ("1", "True")
            x, y, w, h = map(float, item["bbox"])
            one = ((x, y, x + w, y + h), label, crowd, item.get("segmentation"))
            objects[str(item["image_id"])].append(one)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            faults.append(f"{file}: annotation number {number} is faulty ({error!r})")
    try:
        for item in content["images"]:
            said = [float(item.get(side) or 0) for side in SIDES]
            images[str(item["id"])] = str(item["file_name"]), said
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: a faulty entry of `images` ({error!r})") from None
    if unknown := objects.keys() - images.keys():
        faults.append(f"{file}: boxes of unlisted images, ids {sorted(unknown)[:5]}")
    records = []
    for key, (name, said) in images.items():
        with faults.kept():
            image = _coco_image(folder, name)
            records.append(_record(name, image, said, objects[key], faults))
    return records


def _coco_image(folder, name):
    """The image of this name, whatever folders of elsewhere stand before it."""
    parts, near = Path(name.replace("\\", "/")).parts, folder.parent / "images"
    ends = [Path(*parts[k:]) for k in range(len(parts))]
    tried = [place / end for end in ends for place in (folder, folder / "images", near)]
    return next((path for path in tried if path.is_file()), folder / name)
