"""Mutated images of all kinds: each is stored or refused, and every decoder of the loader reads what is stored."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset.image_codec import decode
from pipeline.ingestion.image_check import ImageHandling, Refused, Stored, check_image
from pipeline.loader.decode import CropGeometry, DecoderName, best_decoder, decode_batch
from tests.support.pictures.images import picture
from tests.support.pictures.mutations import HEIGHT, KINDS, WIDTH, Change, samples

# The kinds of reasons in docs/guides/ingest.md, but "unexpected error": that would be an error of ours.
REASONS = {
    "empty", "too large", "too long", "too many pixels", "no pixels", "no image", "truncated", "damaged", "unsupported",
}  # fmt: skip
SHARES = st.floats(0, 1) | st.floats(0, 0.1)  # headers matter most
CHANGES = st.lists(st.builds(Change, st.sampled_from(KINDS), SHARES, SHARES, st.integers(0, 65_535)), max_size=6)
HANDLING = st.sampled_from([ImageHandling(), ImageHandling("header"), ImageHandling(shorter_side_px=16)])


def decoders() -> list[DecoderName]:
    return ["kernel", "libjpeg", "simplejpeg"] if best_decoder() == "kernel" else ["simplejpeg"]


def assert_every_decoder_reads(image: Stored) -> None:
    height, width = image.height, image.width
    assert decode(image.data).shape == (height, width, 3)
    sizes, top, left = np.array([[height, width]], np.int32), height // 4, width // 3
    box = np.array([[top, left, height - top, width - left]], np.int32)
    for views in (
        CropGeometry.centre_crops(16, 18, sizes),
        CropGeometry.resized_crops(16, sizes, box, np.ones(1, np.int32)),
    ):
        for decoder in decoders():
            decode_batch([image.data], views, str, decoder)  # raises unless it has height x width pixels


@pytest.mark.parametrize("kind", samples())
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_whole_images_of_all_kinds_are_stored(kind: str, name: str) -> None:
    for handling in (ImageHandling(), ImageHandling("header")):
        found = check_image(samples()[kind], name, handling)
        assert isinstance(found, Stored), found.reason
        assert (found.height, found.width) in [(HEIGHT, WIDTH), (HEIGHT, 32)]  # 32: the arithmetic-coded one
        assert_every_decoder_reads(found)
        again = check_image(found.data, name, handling)
        assert isinstance(again, Stored)
        assert (again.data, again.repair) == (found.data, "")


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(samples())), st.sampled_from(sorted(samples())), CHANGES, HANDLING, st.booleans())
def test_a_mutated_image_is_stored_or_refused(
    kind: str, other: str, changes: list[Change], handling: ImageHandling, png: bool
) -> None:
    data = samples()[kind]
    for change in changes:
        data = change.apply(data, samples()[other])
    found = check_image(data, "a.png" if png else "a.jpg", handling)
    if isinstance(found, Refused):
        assert found.reason.split(":")[0] in REASONS, found.reason
        assert len(found.reason) < 400
        assert "\n" not in found.reason
    elif handling.checks == "decode" or "converted" in found.repair:  # the header of other JPEGs is trusted
        assert_every_decoder_reads(found)


@pytest.mark.parametrize("progressive", [False, True])
def test_what_the_frame_header_allows_every_decoder_reads(progressive: bool) -> None:
    """All markers of a frame, with the sampling factors of luma that libjpeg writes, and 8 and 12 bits."""
    out, kinds = io.BytesIO(), set[str]()
    picture(3, 16, 24).save(out, "JPEG", progressive=progressive, quality=90)
    data = out.getvalue()
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    for marker, bits in [*((marker, 8) for marker in range(0xC0, 0xD0)), (0xC0, 12), (0xC1, 12)]:
        for vertical, horizontal in itertools.product((1, 2), (1, 2, 4)):
            changed = bytearray(data)
            changed[frame + 1], changed[frame + 4] = marker, bits
            changed[frame + 11] = 16 * horizontal + vertical
            found = check_image(bytes(changed), "a.jpg", ImageHandling())
            kinds.add("refused" if isinstance(found, Refused) else found.repair)
            if isinstance(found, Stored):
                assert_every_decoder_reads(found)
    assert {"", "refused"} <= kinds
