import hashlib

import numpy as np
import pytest
from PIL import Image

from kdc_edge.errors import GateError, UsageError
from kdc_edge.images import check_picture, contact_sheet, luma_std, pixel_hash, to_image


def test_the_range_of_a_decoder_becomes_bytes():
    sample = np.array([-2, -1, 0, 1, 2, 0.999], np.float32).reshape(1, 1, 6).repeat(3, 0)
    assert np.asarray(to_image(sample))[0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]


def test_what_is_not_finite_is_no_picture():
    for value in (np.nan, np.inf):
        with pytest.raises(GateError, match="NaN or infinity"):
            to_image(np.full((3, 2, 2), value, np.float32))


def test_flat_pictures_fail_and_others_pass():
    check_picture(Image.fromarray(np.random.RandomState(0).randint(0, 255, (8, 8, 3), np.uint8)))
    for colour in ("black", "white", "red"):
        with pytest.raises(GateError, match="the picture is flat"):
            check_picture(Image.new("RGB", (8, 8), colour))
    half = Image.new("RGB", (2, 1))
    half.putpixel((1, 0), (255, 255, 255))
    assert luma_std(half) == pytest.approx(0.5)


def test_the_hash_is_of_the_pixels():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    assert pixel_hash(image) == hashlib.sha256(bytes([1, 2, 3] * 2)).hexdigest()


@pytest.mark.parametrize(("count", "columns", "grid"), [(1, None, (1, 1)), (5, None, (3, 2)), (4, 4, (4, 1))])
def test_contact_sheets_hold_every_picture(count, columns, grid):
    images = [Image.new("RGB", (64, 64), (10 * i, 0, 0)) for i in range(count)]
    sheet = contact_sheet(images, ["a caption that is far too long for its cell " * 9] * count, columns)
    assert sheet.size == (grid[0] * (128 + 8) + 8, grid[1] * (128 + 16 + 8) + 8)
    assert {colour for _, colour in sheet.getcolors(1 << 16)} >= {(10 * i, 0, 0) for i in range(count)}


def test_contact_sheets_take_any_caption():
    contact_sheet([Image.new("RGB", (200, 100))], ["👍🏽 красное\n赤い"])
    contact_sheet([Image.new("RGB", (200, 100))], [""])


def test_contact_sheets_want_a_caption_per_picture():
    for images, captions in (([], []), ([Image.new("RGB", (1, 1))], [])):
        with pytest.raises(UsageError, match="as many captions as pictures"):
            contact_sheet(images, captions)
