import numpy as np
import pytest
import safetensors.numpy

from bandwidth import coding
from experiments import compress
from experiments.compression import pretrained
from experiments.compression.rate import compress_to_rate, entropy


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
    errors[name] = pretrained.relative_error(array, decoded) ** 2
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
    pretrained.relative_error(
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


def test_command_line(arrays, tmp_path, capsys):
  path, packed = tmp_path / 'm.safetensors', tmp_path / 'm.bwz'
  safetensors.numpy.save_file(arrays, path)
  arguments = [f'--input={path}', f'--output={packed}']
  assert compress.main([*arguments, '--rate=3']) == 0
  weights = sum(a.size for a in arrays.values() if a.dtype.kind == 'f')
  assert 8 * packed.stat().st_size / weights <= 3
  capsys.readouterr()
  for extra, message in (
    (['--rate=-1'], 'rate=-1.0 is not positive'),
    (['--rate=3', '--bits=4'], 'rate=3.0 goes with none of bits'),
    (['--rate=0.001'], 'rate=0.001: what is kept'),
    (['--rate=3', '--smallest=999999'], 'smallest=999999: no array'),
  ):
    assert compress.main([*arguments, *extra]) == 2
    assert message in capsys.readouterr().err


def test_not_finite():
  with pytest.raises(ValueError, match='w has elements that are not finite'):
    compress_to_rate({'w': np.full((64, 64), np.inf, np.float32)}, rate=4.0)
