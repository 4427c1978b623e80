"""Formats of values: what comes back, and in how many bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.collectives import value_format

SEGMENTS = (30, 0, 1, 200)
BYTES = {
  'float32': 4 * 231,
  'float16': 2 * 231 + 4,
  'float8': 231 + 4,
  'sign': 4 * 8 + 2 * 4,
}


def values(seed=0):
  rng = np.random.default_rng(seed)
  scale = np.repeat([1e-30, 1.0, 3e20], [30, 1, 200])
  return (rng.normal(size=231) * scale).astype(np.float32)


def through(name, x, segments=SEGMENTS):
  form = value_format(name)
  data = jax.jit(form.encode, static_argnums=1)(jnp.asarray(x), segments)
  assert data.dtype == jnp.uint8
  assert data.size == form.nbytes(segments)
  return np.asarray(jax.jit(form.decode, static_argnums=1)(data, segments))


@pytest.mark.parametrize('name', sorted(BYTES))
def test_bytes(name):
  assert value_format(name).nbytes(SEGMENTS) == BYTES[name]
  assert through(name, values()).shape == (231,)


@pytest.mark.parametrize(
  ('name', 'error', 'floor'),
  [
    ('float32', 0, 0),
    ('float16', 2.0**-11, 2.0**-28),
    ('float8', 1 / 16, 2.0**-14),
  ],
)
def test_relative_error(name, error, floor):
  x, start = values(), 0
  out = through(name, x)
  for length in SEGMENTS:
    part, got = x[start : start + length], out[start : start + length]
    start += length
    if length:
      bound = np.abs(part) * error + np.abs(part).max() * floor
      assert (np.abs(got - part) <= bound).all()


def test_sign_is_the_mean_magnitude():
  x = np.array([1.0, -2.0, 3.0, -10.0], np.float32)
  np.testing.assert_array_equal(
    through('sign', x, (3, 1)), np.float32([2, -2, 2, -10])
  )


@pytest.mark.parametrize('name', sorted(BYTES))
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_stays_so(name, bad):
  x = np.array([1.0, bad, 2.0], np.float32)
  assert not np.isfinite(through(name, x, (3,))).all()


@pytest.mark.parametrize('name', sorted(BYTES))
def test_zeros(name):
  np.testing.assert_array_equal(through(name, np.zeros(5), (2, 3)), np.zeros(5))


def test_decoded_values_code_to_themselves():
  for name in ('float16', 'float8'):
    once = through(name, values())
    np.testing.assert_array_equal(through(name, once), once)


def test_unknown_format():
  with pytest.raises(ValueError, match="values='float61' is unknown"):
    value_format('float61')
