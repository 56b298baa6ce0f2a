"""Writes resize.bin and rotate.bin beside itself: what Pillow makes of the image of the tests.

Made with Pillow 13.0.0 and NumPy; bytes of shape (case, channel, row, column).
"""

import pathlib

import numpy
from PIL import Image

i = numpy.arange(3 * 32 * 32, dtype=numpy.int64)
planes = ((i * 37 + i * i * 11) % 256).astype(numpy.uint8).reshape(3, 32, 32)
image = Image.fromarray(planes.transpose(1, 2, 0))
here = pathlib.Path(__file__).parent


def write(name, images):
    planes = [numpy.asarray(image).transpose(2, 0, 1) for image in images]
    (here / name).write_bytes(numpy.stack(planes).tobytes())


def resized(top, left, side):
    part = image.crop((left, top, left + side, top + side))
    return part.resize((32, 32), Image.BILINEAR)


write("resize.bin", [resized(*w) for w in [(0, 0, 22), (3, 5, 26), (8, 1, 24), (1, 2, 30)]])
angles = [-20.0, -7.3, 0.4, 11.9, 20.0, 90.0]
write("rotate.bin", [image.rotate(angle, Image.NEAREST, False, None) for angle in angles])
