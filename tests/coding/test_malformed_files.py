import functools
import zlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandwidth import coding
from bandwidth.coding import CodebookTensor, UniformTensor, directory
from bandwidth.coding import reader as reader_lib


@functools.cache
def files():
  """Files that between them use every coder, and where their sections are."""
  rng = np.random.default_rng(0)

  def sparse(shape, low, high, density):
    keep = rng.random(shape) < density
    return np.where(keep, rng.integers(low, high, shape), 0)

  arrays = {
    'a/kernel': CodebookTensor(sparse((30, 20), 1, 16, 0.2), np.arange(16.0)),
    'a/levels': UniformTensor(sparse((3, 3, 8, 5), -40, 40, 0.1), 0.1),
    'a/grid': UniformTensor(sparse((16, 8), -8, 8, 1.0), rng.random((1, 8))),
    'raw': sparse(300, 1, 9, 0.1).astype(np.float32),
    'zero': np.zeros((4, 5), np.float16),
    'flag': rng.random(50) < 0.5,
    'many': CodebookTensor(
      sparse((40, 60), 0, 64, 0.9), rng.normal(size=(4, 6, 64))
    ),
    'thin': CodebookTensor(sparse((4000,), 1, 4, 0.02), np.arange(4.0)),
  }
  out = []
  for coder in coding.CODERS:
    out.append(coding.encode(arrays, metadata={'x': 1}, coder=coder))
    for name, tensor in arrays.items():
      out.append(coding.encode({name: tensor}, coder=coder))
  return out


def sections_of(data):
  reader = coding.decode(data)
  places = reader._places.values()
  spans = {(p.offset, p.length) for p in places if p.length}
  return reader._header_bytes, sorted(spans)


def mend(data, header, sections):
  """Puts right checksums, so that damage reaches what they protect."""
  for begin, length in [(0, header), *sections]:
    crc = zlib.crc32(data[begin : begin + length])
    data[begin + length : begin + length + 4] = crc.to_bytes(4, 'little')


def read_all(data):
  """Reads everything, in both ways; they must agree on what is malformed."""
  whole = read_wholes(data)
  # Sections of a few bytes are read as those of many are.
  with mock.patch.object(reader_lib, '_WINDOWED', 16):
    assert read_streams(data) == whole
  return whole


def read_streams(data):
  try:
    reader = coding.decode(data)
    for name in reader:
      stream = reader.stream(name)
      if stream is None:
        reader.array(name)
        continue
      codes = [part.copy() for part in stream.pieces]
      tensor = reader.tensor(name)
      kind = 'uniform' if isinstance(tensor, UniformTensor) else 'codebook'
      assert stream.kind == kind
      wanted = tensor.levels if kind == 'uniform' else tensor.codes
      flat = np.concatenate([np.zeros(0, wanted.dtype), *codes])
      assert kind == 'uniform' or {each.dtype for each in codes} <= {
        wanted.dtype
      }
      np.testing.assert_array_equal(flat.reshape(stream.shape), wanted)
  except ValueError as error:
    if ', byte ' not in str(error):
      raise AssertionError(f'no place in {error}') from error
    return False
  return True


def read_wholes(data):
  """Reads everything; the errors must name a section and a byte."""
  try:
    reader = coding.decode(data)
    for name in reader:
      reader.array(name)
    reader.ledger()
  except ValueError as error:
    if ', byte ' not in str(error):
      raise AssertionError(f'no place in {error}') from error
    return False
  return True


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_truncated(data):
  file = data.draw(st.sampled_from(files()))
  assert not read_all(file[: data.draw(st.integers(0, len(file) - 1))])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_noticed(data):
  file = data.draw(st.sampled_from(files()))
  bit = data.draw(st.integers(0, 8 * len(file) - 1))
  damaged = bytearray(file)
  damaged[bit >> 3] ^= 1 << (bit & 7)
  assert not read_all(bytes(damaged))


damage = st.lists(
  st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4
)


@settings(max_examples=300, deadline=None)
@given(st.data(), damage)
def test_damage_under_right_checksums(data, changes):
  file = data.draw(st.sampled_from(files()))
  header, sections = sections_of(file)
  damaged = bytearray(file)
  for place, value in changes:
    damaged[header + 4 + place % (len(file) - header - 4)] = value
  mend(damaged, header, sections)
  read_all(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(st.data(), damage)
def test_damaged_directory_under_right_checksum(data, changes):
  file = data.draw(st.sampled_from(files()))
  reader = coding.decode(file)
  plain = directory.build(list(reader._entries.values()), reader.metadata)
  plain = bytearray(plain)
  for place, value in changes:
    plain[place % len(plain)] = value
  head = file[:4] + directory.header(bytes(plain))
  head += zlib.crc32(head).to_bytes(4, 'little')
  read_all(head + file[reader._header_bytes + 4 :])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_noise(data):
  assert not read_all(data)
  assert not read_all(b'BWZ\x01' + data)


def with_directory(entries, payload=b''):
  head = b'BWZ\x01' + directory.header(directory.build(entries, None))
  data = head + zlib.crc32(head).to_bytes(4, 'little')
  return data + payload + zlib.crc32(payload).to_bytes(4, 'little')


@pytest.mark.parametrize(
  ('entry', 'payload'),
  [
    (directory.Entry('w', 'raw', 'float32', (1 << 40,), 3), b'\x01\x00\x00'),
    (directory.Entry('w', 'uniform', 'float32', (1 << 30, 4), 3), b'\x00' * 3),
    (directory.Entry('w', 'raw', 'float32', (0, 1 << 47), 3), b'\x00' * 3),
    (directory.Entry('w', 'codebook', 'float32', (1 << 47,) * 4, 1), b'\x00'),
  ],
)
def test_a_tiny_file_cannot_claim_gigabytes(entry, payload):
  with pytest.raises(ValueError, match=r'directory.*, byte \d+: arrays of'):
    coding.decode(with_directory([entry], payload))


def test_names_count_as_memory():
  # Each name is the one before and some bytes more.
  names = ['x' * 4000 + f'{i:03}' for i in range(100)]
  entries = [directory.Entry(n, 'raw', 'int8', (1,), 0) for n in names]
  data = with_directory(entries)[:-4]
  assert len(data) < 1000
  claimed = sum(map(directory.claimed_bytes, entries))
  assert claimed == 100 * (512 + 4003 + 1)
  assert len(coding.decode(data, max_bytes=claimed)) == 100
  for limit, match in ((claimed - 1, 'arrays of'), (100_000, 'names of')):
    with pytest.raises(ValueError, match=rf', byte \d+: {match}'):
      coding.decode(data, max_bytes=limit)


@pytest.mark.parametrize('version', [0, 2, 255])
def test_another_version_is_refused(version):
  for file in files():
    with pytest.raises(ValueError, match=f'header, byte 3: version {version};'):
      coding.decode(file[:3] + bytes([version]) + file[4:])


@pytest.mark.parametrize(
  ('block', 'readable'),
  [
    ('000005', True),  # dense, constant 5
    ('010100010005', True),  # sparse, a mask of ones, constant 5
    ('010100010000', False),  # the same, constant 0
    ('010100020005', False),  # a mask of twos
    ('0104808040' + '0000' + '0005', True),  # 2^20 gaps of 0, constant 5
    ('0104808040' + '0001' + '0005', False),  # gaps of 1: beyond the end
    ('0003041100', True),  # rANS of two symbols in no bytes: the first
    ('000204110000', False),  # Huffman codes of two symbols in no bits
    ('000204110100', False),
  ],
)
def test_a_block_in_a_few_bytes(block, readable):
  payload = b'\0\0' + np.float32(1).tobytes() + bytes.fromhex(block)
  entry = directory.Entry('w', 'uniform', 'float32', (1 << 20,), len(payload))
  data = with_directory([entry], payload)
  assert read_all(data) == readable
  if readable:
    assert len(np.unique(coding.decode(data).array('w'))) == 1


def test_a_codebook_cannot_claim_more_than_its_tensor():
  # A codebook of 65536 entries for each of 2^20 elements.
  shape = (1 << 20,)
  payload = bytes([4]) + b'\x80\x80\x04' + b'\x01\x80\x80\x40' + b'\x00' * 9
  entry = directory.Entry('w', 'codebook', 'float32', shape, len(payload))
  reader = coding.decode(with_directory([entry], payload))
  with pytest.raises(ValueError, match='codebook of 65536 entries in grid'):
    reader.tensor('w')


def test_more_can_be_allowed():
  entry = directory.Entry('w', 'raw', 'int8', (300 << 20,), 0)
  data = with_directory([entry])[:-4]
  with pytest.raises(ValueError, match='larger max_bytes'):
    coding.decode(data)
  assert coding.decode(data, max_bytes=1 << 30).shape('w') == (300 << 20,)


def test_header_errors_say_what_is_wrong():
  data = coding.encode({'w': np.zeros(3)})
  with pytest.raises(ValueError, match='header, byte 0: not a'):
    coding.decode(b'PK' + data)
  with pytest.raises(ValueError, match='byte 3: version 9'):
    coding.decode(data[:3] + b'\x09' + data[4:])
  oversized = data[:4] + b'\xff\xff\xff\x07' + data[4:]
  with pytest.raises(ValueError, match='a directory of 8388607 bytes in a'):
    coding.decode(oversized)
  with pytest.raises(ValueError, match='exceeds its limit'):
    coding.decode(data[:4] + b'\xff' * 9)
  with pytest.raises(ValueError, match='sections end at byte'):
    coding.decode(data + b'\0')


def test_a_deflated_directory_cannot_explode():
  packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=directory.NAMES)
  bomb = packer.compress(bytes((1 << 24) + 1)) + packer.flush()
  for length in (100, 1 << 24):
    head = b'BWZ\x01' + directory.wire.varint(2 * len(bomb) + 1)
    head += directory.wire.varint(length) + bomb
    data = head + zlib.crc32(head).to_bytes(4, 'little')
    with pytest.raises(ValueError, match='byte'):
      coding.decode(data)


def test_names_must_be_unique():
  entry = directory.Entry('w', 'raw', 'float32', (0,), 0)
  with pytest.raises(ValueError, match='there twice'):
    coding.decode(with_directory([entry, entry])[:-4])
