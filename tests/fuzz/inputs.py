"""Files that a reader of `.bwz` must decode or refuse.

Real files of every kind of payload, and what hostile hands make of them: most
changes are made below the checksums, which are then put right, so that they
reach what the checksums protect.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bandwidth import coding
from bandwidth.coding import directory, symbols, tensors, wire
from bandwidth.coding import ledger as ledger_lib
from bandwidth.coding.reader import MAGIC, VERSION, checksum

Havoc = Callable[[bytes, random.Random], bytes]
"""Changes bytes; the result may have another length, or none."""

_PLACE = re.compile(r', byte \d+: ')
_BYTES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 63, 64, 127, 128, 254, 255)
_SIZES = (0, 1, 2, 3, 255, 2047, 2048, 2049, 4097, 1 << 20, 1 << 31, 1 << 47)


class Parts(NamedTuple):
  """A file, taken apart.

  Attributes:
    metadata: its JSON object.
    entries: of the directory.
    payloads: as many.
  """

  metadata: dict[str, Any]
  entries: list[directory.Entry]
  payloads: list[bytes]


def seeds() -> list[bytes]:
  """Returns small files that between them use every kind of payload.

  A file for each array and coder, and one of all arrays for each coder.
  """
  arrays = _arrays()
  files: dict[bytes, None] = {}
  for coder in coding.CODERS:
    files[coding.encode(arrays, metadata={'x': [1]}, coder=coder)] = None
    for name, tensor in arrays.items():
      files[coding.encode({name: tensor}, coder=coder)] = None
  return list(files)


def _arrays() -> dict[str, Any]:
  rng = np.random.default_rng(0)

  def sparse(shape: Any, low: int, high: int, density: float) -> np.ndarray:
    keep = rng.random(shape) < density
    return np.where(keep, rng.integers(low, high, shape), 0)

  codebook, uniform = coding.CodebookTensor, coding.UniformTensor
  few = np.zeros((20, 250), int)
  few[17, 4] = few[12, 101] = 2
  floats = rng.normal(size=400).astype(np.float32)
  return {
    'a/kernel': codebook(sparse((30, 20), 1, 16, 0.2), np.arange(16.0)),
    'a/levels': uniform(sparse((3, 3, 8, 5), -40, 40, 0.1), np.array(0.1)),
    'a/wide': uniform(sparse((9, 7), -(2**31), 2**31, 0.9), np.ones(())),
    'a/grid': uniform(sparse((16, 8), -8, 8, 1.0), rng.random((1, 8))),
    'b/many': codebook(
      sparse((20, 30), 0, 64, 0.9), rng.normal(size=(4, 6, 64))
    ),
    'b/few': codebook(few, np.arange(3.0)),
    'b/thin': codebook(sparse((80, 50), 1, 4, 0.02), np.arange(4.0)),
    'b/lanes': codebook(sparse((20, 110), 0, 9, 0.9), np.arange(9.0)),
    'b/ternary': codebook(sparse((40, 9), 0, 3, 0.5), np.array([0.0, 1, -1])),
    'c/raw': sparse(300, 1, 9, 0.1).astype(np.float32),
    'c/planes': floats.astype('float64'),
    'c/stored': floats,
    'c/text': np.frombuffer(b'the same again, ' * 40, np.uint8),
    'c/zero': np.zeros((4, 5), np.float16),
    'c/flag': rng.random(50) < 0.5,
    'c/int4': rng.integers(-8, 8, 60).astype(tensors.dtype_of('int4')),
    'c/empty': np.zeros((0, 3), np.float32),
    'c/scalar': np.float32(2.5),
  }


def split(data: bytes) -> Parts | None:
  """Takes a file apart without a look at its checksums; None if it can't."""
  source = wire.Source(data, section='file')
  try:
    source.take('headers', len(MAGIC) + 1)
    head = source.varint('headers', limit=2 * directory.MAX_DIRECTORY + 1)
    length = head >> 1
    if head & 1:
      length = source.varint('headers', limit=1 << 20)
    plain = bytes(source.take('headers', head >> 1))
    if head & 1:
      plain = symbols.inflate(source, plain, length, dictionary=directory.NAMES)
    listed = wire.Source(plain, section='directory')
    metadata, entries = directory.parse(listed, 1 << 60)
    source.take('checksums', 4)
    payloads = []
    for section in directory.sections(entries):
      for entry in entries[section]:
        payloads.append(bytes(source.take('raw', entry.length)))
      source.take('checksums', 4)
  except ValueError:
    return None
  payloads += [b''] * (len(entries) - len(payloads))
  return Parts(metadata, entries, payloads)


def join(parts: Parts) -> bytes:
  """Inverts `split`: lengths and checksums are those of the payloads.

  Raises:
    ValueError: a directory that no file can hold.
  """
  entries = [
    entry._replace(length=len(payload))
    for entry, payload in zip(parts.entries, parts.payloads, strict=True)
  ]
  return _file(directory.build(entries, parts.metadata), entries, parts)


def _file(
  listed: bytes, entries: Sequence[directory.Entry], parts: Parts
) -> bytes:
  header = MAGIC + bytes([VERSION]) + directory.header(listed)
  out = [header, checksum(header)]
  for section in directory.sections(list(entries)):
    body = b''.join(parts.payloads[section])
    out += [body, checksum(body)]
  return b''.join(out)


def mutate(
  data: bytes, others: Sequence[bytes], rng: random.Random, havoc: Havoc
) -> bytes:
  """Makes another file of a file.

  Args:
    data: of the file, which may be damaged already.
    others: files to take pieces from.
    rng: of all choices.
    havoc: changes the bytes of a payload, of a directory or of a file.
  """
  parts = split(data)
  if parts is None or not parts.entries or rng.random() < 0.1:
    return havoc(data, rng)
  change = rng.choice((_payload, _payload, _payload, _splice, _entry, _listed))
  try:
    return change(parts, others, rng, havoc)
  except ValueError:
    return havoc(data, rng)


def _payload(
  parts: Parts, others: Sequence[bytes], rng: random.Random, havoc: Havoc
) -> bytes:
  del others
  payloads = list(parts.payloads)
  place = rng.randrange(len(payloads))
  payloads[place] = havoc(payloads[place], rng)
  return join(parts._replace(payloads=payloads))


def _splice(
  parts: Parts, others: Sequence[bytes], rng: random.Random, havoc: Havoc
) -> bytes:
  """Another file's tensor, or the end of its payload, in place of one."""
  other = split(rng.choice(others))
  if other is None or not other.entries:
    raise ValueError('nothing to take')
  payloads, entries = list(parts.payloads), list(parts.entries)
  place, taken = rng.randrange(len(payloads)), rng.randrange(len(other.entries))
  mine, theirs = payloads[place], other.payloads[taken]
  cut = rng.randrange(len(mine) + 1)
  payloads[place] = rng.choice((theirs, mine[:cut] + theirs[cut:]))
  if rng.random() < 0.5:
    entries[place] = other.entries[taken]._replace(name=entries[place].name)
  if rng.random() < 0.3:
    payloads[place] = havoc(payloads[place], rng)
  return join(Parts(parts.metadata, entries, payloads))


def _entry(
  parts: Parts, others: Sequence[bytes], rng: random.Random, havoc: Havoc
) -> bytes:
  """Another shape, dtype or kind over the same payload."""
  del others, havoc
  entries = list(parts.entries)
  place = rng.randrange(len(entries))
  entry = entries[place]
  shape = list(entry.shape)
  choice = rng.randrange(5)
  if choice == 0:
    entry = entry._replace(dtype=rng.choice(tensors.DTYPES))
  elif choice == 1:
    entry = entry._replace(kind=rng.choice(ledger_lib.KINDS))
  elif choice == 2 or not shape:
    shape.insert(rng.randint(0, len(shape)), rng.choice(_SIZES))
  elif choice == 3:
    axis = rng.randrange(len(shape))
    shape[axis] = rng.choice((
      shape[axis] + 1, max(shape[axis] - 1, 0), 2 * shape[axis],
      rng.choice(_SIZES), rng.randrange(1 << rng.randrange(1, 24)),
    ))  # fmt: skip
  else:
    rng.shuffle(shape)
  entries[place] = entry._replace(shape=tuple(shape))
  return join(parts._replace(entries=entries))


def _listed(
  parts: Parts, others: Sequence[bytes], rng: random.Random, havoc: Havoc
) -> bytes:
  """Damage to the directory, under its right checksum."""
  del others
  listed = havoc(directory.build(parts.entries, parts.metadata), rng)
  return _file(listed, parts.entries, parts)


def byte_havoc(data: bytes, rng: random.Random) -> bytes:
  """Changes one to four places: bits, bytes, runs, integers, the ends."""
  out = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 4))):
    at = rng.randrange(len(out) + 1)
    run = 1 << rng.randrange(7)
    choice = rng.randrange(8)
    if choice == 0 and at < len(out):
      out[at] ^= 1 << rng.randrange(8)
    elif choice == 1:
      out[at : at + 1] = bytes([rng.choice(_BYTES)])
    elif choice == 2:
      out[at : at + 1] = bytes([rng.randrange(256)])
    elif choice == 3:
      del out[at : at + run]
    elif choice == 4:
      out[at:at] = rng.choice((bytes(run), rng.randbytes(run), out[:run]))
    elif choice == 5:
      out[at : at + 1] = wire.varint(rng.randrange(1 << rng.randrange(1, 64)))
    elif choice == 6:
      out[at : at + run] = out[:at][-run:]
    else:
      del out[rng.choice((at, max(len(out) - run, 0))) :]
  return bytes(out)


def check(data: bytes, *, max_bytes: int | None) -> bool:
  """Reads everything in a file.

  Returns:
    Whether it was decoded; else it was refused as it should be.

  Raises:
    AssertionError: a refusal that does not say where, or a ledger that does not
      add up.
    BaseException: what the reader should not have raised.
  """
  try:
    reader = coding.decode(data, max_bytes=max_bytes)
    for name in reader:
      reader.array(name)
    total = reader.ledger().total
  except ValueError as error:
    if not _PLACE.search(str(error)):
      raise AssertionError(f'no section and byte in: {error}') from error
    return False
  if total != len(data):
    raise AssertionError(f'a ledger of {total} bytes for {len(data)}')
  return True
