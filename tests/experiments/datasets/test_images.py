import numpy as np
import pytest
from PIL import Image
from toy_sets import png

from experiments.datasets.images import decode_image, fit_split, fitted
from experiments.datasets.splits import Split

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)
GRAY = COLOR[..., :1]


@pytest.mark.parametrize('array', [COLOR, GRAY])
def test_png_is_exact(array):
  decoded = decode_image(png(array), shape=array.shape, fit=False)
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, array)


def test_gray_in_a_color_set_is_repeated():
  decoded = decode_image(png(GRAY), shape=(6, 9, 3), fit=False)
  np.testing.assert_array_equal(decoded, np.repeat(GRAY, 3, axis=-1))


def test_palette_is_resolved():
  few = (COLOR // 128) * 255
  decoded = decode_image(png(few, mode='P'), shape=few.shape, fit=False)
  np.testing.assert_array_equal(decoded, few)


def test_jpeg_of_a_flat_image():
  flat = np.full((16, 16, 3), 77, np.uint8)
  decoded = decode_image(png(flat, format='JPEG'), shape=flat.shape, fit=False)
  assert np.abs(decoded.astype(int) - 77).max() <= 2


def test_other_size_is_an_error_unless_fitted():
  with pytest.raises(ValueError, match=r'6x9 in a set of 6x6.*image_size'):
    decode_image(png(COLOR), shape=(6, 6, 3), fit=False)
  decoded = decode_image(png(COLOR), shape=(6, 6, 3), fit=True)
  np.testing.assert_array_equal(decoded, COLOR[:, 1:7])


@pytest.mark.parametrize('encoded', [b'', b'not an image', png(COLOR)[:100]])
def test_unreadable(encoded):
  with pytest.raises(ValueError, match='no readable image'):
    decode_image(encoded, shape=(6, 9, 3), fit=False)


@pytest.mark.parametrize('size', [(40, 20), (20, 40), (31, 17), (8, 8), (3, 9)])
def test_fitted_is_resize_then_center_crop(size):
  array = RNG.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
  image = Image.fromarray(array)
  scale = 8 / min(size)
  width, height = round(size[0] * scale), round(size[1] * scale)
  resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
  top, left = (height - 8) // 2, (width - 8) // 2
  expected = resized[top : top + 8, left : left + 8]
  np.testing.assert_array_equal(np.asarray(fitted(image, 8)), expected)


@pytest.mark.parametrize('channels', [1, 3])
def test_fit_split(channels):
  image = RNG.integers(0, 256, (4, 5, 5, channels)).astype(np.uint8)
  split = Split(image=image, label=np.arange(4, dtype=np.int32))
  larger = fit_split(split, 10)
  assert larger.image.shape == (4, 10, 10, channels)
  expected = decode_image(png(image[2]), shape=(10, 10, channels), fit=True)
  np.testing.assert_array_equal(larger.image[2], expected)
  assert fit_split(split, 5) is split
