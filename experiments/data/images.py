"""Encoded images to pixels."""

import io

import numpy as np
from PIL import Image


def decode(content: bytes, mode: str, side: int) -> np.ndarray:
    """Return the pixels of a square image (side, side[, 3]) uint8; "L" is grey.

    Raises ValueError if it is no image, is cut short, or has another size.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert(mode))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no image, or a damaged one ({error})") from error
    if pixels.shape[:2] != (side, side):
        height, width = pixels.shape[:2]
        raise ValueError(f"it has {height} x {width} pixels, not {side} x {side}")
    return pixels


def grey(pixels: np.ndarray) -> np.ndarray:
    """Return the luminance (...) uint8 of RGB (..., 3) uint8, in whole numbers.

    (19595 R + 38470 G + 7471 B + 32768) // 65536: the weights 0.299, 0.587 and 0.114 of
    ITU-R BT.601, as Pillow's mode "L" has them.
    """
    weighted = pixels[..., 0] * np.uint32(19_595)
    weighted += pixels[..., 1] * np.uint32(38_470)
    weighted += pixels[..., 2] * np.uint32(7_471)
    return ((weighted + np.uint32(32_768)) >> 16).astype(np.uint8)
