"""From labelled files to an index: classes become labels, and splits that a source lacks are made."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.core.errors import SourceError
from pipeline.core.shares import counted
from pipeline.ingestion.sources.index import Index, Unusable, below_share, sample_table
from pipeline.ingestion.sources.members import Listing, chosen_objects, is_archive
from pipeline.ingestion.sources.recognise.file_kinds import kind_of
from pipeline.ingestion.sources.source import VAL_SHARE

_SHOWN = 3
_SHOWN_LETTERS = 80


@dataclass(frozen=True)
class Refusal:
    """An image that can't be used before it is looked at: it has no label, or is named by a table and isn't there."""

    key: str
    split: str  # as in `LabelledFiles`
    reason: str  # KIND or KIND: DETAIL
    class_name: str | None = None  # None where it isn't known
    row: int | None = None  # index in the listing; None where there is no such file


@dataclass(frozen=True)
class LabelledFiles:
    """Files of a listing that are labelled images: columns of equal length, and what there is to say about them."""

    rows: Sequence[int]  # indices in the listing; files that can't be read may be among them
    keys: Sequence[str]
    splits: Sequence[str]  # "train", "val" or "test"; "" for all if the source has no splits
    class_names: Sequence[str]
    notes: Sequence[str] = ()  # lines for the user: how splits and classes were recognised
    aside: Mapping[str, int] = field(default_factory=dict)  # images that were left aside: how many, by a description
    refusals: Sequence[Refusal] = ()  # images that aren't in the columns and go to quarantine
    label_files: Sequence[int] = ()  # indices in the listing of the files that the labels were read from


def labelled_index(
    listing: Listing,
    name: str,
    layout: str,
    labelled: LabelledFiles,
    sort_key: Callable[[str], Any] | None = None,
    val_share: float = VAL_SHARE,
) -> Index:
    """Returns the index of the labelled files of a listing.

    The label of a class is its rank among the class names, sorted by `sort_key`. Splits: see `_final_splits`. Raises
    SourceError if there is only one class, or if a split or the training images of a class are missing.
    """
    usable = [position for position, row in enumerate(labelled.rows) if row not in listing.unreadable]
    classes = tuple(sorted(set(labelled.class_names), key=sort_key))
    if len(classes) < 2:
        what = f"one class only ({classes[0][:_SHOWN_LETTERS]!r})" if classes else "no labelled image"
        if labelled.refusals:
            refused, more = labelled.refusals[0], len(labelled.refusals) - 1
            what += f", and {refused.key} ({refused.reason}){f' and {more:,} more' if more else ''} can't be used"
        raise SourceError(f"{listing.uri}: {what}; a classifier needs two or more folders")
    if not usable:
        first = listing.unreadable[labelled.rows[0]]
        raise SourceError(
            f"{listing.uri}: none of {counted(len(labelled.rows), 'image')} can be read ({labelled.keys[0]}: {first})"
        )
    label = {class_name: index for index, class_name in enumerate(classes)}
    labels = np.array([label[class_name] for class_name in labelled.class_names], dtype=np.int64)
    keys, splits, notes = _final_splits(listing, labelled, labels, classes, val_share)
    tables = {}
    for split in sorted({splits[position] for position in usable}):
        chosen = [position for position in usable if splits[position] == split]
        members = np.array([labelled.rows[position] for position in chosen], dtype=np.int64)
        tables[split] = sample_table(
            [keys[position] for position in chosen],
            labels[chosen],
            chosen_objects(listing.objects, members),
            listing.offsets[members],
            listing.lengths[members],
        )
    _check_splits(listing, tables, label, needs_train=val_share < 1)
    return Index(
        name,
        layout,
        classes,
        "file",
        tables,
        listing.fingerprint,
        ignored=_ignored(listing, labelled),
        num_label_files=len(labelled.label_files),
        unusable=_unusable(listing, labelled, keys, splits, labels) + _refused(listing, labelled, label, val_share),
        notes=(*labelled.notes, *notes, *_unmeasured(labelled.splits, tables, classes)),
        val_share=val_share if _lacks_val(labelled.splits) else 0.0,
    )


def _unmeasured(found: Sequence[str], tables: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Returns a line on the classes that the val split of a source lacks. found: the splits of the source."""
    if _lacks_val(found):  # the split is ours, and has its own lines
        return []
    lacking = sorted(set(range(len(classes))) - set(tables["val"]["label"].to_pylist()))
    what = f"no validation image in {len(lacking):,} of the classes: {some_names(classes, lacking)}"
    return [f"{what}; how well they are recognised isn't measured"] if lacking else []


def _lacks_val(splits: Sequence[str]) -> bool:
    return not {"val", "test"} & set(splits)


def _final_splits(
    listing: Listing, labelled: LabelledFiles, labels: Any, classes: Sequence[str], val_share: float
) -> tuple[Sequence[str], Sequence[str], tuple[str, ...]]:
    """Returns (keys, splits, notes): every source has val in the end.

    `test` serves as val where there is no val. Of a source with neither, `val_share` of each class is held out by a
    hash of the keys (`below_share`); such keys carry no split, so that `photos/train` and `photos` give the same. A
    share of 1 is for evaluation: every image becomes val.
    """
    found = set(labelled.splits)
    if "" in found and len(found) > 1:
        stray = labelled.keys[list(labelled.splits).index("")]
        raise SourceError(f"{listing.uri}: {stray!r} is in none of the splits {sorted(found - {''})}; move it")
    if "val" in found:
        return labelled.keys, labelled.splits, ()
    if "test" in found:
        splits = ["val" if split == "test" else split for split in labelled.splits]
        return labelled.keys, splits, ("no val split: test serves as val",)
    keys = [key.removeprefix("train/") for key in labelled.keys]
    if len(set(keys)) < len(keys):
        keys = list(labelled.keys)
    if val_share >= 1:
        return keys, ["val"] * len(keys), ("no val split: every image is evaluated",)
    single = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 1)
    if len(single) == len(classes):
        raise SourceError(
            f"{listing.uri}: every class has one image, and the source has no val split; add images, or a val/ folder"
        )
    is_val = below_share(keys, labels, val_share)
    usable = np.array([row not in listing.unreadable for row in labelled.rows], dtype=bool)
    held_out, readable = int(is_val[usable].sum()), int(usable.sum())
    note = (
        f"no val split: {held_out:,} of {readable:,} images are held out as val, {val_share:.3g} of each class by "
        "a hash of their keys (--val-share)"
    )
    notes = [note]
    if len(single):
        names = some_names(classes, single.tolist())
        notes.append(f"one image, which stays in train, in {len(single):,} of the classes: {names}")
    return keys, np.where(is_val, "val", "train").tolist(), tuple(notes)


def some_names(classes: Sequence[str], which: Sequence[int]) -> str:
    """Returns the names of the first few of some classes."""
    return ", ".join(classes[label] for label in which[:_SHOWN]) + (", ..." if len(which) > _SHOWN else "")


def _check_splits(listing: Listing, tables: dict[str, Any], label: dict[str, int], needs_train: bool) -> None:
    uri = listing.uri
    for needed in ("train", "val") if needs_train else ("val",):
        if needed not in tables:
            packed = next((f"; {name} lies there packed: unpack it" for name in listing.names if is_archive(name)), "")
            raise SourceError(
                f"{uri}: no {needed} split among {sorted(tables)}; add a {needed}/ folder, or give the folder that "
                f"holds the class folders{packed}"
            )
    if not needs_train:
        return
    trained = set(np.unique(tables["train"]["label"].to_numpy()).tolist())
    for class_name, index in label.items():
        if index not in trained:
            alike = [name for name in label if name != class_name and name.casefold() == class_name.casefold()]
            remedy = f"; is it {alike[0]!r}? Rename one of them" if alike else "; add some or remove it"
            raise SourceError(f"{uri}: class {class_name!r} has no training image{remedy}")


def _ignored(listing: Listing, labelled: LabelledFiles) -> dict[str, int]:
    """Returns the files that are neither labelled nor refused, and hold no labels: how many of each kind."""
    used = {*labelled.rows, *labelled.label_files, *(each.row for each in labelled.refusals)}
    rest = [row for row in range(len(listing)) if row not in used]
    images = set(listing.image_rows) if rest else set()
    kinds = Counter(kind_of(listing.names[row]) for row in rest if row not in images)
    without_label = sum(row in images for row in rest) - sum(labelled.aside.values())
    others = {"images without a label": without_label} if without_label > 0 else {}
    return {**labelled.aside, **others, **dict(kinds.most_common()), **listing.ignored}


def _unusable(
    listing: Listing, labelled: LabelledFiles, keys: Sequence[str], splits: Sequence[str], labels: Any
) -> tuple[Unusable, ...]:
    return tuple(
        Unusable(splits[position], keys[position], int(labels[position]), listing.unreadable[row], listing.objects[row])
        for position, row in enumerate(labelled.rows)
        if row in listing.unreadable
    )


def _refused(
    listing: Listing, labelled: LabelledFiles, label: Mapping[str, int], val_share: float
) -> tuple[Unusable, ...]:
    """Returns the refusals, with the splits that `_final_splits` gives to the images; a label of -1 is unknown."""
    found = set(labelled.splits)
    final = {"": "train", "test": "test" if "val" in found else "val"}
    if _lacks_val(labelled.splits):
        final = dict.fromkeys(("", "train", "test", "val"), "val" if val_share >= 1 else "train")
    return tuple(
        Unusable(
            final.get(each.split, each.split),
            each.key,
            label.get(each.class_name or "", -1),
            each.reason,
            listing.uri if each.row is None else listing.objects[each.row],
        )
        for each in labelled.refusals
    )
