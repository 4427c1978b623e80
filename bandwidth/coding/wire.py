"""A byte writer and a bounds-checked byte reader that count by component.

Every byte written or read is counted under the name of one component, so that
the ledger of a file is exact by construction, on both sides.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

COMPONENTS = (
  'codes',
  'indices',
  'fillers',
  'codebooks',
  'raw',
  'tables',
  'headers',
  'checksums',
)
"""The components of a file. `codes`: weights, or adaptively coded weights with
their positions; `indices`: positions of non-zeros; `fillers`: gaps and codes of
entries that only bridge a long gap; `codebooks`: centroids and steps; `raw`:
values kept bit for bit (biases, statistics); `tables`: code lengths and
frequencies; `headers`: names, shapes, lengths, methods; `checksums`."""


def varint(value: int) -> bytes:
  """Returns the LEB128 encoding: 7 bits a byte, low first, high bit = more.

  >>> varint(300).hex()
  'ac02'
  """
  if value < 0:
    raise ValueError(f'value={value} is negative')
  out = bytearray()
  while value > 0x7F:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  out.append(value)
  return bytes(out)


class Tally:
  """Counts of bytes by component, and the names of the coders used.

  Attributes:
    counts: number of bytes so far, by component.
    methods: names of the coders in order of use, except those of codebooks.
  """

  def __init__(self) -> None:
    self.counts: Counter[str] = Counter()
    self.methods: dict[str, None] = {}

  def move(self, source: str, target: str, amount: int) -> None:
    """Moves counted bytes from the component `source` to `target`."""
    self.counts[source] -= amount
    self.counts[target] += amount

  def note(self, method: str, component: str = 'codes') -> None:
    """Records the name of a coder, unless it is one of codebooks."""
    if component != 'codebooks':
      self.methods.setdefault(method)


class Sink(Tally):
  """Collects bytes and counts them by component."""

  def __init__(self) -> None:
    super().__init__()
    self._parts: list[bytes] = []

  def put(self, component: str, data: bytes) -> None:
    """Appends bytes under a component's name."""
    self._parts.append(data)
    self.counts[component] += len(data)

  def varint(self, component: str, value: int) -> None:
    """Appends an unsigned integer, see `varint`."""
    self.put(component, varint(value))

  def append(self, other: 'Sink') -> None:
    """Appends the bytes and counts of another sink."""
    self._parts.extend(other._parts)
    self.counts.update(other.counts)
    self.methods.update(other.methods)

  def __len__(self) -> int:
    return self.counts.total()

  def getvalue(self) -> bytes:
    """Returns all bytes."""
    return b''.join(self._parts)


class Window:
  """Bytes of a file that are read on demand and not kept in memory."""

  def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
    """Covers `length` bytes from `offset` on."""
    self._file, self._offset, self._length = file, offset, length

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, place: slice) -> memoryview:
    begin, end, _ = place.indices(self._length)
    self._file.seek(self._offset + begin)
    data = self._file.read(end - begin)
    if len(data) != end - begin:
      raise ValueError(f'file, byte {self._offset + begin}: ends too early')
    return memoryview(data)


class Source(Tally):
  """Reads what a `Sink` wrote, never past the end."""

  def __init__(
    self, data: bytes | memoryview | Window, *, section: str, offset: int = 0
  ) -> None:
    """Wraps bytes.

    Args:
      data: the bytes of one section, or of one tensor in it.
      section: name of the section or tensor, for error messages.
      offset: offset of the bytes in the file, for error messages.
    """
    super().__init__()
    self._data = data if isinstance(data, Window) else memoryview(data)
    self._section = section
    self._offset = offset
    self._position = 0

  @property
  def remaining(self) -> int:
    """Number of bytes not read yet."""
    return len(self._data) - self._position

  def error(self, message: str) -> ValueError:
    """Returns an error that names the section and the offset in the file."""
    at = self._offset + self._position
    return ValueError(f'{self._section}, byte {at}: {message}')

  @contextlib.contextmanager
  def guard(self, what: str) -> Iterator[None]:
    """Adds section and offset to a `ValueError` raised inside."""
    try:
      yield
    except ValueError as error:
      raise self.error(f'{what}: {error}') from None

  def take(self, component: str, length: int) -> memoryview:
    """Reads `length` bytes. Raises ValueError if fewer are left."""
    if length > self.remaining:
      raise self.error(f'{length} bytes wanted, {self.remaining} left')
    begin = self._position
    self._position += length
    self.counts[component] += length
    return self._data[begin : self._position]

  def byte(self, component: str) -> int:
    """Reads one byte."""
    return self.take(component, 1)[0]

  def varint(self, component: str, *, limit: int) -> int:
    """Reads an unsigned integer. Raises ValueError if it exceeds `limit`."""
    value, shift = 0, 0
    while True:
      byte = self.byte(component)
      value |= (byte & 0x7F) << shift
      if value > limit:
        raise self.error(f'value {value} exceeds its limit {limit}')
      if byte < 0x80:
        break
      shift += 7
      if shift > 63:
        raise self.error('integer of more than 64 bits')
    if shift and not byte:
      raise self.error('integer with a needless last byte')
    return value

  def finish(self) -> None:
    """Raises ValueError unless every byte was read."""
    if self.remaining:
      raise self.error(f'{self.remaining} bytes follow the last value')
