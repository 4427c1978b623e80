"""Arrays as a file stores them: raw, as shared weights, or as integer levels.

Codebooks and steps may differ from group to group. Groups are the cells of a
grid: a grid (g_1, …, g_d) divides axis a of a shape (s_1, …, s_d) into g_a
equal runs, g_a a divisor of s_a. A shorter grid is aligned with the last axes,
as in NumPy broadcasting: one group per output channel of a kernel [.., C] is
the grid (C,).
"""

import math
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import ml_dtypes
import numpy as np

DTYPES = (
  'float32', 'float16', 'bfloat16', 'float64', 'int8', 'int16', 'int32',
  'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'bool', 'complex64',
  'complex128', 'int4', 'uint4', 'float8_e4m3fn', 'float8_e5m2',
)  # fmt: skip
"""Element types that a file can hold; it stores the index in this list."""

FLOATS = ('float32', 'float16', 'bfloat16', 'float64')
"""Element types that quantized tensors can be converted to."""

MAX_CODEBOOK = 1 << 16


def codebook_limit(size: int) -> int:
  """Returns how many centroids a tensor of `size` elements may have in all.

  More than 16 per element compress nothing, and without a limit a file could
  claim any amount of memory.
  """
  return MAX_CODEBOOK + 16 * size


def dtype_of(name: str) -> np.dtype:
  """Returns the NumPy dtype of a name in `DTYPES`.

  >>> dtype_of('bfloat16').itemsize
  2
  """
  if name in ('bfloat16', 'int4', 'uint4') or name.startswith('float8'):
    return np.dtype(getattr(ml_dtypes, name))
  return np.dtype(name)


@dataclass(frozen=True, eq=False)
class RawTensor:
  """An array kept bit for bit, including NaN payloads and the sign of zero.

  Attributes:
    array: of any shape; its dtype is one of `DTYPES`.
  """

  array: np.ndarray

  def __post_init__(self) -> None:
    array = np.asarray(self.array)
    if array.dtype.name not in DTYPES:
      raise ValueError(f'array has dtype {array.dtype}; no file holds that')
    object.__setattr__(self, 'array', array)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the array."""
    return self.array.shape

  @property
  def dtype(self) -> str:
    """Name of the dtype of the array."""
    return self.array.dtype.name

  def to_array(self) -> np.ndarray:
    """Returns the array."""
    return self.array

  def count_nonzero(self) -> int:
    """Returns how many elements are not zero."""
    return int(np.count_nonzero(self.array))


@dataclass(frozen=True, eq=False)
class CodebookTensor:
  """Shared weights: W[i] = codebook[g(i), codes[i]], g(i) the group of i.

  If weights were pruned, entry 0 is exactly 0.0 and represents them (Han, Mao &
  Dally, arXiv 1510.00149); a ternary tensor (Zhu et al., 1612.01064) has the
  codebook (0, W_p, −W_n). Only then does sparse coding pay off; it is always
  exact.

  Attributes:
    codes: [shape] uint8 (K ≤ 256) or uint16 (K ≤ 65536), each below K.
    codebook: [K], or [*grid, K], float32, all finite.
    dtype: dtype of the array returned by `to_array`, one of `FLOATS`.

  >>> CodebookTensor(np.array([[0, 2], [1, 0]]), [0.0, -0.5, 0.25]).to_array()
  array([[ 0.  ,  0.25],
         [-0.5 ,  0.  ]], dtype=float32)
  """

  codes: np.ndarray
  codebook: np.ndarray
  dtype: str = field(default='float32', kw_only=True)

  def __post_init__(self) -> None:
    codes = _integers('codes', self.codes)
    codebook = checked_codebook(self.codebook, codes.shape)
    entries = codebook.shape[-1]
    check_codes(codes, entries)
    _check_float(self.dtype)
    narrow = np.uint8 if entries <= 256 else np.uint16
    object.__setattr__(self, 'codes', codes.astype(narrow, copy=False))
    object.__setattr__(self, 'codebook', codebook)

  @classmethod
  def along_axis(
    cls,
    codes: np.ndarray,
    codebooks: np.ndarray,
    *,
    axis: int | None,
    dtype: str = 'float32',
  ) -> 'CodebookTensor':
    """Returns a tensor with a codebook for each index of an axis.

    Args:
      codes: [shape] integers, each from 0 to K - 1.
      codebooks: [n, K], n a divisor of shape[axis], for n equal runs of
        indices; or [K] where `axis` is None.
      axis: axis of `codes`; negative ones count from the last.
      dtype: dtype of the array returned by `to_array`, one of `FLOATS`.

    >>> codes, books = np.array([[0, 1], [1, 1]]), np.array([[0, 1], [0, 5]])
    >>> CodebookTensor.along_axis(codes, books, axis=0).to_array()
    array([[0., 1.],
           [5., 5.]], dtype=float32)
    """
    books = np.asarray(codebooks)
    grid = _grid_along(np.shape(codes), axis, books.shape[:-1])
    return cls(codes, books.reshape(*grid, books.shape[-1]), dtype=dtype)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the array."""
    return self.codes.shape

  @property
  def grid(self) -> tuple[int, ...]:
    """Groups along the last axes; () for one codebook."""
    return self.codebook.shape[:-1]

  @property
  def zero_reserved(self) -> bool:
    """Whether code 0 means exactly 0.0 in every group."""
    return bool((self.codebook[..., 0] == 0).all())

  def to_array(self) -> np.ndarray:
    """Returns W, [shape] of `dtype`."""
    table = self.codebook.astype(dtype_of(self.dtype))
    if table.ndim == 1:
      return table[self.codes]
    blocked, cells = _blocked(self.shape, self.grid)
    entries = table.shape[-1]
    groups = np.arange(table.size // entries, dtype=np.int64).reshape(cells)
    flat = groups * entries + self.codes.reshape(blocked)
    return table.reshape(-1)[flat].reshape(self.shape)

  def count_nonzero(self) -> int:
    """Returns how many weights are not zero."""
    if self.grid:
      return int(np.count_nonzero(self.to_array()))
    counts = np.bincount(self.codes.reshape(-1), minlength=self.codebook.size)
    return int(counts[self.codebook != 0].sum())


@dataclass(frozen=True, eq=False)
class UniformTensor:
  """Integer levels: W[i] = float32(levels[i])·step[g(i)], in float32.

  Attributes:
    levels: [shape] int32, the weights divided by their steps.
    step: [] or [*grid] float32, finite and not negative.
    dtype: dtype of the array returned by `to_array`, one of `FLOATS`.

  >>> UniformTensor(np.array([[3, -2], [0, 1]]), [0.5, 0.25]).to_array()
  array([[ 1.5 , -0.5 ],
         [ 0.  ,  0.25]], dtype=float32)
  """

  levels: np.ndarray
  step: np.ndarray
  dtype: str = field(default='float32', kw_only=True)

  def __post_init__(self) -> None:
    levels = _integers('levels', self.levels)
    step = checked_step(self.step, levels.shape)
    bound = 1 << 31
    if levels.size and not (
      -bound <= int(levels.min()) and int(levels.max()) < bound
    ):
      raise ValueError('levels do not fit 32 bits')
    _check_float(self.dtype)
    object.__setattr__(self, 'levels', levels.astype(np.int32, copy=False))
    object.__setattr__(self, 'step', step)

  @classmethod
  def along_axis(
    cls,
    levels: np.ndarray,
    steps: np.ndarray,
    *,
    axis: int | None,
    dtype: str = 'float32',
  ) -> 'UniformTensor':
    """Returns a tensor with a step for each index of an axis.

    Args:
      levels: [shape] integers that fit int32.
      steps: [n], n a divisor of shape[axis], for n equal runs of indices; or []
        where `axis` is None.
      axis: axis of `levels`; negative ones count from the last.
      dtype: dtype of the array returned by `to_array`, one of `FLOATS`.

    >>> levels = np.eye(2, dtype=int)
    >>> UniformTensor.along_axis(levels, [2, 3], axis=0).to_array()
    array([[2., 0.],
           [0., 3.]], dtype=float32)
    """
    grid = _grid_along(np.shape(levels), axis, np.shape(steps))
    return cls(levels, np.reshape(steps, grid), dtype=dtype)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the array."""
    return self.levels.shape

  @property
  def grid(self) -> tuple[int, ...]:
    """Groups along the last axes; () for one step."""
    return self.step.shape

  def to_array(self) -> np.ndarray:
    """Returns W, [shape] of `dtype`."""
    blocked, cells = _blocked(self.shape, self.grid)
    values = self.levels.reshape(blocked).astype(np.float32)
    # A product beyond float32 would be inf: the one overflow that can occur.
    with np.errstate(over='ignore'):
      values = values * self.step.reshape(cells)
      return values.reshape(self.shape).astype(dtype_of(self.dtype))

  def count_nonzero(self) -> int:
    """Returns how many weights are not zero."""
    if not self.step.all():
      return int(np.count_nonzero(self.to_array()))
    return int(np.count_nonzero(self.levels))


Tensor: TypeAlias = RawTensor | CodebookTensor | UniformTensor


@runtime_checkable
class Shared(Protocol):
  """Codes and centroids of an array, such as a `quantization.Codebook`."""

  @property
  def codes(self) -> np.ndarray:
    """Integers, [shape]."""

  @property
  def centroids(self) -> np.ndarray:
    """[K], or [groups, K]; see `CodebookTensor.along_axis`."""

  @property
  def axis(self) -> int | None:
    """Axis of the groups."""


@runtime_checkable
class Leveled(Protocol):
  """Levels and steps of an array, such as `quantization.UniformLevels`."""

  @property
  def levels(self) -> np.ndarray:
    """Integers, [shape]."""

  @property
  def step(self) -> np.ndarray:
    """[], or [groups]; see `UniformTensor.along_axis`."""

  @property
  def axis(self) -> int | None:
    """Axis of the groups."""


Storable: TypeAlias = Tensor | Shared | Leveled | np.ndarray
"""Everything that a file can store."""


def as_tensor(value: Storable, *, dtype: str = 'float32') -> Tensor:
  """Returns a value in the form in which a file stores it.

  Args:
    value: a tensor, returned unchanged; a result of `bandwidth.quantization`;
      or an array, kept bit for bit.
    dtype: dtype of the array returned by `to_array` if `value` has codes or
      levels, one of `FLOATS`.

  Raises:
    ValueError: the dtype is not in `DTYPES`, or the values do not fit their
      codes.

  >>> from bandwidth import quantization
  >>> weights = np.float32([0.0, 0.9, 1.1])
  >>> sharing = quantization.Sharing(entries=2)
  >>> as_tensor(quantization.fit_codebook(weights, sharing)).to_array()
  array([0., 1., 1.], dtype=float32)
  """
  if isinstance(value, RawTensor | CodebookTensor | UniformTensor):
    return value
  if isinstance(value, Shared):
    return CodebookTensor.along_axis(
      value.codes, value.centroids, axis=value.axis, dtype=dtype
    )
  if isinstance(value, Leveled):
    return UniformTensor.along_axis(
      value.levels, value.step, axis=value.axis, dtype=dtype
    )
  return RawTensor(value)


def checked_codebook(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Checks the codebook of a tensor of shape `shape`; returns it as float32.

  Raises:
    ValueError: it is not finite, has no or too many entries, or its grid does
      not divide the shape.
  """
  codebook = _finite('codebook', value)
  if not codebook.ndim or not 1 <= codebook.shape[-1] <= MAX_CODEBOOK:
    raise ValueError(
      f'codebook has shape {codebook.shape}; '
      f'1 … {MAX_CODEBOOK} entries are wanted'
    )
  _check_grid('codebook', codebook.shape[:-1], shape)
  size = math.prod(shape)
  if codebook.size > codebook_limit(size):
    raise ValueError(f'codebook has {codebook.size} entries for {size} codes')
  return codebook


def check_codes(codes: np.ndarray, entries: int) -> None:
  """Raises ValueError if a code has no entry in the codebook."""
  if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < entries:
    raise ValueError(
      f'codes reach from {codes.min()} to {codes.max()}; '
      f'the codebook has {entries} entries'
    )


def checked_step(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Checks the steps of a tensor of shape `shape`; returns them as float32.

  Raises:
    ValueError: they are not finite, negative, or their grid does not divide the
      shape.
  """
  step = _finite('step', value)
  if (step < 0).any():
    raise ValueError(f'step has a negative entry, {step.min()}')
  _check_grid('step', step.shape, shape)
  return step


def _finite(name: str, value: np.ndarray) -> np.ndarray:
  array = np.asarray(value)
  if array.dtype.kind not in 'fiu' and array.dtype.name not in FLOATS:
    raise ValueError(f'{name} has dtype {array.dtype}; floats are wanted')
  with np.errstate(over='ignore'):
    array = array.astype(np.float32)
  if not np.isfinite(array).all():
    raise ValueError(f'{name} holds NaN or infinity')
  return array


def _integers(name: str, value: np.ndarray) -> np.ndarray:
  array = np.asarray(value)
  if array.dtype.kind not in 'iu':
    raise ValueError(f'{name} has dtype {array.dtype}; integers are wanted')
  return array


def _check_float(dtype: str) -> None:
  if dtype not in FLOATS:
    raise ValueError(f'dtype={dtype!r} is none of {", ".join(FLOATS)}')


def _check_grid(
  name: str, grid: tuple[int, ...], shape: tuple[int, ...]
) -> None:
  fits = len(grid) <= len(shape) and all(
    0 < parts <= max(size, 1) and size % parts == 0
    for parts, size in zip(grid[::-1], shape[::-1], strict=False)
  )
  if not fits:
    raise ValueError(
      f'{name} has the grid {grid}, which does not divide shape {shape}'
    )


def _grid_along(
  shape: tuple[int, ...], axis: int | None, groups: tuple[int, ...]
) -> tuple[int, ...]:
  if axis is not None and not -len(shape) <= axis < len(shape):
    raise ValueError(f'axis={axis} is none of shape {shape}')
  if len(groups) != (axis is not None):
    raise ValueError(f'axis={axis} is not of values that differ by {groups}')
  return groups + (1,) * (
    0 if axis is None else len(shape) - axis % len(shape) - 1
  )


def _blocked(
  shape: tuple[int, ...], grid: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Shapes (g_1, s_1/g_1, …) of the elements and (g_1, 1, …) of the groups."""
  grid = (1,) * (len(shape) - len(grid)) + grid
  pairs = list(zip(grid, shape, strict=True))
  blocked = tuple(n for parts, size in pairs for n in (parts, size // parts))
  return blocked, tuple(n for parts, _ in pairs for n in (parts, 1))
