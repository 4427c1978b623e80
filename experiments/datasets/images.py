"""Decoding images and bringing them to one size, with Pillow."""

import io

import numpy as np
from PIL import Image

from experiments.datasets.splits import ImageShape, Split

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
"""Pillow's mode for each number of channels."""


def decode_image(encoded: bytes, *, shape: ImageShape, fit: bool) -> np.ndarray:
  """Decodes a PNG, JPEG or other image file that Pillow knows.

  Args:
    encoded: content of a PNG or JPEG file.
    shape: height, width and channels wanted.
    fit: whether an image of another size is fitted to `shape`, see `fitted`.

  Returns:
    uint8 [H, W, C].

  Raises:
    ValueError: the content is no image, or one of another size and `fit` is
      false.
  """
  height, width, channels = shape
  try:
    image = Image.open(io.BytesIO(encoded))
    image.load()
    if image.mode != MODES[channels]:
      image = image.convert(MODES[channels])
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(f'no readable image: {error}') from None
  if fit:
    image = fitted(image, height)
  elif image.size != (width, height):
    raise ValueError(
      f'an image of {image.height}x{image.width} in a set of {height}x{width}: '
      'give dataset.image_size to bring all to one size'
    )
  return np.asarray(image).reshape(shape)


def fitted(image: Image.Image, size: int) -> Image.Image:
  """Resizes the shorter side to `size`, bicubic, and crops the center square.

  >>> fitted(Image.new('L', (60, 30)), 10).size
  (10, 10)
  """
  if image.size == (size, size):
    return image
  scale = size / min(image.size)
  # Rounding never makes a side shorter than the crop.
  width, height = (max(size, round(side * scale)) for side in image.size)
  image = image.resize((width, height), Image.Resampling.BICUBIC)
  left, top = (width - size) // 2, (height - size) // 2
  return image.crop((left, top, left + size, top + size))


def fit_split(split: Split, size: int) -> Split:
  """Fits every image of a split in memory to `size` x `size`."""
  channels = split.image_shape[2]
  if split.image_shape[:2] == (size, size):
    return split
  image = np.empty((len(split), size, size, channels), np.uint8)
  for row, source in zip(image, split.image, strict=True):
    picture = Image.fromarray(source[..., 0] if channels == 1 else source)
    row[:] = np.asarray(fitted(picture, size)).reshape(row.shape)
  return Split(image=image, label=split.label)
