"""Reads a file, tensor by tensor. `container` defines the layout."""

import contextlib
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from bandwidth.coding import directory as directory_lib
from bandwidth.coding import ledger as ledger_lib
from bandwidth.coding import records, symbols, tensors, wire

MAGIC = b'BWZ'
VERSION = 1
CHECKSUM = 4
# Sections of at least this many bytes are read piece by piece.
_WINDOWED = 1 << 18


def checksum(data: bytes | memoryview) -> bytes:
  """Returns the CRC-32 of zlib, little-endian."""
  return zlib.crc32(data).to_bytes(CHECKSUM, 'little')


def row(
  entry: directory_lib.Entry,
  tensor: tensors.Tensor,
  counted: wire.Tally,
) -> ledger_lib.TensorEntry:
  """Returns a tensor's entry in the ledger, from the bytes counted."""
  components = {name: counted.counts[name] for name in wire.COMPONENTS}
  return ledger_lib.TensorEntry(
    name=entry.name,
    kind=entry.kind,
    shape=entry.shape,
    dtype=entry.dtype,
    nonzero=tensor.count_nonzero(),
    methods=tuple(counted.methods),
    components=components,
  )


class _Place(NamedTuple):
  """Offset and length of a payload's section, and the payload's place in it."""

  offset: int
  length: int
  begin: int


def _wrong_checksum(place: _Place) -> ValueError:
  end = place.offset + place.length
  return ValueError(f'section at {place.offset}, byte {end}: wrong checksum')


class Reader:
  """An open file, whose tensors are read one by one on demand.

  Attributes:
    metadata: the JSON object of the file.
    names: names of the tensors, in the order of the file.
    file_bytes: size of the file.
  """

  def __init__(self, file: BinaryIO, *, max_bytes: int | None = None) -> None:
    """Reads and checks magic, directory and sizes; see `open_file`."""
    self._file = file
    self.file_bytes = file.seek(0, io.SEEK_END)
    limit = (
      directory_lib.default_limit(self.file_bytes)
      if max_bytes is None
      else max_bytes
    )
    self._header_bytes, directory = self._read_header()
    self.metadata, entries = directory_lib.parse(directory, limit)
    self._entries = {entry.name: entry for entry in entries}
    self.names = tuple(self._entries)
    self._places: dict[str, _Place] = {}
    self._checksum_bytes = CHECKSUM
    self._locate(entries)
    self._cached: tuple[int, bytes] | None = None

  def _read_header(self) -> tuple[int, wire.Source]:
    """Returns the bytes before the checksum, and the directory to parse."""
    start = self._fetch(0, min(self.file_bytes, 32))
    source = wire.Source(start, section='header')
    if source.remaining < 4 or bytes(source.take('headers', 3)) != MAGIC:
      raise ValueError('header, byte 0: not a .bwz file')
    version = source.byte('headers')
    if version != VERSION:
      raise ValueError(
        f'header, byte 3: version {version}; this reader knows {VERSION}'
      )
    head = source.varint('headers', limit=2 * directory_lib.MAX_DIRECTORY + 1)
    stored, length = head >> 1, head >> 1
    if head & 1:
      length = source.varint('headers', limit=directory_lib.MAX_DIRECTORY)
    begin = len(start) - source.remaining
    if begin + stored + CHECKSUM > self.file_bytes:
      raise source.error(
        f'a directory of {stored} bytes in a file of {self.file_bytes}'
      )
    header = self._fetch(0, begin + stored + CHECKSUM)
    if checksum(memoryview(header)[:-CHECKSUM]) != header[-CHECKSUM:]:
      raise ValueError(f'header, byte {begin + stored}: wrong checksum')
    data = header[begin:-CHECKSUM]
    if head & 1:
      data = symbols.inflate(
        source, data, length, dictionary=directory_lib.NAMES
      )
    directory = wire.Source(
      data,
      section='directory (inflated)' if head & 1 else 'directory',
      offset=0 if head & 1 else begin,
    )
    return begin + stored, directory

  def _locate(self, entries: list[directory_lib.Entry]) -> None:
    offset = self._header_bytes + CHECKSUM
    for section in directory_lib.sections(entries):
      held = entries[section]
      length = sum(entry.length for entry in held)
      begin = 0
      for entry in held:
        self._places[entry.name] = _Place(offset, length, begin)
        begin += entry.length
      offset += length + CHECKSUM
      self._checksum_bytes += CHECKSUM
    for entry in entries:
      self._places.setdefault(entry.name, _Place(offset, 0, 0))
    if offset != self.file_bytes:
      raise ValueError(
        f'directory, byte {self._header_bytes}: sections end at byte '
        f'{offset}, the file at {self.file_bytes}'
      )

  def _fetch(self, offset: int, length: int) -> bytes:
    self._file.seek(offset)
    data = self._file.read(length)
    if len(data) != length:
      raise ValueError(f'file, byte {offset + len(data)}: ends too early')
    return data

  def _section(self, place: _Place) -> bytes:
    """A section's payloads, checked. The last small section is cached."""
    if not place.length:
      return b''
    if self._cached is None or self._cached[0] != place.offset:
      data = self._fetch(place.offset, place.length + CHECKSUM)
      if checksum(memoryview(data)[:-CHECKSUM]) != data[-CHECKSUM:]:
        raise _wrong_checksum(place)
      # A large section is one tensor, seldom wanted twice in a row.
      kept = (
        (place.offset, data)
        if place.length < 2 * directory_lib.SECTION
        else None
      )
      self._cached = kept
      return data
    return self._cached[1]

  def _find(self, name: str) -> tuple[directory_lib.Entry, _Place]:
    if name not in self._entries:
      raise KeyError(f'{name!r} is not in the file')
    return self._entries[name], self._places[name]

  def _source(self, entry: directory_lib.Entry, place: _Place) -> wire.Source:
    """A tensor's payload, checked; from a large section, read on demand."""
    offset = place.offset + place.begin
    if place.length < _WINDOWED:
      data = memoryview(self._section(place))
      data = data[place.begin : place.begin + entry.length]
    else:
      self._check(place)
      data = wire.Window(self._file, offset, entry.length)
    section = f'tensor {entry.name!r}'
    return wire.Source(data, section=section, offset=offset)

  def _check(self, place: _Place) -> None:
    """Checks a section without keeping it in memory."""
    found, left = 0, place.length
    end = place.offset + place.length
    self._file.seek(place.offset)
    while left:
      data = self._file.read(min(left, _WINDOWED))
      if not data:
        at = end - left
        raise ValueError(f'file, byte {at}: ends too early')
      found, left = zlib.crc32(data, found), left - len(data)
    if found.to_bytes(CHECKSUM, 'little') != self._fetch(end, CHECKSUM):
      raise _wrong_checksum(place)

  def _parse(self, name: str) -> tuple[tensors.Tensor, wire.Source]:
    entry, place = self._find(name)
    source = self._source(entry, place)
    return records.read(source, entry.kind, entry.dtype, entry.shape), source

  def tensor(self, name: str) -> tensors.Tensor:
    """Returns a tensor in its compressed form: codes and codebook, or levels.

    Raises:
      KeyError: the file has no tensor of this name.
      ValueError: a malformed section.
    """
    return self._parse(name)[0]

  def stream(self, name: str) -> records.CodeStream | None:
    """Returns a tensor whose codes are read and decoded piece by piece.

    Neither the payload nor the codes are ever in memory as a whole. The result
    is None for a raw tensor. The file must stay open until the last piece.

    Raises:
      KeyError: the file has no tensor of this name.
      ValueError: a malformed section.
    """
    entry, place = self._find(name)
    if entry.kind == 'raw':
      return None
    return records.stream(self._source(entry, place), entry.kind, entry.shape)

  def array(self, name: str) -> np.ndarray:
    """Returns a tensor as an array in its dtype; raises as `tensor`."""
    return self.tensor(name).to_array()

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of an array without reading it."""
    return self._entries[name].shape

  def ledger(self) -> ledger_lib.Ledger:
    """Reads every tensor, and returns the bytes of the file by component."""
    rows = []
    for name, entry in self._entries.items():
      tensor, source = self._parse(name)
      rows.append(row(entry, tensor, source))
    return ledger_lib.Ledger(
      tensors=tuple(rows),
      headers=self._header_bytes,
      checksums=self._checksum_bytes,
    )

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def __contains__(self, name: object) -> bool:
    return name in self._entries

  def __iter__(self) -> Iterator[str]:
    return iter(self.names)

  def __len__(self) -> int:
    return len(self.names)

  def __enter__(self) -> 'Reader':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def open_file(
  path: str | os.PathLike[str], *, max_bytes: int | None = None
) -> Reader:
  """Opens a file; use it as a context manager, or close it.

  Args:
    path: a .bwz file, see `container`.
    max_bytes: largest number of bytes that all arrays together may take in
      memory; None: 2^28 + 4096 times the size of the file.

  Raises:
    ValueError: the file is not a .bwz file, has another version, or is
      malformed.
    OSError: the file cannot be read.
  """
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(Path(path).open('rb'))
    reader = Reader(file, max_bytes=max_bytes)
    stack.pop_all()
    return reader


def decode(data: bytes, *, max_bytes: int | None = None) -> Reader:
  """Opens a file held in memory; see `open_file`.

  >>> from bandwidth.coding.container import encode
  >>> decode(encode({'w': np.float32([1.5, 2])})).array('w')
  array([1.5, 2. ], dtype=float32)
  """
  return Reader(io.BytesIO(data), max_bytes=max_bytes)


def read(path: str | os.PathLike[str]) -> dict[str, tensors.Tensor]:
  """Reads all tensors of a file in compressed form; raises as `open_file`."""
  with open_file(path) as reader:
    return {name: reader.tensor(name) for name in reader}


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads all arrays of a file by name; raises as `open_file`."""
  with open_file(path) as reader:
    return {name: reader.array(name) for name in reader}
