"""Options of a layer: prefixes of one factorization against least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.pruning import ChannelAxis, ChannelGroup
from bandwidth.search.decisions import options

N, CHANNELS, TAPS, OUTPUTS = 400, 6, 4, 3


@pytest.fixture(name='layer')
def make_layer():
  rng = np.random.default_rng(0)
  mixing = rng.normal(size=(CHANNELS * TAPS, CHANNELS * TAPS))
  rows = rng.normal(size=(N, CHANNELS * TAPS)) @ mixing / 5 + 1.5
  kernel = rng.normal(size=(2, 2, CHANNELS, OUTPUTS)).astype('f4')
  return rows.astype('f4'), kernel


def group_of(kernel):
  part = ChannelAxis(name='b/kernel', axis=-2)
  return ChannelGroup(
    name='a',
    channels=kernel.shape[-2],
    outputs=(ChannelAxis(name='a/kernel', axis=-1),),
    inputs=(part,),
  )


def in_numpy(rows, kernel, kept, ridge, *, intercept):
  """Ridge regression on the kept channels: float64 (kernel, shift, error)."""
  x = rows.astype('f8')
  matrix = kernel.astype('f8').reshape(TAPS, CHANNELS, OUTPUTS)
  matrix = matrix.transpose(1, 0, 2).reshape(-1, OUTPUTS)
  y = x @ matrix
  x_mean = x.mean(0) * intercept
  y_mean = y.mean(0) * intercept
  x, y = x - x_mean, y - y_mean
  penalty = ridge * np.sum(x**2) / x.shape[1]
  columns = [c * TAPS + t for c in kept for t in range(TAPS)]
  part = np.concatenate(
    [x[:, columns], np.sqrt(penalty) * np.eye(len(columns))]
  )
  target = np.concatenate([y, np.zeros((len(columns), OUTPUTS))])
  weights = np.linalg.lstsq(part, target, rcond=None)[0]
  left = np.sum((part @ weights - target) ** 2) / np.sum(y**2)
  full = np.zeros((CHANNELS, TAPS, OUTPUTS))
  full[kept] = weights.reshape(len(kept), TAPS, OUTPUTS)
  shift = y_mean - x_mean[columns] @ weights
  shape = (2, 2, CHANNELS, OUTPUTS)
  return full.transpose(1, 0, 2).reshape(shape), shift, left


@pytest.mark.parametrize('intercept', [False, True])
def test_every_prefix_is_a_least_squares_fit(layer, intercept):
  rows, kernel = layer
  tree = {'a': {'kernel': np.ones((1, CHANNELS))}, 'b': {'kernel': kernel}}
  group = group_of(kernel)
  channels = options.channel_order(tree, group)
  np.testing.assert_array_equal(
    channels, np.argsort(-np.abs(kernel).sum((0, 1, 3)))
  )
  order = options.row_order(tree, group, group.inputs[0], channels)
  factor = options.factorize(
    jnp.asarray(kernel),
    jnp.asarray(order),
    options.moments(jnp.asarray(rows)),
    ridge=1e-3,
    intercept=intercept,
  )
  table = jax.jit(
    lambda: options.option_table(
      factor,
      np.arange(1, CHANNELS + 1),
      kernel.shape,
      all_channels=CHANNELS,
    )
  )()
  for i in range(CHANNELS - 1):
    kept = channels[: i + 1]
    wanted, shift, error = in_numpy(
      rows, kernel, kept, 1e-3, intercept=intercept
    )
    np.testing.assert_allclose(table.kernel[i], wanted, atol=2e-3)
    np.testing.assert_allclose(table.shift[i], shift, atol=2e-3)
    np.testing.assert_allclose(table.error[i], error, atol=1e-4)
    gone = np.setdiff1d(np.arange(CHANNELS), kept)
    assert not np.asarray(table.kernel[i])[:, :, gone].any()
  np.testing.assert_array_equal(table.kernel[-1], kernel)
  np.testing.assert_allclose(table.shift[-1], 0, atol=1e-5)
  assert np.all(np.diff(table.error) <= 0)


def test_without_a_refit_weights_stay_and_means_move(layer):
  rows, kernel = layer
  order = jnp.arange(CHANNELS * TAPS)
  factor = options.factorize(
    jnp.asarray(kernel), order, options.moments(jnp.asarray(rows))
  )
  kept = options.option(factor, 2 * TAPS, kernel.shape, refit=False)
  np.testing.assert_array_equal(kept.kernel[:, :, :2], kernel[:, :, :2])
  assert not np.asarray(kept.kernel)[:, :, 2:].any()
  matrix = kernel.reshape(TAPS, CHANNELS, OUTPUTS).transpose(1, 0, 2)
  lost = rows.mean(0)[2 * TAPS :] @ matrix[2:].reshape(-1, OUTPUTS)
  np.testing.assert_allclose(kept.shift, lost, rtol=1e-4)


def test_dead_inputs_can_be_factored(layer):
  rows, kernel = layer
  rows = rows.copy()
  rows[:, TAPS : 3 * TAPS] = 0
  factor = options.factorize(
    jnp.asarray(kernel),
    jnp.arange(CHANNELS * TAPS),
    options.moments(jnp.asarray(rows)),
  )
  for count in range(1, CHANNELS + 1):
    made = options.option(factor, count * TAPS, kernel.shape)
    assert np.isfinite(made.kernel).all()


def test_flattened_channels_keep_their_rows():
  # A dense layer after [height * width = 2, channels = 3], channels fastest.
  kernel = np.arange(12.0).reshape(6, 2)
  tree = {'a': {'kernel': np.ones((1, 3))}, 'b': {'kernel': kernel}}
  group = ChannelGroup(
    name='a',
    channels=3,
    outputs=(ChannelAxis(name='a/kernel', axis=-1),),
    inputs=(ChannelAxis(name='b/kernel', axis=-2, period=3),),
  )
  channels = options.channel_order(tree, group)
  assert channels.tolist() == [2, 1, 0]
  order = options.row_order(tree, group, group.inputs[0], channels)
  assert order.tolist() == [2, 5, 1, 4, 0, 3]


def test_a_join_that_cannot_be_refitted_is_named():
  tree = {'a': {'kernel': np.ones((1, 3))}, 'b': {'kernel': np.ones((5, 2))}}
  group = ChannelGroup(
    name='a',
    channels=3,
    outputs=(ChannelAxis(name='a/kernel', axis=-1),),
    inputs=(ChannelAxis(name='b/kernel', axis=-2, period=5),),
  )
  with pytest.raises(ValueError, match='b/kernel: it reads 5 inputs, and 3'):
    options.row_order(tree, group, group.inputs[0], np.arange(3))


def test_a_candidate_is_put_into_the_network():
  variables = {
    'params': {'b': {'kernel': jnp.zeros((2, 2))}},
    'batch_stats': {'n': {'mean': jnp.ones(2)}},
  }
  part = ChannelAxis(name='params/b/kernel', axis=-2)
  reader = options.Reader('params/b/kernel', part, 'batch_stats/n/mean', -1.0)
  table = options.Option(
    kernel=jnp.stack([jnp.full((2, 2), 1.0), jnp.full((2, 2), 2.0)]),
    shift=jnp.array([[0.5, 0.25], [0.0, 0.0]]),
    error=jnp.array([0.5, 0.0]),
  )
  put = options.with_options(variables, [(0, reader)], [table], jnp.array([0]))
  np.testing.assert_array_equal(put['params']['b']['kernel'], 1.0)
  np.testing.assert_array_equal(put['batch_stats']['n']['mean'], [0.5, 0.75])


def test_constant_inputs_can_be_factored(layer):
  _, kernel = layer
  rng = np.random.default_rng(1)
  rows = 3 + 1e-7 * rng.normal(size=(N, CHANNELS * TAPS)).astype('f4')
  factor = options.factorize(
    jnp.asarray(kernel),
    jnp.arange(CHANNELS * TAPS),
    options.moments(jnp.asarray(rows)),
  )
  made = options.option(factor, 3 * TAPS, kernel.shape)
  assert np.isfinite(made.kernel).all()
  # What the lost channels gave was a constant.
  matrix = np.asarray(options.to_matrix(jnp.asarray(kernel)))
  fitted = np.asarray(options.to_matrix(made.kernel))
  lost = 3 * (matrix - fitted).sum(0)
  np.testing.assert_allclose(made.shift, lost, rtol=1e-3, atol=1e-3)
