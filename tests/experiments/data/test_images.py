import numpy as np
import pytest
from PIL import Image

from experiments.data import images
from tests.experiments.data.fabricated_cifar import png

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def test_grey_is_that_of_pillow():
    corners = np.array(np.meshgrid(*[[0, 1, 127, 254, 255]] * 3), np.uint8)
    for pixels in (PIXELS, corners.reshape(3, 25, 5).transpose(1, 2, 0)):
        image = Image.fromarray(np.ascontiguousarray(pixels))
        assert np.array_equal(images.grey(pixels), np.asarray(image.convert("L")))
    assert images.grey(np.array([0, 255, 3], np.uint8)) == 150  # .587 * 255 + .114 * 3


def test_decoding():
    assert np.array_equal(images.decode(png(PIXELS), "RGB", 32), PIXELS)
    assert np.array_equal(images.decode(png(PIXELS), "L", 32), images.grey(PIXELS))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no image"),
        (b"<html>", "no image"),
        (png(PIXELS)[:-900], "a damaged one"),
        (png(PIXELS)[:40], "a damaged one"),
        (png(PIXELS[:, :30]), "it has 32 x 30 pixels, not 32 x 32"),
    ],
)
def test_what_is_no_image(content, reason):
    with pytest.raises(ValueError, match=reason):
        images.decode(content, "L", 32)


def test_a_flipped_bit_is_noticed():
    content = bytearray(png(PIXELS))
    content[len(content) // 2] ^= 1
    with pytest.raises(ValueError, match="a damaged one"):
        images.decode(bytes(content), "L", 32)
