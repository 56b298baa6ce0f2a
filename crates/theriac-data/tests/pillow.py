"""Writes bilinear.bin and bicubic.bin beside itself: what torchvision's Resize(16) and
CenterCrop(12) make of the pictures of the tests, computed with Pillow as they do.

Made with Pillow 13.0.0 and NumPy; bytes of shape (picture, channel, row, column).
"""

import pathlib

import numpy
from PIL import Image

here = pathlib.Path(__file__).parent


def wave(at, length):
    return abs(2 * (at % length) - length)


def picture(width, height, shift):
    y, x, c = numpy.meshgrid(range(height), range(width), range(3), indexing="ij")
    levels = 20 + wave(3 * x + 11 * c + 7 * shift, 64) + wave(5 * y + 3 * c, 96)
    return Image.fromarray(levels.astype(numpy.uint8))


def prepared(image, filter):
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(16 * long / short)
    image = image.resize((16, longer) if width <= height else (longer, 16), filter)
    width, height = image.size
    top, left = int(round((height - 12) / 2.0)), int(round((width - 12) / 2.0))
    return image.crop((left, top, left + 12, top + 12))


for name, filter in [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)]:
    sizes = [(40, 30), (17, 33), (12, 13)]
    planes = [
        numpy.asarray(prepared(picture(w, h, i), filter)).transpose(2, 0, 1)
        for i, (w, h) in enumerate(sizes)
    ]
    (here / f"{name}.bin").write_bytes(numpy.stack(planes).tobytes())
