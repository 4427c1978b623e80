"""Formats of the values in a sparse message.

Values come in segments, one for each unit of selection (a layer, say), and
every segment has a scale of its own: magnitudes of gradients differ between
layers by orders. What a format can't represent is for the caller to keep:
`decode(encode(x))` is what all others see.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bandwidth.base import unknown_name
from bandwidth.collectives.wire.bits import WORD, pack_bits, unpack_bits
from bandwidth.collectives.workers.ordered import pairwise_sum

Segments = tuple[int, ...]
"""Lengths of the segments; they add up to the number of values."""


class ValueFormat(NamedTuple):
  """How float32 values become bytes.

  Attributes:
    nbytes: `segments -> int`, bytes of values in segments of these lengths.
    encode: `(values, segments) -> uint8 [nbytes]`, of float32 [sum(segments)].
    decode: `(bytes, segments) -> values`.
  """

  nbytes: Callable[[Segments], int]
  encode: Callable[[jax.Array, Segments], jax.Array]
  decode: Callable[[jax.Array, Segments], jax.Array]


def value_format(name: str) -> ValueFormat:
  """Returns a format by name.

  'float32'; 'float16', scaled by a power of two for each segment so that its
  largest value is in range (2 bytes a value, relative error 2^-11); 'float8',
  sign, four bits of exponent and three of mantissa below the largest value of
  the segment (1 byte, 2^-4; what is 2^15 times smaller becomes zero); 'sign',
  the sign times the segment's mean magnitude in bfloat16 (1 bit).

  Raises:
    ValueError: the name is none of these.
  """
  if name not in _FORMATS:
    raise ValueError(unknown_name('values', name, _FORMATS))
  return _FORMATS[name]


def to_bytes(array: jax.Array) -> jax.Array:
  """Returns the bytes of an array, uint8 [n]."""
  if array.dtype == jnp.uint8:
    return array.reshape(-1)
  return lax.bitcast_convert_type(array, jnp.uint8).reshape(-1)


def from_bytes(data: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Undoes `to_bytes` for a vector of a dtype of several bytes."""
  width = jnp.dtype(dtype).itemsize
  return lax.bitcast_convert_type(data.reshape(-1, width), dtype)


def _starts(segments: Segments) -> list[int]:
  return [0, *itertools.accumulate(segments)]


def _each(values: jax.Array, segments: Segments) -> list[jax.Array]:
  return [values[a:b] for a, b in itertools.pairwise(_starts(segments))]


def _spread(scales: jax.Array, segments: Segments) -> jax.Array:
  """Repeats the scale of each segment along it."""
  # Not `jnp.repeat`: XLA folds its sums over constants, slowly.
  parts = [
    jnp.broadcast_to(scale, (length,))
    for scale, length in zip(scales, segments, strict=True)
  ]
  return jnp.concatenate(parts) if parts else scales


def _exponents(values: jax.Array, segments: Segments) -> jax.Array:
  """Exponent of the largest magnitude of each segment, int32 in [-127, 128]."""
  bits = lax.bitcast_convert_type(values, jnp.int32) & jnp.int32(0x7FFFFFFF)
  parts = _each(bits, segments)
  largest = [jnp.max(part, initial=0) for part in parts]
  return (jnp.stack(largest) >> 23) - 127


def _power_of_two(exponents: jax.Array) -> jax.Array:
  clipped = jnp.clip(exponents, -126, 127)
  return lax.bitcast_convert_type((clipped + 127) << 23, jnp.float32)


def _encode_float32(values: jax.Array, segments: Segments) -> jax.Array:
  del segments
  return to_bytes(values)


def _decode_float32(data: jax.Array, segments: Segments) -> jax.Array:
  del segments
  return from_bytes(data, jnp.float32)


def _half_shift(exponents: jax.Array) -> jax.Array:
  # The largest magnitude becomes at most 2^15.
  return jnp.clip(14 - exponents, -114, 127)


def _encode_float16(values: jax.Array, segments: Segments) -> jax.Array:
  shift = _half_shift(_exponents(values, segments))
  scaled = values * _spread(_power_of_two(shift), segments)
  # Rounded explicitly: XLA may keep excess precision between two casts.
  half = lax.reduce_precision(scaled, 5, 10).astype(jnp.float16)
  return jnp.concatenate([to_bytes(shift.astype(jnp.int8)), to_bytes(half)])


def _decode_float16(data: jax.Array, segments: Segments) -> jax.Array:
  shift, half = jnp.split(data, [len(segments)])
  shift = lax.bitcast_convert_type(shift, jnp.int8).astype(jnp.int32)
  values = from_bytes(half, jnp.float16).astype(jnp.float32)
  return values * _spread(_power_of_two(-shift), segments)


_MANTISSA = 3
_NOT_FINITE = -128


def _encode_float8(values: jax.Array, segments: Segments) -> jax.Array:
  exponents = _exponents(values, segments)
  bits = lax.bitcast_convert_type(values, jnp.int32)
  dropped = 23 - _MANTISSA
  magnitude = (bits & jnp.int32(0x7FFFFFFF)) + (1 << (dropped - 1))
  # Steps of 2^-3 relative to a power of two; a carry goes into the exponent.
  steps = (magnitude >> dropped) - _lowest(exponents, segments)
  # Infinite or NaN: the largest code, and a scale that decodes to NaN.
  code = jnp.clip(steps, 0, 127)
  sign = (bits < 0).astype(jnp.int32) << 7
  packed = (sign | code).astype(jnp.uint8)
  scale = jnp.where(exponents == 128, _NOT_FINITE, exponents)
  return jnp.concatenate([to_bytes(scale.astype(jnp.int8)), packed])


def _lowest(exponents: jax.Array, segments: Segments) -> jax.Array:
  """Step of the code zero, 127 below the power of two that bounds them all."""
  lowest = ((exponents + 128) << _MANTISSA) - 127
  return _spread(jnp.maximum(lowest, 0), segments)


def _decode_float8(data: jax.Array, segments: Segments) -> jax.Array:
  scale, packed = jnp.split(data, [len(segments)])
  exponents = lax.bitcast_convert_type(scale, jnp.int8).astype(jnp.int32)
  code = (packed & 127).astype(jnp.int32)
  steps = code + _lowest(exponents, segments)
  magnitude = lax.bitcast_convert_type(steps << (23 - _MANTISSA), jnp.float32)
  magnitude = jnp.where(code > 0, magnitude, 0.0)
  values = jnp.where(packed > 127, -magnitude, magnitude)
  return jnp.where(_spread(exponents, segments) == _NOT_FINITE, jnp.nan, values)


def _encode_sign(values: jax.Array, segments: Segments) -> jax.Array:
  parts = _each(jnp.abs(values), segments)
  scales = jnp.stack(
    [pairwise_sum(p) / p.size if p.size else jnp.float32(0) for p in parts]
  )
  # Rounded explicitly, as above; then no compiler can contract a product of
  # the scale with a sum that it goes into.
  coarse = lax.reduce_precision(scales, 8, 7).astype(jnp.bfloat16)
  return jnp.concatenate([to_bytes(coarse), to_bytes(pack_bits(values < 0))])


def _decode_sign(data: jax.Array, segments: Segments) -> jax.Array:
  scales, words = jnp.split(data, [2 * len(segments)])
  negative = unpack_bits(from_bytes(words, jnp.uint32), sum(segments))
  magnitude = _spread(
    from_bytes(scales, jnp.bfloat16).astype(jnp.float32), segments
  )
  return jnp.where(negative, -magnitude, magnitude)


def _sign_bytes(segments: Segments) -> int:
  return 2 * len(segments) + 4 * -(-sum(segments) // WORD)


def _fixed(segments: Segments, *, width: int, scale: int) -> int:
  return width * sum(segments) + scale * len(segments)


_FORMATS: dict[str, ValueFormat] = {
  'float32': ValueFormat(
    functools.partial(_fixed, width=4, scale=0),
    _encode_float32,
    _decode_float32,
  ),
  'float16': ValueFormat(
    functools.partial(_fixed, width=2, scale=1),
    _encode_float16,
    _decode_float16,
  ),
  'float8': ValueFormat(
    functools.partial(_fixed, width=1, scale=1), _encode_float8, _decode_float8
  ),
  'sign': ValueFormat(_sign_bytes, _encode_sign, _decode_sign),
}

VALUE_FORMATS: Sequence[str] = tuple(_FORMATS)
"""Names that `value_format` knows."""
