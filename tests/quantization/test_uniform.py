import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth.quantization.uniform import (
  Calibration,
  Grid,
  UniformLevels,
  affine,
  export_levels,
  fake_quantize,
  least_squares,
  quantize_params,
  symmetric,
  uniform_params,
)

BITS4 = Grid(bits=4)


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_grids():
  assert (Grid(bits=8).low, Grid(bits=8).high) == (-128, 127)
  grid = Grid(bits=3, signed=False)
  assert (grid.low, grid.high) == (0, 7)


@settings(max_examples=40, deadline=None)
@given(
  st.lists(st.floats(-1e3, 1e3, width=32), min_size=9, max_size=9),
  st.sampled_from([2, 5, 8]),
)
def test_range_fits_bound_the_error(points, bits):
  values = jnp.array(points, jnp.float32)
  for calibrate, grid in [
    (symmetric, Grid(bits=bits)),
    (affine, Grid(bits=bits, signed=False)),
  ]:
    tensor = export_levels(values, calibrate(values, grid), grid)
    error = np.abs(tensor.decode() - np.asarray(values))
    # An affine grid's whole zero point may shift its ends by half a step.
    assert error.max() <= tensor.step * (1 + 1e-3)
    assert np.ptp(tensor.levels.astype(int)) < 2**bits
    np.testing.assert_array_equal(tensor.levels[np.array(points) == 0], 0)


def test_channels_have_steps_of_their_own():
  values = normal((4, 6, 3)) * np.array([1.0, 100.0, 0.01], np.float32)
  grid = Grid(bits=8, axis=-1)
  tensor = export_levels(
    jnp.asarray(values), symmetric(jnp.asarray(values), grid), grid
  )
  np.testing.assert_allclose(
    tensor.step, np.abs(values).max((0, 1)) / 127, rtol=1e-6
  )
  error = np.abs(tensor.decode() - values).max((0, 1))
  assert (error <= tensor.step * 0.501).all()


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_least_squares_beats_a_fine_search(bits):
  values = normal(2000)
  grid = Grid(bits=bits)
  step = float(least_squares()(jnp.asarray(values), grid).step)

  def error(step):
    whole = np.clip(np.rint(values / step), grid.low, grid.high)
    return ((whole * step - values) ** 2).sum()

  widest = np.abs(values).max() / grid.high
  best = min(error(widest * f) for f in np.linspace(0.005, 1, 400))
  assert error(step) <= best * 1.05
  assert error(step) <= error(widest)


def test_gradient_stops_outside_the_range():
  calibration = Calibration(jnp.float32(0.5), jnp.float32(0))
  grid = Grid(bits=2)
  values = jnp.array([-1.0, -1.3, 0.2, 0.5, 0.8])
  value, pullback = jax.vjp(
    lambda x: fake_quantize(x, calibration, grid=grid), values
  )
  np.testing.assert_array_equal(value, [-1, -1, 0, 0.5, 0.5])
  np.testing.assert_array_equal(pullback(jnp.ones(5))[0], [1, 0, 1, 1, 0])


def test_relu_outputs_use_all_unsigned_levels():
  values = jax.nn.relu(jnp.asarray(normal((8, 500))))
  grid = Grid(bits=4, signed=False)
  rounded = jax.jit(lambda x: fake_quantize(x, symmetric(x, grid), grid=grid))(
    values
  )
  assert len(np.unique(rounded)) == 16


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_export_decodes_to_the_network(dtype):
  params = {'a': jnp.asarray(normal((5, 4)), dtype), 'b': jnp.ones(3, dtype)}
  rules = [('a', Grid(bits=4, signed=False, axis=1)), ('b', None)]
  uniform = uniform_params(rules, calibrator=affine)
  variables = uniform.init(params)
  decoded, exported = uniform.decode(variables), uniform.export(variables)
  assert set(exported) == {'a'}
  ours = jnp.asarray(exported['a'].decode()).astype(dtype)
  np.testing.assert_array_equal(ours, decoded['a'])


def test_wide_levels():
  tensor = quantize_params({'w': jnp.array([1.0, -0.5])}, [('w', 16)])['w']
  assert tensor.levels.dtype == np.int16


@pytest.mark.parametrize('shape', [(), (0,), (0, 3), (3, 0)])
def test_odd_shapes(shape):
  params = {'w': jnp.zeros(shape)}
  for axis in [None, *range(len(shape))]:
    tensor = quantize_params(params, [('w', Grid(bits=4, axis=axis))])['w']
    assert tensor.decode().shape == shape


@pytest.mark.parametrize('bits', [1, 17])
def test_bad_bits(bits):
  with pytest.raises(ValueError, match=f'bits={bits}'):
    uniform_params([('.*', bits)])


def test_bad_arguments():
  with pytest.raises(ValueError, match="'w' has 'four'"):
    uniform_params([('w', 'four')])
  with pytest.raises(ValueError, match='candidates=0'):
    least_squares(candidates=0)
  with pytest.raises(ValueError, match='a/w: values must be finite'):
    quantize_params({'a': {'w': jnp.array([jnp.inf])}}, [('.*', 4)])
  with pytest.raises(ValueError, match='axis=2'):
    symmetric(jnp.ones(2), Grid(bits=4, axis=2))


@pytest.mark.parametrize(
  ('levels', 'step', 'axis', 'match'),
  [
    (np.zeros(2), np.float32(1), None, 'levels.dtype'),
    (np.zeros(2, np.int8), np.float32(0), None, 'positive'),
    (np.zeros(2, np.int8), np.float32(np.nan), None, 'positive'),
    (np.zeros(2, np.int8), np.ones(3, np.float32), 0, r'not float32 \(2,\)'),
  ],
)
def test_invariants(levels, step, axis, match):
  with pytest.raises(ValueError, match=match):
    UniformLevels(levels=levels, step=np.asarray(step), axis=axis)


def test_the_greatest_weight_keeps_its_gradient():
  # max / (max / 7) is not 7 for every float.
  for top in np.linspace(0.1, 3, 50, dtype=np.float32):
    values = jnp.array([top, -0.05])
    grads = jax.grad(
      lambda x: fake_quantize(x, symmetric(x, BITS4), grid=BITS4).sum()
    )(values)
    np.testing.assert_array_equal(grads, [1, 1])
