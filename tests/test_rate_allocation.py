import numpy as np
import pytest

from bandwidth import coding
from bandwidth.quantization import Sensitivity
from bandwidth.rate_allocation import (
  compress_calibrated,
  compress_to_rate,
  entropy,
)


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {
    'large.weight': rng.laplace(size=(400, 96)).astype(np.float32),
    'small.weight': 0.01 * rng.normal(size=(96, 64)).astype(np.float32),
    'zero.weight': np.zeros((64, 64), np.float32),
    'half.weight': rng.normal(size=(64, 64)).astype(np.float16),
    'bias': rng.normal(size=64).astype(np.float32),
    'ids': np.arange(2048).reshape(2, 1024),
  }


def file_bits(tensors, arrays):
  weights = sum(a.size for a in arrays.values() if a.dtype.kind == 'f')
  return 8 * len(coding.encode(tensors)) / weights


def relative_error(array, decoded):
  return np.linalg.norm(array - decoded) / np.linalg.norm(array)


@pytest.mark.parametrize('rate', [6.0, 3.0])
def test_the_file_has_the_rate_and_no_more(arrays, rate):
  bits = file_bits(compress_to_rate(arrays, rate=rate), arrays)
  assert 0.95 * rate <= bits <= rate


def test_small_arrays_get_more_bits_whatever_their_scale(arrays):
  tensors = compress_to_rate(arrays, rate=3.0)
  errors, bits = {}, {}
  for name in ('large.weight', 'small.weight'):
    array = arrays[name]
    decoded = tensors[name].to_array()
    errors[name] = relative_error(array, decoded) ** 2
    bits[name] = entropy(tensors[name].levels)
  # One Lagrangian: a bit buys the same in both, so D goes with the size.
  sizes = 400 * 96 / (96 * 64)
  ratio = errors['large.weight'] / errors['small.weight']
  assert ratio == pytest.approx(sizes, rel=0.4)
  assert bits['small.weight'] > bits['large.weight']


def test_rest_is_kept_and_types_stay(arrays):
  tensors = compress_to_rate(arrays, rate=4.0)
  for name, array in arrays.items():
    decoded = tensors[name].to_array()
    assert decoded.dtype == array.dtype
    if name in ('bias', 'ids', 'zero.weight'):
      np.testing.assert_array_equal(decoded, array)


def test_more_bits_less_error(arrays):
  errors = [
    relative_error(
      arrays['large.weight'],
      compress_to_rate(arrays, rate=rate)['large.weight'].to_array(),
    )
    for rate in (3.0, 5.0)
  ]
  # Two bits are a quarter of the error, on a fine grid.
  assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)


def test_entropy_against_the_gaussian():
  step = 0.1
  levels = np.rint(np.random.default_rng(0).normal(size=2**15) / step)
  exact = 0.5 * np.log2(2 * np.pi * np.e) - np.log2(step)
  assert entropy(levels.astype(int)) == pytest.approx(exact, abs=0.02)


def test_not_finite():
  with pytest.raises(ValueError, match='w has elements that are not finite'):
    compress_to_rate({'w': np.full((64, 64), np.inf, np.float32)}, rate=4.0)


@pytest.mark.parametrize('rate', [0.0, -1.0, np.nan, np.inf])
def test_rates_that_are_none(arrays, rate):
  with pytest.raises(ValueError, match=f'rate={rate} is not positive'):
    compress_to_rate(arrays, rate=rate)


@pytest.fixture
def calibrated(arrays):
  """Arrays, and sensitivities of two that take inputs of few directions."""
  rng = np.random.default_rng(1)
  del arrays['ids']
  sensitivities = {}
  for name in ('large.weight', 'small.weight'):
    rows, columns = arrays[name].shape
    inputs = rng.normal(size=(200, 8)) @ rng.normal(size=(8, columns))
    sensitivities[name] = Sensitivity(inputs.T @ inputs / 200, np.ones(rows))
  return arrays, sensitivities


def test_calibrated_files_cost_less_at_the_same_rate(calibrated):
  arrays, sensitivities = calibrated
  made = {
    'data': compress_calibrated(arrays, sensitivities, rate=3.5),
    'none': compress_to_rate(arrays, rate=3.5),
  }
  costs = {}
  for way, tensors in made.items():
    assert file_bits(tensors, arrays) <= 3.5
    errors = {n: arrays[n] - tensors[n].to_array() for n in sensitivities}
    costs[way] = sum(
      np.einsum('ij,jk,ik', error, sensitivities[name].hessian, error)
      for name, error in errors.items()
    )
  assert costs['data'] < costs['none'] / 2
  np.testing.assert_array_equal(made['data']['bias'].to_array(), arrays['bias'])


def test_calibration_of_other_arrays(calibrated):
  arrays, sensitivities = calibrated
  odd = {'lage.weight': sensitivities['large.weight']}
  with pytest.raises(
    ValueError, match=r"sensitivities='lage\.weight' is unknown"
  ):
    compress_calibrated(arrays, odd, rate=3.0)
  odd = {'small.weight': sensitivities['large.weight']}
  with pytest.raises(ValueError, match=r'shape=\(96, 64\): its sensitivity is'):
    compress_calibrated(arrays, odd, rate=3.0)
  integers = {'ids': np.arange(9)}
  with pytest.raises(ValueError, match='none of them has elements that are'):
    compress_calibrated(integers, {}, rate=3.0)
