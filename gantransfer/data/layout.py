"""Which files of an archive are images, and which class each belongs to.

1. Files count as images by their ending, or, with another ending or none, by their first bytes. What is neither is left
   aside.
2. Folders that hold nothing but one folder are stepped into: a common prefix is no class.
3. A `dataset.json` beside the images (NVlabs: `{"labels": [[file, class], ...]}`) decides the classes, whatever the
   folders say. `"labels": null` means unconditional. `"class_names": [...]` names them and fixes their number.
4. Otherwise sub-folders are classes, numbered in alphabetical order of their names; deeper folders belong to the first
   level. First-level folders that are all called like splits (train, val, test, ...) are no classes: one of them has to
   be named.
5. Otherwise the set is flat: one class, "all".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from gantransfer.data.archives import Archive
from gantransfer.data.decode import IMAGE_ENDINGS, MAGIC_BYTES, CorruptImage, looks_like_image
from gantransfer.errors import UserError

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev"})
JSON_NAME = "dataset.json"
MAX_CLASS = 2**20
JSON_FORM = '{"labels": [[file, class number], ...]} or {"labels": null}'


@dataclass(frozen=True)
class Layout:
    """Image files and their classes.

    Attributes:
      files: names in the archive, sorted by folder, then by name.
      labels: a class number for each file.
      class_names: by class number.
      numbering: where the numbering comes from, in words.
      notes: what was left aside or decided.
    """

    files: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    numbering: str
    notes: tuple[str, ...]


def find_layout(archive: Archive, part: str | None, classes: int | None) -> Layout:
    """Finds images and classes.

    Args:
      archive: where to look.
      part: the sub-folder that holds the set, such as a split; None for the whole archive.
      classes: how many classes there must be; None takes what is there.

    Raises:
      UserError: there is no image, or classes cannot be told, with the entry named.
    """
    base = _part_base(archive, part) if part is not None else ""
    files = [name for name in archive.files if name.startswith(base)]
    folders = [name for name in archive.folders if name.startswith(base)]
    ending = {name: name.rpartition("/")[2].rpartition(".")[2].lower() for name in files}
    images = [name for name in files if ending[name] in IMAGE_ENDINGS or _image_inside(archive, name)]
    if not images:
        raise UserError(
            "data", archive.path + (f":{part}" if part else ""), "a set with at least one image file; there is none"
        )
    base = _common_base(base, images, folders, files)
    notes = list(archive.notes)
    if base:
        notes.append(f"the images are taken from {base} inside it; folders on the way there are no classes")
    aside = sorted(set(files) - set(images) - {base + JSON_NAME})
    _refuse_hidden_json(archive, base, aside)
    if aside:
        notes.append(f"left aside, being no images ({len(aside)}): {_some(aside)}")
    if base + JSON_NAME in files:
        labelled = _by_json(archive, base, images, notes)
    else:
        labelled = _by_folders(archive, base, images, folders)
    labels, class_names, numbering = labelled
    if classes is not None and len(class_names) != classes:
        have = f"{len(class_names)} classes ({_some(class_names)})"
        raise UserError("data", f"{archive.path}: {have}", f"sets of {classes} classes")
    return Layout(tuple(images), tuple(labels), tuple(class_names), numbering, tuple(notes))


def refuse_empty(path: str, labels: Sequence[int], class_names: Sequence[str], why: str) -> None:
    """Raises the UserError that names the classes without an image."""
    used = set(labels)
    empty = [name for number, name in enumerate(class_names) if number not in used]
    if empty:
        raise UserError("data", f"{path}: class {_some(empty)}", f"classes with at least one image; {why}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names) - 5} more)" if len(names) > 5 else "")


def _image_inside(archive: Archive, name: str) -> bool:
    try:
        return looks_like_image(archive.head(name, MAGIC_BYTES))
    except CorruptImage:
        # A damaged file that is not even called an image is none of ours.
        return False


def _part_base(archive: Archive, part: str) -> str:
    """The folder that `part` names, from the top or by its last parts, with a "/" at its end."""
    wanted = part.strip("/")
    found = [name for name in archive.folders if name == wanted] or [
        name for name in archive.folders if name.endswith("/" + wanted)
    ]
    if len(found) != 1:
        raise UserError("data", f"{archive.path}:{part}", f"one of its folders: {_some(found or archive.folders)}")
    return found[0] + "/"


def _common_base(base: str, images: Sequence[str], folders: Sequence[str], files: Sequence[str]) -> str:
    """Steps into folders as long as there is one folder only and neither an image nor a dataset.json beside it."""
    while True:
        inside = {name[len(base) :].split("/")[0] for name in folders}
        beside = base + JSON_NAME in files or any("/" not in name[len(base) :] for name in images)
        if len(inside) != 1 or beside:
            return base
        base += inside.pop() + "/"
        folders = [name for name in folders if name.startswith(base)]


def _refuse_hidden_json(archive: Archive, base: str, aside: Sequence[str]) -> None:
    hidden = [name for name in aside if name.endswith("/" + JSON_NAME) and name.startswith(base)]
    if hidden:
        allowed = (
            f"a {JSON_NAME} at the top of the set ({base or 'the top'}), or naming its folder: {archive.path}:FOLDER"
        )
        raise UserError("data", f"{archive.path}: {hidden[0]}", allowed)


def _by_folders(
    archive: Archive, base: str, images: Sequence[str], folders: Sequence[str]
) -> tuple[list[int], list[str], str]:
    first = sorted(
        {name[len(base) :].split("/")[0] for name in folders if name != base.rstrip("/") and name.startswith(base)}
    )
    top = [name for name in images if "/" not in name[len(base) :]]
    if not first:
        return [0] * len(images), ["all"], "unconditional (no class folders)"
    if top:
        allowed = f"either folders as classes ({_some(first)}) or images at the top, not both"
        raise UserError("data", f"{archive.path}: {top[0]}", allowed)
    if all(name.lower() in SPLITS for name in first):
        choices = " or ".join(f"{archive.path}:{name}" for name in first)
        raise UserError("data", f"{archive.path}: {_some(first)}", f"one split at a time: {choices}")
    alike: dict[str, str] = {}
    for name in first:
        if alike.setdefault(name.lower(), name) != name:
            allowed = f"class folders that differ in more than upper and lower case ({alike[name.lower()]})"
            raise UserError("data", f"{archive.path}: {name}", allowed)
    labels = [first.index(name[len(base) :].split("/")[0]) for name in images]
    refuse_empty(
        archive.path, labels, first, "a folder without images would shift the class numbers; remove it or fill it"
    )
    return labels, first, "numbered in alphabetical order of the folder names"


def _by_json(archive: Archive, base: str, images: Sequence[str], notes: list[str]) -> tuple[list[int], list[str], str]:
    where = f"{archive.path}: {base}{JSON_NAME}"
    rows, class_names = _read_json(archive, base, where)
    if rows is None:
        return [0] * len(images), ["all"], f"unconditional ({JSON_NAME} has no labels)"
    table = _label_table(rows, where, notes)
    missing = [name for name in images if name[len(base) :] not in table]
    if missing:
        raise UserError(
            "data", f"{archive.path}: {missing[0]}", f"a label in {JSON_NAME} for every image ({len(missing)} without)"
        )
    known = {name[len(base) :] for name in images}
    extra = [name for name in table if name not in known]
    if extra:
        notes.append(
            f"{JSON_NAME} has labels for files that are not there ({len(extra)}), which are ignored: {_some(extra)}"
        )
    labels = [table[name[len(base) :]] for name in images]
    if class_names is None:
        class_names = [str(number) for number in range(min(max(labels), MAX_CLASS) + 1)]
    outside = [name for name, label in zip(images, labels, strict=True) if label >= len(class_names)]
    if outside:
        value = f"{archive.path}: {outside[0]} has label {table[outside[0][len(base) :]]}"
        raise UserError("data", value, f"labels 0 to {len(class_names) - 1} ({len(class_names)} classes)")
    refuse_empty(archive.path, labels, class_names, f"{JSON_NAME} must use every class number from 0 up")
    if any("/" in name for name in known):
        notes.append(f"{JSON_NAME} decides the classes; folders do not count")
    return labels, class_names, f"numbered by {JSON_NAME}"


def _read_json(archive: Archive, base: str, where: str) -> tuple[list | None, list[str] | None]:
    try:
        content = json.loads(archive.read(base + JSON_NAME))
    except (ValueError, RecursionError, CorruptImage) as error:
        raise UserError("data", where, f"valid JSON: {JSON_FORM}; this file does not parse: {error}") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise UserError("data", where, f'JSON with a "labels" entry: {JSON_FORM}')
    rows, class_names = content["labels"], content.get("class_names")
    if rows is not None and not (isinstance(rows, list) and rows):
        raise UserError("data", where, f"JSON of this form: {JSON_FORM}")
    if class_names is not None:
        strings = isinstance(class_names, list) and all(isinstance(name, str) for name in class_names)
        if not strings or len(set(class_names)) != len(class_names):
            raise UserError("data", f"{where}: class_names", "a list of different strings")
    return rows, class_names


def _label_table(rows: list, where: str, notes: list[str]) -> dict[str, int]:
    """File names, relative to the JSON, with their class numbers."""
    table: dict[str, int] = {}
    for row in rows:
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)):
            raise UserError(
                "data", f"{where}: {json.dumps(row)[:80]}", f"rows of a file name and a class number: {JSON_FORM}"
            )
        name, label = row[0].replace("\\", "/"), row[1]
        if isinstance(label, list):
            raise UserError(
                "data", f"{where}: {name}", "one class number for each image; vectors as labels are not supported"
            )
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise UserError("data", f"{where}: {name} has label {label!r}", "class numbers: integers from 0 up")
        if name in table:
            raise UserError("data", f"{where}: {name}", "one label for each file; this file has several")
        table[name] = label
    if any("\\" in row[0] for row in rows):
        notes.append(f"names with \\ in {JSON_NAME} are read as if they had /")
    return table
