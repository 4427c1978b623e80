"""Forms of compressed matrices, against a transcription of their layout."""

import jax
import numpy as np
import pytest

from bandwidth import inference
from bandwidth.inference import matrices, packing

RNG = np.random.default_rng(0)


def code_at(packed, bits, n, k):
  """Finds one code as the module's first lines say."""
  block = 512 // bits
  word = k % block % 16
  field = k % block // 16
  words = packed[n, k // block * 64 :][:64].view('<u4')
  return int(words[word]) >> (bits * field) & (2**bits - 1)


@pytest.mark.parametrize('bits', matrices.WIDTHS)
@pytest.mark.parametrize('inputs', [1, 16, 63, 64, 65, 300, 513])
def test_layout(bits, inputs):
  codes = RNG.integers(0, 2**bits, (3, inputs))
  packed = matrices.pack(codes, bits)
  assert packed.shape == (3, 64 * -(-inputs // (512 // bits)))
  for n in range(3):
    for k in range(inputs):
      assert code_at(packed, bits, n, k) == codes[n, k]
  np.testing.assert_array_equal(matrices.unpack(packed, bits, inputs), codes)
  # What a block is filled up with is code 0.
  assert not matrices.pack(np.zeros((3, inputs), int), bits).any()


@pytest.mark.parametrize('bits', matrices.WIDTHS)
@pytest.mark.parametrize('inputs', [6, 63, 300, 1026])
@pytest.mark.parametrize('way', ['by input', 'by output', 'by tap'])
def test_packing_piece_by_piece(bits, inputs, way, monkeypatch):
  monkeypatch.setattr(packing, 'PIECE', 700)
  outputs, taps = 7, 3 if way == 'by tap' else 1
  codes = RNG.integers(0, 2**bits, (outputs, inputs)).astype(np.uint8)
  lying = codes
  if way != 'by output':
    # Input c T + t lies at (t, c).
    lying = codes.T.reshape(-1, taps, outputs).transpose(1, 0, 2)
  packer = packing.Packer(
    inputs, outputs, bits=bits, taps=taps, by_output=way == 'by output'
  )
  pieces = np.array_split(lying.reshape(-1), 5)
  for rows in packing.in_rows(pieces, *packer.lines):
    packer.put(rows)
  for n in range(outputs):
    for k in (*range(0, inputs, 5), inputs - 1):
      assert code_at(packer.packed, bits, n, k) == codes[n, k]
  np.testing.assert_array_equal(packer.packed, matrices.pack(codes, bits))
  lying = np.asfortranarray(codes)
  np.testing.assert_array_equal(packer.packed, matrices.pack(lying, bits))
  found = np.concatenate(
    [part for _, part in packing.unpacked(packer.packed, bits, inputs)]
  )
  np.testing.assert_array_equal(found, codes)
  place = np.zeros(256, np.uint8)
  place[: 2**bits] = RNG.permutation(2**bits)
  packer.repack(8, place)
  np.testing.assert_array_equal(packer.packed, matrices.pack(place[codes], 8))


def test_weights_of_every_form():
  codes = RNG.integers(0, 5, (6, 20))
  book = RNG.normal(size=5).astype(np.float32)
  whole = inference.codebook_matrix(codes, book)
  assert (whole.bits, whole.shape) == (4, (20, 6))
  np.testing.assert_array_equal(inference.decode(whole), book[codes].T)

  books = RNG.normal(size=(3, 2, 5)).astype(np.float32)
  grouped = inference.codebook_matrix(codes, books, bits=8)
  n, k = np.indices(codes.shape)
  wanted = books[n // 2, k // 10, codes].T
  np.testing.assert_array_equal(inference.decode(grouped), wanted)

  signs = RNG.integers(-1, 2, (6, 20))
  ternary = inference.ternary_matrix(signs, 0.5, -0.25)
  assert ternary.bits == 2
  wanted = np.select([signs > 0, signs < 0], [0.5, -0.25]).T
  np.testing.assert_array_equal(inference.decode(ternary), wanted)

  for bits in (2, 4, 8):
    levels = RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (6, 20))
    step = RNG.random((6, 2)).astype(np.float32)
    uniform = inference.uniform_matrix(levels, step, bits=bits)
    wanted = (levels * np.repeat(step, 10, 1)).T.astype(np.float32)
    np.testing.assert_allclose(inference.decode(uniform), wanted, rtol=1e-6)

  book[2] = 0
  sparse = inference.sparse_matrix(codes, book)
  np.testing.assert_array_equal(inference.decode(sparse), book[codes].T)
  assert len(sparse.codes) == np.count_nonzero(book[codes])


def test_rows_are_what_outputs_read():
  codes = RNG.integers(0, 200, (9, 30))
  book = RNG.normal(size=(9, 1, 200)).astype(np.float32)
  index = np.array([[0, 8], [3, 3]])
  for matrix in (
    inference.codebook_matrix(codes, book),
    inference.uniform_matrix(codes - 100, 0.5),
  ):
    rows = jax.jit(inference.rows_of)(matrix, index)
    np.testing.assert_array_equal(rows, inference.decode(matrix).T[index])
  with pytest.raises(ValueError, match='SparseMatrix has no rows'):
    inference.rows_of(inference.sparse_matrix(codes, book[0, 0]), index)


def test_bytes_are_counted():
  codes = RNG.integers(0, 16, (32, 256))
  matrix = inference.codebook_matrix(codes, np.arange(16))
  assert inference.nbytes(matrix) == 32 * 128 + 16 * 4
  zeros = inference.sparse_matrix(codes, np.arange(16) * (np.arange(16) > 14))
  count = np.count_nonzero(codes == 15)
  assert inference.nbytes(zeros) == 33 * 4 + 3 * count + 64


BAD = {
  'code': (
    lambda: inference.codebook_matrix(np.array([[5]]), np.zeros(5)),
    'codes reach 5; the codebook has 5 entries',
  ),
  'negative code': (
    lambda: inference.codebook_matrix(np.array([[-1]]), np.zeros(5)),
    'codes reach from -1 to -1; 4 bits hold 0 to 15',
  ),
  'floats': (
    lambda: inference.codebook_matrix(np.array([[0.5]]), np.zeros(5)),
    r'codes are float64 \(1, 1\); integers \[N, K\] are wanted',
  ),
  'large codebook': (
    lambda: inference.codebook_matrix(np.array([[0]]), np.zeros(300)),
    r'codebook has shape \(1, 1, 300\); .* 1 to 256 entries',
  ),
  'nan': (
    lambda: inference.codebook_matrix(np.array([[0]]), np.full(4, np.nan)),
    'codebook is not finite',
  ),
  'bits': (
    lambda: inference.codebook_matrix(np.array([[0]]), np.zeros(4), bits=3),
    r'bits=3 is none of \(2, 4, 8\)',
  ),
  'few bits': (
    lambda: inference.codebook_matrix(np.array([[0]]), np.zeros(5), bits=2),
    'codebook has 5 entries; 2 bits tell 4',
  ),
  'groups': (
    lambda: inference.codebook_matrix(
      np.zeros((3, 4), int), np.zeros((2, 1, 4))
    ),
    'codebook has 2 x 1 groups, which do not divide 3 outputs and 4 inputs',
  ),
  'level': (
    lambda: inference.uniform_matrix(np.array([[8]]), 1.0, bits=4),
    'levels reach from 8 to 8; 4 bits hold -8 to 7',
  ),
  'step': (
    lambda: inference.uniform_matrix(np.array([[8]]), np.zeros(3)),
    r'step has shape \(3,\)',
  ),
  'sign': (
    lambda: inference.ternary_matrix(np.array([[2]]), 1.0, -1.0),
    'signs reach from 2 to 2',
  ),
  'sparse': (
    lambda: inference.sparse_matrix(np.array([[2]]), np.zeros(2)),
    'codes reach from 2 to 2; the codebook has 2 entries',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_what_can_be_no_matrix(name):
  make, message = BAD[name]
  with pytest.raises(ValueError, match=message):
    make()
