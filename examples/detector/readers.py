"""Reads data sets in Pascal VOC and COCO form."""

import contextlib
import json
import os
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
BESIDE = {"", "set", "images", "image", "img", "annotations", "labels", "xml", "data"}
# Folders with pictures of labels, which are named like the photographs.
NOT_SEEN = {"segmentationclass", "segmentationobject", "masks", "mask"}
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
        self.images = self.resized = self.boxes = self.beyond = self.farthest = 0

    @contextlib.contextmanager
    def kept(self):
        """Keeps a fault for later, so that all of them are named at once."""
        try:
            yield
        except DataError as error:
            self.append(str(error))

    def judged(self, source, skip):
        """The notes of what is left out; raises unless faulty files may be skipped."""
        if self.boxes and self.farthest <= 1:
            raise DataError(
                f"{source}: boxes are in pixels, and no box reaches beyond 1"
            )
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
    faults.farthest = max(faults.farthest, boxes.max(initial=0))
    faults.beyond += int((abs(boxes - inside) > FAR_OUT * size).any(1).sum())
    labels = np.array([label for _, label, *_ in objects], np.int32)[keep]
    ignore = np.array([ignore for *_, ignore, _ in objects], bool)[keep]
    outlines = tuple(objects[index][-1] for index in np.flatnonzero(keep))
    return Record(
        image.stem, image, (height, width), inside[keep], labels, ignore, outlines
    )


def _number(text):
    """A number, or 0 where it is none."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return 0.0


def _split(classes, records, notes):
    """A data set in which every split has images, held out of `train` if need be.

    A missing test split is replaced by the validation split and the other way round.
    """
    train, val, test = (records.get(split, []) for split in SPLITS)
    seen = {record.image for record in (*val, *test)}
    own = [record for record in train if record.image not in seen]
    if len(own) < len(train):
        count, train = len(train) - len(own), own
        notes += (f"left out {count} images of train, which other splits have, too",)
    held_out = not val and not test
    if held_out:
        # Variations of one image, as Roboflow names them, stay together.
        names = [r.image.parent / r.image.name.split(".rf.")[0] for r in train]
        unique = list(dict.fromkeys(names))
        order = np.random.default_rng(0).permutation(len(unique))
        held = {unique[k] for k in order[: max(1, round(HELD_OUT * len(order)))]}
        pairs = list(zip(train, names, strict=True))
        val = [record for record, name in pairs if name in held]
        train = [record for record, name in pairs if name not in held]
        notes += (f"no val or test split: {len(val)} images of train serve as both",)
    elif not test or not val:
        missing, used = ("test", "val") if not test else ("val", "test")
        notes += (f"no {missing} split: {used} serves as both",)
    return Dataset(classes, train, val or test, test or val, True, notes, held_out)


def read_voc(folder, skip=False):
    """Reads annotations in `Annotations/`, or else wherever in the folder they are.

    Their images are found by name, anywhere in the folder. The splits are lists,
    `ImageSets/Main/{split}.txt`, or the folders that annotations or images are in.
    Difficult objects become boxes to ignore. VOC counts pixels from one and names the
    first and the last pixel inside a box, so an object from 1 to 10 covers 0 to 10.
    """
    folder = Path(folder).expanduser()
    named = [folder / name for name in ("Annotations", "annotations")]
    root = next((place for place in named if place.is_dir()), folder)
    images, lists, paths = defaultdict(list), defaultdict(list), []
    for file in _files(folder):
        if file.suffix.lower() == ".xml" and root in file.parents:
            paths.append(file)
        elif file.parts[-3:-1] == ("ImageSets", "Main"):
            lists[file.stem.lower()].append(file)
        elif file.suffix.lower() in SUFFIXES:
            images[file.stem].append(file)
    parsed, other, faults = {}, [], Faults()
    for path in paths:
        with faults.kept():
            if found := _parse_xml(path):
                parsed[path] = found
            else:
                other.append(path.name)
    if not parsed and not faults:
        raise DataError(f"{root}: there are no annotations, *.xml")
    names = sorted({name for *_, objects in parsed.values() for _, name, _ in objects})
    classes = {name: i for i, name in enumerate(names)}
    records = {}
    for path, (filename, said, objects) in parsed.items():
        objects = [(box, classes[name], hard, None) for box, name, hard in objects]
        with faults.kept():
            image = _voc_image(folder, path, filename, images)
            records[path] = _record(path.name, image, said, objects, faults)
    notes = faults.judged(folder, skip)
    splits = _voc_splits(folder, root, lists, records, paths)
    placed = {record.image for split in splits.values() for record in split}
    rest = [record for record in records.values() if record.image not in placed]
    if rest and splits.setdefault("train", rest) is not rest:
        notes += (f"left out {len(rest)} images, which are in no split",)
    if other:
        notes += (f"left out XML that is no annotation: {', '.join(other[:LISTED])}",)
    return _split(tuple(names), splits, notes)


def _files(folder):
    """All files in a folder and below it, also behind links, in order."""
    walk = os.walk(folder, followlinks=True)
    found = (Path(place, name) for place, _, names in walk for name in names)
    return sorted(file for file in found if not file.name.startswith("."))


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
        said = [_number(root.findtext(f"size/{side}")) for side in SIDES]
        return root.findtext("filename", "").strip(), said, objects
    except (ParseError, defusedxml.DefusedXmlException) as error:
        raise DataError(f"{path}: malformed XML ({error})") from None
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{path}: an object lacks its name or its box") from None


def _split_of(path):
    """The split that the folders of a path name, the outermost first, or None."""
    for part in path.parts[:-1]:
        words = {*re.split("[^a-z]+", part.lower())} - BESIDE
        for split, names in SPLITS.items():
            if words and words <= {*names}:
                return split
    return None


def _voc_image(folder, path, filename, images):
    """The image of an annotation: named like it, else as it says; the nearest one."""
    name = Path(filename.replace("\\", "/")).name or f"{path.stem}.jpg"
    split, around = _split_of(path.relative_to(folder)), {*path.parent.parts}
    near = defaultdict(list)
    for file in images.get(path.stem) or images.get(Path(name).stem, []):
        below = file.relative_to(folder)
        if split and _split_of(below) not in (None, split):
            continue
        if NOT_SEEN.isdisjoint(part.lower() for part in below.parts):
            shared = len(around & {*file.parent.parts})
            rank = file.parent.name == "JPEGImages", shared, file.name == name
            near[rank].append(file)
    if not near:
        raise DataError(f"{path}: there is no image {name} in the folder")
    first, *more = near[max(near)]
    if more:
        raise DataError(f"{path}: which image is it, {first} or {more[0]}?")
    return first


def _voc_splits(folder, root, lists, records, paths):
    """The records of each split, as lists in `ImageSets/Main` or folders name them.

    `paths` are all annotations, readable or not.
    """
    splits, known = {}, defaultdict(set)
    for path in paths:
        known[path.stem].add(path)
        known[path.relative_to(root).with_suffix("").as_posix()].add(path)
    within = {path: _split_of(path.relative_to(folder)) for path in paths}
    for path, record in records.items():
        within[path] = within[path] or _split_of(record.image.relative_to(folder))
    for split, names in SPLITS.items():
        if files := next((lists[name] for name in names if name in lists), ()):
            listed = [path for file in files for path in _listed(file, known)]
        else:
            listed = [path for path in paths if not lists and within[path] == split]
        if listed:
            splits[split] = [records[p] for p in dict.fromkeys(listed) if p in records]
    return splits


def _listed(file, known):
    """The annotations that a list names: by stems, or by paths with or without ends."""
    for line in file.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip():
            continue
        tried = [line.strip(), *line.split()[:1]]
        tried += [Path(name).with_suffix("").as_posix() for name in tried]
        tried += [Path(name).stem for name in tried]
        found = next((known[name] for name in tried if name in known), set())
        if len(found) != 1:
            what = "has no annotation" if not found else "is the name of several"
            raise DataError(f"{file}: {line.strip()} {what}")
        yield from found


def read_coco(annotations, images=None, skip=False):
    """Reads a COCO annotation file and, where they exist, those of the other splits.

    The other splits are found by replacing `train` in the paths by their names.
    Category ids may have gaps; crowds become boxes to ignore.
    """
    annotations = Path(annotations).expanduser()
    images = Path(images).expanduser() if images else annotations.parent
    files = {"train": (annotations, images)}
    for split in ("val", "test"):
        for name in SPLITS[split]:
            places = [place for place in _siblings(images, name) if place.is_dir()]
            for file in _siblings(annotations, name):
                if file != annotations and file.is_file():
                    files.setdefault(split, (file, [*places, images][0]))
    splits, names, faults = {}, (), Faults()
    for split, (file, folder) in files.items():
        content = _parse_json(file)
        categories = _categories(file, content["categories"])
        # By number, where ids are numbers.
        order = sorted(categories, key=lambda key: (len(key), key))
        names = names or tuple(dict.fromkeys(categories[key] for key in order))
        if unknown := {*categories.values()} - {*names}:
            raise DataError(
                f"{file}: {annotations} has no {', '.join(sorted(unknown))}"
            )
        labels = {key: names.index(name) for key, name in categories.items()}
        splits[split] = _coco_records(file, content, labels, folder, faults)
    return _split(names, splits, faults.judged(annotations, skip))


def _categories(file, entries):
    """The names of the categories by their ids."""
    try:
        categories = {_key(item["id"]): str(item["name"]) for item in entries}
    except (KeyError, TypeError):
        raise DataError(f"{file}: a category lacks its id or its name") from None
    if not entries or len(categories) < len(entries):
        raise DataError(f"{file}: no categories, or two with the same id")
    return categories


def _key(value):
    """An id or a flag as text, the same for 1, 1.0 and "1"."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _siblings(path, name):
    """A path with the last two, or the last, `train` in it replaced by a name."""
    for count in (2, 1):
        text = name.join(str(path).rsplit("train", count))
        yield Path(name.title().join(text.rsplit("Train", count)))


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
            label = labels[_key(item["category_id"])]
            crowd = _key(item.get("iscrowd")) not in ("0", "False", "None", "")
            x, y, w, h = map(float, item["bbox"])
            one = ((x, y, x + w, y + h), label, crowd, item.get("segmentation"))
            objects[_key(item["image_id"])].append(one)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            faults.append(f"{file}: annotation number {number} is faulty ({error!r})")
    try:
        for item in content["images"]:
            said = [_number(item.get(side)) for side in SIDES]
            images[_key(item["id"])] = str(item["file_name"]), said
    except (AttributeError, KeyError, TypeError) as error:
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
    given = Path(name.replace("\\", "/"))
    parts = [part for part in given.parts if part not in ("..", given.anchor)]
    ends = [given, *(Path(*parts[k:]) for k in range(len(parts)))]
    for end in ends:
        for place in (folder, folder / "images", folder.parent / "images"):
            if (place / end).is_file():
                return place / end
        # Its own folder is here, without it: one of this name elsewhere is another.
        if end is not given and (folder / end.parts[0]).is_dir():
            break
    return folder / given
