"""The handwritten digits of scikit-learn: 1,797 real images (UCI, 1998) that need no network.

8x8 grey values of 0 to 16, enlarged to 32x32x3. They take the place of CIFAR-10 on machines that can't download it, and
their name says that they aren't CIFAR-10.
"""

import numpy as np

from pipeline.ingestion.sources.cifar import record_table
from pipeline.ingestion.sources.index import Index, hold_out
from pipeline.ingestion.sources.members import Member
from pipeline.storage import files

NAME = "digits-not-cifar10"
HELD_OUT_FRACTION = 0.2


def build_index(spool: str) -> Index:
    """Returns the index, and writes the images to `spool` as binary records like CIFAR's."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    records = []
    for image, label in zip(digits.images, digits.target, strict=True):
        grey = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
        plane = np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR)).tobytes()
        records.append(bytes([label]) + 3 * plane)
    uri = files.join(spool, "digits.bin")
    files.write_bytes(uri, b"".join(records))
    table = record_table({"digits": Member("digits", uri, 0, sum(map(len, records)))})
    train, val = hold_out(table, HELD_OUT_FRACTION)
    splits = {"train": train, "val": val}
    return Index(NAME, "digits", tuple(map(str, range(10))), "cifar", splits, fingerprint=NAME)
