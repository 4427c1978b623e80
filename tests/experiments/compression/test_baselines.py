import json
import struct

import numpy as np
import pytest

from experiments.compression import baselines
from experiments.compression.baselines import Baseline

NAMES = ['fp16', 'int8 per channel', '4-bit k-means']


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {
    'kernel': rng.normal(size=(3, 3, 7, 5)).astype(np.float32),
    'odd': rng.laplace(size=(3, 7)).astype(np.float32),
    'bias': rng.normal(size=5).astype(np.float32),
    'scalar': np.array(rng.normal(), np.float32),
    'ids': np.arange(6).reshape(2, 3),
  }


def by_name(rows: list[Baseline]) -> dict[str, Baseline]:
  return {row.name: row for row in rows}


def header_bytes(entries: dict[str, tuple[str, tuple[int, ...]]]) -> int:
  """The safetensors format: 8 bytes, JSON padded to 8, then the data."""
  sizes = {'F16': 2, 'F32': 4, 'I8': 1, 'U8': 1, 'I64': 8}
  header, at = {}, 0
  order = sorted(entries, key=lambda name: (-sizes[entries[name][0]], name))
  for name in order:
    dtype, shape = entries[name]
    end = at + sizes[dtype] * int(np.prod(shape, dtype=int))
    header[name] = {
      'dtype': dtype,
      'shape': list(shape),
      'data_offsets': [at, end],
    }
    at = end
  text = json.dumps(header, separators=(',', ':'))
  return len(struct.pack('<Q', 0)) + -(-len(text) // 8) * 8 + at


def test_bytes_are_those_of_the_format(arrays):
  rows = by_name(baselines.baselines(arrays))
  whole = {'bias': ('F32', (5,)), 'scalar': ('F32', ()), 'ids': ('I64', (2, 3))}
  half = {
    name: ('F16', array.shape)
    for name, array in arrays.items()
    if name != 'ids'
  }
  assert rows['fp16'].bytes == header_bytes(half | {'ids': whole['ids']})
  assert rows['int8 per channel'].bytes == header_bytes(
    whole
    | {'kernel': ('I8', (3, 3, 7, 5)), 'kernel:scales': ('F32', (5,))}
    | {'odd': ('I8', (3, 7)), 'odd:scales': ('F32', (7,))}
  )
  assert rows['4-bit k-means'].bytes == header_bytes(
    whole
    | {'kernel:codes': ('U8', (158,)), 'kernel:centroids': ('F32', (16,))}
    | {'odd:codes': ('U8', (11,)), 'odd:centroids': ('F32', (16,))}
  )


def test_six_rows_whose_zstd_decodes_to_the_same(arrays):
  arrays['kernel'] = np.zeros((3, 3, 64, 64), np.float32)
  rows = baselines.baselines(arrays)
  assert [row.name for row in rows] == [
    name + zstd for name in NAMES for zstd in ('', ' + zstd 19')
  ]
  for plain, packed in zip(rows[::2], rows[1::2], strict=True):
    assert packed.bytes < plain.bytes
    for name in arrays:
      np.testing.assert_array_equal(plain.arrays[name], packed.arrays[name])


@pytest.mark.parametrize('axis', [-1, 0])
def test_decoded_values_against_their_definitions(arrays, axis):
  rows = by_name(baselines.baselines(arrays, axis=axis))
  for name, array in arrays.items():
    for row in rows.values():
      assert row.arrays[name].shape == array.shape
      assert row.arrays[name].dtype == array.dtype
    half = rows['fp16'].arrays[name]
    np.testing.assert_array_equal(half, array.astype(np.float16))
  for name in ('bias', 'scalar', 'ids'):
    for row in NAMES[1:]:
      np.testing.assert_array_equal(rows[row].arrays[name], arrays[name])
  for name in ('kernel', 'odd'):
    wide = np.moveaxis(arrays[name], axis, 0).astype(np.float64)
    decoded = np.moveaxis(rows['int8 per channel'].arrays[name], axis, 0)
    for channel, values in zip(wide, decoded, strict=True):
      scale = np.abs(channel).max() / 127
      levels = np.round(channel / scale)
      np.testing.assert_allclose(values, levels * scale, rtol=1e-6)


@pytest.mark.slow
def test_4_bits_have_16_values_of_least_squared_error(arrays):
  cluster = pytest.importorskip('sklearn.cluster')
  array = arrays['kernel']
  decoded = by_name(baselines.baselines(arrays))['4-bit k-means'].arrays
  assert len(np.unique(decoded['kernel'])) == 16
  oracle = cluster.KMeans(16, n_init=20, random_state=0)
  oracle.fit(array.reshape(-1, 1))
  error = float(np.square(array - decoded['kernel']).sum())
  assert error <= oracle.inertia_ * (1 + 1e-5)


def test_what_float16_cannot_hold_stays_float32():
  arrays = {'var': np.float32([1.0, 1e6]), 'w': np.zeros((2, 3), np.float32)}
  for row in baselines.baselines(arrays):
    np.testing.assert_array_equal(row.arrays['var'], arrays['var'])
    np.testing.assert_array_equal(row.arrays['w'], arrays['w'])


@pytest.mark.parametrize(
  ('arrays', 'axis', 'message'),
  [
    ({'w': np.full((2, 2), np.nan)}, -1, 'w has elements that are not finite'),
    ({'w': np.zeros((2, 2))}, 2, r'axis=2 is outside w, \(2, 2\)'),
    (
      {'w': np.zeros((2, 2)), 'w:scales': np.zeros(2)},
      -1,
      "two would be stored as 'w:scales'",
    ),
  ],
)
def test_bad_arguments(arrays, axis, message):
  with pytest.raises(ValueError, match=message):
    baselines.baselines(arrays, axis=axis)
