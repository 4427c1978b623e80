import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth import coding, quantization
from bandwidth.distillation import tune_shared

RNG = np.random.default_rng(0)


def apply(params, x):
  hidden = jnp.tanh(
    x @ params['first']['kernel'] + params['first']['bias'][None]
  )
  return hidden @ params['last']['kernel']


@pytest.fixture
def network():
  params = {
    'first': {'kernel': RNG.normal(size=(8, 12)), 'bias': RNG.normal(size=12)},
    'last': {'kernel': RNG.normal(size=(12, 6))},
  }
  params = {
    layer: {name: jnp.asarray(a, jnp.float32) for name, a in own.items()}
    for layer, own in params.items()
  }
  sharing = quantization.Sharing(entries=4, axis=1, reserve_zero=False)
  tensors = {}
  for layer in ('first', 'last'):
    book = quantization.fit_codebook(params[layer]['kernel'], sharing)
    tensors[f'{layer}/kernel'] = coding.CodebookTensor.along_axis(
      book.codes, book.centroids, axis=1
    )
  inputs = RNG.normal(size=(300, 20, 8)).astype(np.float32)
  return params, tensors, [(x,) for x in inputs]


def distance(params, tensors, x):
  given = {'first': {}, 'last': {}}
  for name, tensor in tensors.items():
    layer, leaf = name.split('/')
    given[layer][leaf] = jnp.asarray(tensor.to_array())
  difference = apply(given, x) - apply(params, x)
  return float(np.square(difference).sum(axis=1).mean() / 2)


def test_outputs_come_nearer_and_codes_stay(network):
  params, tensors, batches = network
  start = {**tensors, 'first/bias': coding.RawTensor(params['first']['bias'])}
  tuned = tune_shared(apply, params, tensors, batches, learning_rate=1e-2)
  assert set(tuned.tensors) == {'first/kernel', 'first/bias', 'last/kernel'}
  new = RNG.normal(size=(500, 8)).astype(np.float32)
  before = distance(params, start, new)
  assert distance(params, tuned.tensors, new) < 0.7 * before
  assert tuned.losses[0] == pytest.approx(
    distance(params, start, batches[0][0]), rel=1e-4
  )
  for name, tensor in tensors.items():
    found = tuned.tensors[name]
    assert found.grid == (tensor.shape[1],)
    # Whatever codes are called, weights that shared a value share one.
    for ours, theirs in zip(
      found.to_array().T, tensor.to_array().T, strict=True
    ):
      pairs = set(zip(ours.tolist(), theirs.tolist(), strict=True))
      assert len(pairs) == len(set(theirs.tolist()))


def test_codebooks_stay_integers(network):
  params, tensors, batches = network
  for name, tensor in tensors.items():
    scale = np.abs(tensor.codebook).max(-1, keepdims=True) / 30
    tensors[name] = coding.CodebookTensor(
      tensor.codes, np.rint(tensor.codebook / scale) * scale
    )
  options = {'learning_rate': 1e-2, 'largest': 30}
  tuned = tune_shared(apply, params, tensors, batches, **options).tensors
  new = RNG.normal(size=(500, 8)).astype(np.float32)
  start = {**tensors, 'first/bias': coding.RawTensor(params['first']['bias'])}
  assert distance(params, tuned, new) < 0.9 * distance(params, start, new)
  for name, tensor in tensors.items():
    found = tuned[name].codebook
    most = np.abs(tensor.codebook).max(-1)
    np.testing.assert_allclose(np.abs(found).max(-1), most, rtol=1e-6)
    integers = found / most[:, None] * 30
    np.testing.assert_allclose(integers, np.rint(integers), atol=1e-4)
    assert not np.array_equal(found, tensor.codebook)


def test_what_has_no_codebook_of_outputs_stays(network):
  params, tensors, batches = network
  tensors['last/kernel'] = coding.CodebookTensor(
    tensors['last/kernel'].codes, np.float32([0.1, 0.2, 0.3, 0.4])
  )
  tuned = tune_shared(apply, params, tensors, batches[:3])
  assert tuned.tensors['last/kernel'] is tensors['last/kernel']
  assert tuned.losses.shape == (3,)


def test_bad_arguments(network):
  params, tensors, batches = network
  with pytest.raises(ValueError, match='batches are empty'):
    tune_shared(apply, params, tensors, [])
  with pytest.raises(ValueError, match='learning_rate=0 is not positive'):
    tune_shared(apply, params, tensors, batches, learning_rate=0)
  tensors['middle/kernel'] = tensors['last/kernel']
  with pytest.raises(ValueError, match='tensors: middle/kernel is no param'):
    tune_shared(apply, params, tensors, batches)
