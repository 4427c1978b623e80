"""The bytes of a file, by tensor and by component."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bandwidth.coding import tensors, wire

KINDS = ('raw', 'codebook', 'uniform')


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
  """The bytes of one tensor of a file.

  Attributes:
    name: path of the array, joined by slashes.
    kind: kind of tensor, one of `KINDS`.
    shape: shape of the array, () for a scalar.
    dtype: dtype of the array as it is read, one of `tensors.DTYPES`.
    nonzero: number of elements that are not zero.
    methods: names of the coders used, in order of use.
    components: bytes of the payload by component, see `wire.COMPONENTS`;
      headers of the file and checksums are not included.
  """

  name: str
  kind: str
  shape: tuple[int, ...]
  dtype: str
  nonzero: int
  methods: tuple[str, ...]
  components: Mapping[str, int]

  @property
  def size(self) -> int:
    """Number of elements of the array."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    """Bytes of the payload."""
    return sum(self.components.values())

  @property
  def dense_bytes(self) -> int:
    """Bytes of the uncompressed array in its dtype."""
    return self.size * tensors.dtype_of(self.dtype).itemsize

  @property
  def density(self) -> float:
    """Fraction of elements that are not zero; 0 for an empty array."""
    return self.nonzero / self.size if self.size else 0.0

  @property
  def weight_bits(self) -> float:
    """Bits of codes or raw values per non-zero; 0 if there is none."""
    values = self.components['codes'] + self.components['raw']
    return 8 * values / self.nonzero if self.nonzero else 0.0

  @property
  def index_bits(self) -> float:
    """Bits of index, including fillers, per non-zero; 0 if there is none."""
    index = self.components['indices'] + self.components['fillers']
    return 8 * index / self.nonzero if self.nonzero else 0.0


@dataclass(frozen=True, kw_only=True)
class Ledger:
  """All bytes of a file: Σ tensors + headers + checksums = its size on disk.

  Biases and statistics are included. Tables print kilobytes of 1000 bytes.

  Attributes:
    tensors: one entry per tensor, in the order of the file.
    headers: bytes of magic, names, shapes, lengths and metadata.
    checksums: bytes of all checksums.
  """

  tensors: tuple[TensorEntry, ...]
  headers: int
  checksums: int

  @property
  def total(self) -> int:
    """Size of the file in bytes."""
    return sum(each.bytes for each in self.tensors) + (
      self.headers + self.checksums
    )

  @property
  def dense_bytes(self) -> int:
    """Bytes of all uncompressed arrays in their dtypes."""
    return sum(each.dense_bytes for each in self.tensors)

  @property
  def ratio(self) -> float:
    """`dense_bytes` / `total`."""
    return self.dense_bytes / self.total

  @property
  def components(self) -> dict[str, int]:
    """Bytes by component; they add up to `total`."""
    sums = dict.fromkeys(wire.COMPONENTS, 0)
    for each in self.tensors:
      for component, count in each.components.items():
        sums[component] += count
    sums['headers'] += self.headers
    sums['checksums'] += self.checksums
    return sums

  def rows(self) -> list[dict[str, object]]:
    """Returns one row per tensor, with the keys of `tensors` in a report."""
    return [
      {
        'name': each.name,
        'shape': list(each.shape),
        'density': each.density,
        'weight_bits': each.weight_bits,
        'index_bits': each.index_bits,
        'bytes': each.bytes,
      }
      for each in self.tensors
    ]
