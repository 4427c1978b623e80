"""Kernels for GPUs interpreted and lowered, and what their PTX computes."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxlib.mlir import ir

from bandwidth import inference
from bandwidth.inference import gpu, pallas, rounding
from bandwidth.inference.gpu import ptx

RNG = np.random.default_rng(5)
WIDE = gpu.Launch(outputs=4, warpgroups=2, vector=4, ahead=0)
FAR = gpu.Launch(outputs=2, warpgroups=2, vector=1, ahead=2)


def matrices(inputs, outputs):
  shape = (outputs, inputs)

  def book(entries, books=1):
    return RNG.normal(size=(books, 1, entries))

  return {
    'codebook4': inference.codebook_matrix(
      RNG.integers(0, 16, shape), book(16)
    ),
    'by_output4': inference.codebook_matrix(
      RNG.integers(0, 16, shape), book(16, outputs)
    ),
    'by_output2': inference.codebook_matrix(
      RNG.integers(0, 4, shape), book(4, outputs)
    ),
    'codebook8': inference.codebook_matrix(
      RNG.integers(0, 256, shape), book(256)
    ),
    'int8': inference.uniform_matrix(
      RNG.integers(-128, 128, shape), RNG.random((outputs, 1))
    ),
  }


ARITHMETIC = {
  ('codebook4', 'exact'): 'floats',
  ('codebook4', 'int16'): 'pairs16',
  ('codebook4', 'int8'): 'pairs8',
  ('by_output4', 'int8'): 'bytes',
  ('by_output2', 'int8'): 'bytes',
  ('by_output4', 'int16'): 'floats',
  ('codebook8', 'int8'): 'floats',
  ('int8', 'exact'): 'floats',
  ('int8', 'int8'): 'bytes',
}


def to_integers(values, largest):
  values = np.asarray(values, np.float32)
  most = np.abs(values).max(-1, keepdims=True)
  integers = np.rint(values * (np.float32(largest) / most))
  return integers.astype(np.float64) * (most / np.float32(largest))


def wanted(x, matrix, mode):
  """The product of what a mode rounds to, in float64."""
  if mode != 'exact':
    largest = rounding.LARGEST[mode]
    x = to_integers(x, largest.activations)
    if isinstance(matrix, inference.CodebookMatrix):
      book = to_integers(matrix.codebook, largest.codebook)
      matrix = dataclasses.replace(matrix, codebook=np.float32(book))
  return np.asarray(x, np.float64) @ inference.decode(matrix)


def relative(y, reference):
  return np.linalg.norm(y - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize(
  ('name', 'mode'),
  [
    pytest.param(*case, marks=pytest.mark.slow)
    if case in (('codebook4', 'int16'), ('by_output2', 'int8'))
    else case
    for case in ARITHMETIC
  ],
)
def test_each_arithmetic(name, mode):
  matrix = matrices(300, 11)[name]
  x = RNG.normal(size=(2, 300)).astype(np.float32)
  given = gpu.operands(jnp.asarray(x), matrix, mode)
  assert given.decoding.arithmetic == ARITHMETIC[name, mode]
  y = pallas.product(jnp.asarray(x), matrix, mode, device='gpu', interpret=True)
  assert relative(y, wanted(x, matrix, mode)) < 1e-6


@pytest.mark.parametrize(
  ('launch', 'name', 'mode'),
  [
    pytest.param(WIDE, 'codebook4', 'int16', marks=pytest.mark.slow),
    pytest.param(FAR, 'by_output4', 'int8', marks=pytest.mark.slow),
    (gpu.Launch(outputs=2), 'int8', 'exact'),
  ],
)  # fmt: skip
def test_ways_of_dealing_out_work(launch, name, mode):
  """Of five rows, more than at once, and of blocks that are not full."""
  inputs, outputs = 4500, 9
  x = RNG.normal(size=(5, inputs)).astype(np.float32)
  matrix = matrices(inputs, outputs)[name]
  given = gpu.operands(jnp.asarray(x), matrix, mode)
  y = given.scaled(gpu.multiply(*given[:4], launch=launch, interpret=True))
  assert relative(y, wanted(x, matrix, mode)) < 1e-6


def test_rows_too_long_for_halves_are_multiplied_as_floats():
  codes = np.zeros((1, gpu.MOST_INPUTS + 128), np.uint8)
  matrix = inference.codebook_matrix(codes, np.ones(16))
  x = jnp.ones((1, codes.shape[1]))
  assert gpu.operands(x, matrix, 'int16').decoding.arithmetic == 'floats'
  assert gpu.operands(x, matrix, 'int8').decoding.arithmetic == 'pairs8'


@pytest.mark.parametrize(('name', 'mode'), ARITHMETIC)
def test_lowers_for_cuda(name, mode):
  matrix = jax.tree.map(jnp.asarray, matrices(512, 20)[name])
  x = jnp.ones((6, 512))
  device = jax.sharding.AbstractDevice(
    'NVIDIA H100 80GB HBM3', num_cores=132, platform='gpu'
  )
  mesh = jax.sharding.AbstractMesh((1,), ('x',), abstract_device=device)
  product = jax.jit(lambda x, m: pallas.product(x, m, mode, device='gpu'))
  with jax.sharding.use_abstract_mesh(mesh):
    traced = product.trace(x, matrix)
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
  assert 'mosaic_gpu' in text


@pytest.mark.parametrize(
  ('platform', 'capability', 'known'),
  [
    ('gpu', '9.0', True), ('gpu', '10.0', True), ('gpu', '8.6', False),
    ('gpu', 'gfx942', False), ('gpu', None, False), ('cpu', '9.0', False),
  ],
)  # fmt: skip
def test_which_gpus_are_known(platform, capability, known):
  device = types.SimpleNamespace(
    platform=platform, compute_capability=capability
  )
  assert gpu.is_known(device) == known


class Thread:
  """Runs the few PTX instructions that weights are decoded by."""

  def __init__(self, operands, shared=b''):
    self.registers = {f'${i + 1}': v for i, v in enumerate(operands)}
    self.shared = shared

  def run(self, text):
    for line in text.strip(' {}').split(';'):
      name, _, rest = line.strip().partition(' ')
      if not name or name.startswith('.reg'):
        continue
      target, *sources = (part.strip() for part in rest.split(','))
      self.registers[target] = self.step(name, sources)
    return self.registers['$0']

  def value(self, source):
    if source in self.registers:
      return self.registers[source]
    return float(source) if '.' in source else int(source, 0)

  def step(self, name, sources):
    if name.startswith('ld.shared'):
      register, _, offset = sources[0].strip('[]').partition('+')
      at = self.value(register) + int(offset or 0)
      return int.from_bytes(self.shared[at : at + 4], 'little')
    a, b, *more = [*map(self.value, sources), 0]
    match name.split('.')[0]:
      case 'shl':
        return a << b & 0xFFFFFFFF
      case 'shr':
        return a >> b
      case 'and':
        return a & b
      case 'xor':
        return a ^ b
      case 'add':
        return a + b
      case 'prmt':
        given = (a | b << 32).to_bytes(8, 'little')
        places = [more[0] >> 4 * i & 15 for i in range(4)]
        assert max(places) < 8
        return int.from_bytes(bytes(given[p] for p in places), 'little')
      case 'lop3':
        return logic(a, b, more[0], more[1])
      case 'mov':
        return float(np.uint32(a).view(np.float32))
    raise AssertionError(name)


def logic(a, b, c, table):
  result = 0
  for bit in range(32):
    row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1
    result |= (table >> row & 1) << bit
  return result


@pytest.fixture
def text_of(monkeypatch):
  """Makes a step of `ptx` return its text."""
  monkeypatch.setattr(ptx, 'asm', lambda result, text, *others: text)
  with ir.Context():
    yield lambda step, *args: step(None, *args)


def test_texts_decode_words(text_of):
  floats = RNG.normal(size=256).astype(np.float32)
  book = RNG.integers(-128, 128, 16).astype(np.int8)
  words4 = book.view('<u4').tolist()
  pairs = RNG.integers(0, 2**32, 256, np.uint32)
  banks = np.repeat(pairs, 32).astype('<u4').tobytes()
  for word in RNG.integers(0, 2**32, 20, np.uint32).tolist():
    for bits in (2, 4, 8):
      for field in range(32 // bits):
        code = word >> bits * field & 2**bits - 1
        text = text_of(ptx.look_up, bits * field, 2**bits - 1, None, 8)
        memory = bytes(24) + floats[: 2**bits].astype('<f4').tobytes()
        found = Thread([word, 16], memory).run(text)
        assert np.uint32(found).view(np.float32) == floats[code]
    for byte in range(4):
      own = word >> 8 * byte & 255
      found = Thread([word], b'').run(text_of(ptx.float_of_byte, byte))
      assert found == np.uint8(own).view(np.int8)
      lane = int(RNG.integers(32))
      text = text_of(ptx.look_up_pair, 8 * byte, None, None)
      assert Thread([word, 0, 4 * lane], banks).run(text) == pairs[own]
    for half in range(2):
      codes = [word >> 16 * half + 4 * i & 15 for i in range(4)]
      text = text_of(ptx.pick, 16 * half, 4, [None] * 4)
      found = Thread([word, *words4]).run(text)
      assert np.uint32(found).tobytes() == book[codes].tobytes()
      for odd in range(2):
        codes = [word >> 16 * half + 2 * odd + 4 * i & 3 for i in range(4)]
        text = text_of(ptx.pick, 16 * half + 2 * odd, 2, [None])
        found = Thread([word, words4[0]]).run(text)
        assert np.uint32(found).tobytes() == book[codes].tobytes()


def test_texts_name_what_they_are_given(text_of):
  """Operands are numbered from the result on, without a gap."""
  texts = [
    text_of(ptx.look_up, 4, 15, None, 0),
    text_of(ptx.look_up_pair, 8, None, None),
    text_of(ptx.pick, 0, 4, [None] * 4),
    text_of(ptx.float_of_byte, 1),
  ]
  for text, count in zip(texts, (3, 4, 6, 2), strict=True):
    named = {int(n) for n in re.findall(r'\$(\d+)', text)}
    assert named == set(range(count))
