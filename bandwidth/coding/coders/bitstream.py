"""Unsigned integers of 1 to 32 bits, packed without gaps.

Bit 0 of a stream is the highest bit of its first byte. Value i of width k takes
bits ik … ik+k−1, highest first; the last byte is padded with zero bits. Eight
values fill exactly k bytes, which is what makes the code below vectorize.
"""

import numpy as np

MAX_WIDTH = 32


def width_of(largest: int) -> int:
  """Returns the bits that the integers 0 … `largest` need; at least one.

  >>> [width_of(n) for n in (0, 1, 2, 255, 256)]
  [1, 1, 2, 8, 9]
  """
  return max(1, int(largest).bit_length())


def packed_bytes(count: int, width: int) -> int:
  """Returns ⌈count·width / 8⌉.

  >>> packed_bytes(5, 3)
  2
  """
  return (count * width + 7) // 8


def pack(values: np.ndarray, width: int) -> bytes:
  """Packs unsigned integers, `width` bits each.

  Args:
    values: [n] integers, each in 0 … 2^width − 1.
    width: bits of a value, 1 to 32.

  Returns:
    ⌈n·width / 8⌉ bytes.

  Raises:
    ValueError: a width out of range, or a value that does not fit it.

  >>> pack(np.array([1, 2, 3]), 4).hex()
  '1230'
  """
  _check_width(width)
  values = np.asarray(values)
  if values.ndim != 1 or values.dtype.kind not in 'iu':
    raise ValueError(
      f'values has shape {values.shape} and dtype {values.dtype}; '
      'a vector of integers is wanted'
    )
  count = values.size
  if not count:
    return b''
  if int(values.min()) < 0 or int(values.max()) >> width:
    raise ValueError(f'values must lie in 0 … 2^{width} - 1')
  if width == 8:
    return values.astype(np.uint8).tobytes()
  groups = -(-count // 8)
  padded = np.zeros(groups * 8, np.uint32)
  padded[:count] = values
  columns = np.ascontiguousarray(padded.reshape(groups, 8).T)
  out = np.zeros((groups, width), np.uint8)
  for byte in range(width):
    for i in range(byte * 8 // width, (byte * 8 + 7) // width + 1):
      shift = (i + 1) * width - (byte + 1) * 8
      column = columns[i] >> shift if shift > 0 else columns[i] << -shift
      out[:, byte] |= column.astype(np.uint8)
  return out.tobytes()[: packed_bytes(count, width)]


def unpack(data: bytes | memoryview, count: int, width: int) -> np.ndarray:
  """Inverts `pack`.

  Args:
    data: exactly ⌈count·width / 8⌉ bytes.
    count: number of values in the stream.
    width: bits of a value, 1 to 32.

  Returns:
    [count] integers: uint8 up to 8 bits, uint16 up to 16, else uint32.

  Raises:
    ValueError: a wrong length, or padding bits that are not zero.

  >>> unpack(bytes.fromhex('1230'), 3, 4)
  array([1, 2, 3], dtype=uint8)
  """
  _check_width(width)
  if len(data) != packed_bytes(count, width):
    raise ValueError(
      f'{len(data)} bytes hold no {count} values of {width} bits'
    )
  dtype = np.uint8 if width <= 8 else np.uint16 if width <= 16 else np.uint32
  raw = np.frombuffer(data, np.uint8)
  padding = len(data) * 8 - count * width
  if padding and raw[-1] & ((1 << padding) - 1):
    raise ValueError('padding bits are not zero')
  if width == 8:
    return raw.copy()
  groups = -(-count // 8)
  padded = np.zeros(groups * width, np.uint8)
  padded[: raw.size] = raw
  columns = np.ascontiguousarray(padded.reshape(groups, width).T)
  out = np.zeros((groups, 8), dtype)
  for i in range(8):
    for byte in range(i * width // 8, ((i + 1) * width - 1) // 8 + 1):
      shift = (i + 1) * width - (byte + 1) * 8
      column = columns[byte].astype(np.uint32)
      column = column << shift if shift > 0 else column >> -shift
      out[:, i] |= (column & ((1 << width) - 1)).astype(dtype)
  return out.reshape(-1)[:count].copy()


def _check_width(width: int) -> None:
  if not 1 <= width <= MAX_WIDTH:
    raise ValueError(f'width={width} is not in 1 … {MAX_WIDTH}')
