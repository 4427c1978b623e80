"""What weights are shrunk with today: fp16, int8 and 4 bits, plain or zstd.

The rows that a compressed file is measured against. Each is a real blob in the
safetensors format with every array of a network in it. As where weights are
loaded into a network, names and shapes are the network's and not the blob's.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import zstandard

from bandwidth import quantization

Arrays = Mapping[str, np.ndarray]

ENTRIES = 16
"""Entries of a codebook, whose codes take 4 bits."""

ZSTD_LEVEL = 19
"""The highest that needs no more memory to decompress than usual."""

_SCALES, _CODES, _CENTROIDS = ':scales', ':codes', ':centroids'


class Baseline(NamedTuple):
  """One row."""

  # 'fp16', 'int8 per channel', '4-bit k-means', or one of these with ' + zstd
  # 19'.
  name: str
  bytes: int  # of the blob, header and all
  # What the blob decodes to: float32 where the array was of floats, its own
  # dtype elsewhere.
  arrays: dict[str, np.ndarray]


class _Format(NamedTuple):
  """How an array becomes the entries of a blob, and back."""

  encode: Callable[[str, np.ndarray], dict[str, np.ndarray]]
  decode: Callable[[str, Arrays, tuple[int, ...]], np.ndarray]


def baselines(arrays: Arrays, *, axis: int = -1) -> list[Baseline]:
  """Returns the six rows of a network.

  Arrays of integers keep their bits everywhere, and those of fewer than two
  axes stay float32 but for fp16; an array that float16 cannot hold stays
  float32 there too. int8 has a float32 scale for each output channel, the
  greatest magnitude / 127. 4-bit codes are packed two a byte, with 16 float32
  centroids an array, those of least squared error.

  Args:
    arrays: by name, finite, of any shape; floats are taken as float32.
    axis: of the output channels: -1 for kernels [.., out], as Flax has them, 0
      for [out, ..], as PyTorch has them.

  Raises:
    ValueError: an array has elements that are not finite, or lacks the axis.
  """
  checked = {name: _checked(name, array) for name, array in arrays.items()}
  formats = {
    'fp16': _Format(_to_half, _plain),
    'int8 per channel': _int8(axis),
    '4-bit k-means': _Format(_to_codes, _from_codes),
  }
  rows = []
  for name, pair in formats.items():
    blob = _encode(checked, pair)
    decoded = _decode(blob, checked, pair)
    rows.append(Baseline(name, len(blob), decoded))
    packed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(blob)
    whole = zstandard.ZstdDecompressor().decompress(packed)
    decoded = _decode(whole, checked, pair)
    label = f'{name} + zstd {ZSTD_LEVEL}'
    rows.append(Baseline(label, len(packed), decoded))
  return rows


def _checked(name: str, array: np.ndarray) -> np.ndarray:
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return np.array(array, order='C')
  array = np.array(array, np.float32, order='C')
  if not np.isfinite(array).all():
    raise ValueError(f'arrays: {name} has elements that are not finite')
  return array


def _encode(arrays: Arrays, pair: _Format) -> bytes:
  entries: dict[str, np.ndarray] = {}
  for name, array in arrays.items():
    parts = {name: array} if array.dtype.kind != 'f' else {}
    for key, part in (parts or pair.encode(name, array)).items():
      if key in entries:
        raise ValueError(f'arrays: two would be stored as {key!r}')
      entries[key] = part
  return safetensors.numpy.save(entries)


def _decode(blob: bytes, like: Arrays, pair: _Format) -> dict[str, np.ndarray]:
  """Decodes a blob for a network whose arrays have these shapes and dtypes."""
  entries = safetensors.numpy.load(blob)
  return {
    name: pair.decode(name, entries, array.shape)
    if array.dtype.kind == 'f'
    else entries[name]
    for name, array in like.items()
  }


def _to_half(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
  fits = np.abs(array).max(initial=0) <= np.finfo(np.float16).max
  return {name: array.astype(np.float16) if fits else array}


def _plain(name: str, entries: Arrays, shape: tuple[int, ...]) -> np.ndarray:
  return entries[name].astype(np.float32).reshape(shape)


def _int8(axis: int) -> _Format:
  def encode(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    if array.ndim < 2:
      return {name: array}
    if not -array.ndim <= axis < array.ndim:
      raise ValueError(f'axis={axis} is outside {name}, {array.shape}')
    rest = tuple(np.delete(np.arange(array.ndim), axis))
    top = np.abs(array).max(rest, keepdims=True, initial=0)
    scales = np.where(top > 0, top / np.float32(127), np.float32(1))
    # The least denormals divided by 127 are zero.
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    levels = np.clip(np.rint(array / scales), -127, 127).astype(np.int8)
    return {name: levels, name + _SCALES: scales.reshape(-1)}

  def decode(name: str, entries: Arrays, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) < 2:
      return entries[name]
    along = np.ones(len(shape), int)
    along[axis] = shape[axis]
    scales = entries[name + _SCALES].reshape(along)
    return entries[name].astype(np.float32) * scales

  return _Format(encode, decode)


def _to_codes(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
  if array.ndim < 2:
    return {name: array}
  fit = quantization.fit_codebook(
    array,
    quantization.Sharing(entries=ENTRIES, reserve_zero=False),
    solver=quantization.exact_kmeans(),
  )
  codes = np.append(fit.codes.reshape(-1), np.zeros(array.size % 2, np.uint8))
  packed = codes[::2] | codes[1::2] << 4
  return {name + _CODES: packed, name + _CENTROIDS: fit.centroids}


def _from_codes(
  name: str, entries: Arrays, shape: tuple[int, ...]
) -> np.ndarray:
  if len(shape) < 2:
    return entries[name]
  packed = entries[name + _CODES]
  codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)
  size = math.prod(shape)
  return entries[name + _CENTROIDS][codes[:size]].reshape(shape)
