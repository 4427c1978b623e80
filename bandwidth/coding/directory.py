"""The directory of a file: which tensors it holds, and where.

The layout is that of `container`.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bandwidth.coding import ledger, tensors, wire

NAMES = (
  b'running_mean running_var num_batches_tracked embeddings.weight.bias '
  b'encoder.layer.attention.self.query.key.value.output.dense.LayerNorm'
  b'batch_stats/params/Embed_0/embedding/LayerNorm_0/layers_0/block0_conv'
  b'BatchNorm_0/mean/var/scale/Dense_0/bias/kernel/Conv_0/bias/kernel'
)
"""Preset deflate dictionary for directories: common names of parameters."""

SECTION = 4096
MAX_DIRECTORY = 1 << 24
FREE_BYTES = 1 << 28
EXPANSION = 4096
ENTRY_BYTES = 512
MAX_NAME = 4096
MAX_AXES = 32


class Entry(NamedTuple):
  """Name, kind, dtype and shape of a tensor, and the bytes of its payload."""

  name: str
  kind: str
  dtype: str
  shape: tuple[int, ...]
  length: int


def default_limit(file_bytes: int) -> int:
  """Returns the bytes of arrays that a file of this size may claim."""
  return FREE_BYTES + EXPANSION * file_bytes


def claimed_bytes(entry: Entry) -> int:
  """Returns the bytes of a tensor in memory: array, name, 512 of overhead.

  An axis of length 0 counts as 1.
  """
  name = len(entry.name.encode())
  return ENTRY_BYTES + name + _array_bytes(entry.dtype, entry.shape)


def _array_bytes(dtype: str, shape: tuple[int, ...]) -> int:
  itemsize = tensors.dtype_of(dtype).itemsize
  return math.prod(max(size, 1) for size in shape) * itemsize


def check_name(name: str) -> None:
  """Raises ValueError for a name that a file cannot hold."""
  if not isinstance(name, str) or not name:
    raise ValueError(f'name {name!r} is not a string of at least one character')
  if len(name.encode('utf-8', 'surrogatepass')) > MAX_NAME:
    raise ValueError(f'name {name[:40]!r}… is longer than {MAX_NAME} bytes')
  try:
    name.encode()
  except UnicodeEncodeError:
    raise ValueError(f'name {name!r} is not Unicode text') from None


def build(entries: list[Entry], metadata: Mapping[str, Any] | None) -> bytes:
  """Returns the directory.

  Raises:
    ValueError: metadata that is not JSON, or a tensor of more than 32 axes.
  """
  out = [b'']
  try:
    text = json.dumps(
      dict(metadata or {}), separators=(',', ':'), allow_nan=False
    )
  except (TypeError, ValueError) as error:
    raise ValueError(f'metadata is not JSON: {error}') from None
  text = text.encode() if metadata else b''
  out += [wire.varint(len(text)), text, wire.varint(len(entries))]
  last = b''
  for entry in entries:
    name = entry.name.encode()
    shared = _shared(last, name)
    out += [
      wire.varint(shared),
      wire.varint(len(name) - shared),
      name[shared:],
    ]
    last = name
  for entry in entries:
    if len(entry.shape) > MAX_AXES:
      raise ValueError(f'{entry.name}: more than {MAX_AXES} axes')
    kind = ledger.KINDS.index(entry.kind)
    out.append(bytes([kind + 4 * len(entry.shape)]))
  out += [bytes([tensors.DTYPES.index(e.dtype)]) for e in entries]
  out += [wire.varint(size) for entry in entries for size in entry.shape]
  out += [wire.varint(entry.length) for entry in entries]
  return b''.join(out)


def _shared(first: bytes, second: bytes) -> int:
  """Length of the longest common prefix."""
  pairs = zip(first, second, strict=False)
  return next(
    (i for i, (a, b) in enumerate(pairs) if a != b),
    min(len(first), len(second)),
  )


def header(directory: bytes) -> bytes:
  """Returns head and directory, compressed if that is smaller."""
  if len(directory) > MAX_DIRECTORY:
    raise ValueError(f'the directory takes {len(directory)} bytes, over 2^24')
  packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=NAMES)
  small = packer.compress(directory) + packer.flush()
  length = wire.varint(len(directory))
  if len(small) + len(length) < len(directory):
    head = wire.varint(2 * len(small) + 1) + length + small
  else:
    head = wire.varint(2 * len(directory)) + directory
  return head


def sections(entries: list[Entry]) -> Iterator[slice]:
  """Yields the runs of payloads that share a checksum."""
  begin = held = 0
  for i, entry in enumerate(entries):
    held += entry.length
    if held >= SECTION or (held and i == len(entries) - 1):
      yield slice(begin, i + 1)
      begin, held = i + 1, 0


def parse(
  source: wire.Source, limit: int
) -> tuple[dict[str, Any], list[Entry]]:
  """Inverts `build`.

  Args:
    source: the bytes of the directory.
    limit: bytes that all arrays together may take in memory.

  Returns:
    The metadata and the entries.

  Raises:
    ValueError: a malformed directory, or arrays beyond the limit.
  """
  metadata = _parse_metadata(source)
  # A tensor takes at least five bytes of directory.
  most = min(source.remaining // 5, limit // ENTRY_BYTES)
  count = source.varint('headers', limit=most)
  names = _parse_names(source, count, limit)
  kinds = [source.byte('headers') for _ in range(count)]
  types = [source.byte('headers') for _ in range(count)]
  if any(kind & 3 >= len(ledger.KINDS) for kind in kinds) or any(
    kind >> 2 > MAX_AXES for kind in kinds
  ):
    raise source.error('an unknown kind of tensor')
  if any(place >= len(tensors.DTYPES) for place in types):
    raise source.error('an unknown dtype')
  shapes = []
  claimed = sum(ENTRY_BYTES + len(name.encode()) for name in names)
  for kind, place in zip(kinds, types, strict=True):
    shape = tuple(
      source.varint('headers', limit=1 << 48) for _ in range(kind >> 2)
    )
    claimed += _array_bytes(tensors.DTYPES[place], shape)
    if claimed > limit:
      raise source.error(
        f'arrays of {claimed} bytes exceed the limit of {limit}; '
        'a trusted file can be opened with a larger max_bytes'
      )
    shapes.append(shape)
  lengths = [source.varint('headers', limit=1 << 62) for _ in range(count)]
  source.finish()
  entries = [
    Entry(name, ledger.KINDS[kind & 3], tensors.DTYPES[place], shape, length)
    for name, kind, place, shape, length in zip(
      names, kinds, types, shapes, lengths, strict=True
    )
  ]
  for entry in entries:
    if entry.kind != 'raw' and entry.dtype not in tensors.FLOATS:
      raise source.error(f'{entry.name}: quantized {entry.dtype}')
  return metadata, entries


def _parse_metadata(source: wire.Source) -> dict[str, Any]:
  length = source.varint('headers', limit=source.remaining)
  if not length:
    return {}
  text = bytes(source.take('headers', length))
  try:
    metadata = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise source.error(f'metadata is not JSON: {error}') from None
  if not isinstance(metadata, dict):
    raise source.error('metadata is not a JSON object')
  return metadata


def _parse_names(source: wire.Source, count: int, limit: int) -> list[str]:
  names: dict[str, None] = {}
  last, taken = b'', 0
  for _ in range(count):
    shared = source.varint('headers', limit=len(last))
    length = source.varint('headers', limit=MAX_NAME - shared)
    last = last[:shared] + bytes(source.take('headers', length))
    taken += len(last)
    if taken > limit:
      raise source.error(f'names of {taken} bytes exceed the limit of {limit}')
    try:
      name = last.decode()
    except UnicodeDecodeError:
      raise source.error(f'name {last!r} is not UTF-8') from None
    if not name or name in names:
      raise source.error(f'name {name!r} is empty or there twice')
    names[name] = None
  return list(names)
