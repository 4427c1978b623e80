"""`model.bwz`: a compressed network in one self-describing file.

The file holds every array of a network (weights, biases, statistics) under its
name. It can be read without a network definition, one array at a time. All
integers below are LEB128 varints (`wire.varint`) unless a size is given;
integers of fixed size are little-endian. From the first byte:

  magic         3 bytes 'BWZ', 1 byte version, now 1
  head          varint 2·s + c: the directory is stored in s bytes, c = 1 if
                compressed
  length        if c: varint, bytes of the directory
  directory     s bytes: plain, or raw deflate with the preset dictionary
                `directory.NAMES`
  crc32         4 bytes, of everything before
  sections      each some payloads, one after the other, and 4 bytes crc32 of
                them; the file ends with the last section

Directory:

  metadata      varint m, m bytes: UTF-8 JSON object; m = 0 means {}
  tensors       varint n
  names         n times: varint p, varint q, q bytes UTF-8: the first p bytes of
                the previous name, then these
  kinds         n bytes: place in `ledger.KINDS` + 4·axes
  types         n bytes: place in `tensors.DTYPES`
  shapes        for each tensor, for each axis: varint
  payloads      n times: varint, bytes of its payload

Payloads are in the order of the directory. A section takes payloads until it
holds at least 4096 bytes or none is left, and is never empty: a large tensor
has its own checksum, and small ones share one. The offsets of tensors follow
from the directory. `records` defines a payload; its parts are defined in
`blocks`, `symbols`, `index_stream`, `sparse_index`, `bitstream`, `huffman` and
`ans`, and for adaptive coding in `adaptive`, `significance`, `magnitudes`,
`logistic` and `binary`.

Malformed input raises a ValueError that names section and offset. A directory
is at most 2^24 bytes, deflated or not. The arrays of a file, with their names
and an overhead of 512 bytes each, take at most 2^28 + 4096·(file size) bytes in
memory, unless the reader raises that limit. Sizes are checked before anything
is allocated; time is linear in the size of the file and of the arrays that its
directory declares.

Accounting: the size of a network is the size of this file, including biases,
names, tables and checksums. A kilobyte is 1000 bytes. `Ledger` breaks it down;
the writer counts bytes as it writes, the reader as it reads, and both add up to
the size on disk. Tensors keep the order in which they are given.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

from bandwidth.coding import directory, records, symbols, tensors, wire
from bandwidth.coding import ledger as ledger_lib
from bandwidth.coding.reader import CHECKSUM, MAGIC, VERSION, checksum, row
from bandwidth.files import replace_bytes


def encode(
  arrays: Mapping[str, tensors.Storable],
  *,
  metadata: Mapping[str, Any] | None = None,
  coder: str = 'auto',
) -> bytes:
  r"""Returns the file as bytes; see `write`.

  >>> import numpy as np
  >>> data = encode({'w': np.arange(3, dtype=np.float32)})
  >>> data[:4], len(data)
  (b'BWZ\x01', 29)
  """
  return _encode(arrays, metadata, coder)[0]


def write(
  path: str | os.PathLike[str],
  arrays: Mapping[str, tensors.Storable],
  *,
  metadata: Mapping[str, Any] | None = None,
  coder: str = 'auto',
) -> ledger_lib.Ledger:
  """Writes a file atomically: a failure leaves the old one untouched.

  Args:
    path: file to write, replaced if it exists.
    arrays: by name ('params/Conv_0/kernel'): tensors, results of
      `bandwidth.quantization`, or arrays; see `as_tensor`.
    metadata: any JSON object, for example the configuration from which
      evaluation rebuilds the network; None: {}.
    coder: entropy coders to try, one of `symbols.CODERS`: 'fixed' for pruning
      alone or with shared weights, 'huffman' for the paper's third stage,
      'auto' for whatever is smallest, tensor by tensor.

  Returns:
    The ledger, whose total is the size of the file.

  Raises:
    ValueError: a bad name, dtype, metadata or coder, or arrays that compress so
      well that a reader would reject the file as malicious.
  """
  data, ledger = _encode(arrays, metadata, coder)
  replace_bytes(path, data)
  return ledger


def _encode(
  arrays: Mapping[str, tensors.Storable],
  metadata: Mapping[str, Any] | None,
  coder: str,
) -> tuple[bytes, ledger_lib.Ledger]:
  symbols.check_coder(coder)
  checked = _checked(arrays)
  sizes = (math.prod(tensor.shape) for tensor in checked.values())
  effort = records.effort_of(coder, elements=sum(sizes))
  payloads, entries, rows = [], [], []
  for name, tensor in checked.items():
    sink = wire.Sink()
    records.write(sink, tensor, effort=effort)
    payloads.append(sink.getvalue())
    kind = records.kind_of(tensor)
    entry = directory.Entry(name, kind, tensor.dtype, tensor.shape, len(sink))
    entries.append(entry)
    rows.append(row(entry, tensor, sink))
  header = MAGIC + bytes([VERSION])
  header += directory.header(directory.build(entries, metadata))
  parts, checksums = [header, checksum(header)], CHECKSUM
  for section in directory.sections(entries):
    body = b''.join(payloads[section])
    parts += [body, checksum(body)]
    checksums += CHECKSUM
  data = b''.join(parts)
  claimed = sum(map(directory.claimed_bytes, entries))
  if claimed > directory.default_limit(len(data)):
    raise ValueError(
      f'{claimed} bytes of arrays fit {len(data)} bytes: a reader would refuse '
      f'more than 2^28 + {directory.EXPANSION} times the size of the file'
    )
  ledger = ledger_lib.Ledger(
    tensors=tuple(rows), headers=len(header), checksums=checksums
  )
  return data, ledger


def _checked(
  arrays: Mapping[str, tensors.Storable],
) -> dict[str, tensors.Tensor]:
  checked = {}
  for name, value in arrays.items():
    directory.check_name(name)
    try:
      checked[name] = tensors.as_tensor(value)
    except ValueError as error:
      raise ValueError(f'{name}: {error}') from None
  return checked
