import os
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth import coding
from bandwidth.coding import CodebookTensor, UniformTensor, directory, tensors

LENET5 = {
  'params/Conv_0/bias': (20,),
  'params/Conv_0/kernel': (5, 5, 1, 20),
  'params/Conv_1/bias': (50,),
  'params/Conv_1/kernel': (5, 5, 20, 50),
  'params/Dense_0/bias': (500,),
  'params/Dense_0/kernel': (800, 500),
  'params/Dense_1/bias': (10,),
  'params/Dense_1/kernel': (500, 10),
}


def same(a, b):
  a, b = tensors.as_tensor(a), tensors.as_tensor(b)
  assert type(a) is type(b)
  x, y = a.to_array(), b.to_array()
  assert x.shape == y.shape
  assert x.dtype == y.dtype
  assert x.tobytes() == y.tobytes()


def check(arrays, coder, path=None):
  """Round trip, ledger and file size; returns the bytes."""
  data = coding.encode(arrays, coder=coder)
  assert data == coding.encode(arrays, coder=coder)
  reader = coding.decode(data)
  assert list(reader) == list(arrays)
  for name, tensor in arrays.items():
    same(tensor, reader.tensor(name))
    np.testing.assert_array_equal(
      reader.array(name).view(np.uint8) if reader.array(name).ndim else 0,
      tensors.as_tensor(tensor).to_array().view(np.uint8)
      if reader.array(name).ndim
      else 0,
    )
  ledger = reader.ledger()
  assert ledger.total == len(data) == sum(ledger.components.values())
  assert min(ledger.components.values()) >= 0
  if path is not None:
    written = coding.write(path, arrays, coder=coder)
    assert written == ledger
    assert written.total == path.stat().st_size
  return data


shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@st.composite
def any_tensor(draw):
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  shape = draw(shapes)
  density = draw(st.sampled_from([0.0, 0.03, 0.3, 1.0]))
  keep = rng.random(shape) < density
  kind = draw(st.sampled_from(['raw', 'codebook', 'uniform']))
  grid = tuple(
    int(rng.choice([g for g in range(1, s + 1) if s % g == 0] or [1]))
    for s in shape[draw(st.integers(0, len(shape))) :]
  )
  if kind == 'codebook':
    entries = draw(st.sampled_from([1, 2, 3, 16, 300]))
    codes = np.where(keep, rng.integers(0, entries, shape), 0)
    codebook = rng.normal(size=(*grid, entries)).astype(np.float32)
    codebook[..., 0] *= draw(st.sampled_from([0.0, -0.0, 1.0]))
    dtype = draw(st.sampled_from(tensors.FLOATS))
    return CodebookTensor(codes, codebook, dtype=dtype)
  if kind == 'uniform':
    bits = draw(st.sampled_from([1, 3, 7, 17, 31]))
    levels = np.where(keep, rng.integers(-(2**bits), 2**bits, shape), 0)
    return UniformTensor(levels, rng.random(grid))
  dtype = tensors.dtype_of(draw(st.sampled_from(tensors.DTYPES)))
  if dtype.name == 'bool':
    return keep
  if dtype.name in ('int4', 'uint4'):
    return np.where(keep, rng.integers(0, 8, shape), 0).astype(dtype)
  noise = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
  noise *= keep[..., None]
  return np.ascontiguousarray(noise).view(dtype).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(st.lists(any_tensor(), max_size=4), st.sampled_from(coding.CODERS))
def test_anything_round_trips_bit_for_bit(values, coder):
  check({f'layer_{i}/x': value for i, value in enumerate(values)}, coder)


@pytest.mark.parametrize('dtype', ['int4', 'uint4'])
def test_four_bits_however_they_are_stored(dtype):
  # The high half of a byte does not count, and differs by how it was made.
  array = np.arange(256, dtype=np.uint8).view(tensors.dtype_of(dtype))
  for coder in coding.CODERS:
    back = coding.decode(coding.encode({'w': array}, coder=coder)).array('w')
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back.astype(int), array.astype(int))


def sparse_codes(shape, density, entries, seed=0):
  rng = np.random.default_rng(seed)
  weights = rng.normal(size=shape)
  keep = abs(weights) > np.quantile(abs(weights), 1 - density)
  edges = np.linspace(weights.min(), weights.max(), entries)
  codes = np.where(keep, 1 + np.digitize(weights, edges[1:-1]), 0)
  return CodebookTensor(codes, np.concatenate([[0], edges[1:]]))


def test_streams_of_several_blocks(tmp_path):
  """Codes and levels piece by piece, from sections small and large."""
  rng = np.random.default_rng(3)
  arrays = {
    'bias': np.ones(5, np.float32),
    'codes': CodebookTensor(rng.integers(0, 16, (3, 2**19)), np.arange(16.0)),
    'levels': UniformTensor(rng.integers(-7, 8, (2**10, 1200)), 0.5),
    'few': UniformTensor(rng.integers(-7, 8, (9, 9)), 0.5),
  }
  path = tmp_path / 'w.bwz'
  coding.write(path, arrays)
  with coding.open_file(path) as reader:
    assert reader.stream('bias') is None
    for name in ('codes', 'levels', 'few'):
      stream, tensor = reader.stream(name), arrays[name]
      codes = tensor.codes if name == 'codes' else tensor.levels
      pieces = list(stream.pieces)
      assert [each.size for each in pieces] == [
        min(2**20, codes.size - begin) for begin in range(0, codes.size, 2**20)
      ]
      assert stream.shape == codes.shape
      np.testing.assert_array_equal(np.concatenate(pieces), codes.reshape(-1))
      again = coding.stream_of(tensor)
      np.testing.assert_array_equal(again.values, stream.values)
      np.testing.assert_array_equal(np.concatenate([*again.pieces]), codes.flat)
    # Two streams of one file do not disturb each other.
    both = reader.stream('codes'), reader.stream('levels')
    for one, other in zip(*(each.pieces for each in both), strict=True):
      assert one.size == other.size or other.size < 2**20
    with pytest.raises(KeyError):
      reader.stream('none')


@pytest.mark.parametrize('coder', coding.CODERS)
@pytest.mark.parametrize('density', [0.1, 1.0])
def test_several_blocks(coder, density):
  tensor = sparse_codes((2**20 + 7,), density, 16)
  data = check({'w': tensor}, coder)
  counts = np.bincount(tensor.codes)
  counts = counts[counts > 0]
  entropy = counts @ np.log2(tensor.codes.size / counts) / 8
  bound = {'fixed': 1.5, 'huffman': 1.02}.get(coder, 1.001)
  assert len(data) < bound * entropy + 200


def test_deep_compression_of_lenet_300(tmp_path):
  shapes = {'ip1': (784, 300), 'ip2': (300, 100), 'ip3': (100, 10)}
  densities = {'ip1': 0.08, 'ip2': 0.09, 'ip3': 0.26}
  shared, pruned = {}, {}
  for name, shape in shapes.items():
    tensor = sparse_codes(shape, densities[name], 63)
    shared[name] = tensor
    noise = np.random.default_rng(1).normal(1, 1e-3, shape)
    pruned[name] = (tensor.to_array() * noise).astype(np.float32)
  path = tmp_path / 'model.bwz'
  sizes = [
    len(check(pruned, 'fixed', path)),
    len(check(shared, 'fixed', path)),
    len(check(shared, 'huffman', path)),
    len(check(shared, 'auto', path)),
  ]
  assert sizes == sorted(sizes, reverse=True)
  dense = 4 * 266_200
  # The paper, without biases: 12x, 32x, 40x.
  assert dense / sizes[0] > 10
  assert dense / sizes[1] > 31
  assert dense / sizes[2] > 39
  with coding.open_file(path) as reader:
    ledger = reader.ledger()
  assert ledger.dense_bytes == dense
  assert ledger.ratio == dense / path.stat().st_size
  row = ledger.rows()[0]
  assert row['name'] == 'ip1'
  assert row['density'] == pytest.approx(0.08, abs=1e-4)


def test_ledger_of_gaps_by_hand():
  # Gaps 24 apart: width 5, no fillers but one run of 25 + 32 zeros.
  positions = [*range(24, 1000, 25), 1057]
  codes = np.zeros(1058, int)
  codes[positions] = 1 + np.arange(41) % 3
  tensor = CodebookTensor(codes, [0.0, 1.0, 2.0, 3.0])
  ledger = coding.decode(coding.encode({'w': tensor}, coder='fixed')).ledger()
  entry = ledger.tensors[0]
  # 42 entries: 210 bits of gaps, 84 bits of codes; one filler of 5 + 2 bits
  # fills no byte.
  assert entry.methods == ('gap5', 'fixed')
  assert entry.components['indices'] == 27
  assert entry.components['codes'] == 11
  assert entry.components['fillers'] == 0
  assert entry.components['codebooks'] == 6
  assert entry.nonzero == 41
  assert entry.index_bits == 8 * 27 / 41


def test_fillers_are_counted():
  # Gaps of 0 to 3, and 20 of 23: five fillers each at 2 bits, 4 bits apiece.
  gaps = np.random.default_rng(0).integers(0, 4, 2000)
  gaps[50::100] = 23
  codes = np.zeros(int((gaps + 1).sum()) + 30, int)
  codes[np.cumsum(gaps + 1) - 1] = 1 + np.arange(2000) % 3
  tensor = CodebookTensor(codes, [0.0, 1.0, 2.0, 3.0])
  data = check({'w': tensor}, 'fixed')
  components = coding.decode(data).ledger().tensors[0].components
  assert components['fillers'] == 2 * (5 * 20 * 2 // 8)
  assert components['indices'] == 2100 * 2 // 8 - 25
  assert components['codes'] == 2100 * 2 // 8 - 25


def test_overhead_of_lenet_5_is_small():
  rng = np.random.default_rng(0)
  arrays = {}
  for name, shape in LENET5.items():
    levels = np.where(rng.random(shape) < 0.01, rng.integers(-2, 3, shape), 0)
    arrays[name] = UniformTensor(levels, 0.125)
  data = check(arrays, 'auto')
  ledger = coding.decode(data).ledger()
  assert ledger.headers + ledger.checksums < 120
  assert ledger.components['headers'] + ledger.components['checksums'] < 160


def test_smaller_than_zstandard():
  tensor = sparse_codes((300, 400), 0.15, 31)
  plain = zstandard.ZstdCompressor(level=19).compress(tensor.codes.tobytes())
  assert len(coding.encode({'w': tensor})) < 0.85 * len(plain)


def test_first_bytes_are_those_of_the_documentation():
  data = coding.encode({'w': np.float32([1, 2, 3])}, metadata={'a': 1})
  directory = b'\x07{"a":1}' + b'\x01' + b'\x00\x01w' + b'\x04' + b'\x00'
  # Ones, twos and threes have two zero bytes each, which are not stored.
  payload = bytes([0 + 4 * 2]) + b'\x80\x3f\x00\x40\x40\x40'
  directory += b'\x03' + bytes([len(payload)])
  head = b'BWZ\x01' + bytes([2 * len(directory)]) + directory
  expected = head + zlib.crc32(head).to_bytes(4, 'little')
  expected += payload + zlib.crc32(payload).to_bytes(4, 'little')
  assert data == expected


def test_tensors_load_alone(tmp_path):
  path = tmp_path / 'model.bwz'
  rng = np.random.default_rng(0)
  arrays = {f'w{i}': rng.normal(size=5000).astype(np.float32) for i in range(3)}
  coding.write(path, arrays)
  data = bytearray(path.read_bytes())
  data[-100] ^= 1
  path.write_bytes(data)
  with coding.open_file(path) as reader:
    assert reader.shape('w2') == (5000,)
    np.testing.assert_array_equal(reader.array('w1'), arrays['w1'])
    with pytest.raises(ValueError, match=r'section at \d+, byte \d+: wrong'):
      reader.array('w2')
    with pytest.raises(KeyError, match='w9'):
      reader.array('w9')


def test_compressed_form_and_trees(tmp_path):
  path = tmp_path / 'model.bwz'
  tensor = sparse_codes((8, 8), 0.2, 4)
  arrays = {
    'params/Dense_0/kernel': tensor,
    'params/Dense_0/bias': jnp.arange(3, dtype=jnp.bfloat16),
    'step': np.int64(7),
  }
  coding.write(path, arrays, metadata={'model': {'name': 'mlp', 'width': 8}})
  found = coding.read(path)['params/Dense_0/kernel']
  np.testing.assert_array_equal(found.codes, tensor.codes)
  np.testing.assert_array_equal(found.codebook, tensor.codebook)
  tree = coding.load_tree(path)
  assert tree['step'] == 7
  assert tree['params']['Dense_0']['bias'].dtype == jnp.bfloat16
  with coding.open_file(path) as reader:
    assert reader.metadata == {'model': {'name': 'mlp', 'width': 8}}
    assert len(reader) == 3
    assert 'step' in reader
  for clash in (['a', 'a/b'], ['a/b', 'a']):
    coding.write(path, {name: np.zeros(2) for name in clash})
    with pytest.raises(ValueError, match='name'):
      coding.load_tree(path)


def test_no_arrays_and_empty_arrays():
  assert coding.decode(coding.encode({})).names == ()
  check({'a': np.zeros((0, 3)), 'b': np.zeros(()), 'c': np.zeros(0)}, 'auto')


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'model.bwz'
  coding.write(path, {'w': np.arange(3)})
  old = path.read_bytes()
  with pytest.raises(ValueError, match='w: array has dtype'):
    coding.write(path, {'w': np.array(['no'])})

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    coding.write(path, {'w': np.arange(9)})
  assert path.read_bytes() == old
  assert [each.name for each in Path(tmp_path).iterdir()] == ['model.bwz']


@pytest.mark.parametrize(
  ('arrays', 'options', 'match'),
  [
    ({'': np.zeros(1)}, {}, 'name'),
    ({'x' * 5000: np.zeros(1)}, {}, 'longer than 4096'),
    ({'\ud800': np.zeros(1)}, {}, 'not Unicode'),
    ({'w': np.zeros(1)}, {'coder': 'zip'}, "coder='zip' is unknown"),
    ({'w': np.zeros(1)}, {'metadata': {'x': np.zeros(1)}}, 'not JSON'),
    ({'w': np.zeros(1)}, {'metadata': {'x': float('nan')}}, 'not JSON'),
    ({'w': np.zeros((1,) * 33)}, {}, 'more than 32 axes'),
  ],
)
def test_errors(arrays, options, match):
  with pytest.raises(ValueError, match=match):
    coding.encode(arrays, **options)


def test_what_a_reader_would_refuse_is_not_written(monkeypatch):
  monkeypatch.setattr(directory, 'FREE_BYTES', 1000)
  with pytest.raises(ValueError, match='1000513 bytes of arrays fit'):
    coding.encode({'w': np.zeros(10**6, np.int8)})


def test_long_names_with_common_beginnings():
  names = [f'params/encoder/layer_{i}/attention/query' for i in range(100)]
  arrays = {name: np.zeros(1, np.float32) for name in names}
  data = check(arrays, 'auto')
  assert len(data) < 1200
