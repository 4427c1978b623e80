"""A range coder for bits, each with its own probability.

The coder is constriction's `RangeEncoder`: 64 bits of state, 32-bit words,
probabilities of 24 bits. P(bit = 1) is p / 2^16 with an integer p in 1 …
2^16 − 1, so that everything is exact. To decode, start with low = 0,
range = 2^64 − 1 and point = the first eight bytes, highest first; then for each
bit, all modulo 2^64,

  split = ⌊(2^16 − p)·(2^24 − 2) / 2^16⌋ + 1          scale = range >> 24
  bit = ⌊(point − low) / scale⌋ ≥ split
  bit = 0: range = scale·split
  bit = 1: low = low + scale·split, range = scale·(2^24 − split)
  range < 2^32: low, range and point move up 32 bits, point takes a word.

Past its end a stream reads as zeros: the encoder ends it at the shortest string
of bytes that decodes to the same bits, less than 1.1 bytes above −Σ log2 P.
"""

from typing import Protocol

import numpy as np
from constriction import stream  # pyrefly: ignore[missing-module-attribute]

PROBABILITY_BITS = 16
_ONE = 1 << PROBABILITY_BITS


class Coder(Protocol):
  """An `Encoder` or a `Decoder`, so that a model is written once for both."""

  def code(
    self, probabilities: np.ndarray, bits: np.ndarray | None
  ) -> np.ndarray:
    """Codes bits and returns them."""
    ...


class Encoder:
  """Collects bits and their probabilities, then codes them at once.

  >>> encoder = Encoder()
  >>> _ = encoder.code(np.full(1000, 66), np.arange(1000) == 500)
  >>> len(encoder.getvalue())
  2
  """

  def __init__(self) -> None:
    self._bits: list[np.ndarray] = []
    self._probabilities: list[np.ndarray] = []

  def __len__(self) -> int:
    """Number of bits appended so far."""
    return sum(bits.size for bits in self._bits)

  def code(
    self, probabilities: np.ndarray, bits: np.ndarray | None
  ) -> np.ndarray:
    """Appends bits.

    Args:
      probabilities: [n] integers in 1 … 2^16 − 1: P(bit = 1)·2^16.
      bits: [n], zeros and ones.

    Returns:
      The bits, [n] int32.
    """
    if bits is None:
      raise ValueError('an encoder wants bits')
    bits = np.asarray(bits, np.int32)
    self._bits.append(bits)
    self._probabilities.append(np.asarray(probabilities))
    return bits

  def getvalue(self) -> bytes:
    """Returns the stream of all bits so far."""
    if not self._bits:
      return b''
    bits = np.concatenate(self._bits)
    probabilities = np.concatenate(self._probabilities) / _ONE
    coder = stream.queue.RangeEncoder()
    coder.encode(bits, _bernoulli(), probabilities)
    words = coder.get_compressed()
    emitted, (low, span) = coder.pos()
    return _shortest(words, emitted, low, span)


def _shortest(words: np.ndarray, emitted: int, low: int, span: int) -> bytes:
  """The shortest stream in the interval where constriction's lies.

  The interval is [low, low + span), after `emitted` words. A carry may still
  change those words, so that they are known only together with a point in it.
  """
  size = 4 * emitted + 8
  whole = words.astype('>u4').tobytes().ljust(size, b'\0')
  point = int.from_bytes(whole, 'big')
  offset = (point - low) % (1 << 64)
  if len(whole) > size or offset >= span:
    return whole.rstrip(b'\0')
  begin = point - offset
  for kept in range(4 * emitted, size):
    unit = 1 << 8 * (size - kept)
    value = -(-begin // unit) * unit
    if value < begin + span:
      return value.to_bytes(size, 'big').rstrip(b'\0')
  return whole.rstrip(b'\0')


class Decoder:
  """Inverts `Encoder`, batch by batch."""

  def __init__(
    self, data: bytes | memoryview, *, most_bits: int | None = None
  ) -> None:
    """Wraps a stream; `most_bits`: how many bits may be read, None for any."""
    self._left = most_bits
    padded = bytes(data) + bytes(-len(data) % 4 + 8)
    words = np.frombuffer(padded, '>u4').astype(np.uint32)
    self._coder = stream.queue.RangeDecoder(words)

  def code(
    self, probabilities: np.ndarray, bits: np.ndarray | None
  ) -> np.ndarray:
    """Reads bits.

    Args:
      probabilities: [n], the same as given to the encoder for these bits.
      bits: not used; for a common signature with `Encoder`.

    Returns:
      [n] int32, zeros and ones.

    Raises:
      ValueError: a stream that no encoder makes, or too many bits.
    """
    del bits
    if self._left is not None:
      self._left -= probabilities.size
      if self._left < 0:
        raise ValueError('range coder: more bits than so few bytes may hold')
    if not probabilities.size:
      return np.zeros(0, np.int32)
    try:
      return self._coder.decode(_bernoulli(), probabilities / _ONE)
    except AssertionError:
      raise ValueError('range coder: a point outside its range') from None


def _bernoulli() -> stream.model.Bernoulli:
  return stream.model.Bernoulli(perfect=False)
