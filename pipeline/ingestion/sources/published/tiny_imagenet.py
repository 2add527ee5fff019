"""Tiny ImageNet as it is handed out: `train/WNID/images/NAME.JPEG`, and `val/images` with `val_annotations.txt`.

Keys are `SPLIT/WNID/NAME.JPEG`, those of class folders of the same images. The test images have no labels.
"""

import re

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, Refusal, labelled_index
from pipeline.ingestion.sources.members import Listing

_ANNOTATIONS = "val/val_annotations.txt"
_PLACE = re.compile(r"(train|val|test)/(?:([^/]+)/)?(?:images/)?([^/]+)$")


def matches(listing: Listing) -> bool:
    """Whether the source holds `val/val_annotations.txt`, at any depth."""
    return any(name == _ANNOTATIONS or name.endswith("/" + _ANNOTATIONS) for name in listing.names)


def build_index(listing: Listing, name: str) -> Index:
    """Returns the index. A validation image takes its WNID from the second word of its line.

    Validation images without a line, and lines without an image, are refused by name. Raises SourceError if a training
    image isn't in the folder of a WNID.
    """
    at = next(row for row, each in enumerate(listing.names) if f"/{each}".endswith("/" + _ANNOTATIONS))
    root = listing.names[at].removesuffix(_ANNOTATIONS)
    wnid_of = _annotations(listing, at)
    rows, keys, splits, wnids, refusals, aside = [], [], [], [], [], 0
    for row in listing.image_rows:
        each = listing.names[row]
        place = _PLACE.fullmatch(each.removeprefix(root)) if each.startswith(root) else None
        split, folder, base = place.groups() if place else ("", None, "")
        folder = None if folder == "images" else folder
        wnid = wnid_of.pop(base, None) or folder if split == "val" else folder
        if split == "test":
            aside += 1
        elif wnid is not None:
            rows.append(row)
            keys.append(f"{split}/{wnid}/{base}")
            splits.append(split)
            wnids.append(wnid)
        elif split == "val":
            refusals.append(Refusal(f"val/{base}", "val", f"no label: {_ANNOTATIONS} has no line for it", None, row))
        else:
            raise SourceError(
                f"{listing.uri}: {each!r} is in no folder of a WNID; expected train/WNID/images/NAME.JPEG"
            )
    for base, wnid in wnid_of.items():
        refusals.append(Refusal(f"val/{wnid}/{base}", "val", f"missing: {_ANNOTATIONS} names it", wnid))
    labelled = LabelledFiles(
        rows,
        keys,
        splits,
        wnids,
        aside={"images of test without labels": aside} if aside else {},
        refusals=refusals,
        label_files=(at,),
    )
    return labelled_index(listing, name, "tiny-imagenet", labelled)


def _annotations(listing: Listing, row: int) -> dict[str, str]:
    """Returns {name of a validation image: its WNID}. Raises SourceError if a line has no WNID."""
    found = {}
    for line in listing.member(row).read().decode("utf-8", "replace").splitlines():
        if words := line.split():
            if len(words) < 2:
                raise SourceError(
                    f"{listing.uri}: {listing.names[row]}: the line {line!r} has no WNID; download it again"
                )
            found[words[0]] = words[1]
    return found
