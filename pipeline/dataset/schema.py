"""The columns of the Parquet files of a data set: shards, and the provenance beside each shard."""

import json

import pyarrow as pa

THUMBNAIL_PX = 16

# One row for each row of the shard, in the same order: its source, its place in the shard, and facts of its pixels.
PROVENANCE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bytes", pa.int32()),
        ("offset", pa.int64()),  # of the image's first byte in the shard
        ("crc32", pa.uint32()),  # of the stored image
        ("source_sha256", pa.binary(32)),
        ("repair", pa.dictionary(pa.int32(), pa.string())),  # "" if the image is stored as it came
        ("pixel_sha256", pa.binary(32)),  # this column and those below are null if the image wasn't decoded
        ("brightness", pa.float32()),  # mean of all values, 0 to 255
        ("perceptual_hash", pa.uint64()),
        ("thumbnail", pa.binary(THUMBNAIL_PX * THUMBNAIL_PX)),  # grey values
    ]
)


def shard_schema(classes: tuple[str, ...]) -> pa.Schema:
    """Returns the schema of a shard, with the metadata that tells Hugging Face `datasets` of images and classes."""
    features = {
        "key": {"dtype": "string", "_type": "Value"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "image": {"_type": "Image"},
        "height": {"dtype": "int32", "_type": "Value"},
        "width": {"dtype": "int32", "_type": "Value"},
    }
    return pa.schema(
        [
            ("key", pa.string()),
            ("label", pa.int32()),
            ("image", pa.binary()),
            ("height", pa.int32()),
            ("width", pa.int32()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
