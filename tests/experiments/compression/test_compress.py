import pathlib

import numpy as np
import pytest
import safetensors.numpy

from bandwidth import coding
from experiments import compress
from experiments.compression import pretrained


@pytest.fixture
def weights(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    'a.weight': rng.laplace(size=(200, 64)).astype(np.float32),
    'b.weight': rng.normal(size=(64, 32)).astype(np.float16),
    'b.bias': rng.normal(size=32).astype(np.float32),
    'ids': np.arange(2048).reshape(2, 1024),
  }
  path = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file(arrays, path)
  return arrays, path


def run(source, target, *arguments):
  return compress.main(
    [f'--input={source}', f'--output={target}', *map(str, arguments)]
  )


def test_round_trip_keeps_what_is_small_and_shares_what_is_large(
  weights, tmp_path, capsys
):
  arrays, path = weights
  packed, back = tmp_path / 'm.bwz', tmp_path / 'back.safetensors'
  assert run(path, packed, '--bits=4') == 0
  assert run(packed, back) == 0
  restored = safetensors.numpy.load_file(back)
  assert set(restored) == set(arrays)
  for name in ('b.bias', 'ids'):
    np.testing.assert_array_equal(restored[name], arrays[name])
  for name in ('a.weight', 'b.weight'):
    assert restored[name].dtype == arrays[name].dtype
    assert len(np.unique(restored[name])) <= 16
    assert pretrained.relative_error(arrays[name], restored[name]) < 0.2
  out = capsys.readouterr().out
  assert f'{packed.stat().st_size:,} bytes on disk' in out


def test_sparsity_is_exact_and_smaller(weights, tmp_path):
  arrays, path = weights
  sizes = []
  for sparsity in (0.0, 0.9):
    target = tmp_path / 'm.bwz'
    assert run(path, target, '--bits=4', f'--sparsity={sparsity}') == 0
    sizes.append(target.stat().st_size)
  kept = np.count_nonzero(coding.read_arrays(target)['a.weight'])
  assert kept == round(0.1 * arrays['a.weight'].size)
  assert sizes[1] < sizes[0]


@pytest.mark.parametrize('tolerance', [0.3, 0.05])
def test_tolerance_bounds_every_error_with_no_bit_to_spare(
  weights, tmp_path, tolerance
):
  arrays, path = weights
  target = tmp_path / 'm.bwz'
  assert run(path, target, f'--tolerance={tolerance}') == 0
  decoded = coding.read_arrays(target)
  for name in ('a.weight', 'b.weight'):
    assert pretrained.relative_error(arrays[name], decoded[name]) <= tolerance
    entries = len(np.unique(decoded[name]))
    coarser = pretrained.compress_array(
      name,
      arrays[name],
      sparsity=0.0,
      bits=int(np.ceil(np.log2(entries))) - 1,
      tolerance=None,
    )
    error = pretrained.relative_error(arrays[name], coarser.to_array())
    assert error > tolerance


def test_pytorch_state_dictionary(weights, tmp_path):
  torch = pytest.importorskip('torch')
  arrays, _ = weights
  path = tmp_path / 'model.pth'
  torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path)
  assert run(path, tmp_path / 'm.bwz') == 0
  decoded = coding.read_arrays(tmp_path / 'm.bwz')
  np.testing.assert_array_equal(decoded['b.bias'], arrays['b.bias'])


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--bits=9'], 'bits=9 is not in 1 to 8'),
    (['--bits=0'], 'bits=0 is not in 1 to 8'),
    (['--sparsity=1.5'], 'sparsity=1.5 is not in [0, 1)'),
    (['--tolerance=-1'], 'tolerance=-1.0 is not positive'),
    (['--tolerance=1e-9'], 'tolerance=1e-09: a.weight has a relative error'),
    (['--smallest=999999'], 'smallest=999999: no array'),
  ],
)
def test_bad_arguments_leave_the_old_file(
  weights, tmp_path, capsys, arguments, message
):
  target = tmp_path / 'm.bwz'
  target.write_bytes(b'old')
  assert run(weights[1], target, *arguments) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1
  assert lines[0].startswith('compress: error: ')
  assert message in lines[0]
  assert target.read_bytes() == b'old'


def test_bad_files(weights, tmp_path, capsys):
  _, path = weights
  bad = tmp_path / 'bad.safetensors'
  bad.write_bytes(path.read_bytes()[:100])
  nan = tmp_path / 'nan.safetensors'
  safetensors.numpy.save_file({'w': np.full((64, 64), np.nan)}, nan)
  cases = {
    (bad, 'm.bwz'): 'malformed',
    (nan, 'm.bwz'): 'w has elements that are not finite',
    (tmp_path / 'no.safetensors', 'm.bwz'): 'is not there',
    (pathlib.Path(__file__), 'm.bwz'): 'none of the suffixes',
    (path, 'm.npz'): 'none of the suffixes',
    (path, 'm.safetensors'): 'one of the two must be a .bwz',
  }
  for (source, target), message in cases.items():
    assert run(source, tmp_path / target) == 2
    assert message in capsys.readouterr().err
  truncated = tmp_path / 'm.bwz'
  assert run(path, truncated) == 0
  truncated.write_bytes(truncated.read_bytes()[:-9])
  assert run(truncated, tmp_path / 'out.safetensors') == 2
  assert not (tmp_path / 'out.safetensors').exists()


def test_files_of_a_rate(weights, tmp_path, capsys):
  arrays, path = weights
  packed = tmp_path / 'm.bwz'
  assert run(path, packed, '--rate=3') == 0
  count = sum(a.size for a in arrays.values() if a.dtype.kind == 'f')
  assert 8 * packed.stat().st_size / count <= 3
  capsys.readouterr()
  for extra, message in (
    (['--rate=-1'], 'rate=-1.0 is not positive'),
    (['--rate=3', '--bits=4'], 'rate=3.0 goes with none of bits'),
    (['--rate=0.001'], 'rate=0.001: what is kept'),
    (['--rate=3', '--smallest=999999'], 'smallest=999999: no array'),
  ):
    assert run(path, packed, *extra) == 2
    assert message in capsys.readouterr().err
