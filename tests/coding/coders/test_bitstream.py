import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth.coding.coders import bitstream


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 32), st.data())
def test_bits_are_those_of_a_string(width, data):
  values = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
  text = ''.join(f'{v:0{width}b}' for v in values)
  text += '0' * (-len(text) % 8)
  expected = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
  packed = bitstream.pack(np.array(values, np.uint32), width)
  assert packed == expected
  unpacked = bitstream.unpack(packed, len(values), width)
  np.testing.assert_array_equal(unpacked, values)


@pytest.mark.parametrize('width', [0, 33, -1])
def test_bad_width(width):
  with pytest.raises(ValueError, match=f'width={width}'):
    bitstream.pack(np.array([0]), width)


@pytest.mark.parametrize(
  ('values', 'match'),
  [
    (np.array([16]), 'must lie in'),
    (np.array([-1]), 'must lie in'),
    (np.array([0.5]), 'float64'),
    (np.zeros((2, 2), int), 'shape'),
  ],
)
def test_bad_values(values, match):
  with pytest.raises(ValueError, match=match):
    bitstream.pack(values, 4)


def test_bad_streams():
  with pytest.raises(ValueError, match='3 values of 4 bits'):
    bitstream.unpack(b'\x12', 3, 4)
  with pytest.raises(ValueError, match='padding'):
    bitstream.unpack(b'\x12\x31', 3, 4)


def test_dtypes_are_the_narrowest():
  kinds = [bitstream.unpack(bytes(w), 8, w).dtype for w in (8, 9, 16, 17)]
  assert kinds == [np.uint8, np.uint16, np.uint16, np.uint32]
