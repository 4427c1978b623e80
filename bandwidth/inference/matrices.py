"""Matrices in the form that they are run from.

A matrix W [K, N] multiplies rows of activations from the right: y = x W, x
[…, K], y […, N]. It is kept by output, as K of a row are read one after the
other: `codes[n]` is what output n reads.

Codes of b bits are packed into little-endian 32-bit words, 16 words a block of
512 / b inputs: within a block, input 16 j + l is field j of word l, so that one
shift of a vector of 16 words gives 16 neighboring inputs. The last block is
filled up with code 0, and whoever multiplies fills up x with zeros.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth.inference import packing

WIDTHS = (2, 4, 8)
"""Bits that a code may have."""

LANES = packing.LANES
"""Words of a block."""

_BLOCK_BYTES = packing.WORD_BYTES * LANES

Array: TypeAlias = Any


def block_inputs(bits: int) -> int:
  """Returns how many inputs a block holds.

  >>> [block_inputs(bits) for bits in WIDTHS]
  [256, 128, 64]
  """
  return 8 * _BLOCK_BYTES // bits


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['codes', 'codebook'],
  meta_fields=['shape', 'bits'],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookMatrix:
  """Shared weights: W[k, n] = codebook[g(n), h(k), code of (k, n)].

  Ternary weights and integers of 2 or 4 bits are of this kind too: what they
  stand for is their codebook. Invariants:

      codes.shape == (N, 64 ceil(K / block_inputs(bits)))
      codebook.shape == (G, H, 2^bits),  N % G == 0,  K % H == 0

  Output n is of group g(n) = n // (N / G), input k of h(k) = k // (K / H).

  Attributes:
    codes: uint8, packed codes of each output.
    codebook: float32, the weight of each code by group.
    shape: (K, N), inputs and outputs of the matrix.
    bits: bits of a code, one of `WIDTHS`.
  """

  codes: Array
  codebook: Array
  shape: tuple[int, int]
  bits: int


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['levels', 'step'],
  meta_fields=['shape'],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformMatrix:
  """Integers of 8 bits: W[k, n] = step[g(n), h(k)] · levels[n, k].

  Groups are those of `CodebookMatrix`.

  Attributes:
    levels: int8 [N, 64 ceil(K / 64)], filled up with zeros.
    step: float32 [G, H], step of each group.
    shape: (K, N), inputs and outputs of the matrix.
  """

  levels: Array
  step: Array
  shape: tuple[int, int]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['starts', 'columns', 'codes', 'codebook'],
  meta_fields=['shape'],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseMatrix:
  """Weights that are not zero, by output, each with a code.

  W[columns[i], n] = codebook[codes[i]] for starts[n] <= i < starts[n + 1]; all
  others are 0. Columns are absolute: gaps would be smaller, but each would have
  to wait for the one before.

  Attributes:
    starts: int32 [N + 1], ascending from 0.
    columns: uint16 or, where K is larger than 65536, int32, [nonzeros].
    codes: uint8 [nonzeros], indices into the codebook.
    codebook: float32 [entries], at most 256.
    shape: (K, N), inputs and outputs of the matrix.
  """

  starts: Array
  columns: Array
  codes: Array
  codebook: Array
  shape: tuple[int, int]


Matrix: TypeAlias = CodebookMatrix | UniformMatrix | SparseMatrix
"""Any of them, or float32 [K, N]: `matmul` takes both."""

FORMS = (CodebookMatrix, UniformMatrix, SparseMatrix)


def is_matrix(leaf: Any) -> bool:
  """Whether a leaf is a compressed matrix; for `jax.tree.map(is_leaf=…)`."""
  return isinstance(leaf, FORMS)


def nbytes(matrix: Matrix | Array) -> int:
  """Returns the bytes of everything that a product reads of a matrix."""
  return sum(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(matrix)
  )


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
  """Packs codes: integers [N, K] to uint8 [N, 64 ceil(K / block)].

  Raises:
    ValueError: bits are none of `WIDTHS`; the codes have not two axes, or one
      is out of range.

  >>> pack(np.array([[1, 2, 3]]), 4).view('<u4')[0, :4].tolist()
  [1, 2, 3, 0]
  """
  check_bits(bits)
  codes = _integers('codes', codes)
  if codes.size and not 0 <= codes.min() <= codes.max() < 2**bits:
    raise ValueError(
      f'codes reach from {codes.min()} to {codes.max()}; '
      f'{bits} bits hold 0 to {2**bits - 1}'
    )
  rows, inputs = codes.shape
  # As it lies in memory: strides would take most of the time.
  by_output = not codes.flags.f_contiguous
  packer = packing.Packer(inputs, rows, bits=bits, by_output=by_output)
  lying = codes if by_output else codes.T
  _, step = packer.lines
  for begin in range(0, len(lying), step):
    packer.put(lying[begin : begin + step].astype(np.uint8, copy=False))
  return packer.packed


def unpack(codes: Array, bits: int, inputs: int) -> jax.Array:
  """Undoes `pack`: uint8 [..., row bytes] to int32 [..., inputs], in JAX."""
  lead = codes.shape[:-1]
  words = jax.lax.bitcast_convert_type(
    codes.reshape(*lead, -1, LANES, 4), jnp.uint32
  )
  shifts = jnp.arange(0, 32, bits, dtype=jnp.uint32)
  shifts = shifts.reshape(*(1,) * (words.ndim - 1), -1, 1)
  fields = (words[..., None, :] >> shifts) & jnp.uint32(2**bits - 1)
  return fields.reshape(*lead, -1)[..., :inputs].astype(jnp.int32)


def bits_for(entries: int) -> int:
  """Returns the fewest bits that tell so many entries apart, at most 256.

  >>> [bits_for(entries) for entries in (1, 5, 200)]
  [2, 4, 8]
  """
  return next(bits for bits in WIDTHS if entries <= 2**bits)


def _integers(name: str, given: Any) -> np.ndarray:
  array = np.asarray(given)
  if array.ndim != 2 or array.dtype.kind not in 'iu':
    raise ValueError(
      f'{name} are {array.dtype} {array.shape}; integers [N, K] are wanted'
    )
  return array


def check_bits(bits: int) -> None:
  """Raises ValueError where codes can't have so many bits."""
  if bits not in WIDTHS:
    raise ValueError(f'bits={bits!r} is none of {WIDTHS}')


def codebook_matrix(
  codes: np.ndarray, codebook: np.ndarray, *, bits: int | None = None
) -> CodebookMatrix:
  """Packs shared weights.

  Args:
    codes: integers [N, K]: what output n reads of input k.
    codebook: finite, [entries], or [G, H, entries] as in `CodebookMatrix`.
    bits: bits of a code; None: as few as the codebook needs.

  Raises:
    ValueError: codes are out of range, the codebook has no entries, too many or
      some that are not finite, or its groups do not divide the matrix.

  >>> matrix = codebook_matrix(np.array([[0, 1], [1, 1]]), np.float32([0, 5]))
  >>> decode(matrix).tolist()
  [[0.0, 5.0], [5.0, 5.0]]
  """
  codebook = _finite('codebook', codebook)
  if codebook.ndim == 1:
    codebook = codebook[None, None]
  entries = codebook.shape[-1]
  if codebook.ndim != 3 or not 1 <= entries <= 2 ** WIDTHS[-1]:
    raise ValueError(
      f'codebook has shape {codebook.shape}; [entries] or [G, H, entries] with '
      f'1 to {2 ** WIDTHS[-1]} entries is wanted'
    )
  if bits is None:
    bits = bits_for(entries)
  check_bits(bits)
  if entries > 2**bits:
    raise ValueError(
      f'codebook has {entries} entries; {bits} bits tell {2**bits}'
    )
  codes = np.asarray(codes)
  if codes.size and int(codes.max()) >= entries:
    raise ValueError(
      f'codes reach {codes.max()}; the codebook has {entries} entries'
    )
  packed = pack(codes, bits)
  return packed_matrix(packed, codebook, shape=codes.shape[::-1], bits=bits)


def packed_matrix(
  packed: np.ndarray, codebook: np.ndarray, *, shape: tuple[int, int], bits: int
) -> CodebookMatrix:
  """Returns the matrix of packed codes, all of which the codebook has.

  Args:
    packed: uint8 codes of each output, from `pack`.
    codebook: float32 [G, H, entries], at most 2^bits.
    shape: (K, N), inputs and outputs of the matrix.
    bits: bits of a code, one of `WIDTHS`.

  Raises:
    ValueError: groups do not divide the matrix.
  """
  _check_groups('codebook', codebook.shape[:2], shape)
  # What no code means is 0: a table that is always whole needs no bounds.
  whole = np.zeros((*codebook.shape[:2], 2**bits), np.float32)
  whole[..., : codebook.shape[-1]] = codebook
  return CodebookMatrix(codes=packed, codebook=whole, shape=shape, bits=bits)


def ternary_matrix(
  signs: np.ndarray, positive: float, negative: float
) -> CodebookMatrix:
  """Packs ternary weights in two bits each (Zhu et al., arXiv 1612.01064).

  Args:
    signs: integers [N, K], 1, 0 or -1.
    positive: W_p, the value of sign 1.
    negative: -W_n, the value of sign -1.

  Raises:
    ValueError: a sign is none of these.
  """
  signs = np.asarray(signs)
  if signs.size and not (np.abs(signs) <= 1).all():
    raise ValueError(f'signs reach from {signs.min()} to {signs.max()}')
  codebook = np.array([0.0, positive, negative], np.float32)
  return codebook_matrix(np.where(signs < 0, 2, signs), codebook, bits=2)


def uniform_matrix(
  levels: np.ndarray, step: np.ndarray | float, *, bits: int = 8
) -> Matrix:
  """Packs integers, symmetric about 0.

  Args:
    levels: integers [N, K] in [-2^(bits-1), 2^(bits-1)).
    step: finite, [] or [G, H]: what a level is to be multiplied by.
    bits: bits of a level; 2 and 4 give a `CodebookMatrix` of all levels.

  Raises:
    ValueError: a level is out of range, or as `codebook_matrix`.

  >>> decode(uniform_matrix(np.array([[3, -2]]), 0.5, bits=4)).tolist()
  [[1.5], [-1.0]]
  """
  check_bits(bits)
  levels, step = _integers('levels', levels), _finite('step', step)
  half = 2 ** (bits - 1)
  if levels.size and not -half <= levels.min() <= levels.max() < half:
    raise ValueError(
      f'levels reach from {levels.min()} to {levels.max()}; {bits} bits hold '
      f'{-half} to {half - 1}'
    )
  if step.ndim == 0:
    step = step[None, None]
  rows, inputs = levels.shape
  if step.ndim != 2:
    raise ValueError(f'step has shape {step.shape}; [] or [G, H] is wanted')
  _check_groups('step', step.shape, (inputs, rows))
  if bits < 8:
    # Level i is code i of the codebook (0, 1, ..., -2, -1): two's complement.
    order = np.arange(2**bits)
    values = np.where(order < half, order, order - 2**bits).astype(np.float32)
    codebook = step[..., None] * values
    return codebook_matrix(levels % 2**bits, codebook, bits=bits)
  filled = np.zeros((rows, -(-inputs // _BLOCK_BYTES) * _BLOCK_BYTES), np.int8)
  filled[:, :inputs] = levels
  return UniformMatrix(levels=filled, step=step, shape=(inputs, rows))


def sparse_matrix(codes: np.ndarray, codebook: np.ndarray) -> SparseMatrix:
  """Keeps the weights that are not zero.

  Args:
    codes: integers [N, K]; entries of the codebook that are 0 are left out.
    codebook: float [entries], finite, at most 256.

  Raises:
    ValueError: as `codebook_matrix`.

  >>> matrix = sparse_matrix(np.array([[0, 1], [0, 0]]), np.float32([0, 5]))
  >>> matrix.starts.tolist(), matrix.columns.tolist(), matrix.codes.tolist()
  ([0, 1, 1], [1], [1])
  """
  codebook = _finite('codebook', codebook)
  codes = _integers('codes', codes)
  if codebook.ndim != 1 or not 1 <= len(codebook) <= 256:
    raise ValueError(
      f'codebook has shape {codebook.shape}; 1 to 256 entries are wanted'
    )
  if codes.size and not 0 <= codes.min() <= codes.max() < len(codebook):
    raise ValueError(
      f'codes reach from {codes.min()} to {codes.max()}; the codebook has '
      f'{len(codebook)} entries'
    )
  pieces = functools.partial(packing.in_pieces, codes)
  return sparse_of(pieces, codebook, shape=codes.shape[::-1])


def sparse_of(
  pieces: Callable[[], Iterator[tuple[int, np.ndarray]]],
  codebook: np.ndarray,
  *,
  shape: tuple[int, int],
) -> SparseMatrix:
  """Keeps what is not zero of codes that come in pieces, see `packing.kept`.

  Args:
    pieces: gives the first output and the codes [n, K] of each.
    codebook: float32 [entries], which has all codes.
    shape: (K, N), inputs and outputs of the matrix.
  """
  starts, columns, codes = packing.kept(pieces, codebook != 0, shape)
  return SparseMatrix(
    starts=starts, columns=columns, codes=codes, codebook=codebook, shape=shape
  )


def rows_of(matrix: Matrix, index: jax.Array) -> jax.Array:
  """Returns what some outputs read: W[:, index] transposed, [..., K] float32.

  Of an embedding, whose rows are kept as outputs, these are its vectors.

  Args:
    matrix: a `CodebookMatrix` or `UniformMatrix`.
    index: int32 [...], in [0, N).

  Raises:
    ValueError: the matrix is sparse.
  """
  inputs, outputs = matrix.shape
  if isinstance(matrix, UniformMatrix):
    levels = jnp.asarray(matrix.levels)[index, :inputs].astype(jnp.float32)
    return levels * _spread(matrix.step, outputs, inputs, index)
  if isinstance(matrix, CodebookMatrix):
    codes = unpack(jnp.asarray(matrix.codes)[index], matrix.bits, inputs)
    groups, runs, entries = matrix.codebook.shape
    # Entry of the flat codebook: that of the group, then of the run.
    run = jnp.arange(inputs) // (inputs // runs)
    group = index // (outputs // groups)
    base = group[..., None] * runs + run.reshape(*(1,) * index.ndim, -1)
    flat = jnp.asarray(matrix.codebook).reshape(-1)
    return flat[base * entries + codes]
  raise ValueError('matrix: a SparseMatrix has no rows to be looked up')


def _spread(
  step: Array, outputs: int, inputs: int, index: jax.Array
) -> jax.Array:
  """Steps of the weights of some outputs, [..., K]."""
  groups, runs = step.shape
  own = jnp.asarray(step)[index // (outputs // groups)]
  return jnp.repeat(own, inputs // runs, axis=-1)


def decode(matrix: Matrix) -> np.ndarray:
  """Returns W, float32 [K, N], on the host. Products never need it."""
  inputs, outputs = matrix.shape
  if isinstance(matrix, SparseMatrix):
    dense = np.zeros((outputs, inputs), np.float32)
    starts = np.asarray(matrix.starts)
    rows = np.repeat(np.arange(outputs), np.diff(starts))
    book = np.asarray(matrix.codebook)
    dense[rows, np.asarray(matrix.columns)] = book[np.asarray(matrix.codes)]
    return dense.T
  return np.asarray(rows_of(matrix, jnp.arange(outputs))).T


def _finite(name: str, given: Any) -> np.ndarray:
  values = np.asarray(given, np.float32)
  if not np.isfinite(values).all():
    raise ValueError(f'{name} is not finite everywhere')
  return values


def _check_groups(
  name: str, groups: Sequence[int], shape: tuple[int, int]
) -> None:
  inputs, outputs = shape
  if 0 in groups or outputs % groups[0] or inputs % groups[1]:
    raise ValueError(
      f'{name} has {groups[0]} x {groups[1]} groups, which do not divide '
      f'{outputs} outputs and {inputs} inputs'
    )
