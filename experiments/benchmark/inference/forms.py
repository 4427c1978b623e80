"""Weights of one shape in all forms that `benchmark inference` multiplies."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import inference
from experiments.inference import onnx_products
from experiments.measuring.device_time import Product

DENSE = 'dense float32'

_DENSITIES = (0.1, 0.05, 0.02)
# Outputs that are compared with products in float64.
_SAMPLED = 256


class Weights(NamedTuple):
  """Weights in their forms."""

  dense: np.ndarray  # float32 [K, N]
  # compressed ones of other values, by name, on the device
  matrices: Mapping[str, Any]
  # some outputs' weights of each, and of the dense one, [K, S]
  sampled: Mapping[str, np.ndarray]
  # products of other libraries with the dense ones, by name
  foreign: Mapping[str, Callable[[np.ndarray], np.ndarray]]


class Form(NamedTuple):
  """A product to time."""

  name: str  # of the form and its mode of arithmetic
  run: Callable[[], Any]  # the product, ready
  product: Product | None  # the same, where it is XLA's or ours
  nbytes: int  # that it reads of the matrix
  wanted: np.ndarray  # its first outputs, of its own weights, float64 [B, S]

  def error(self, y: np.ndarray) -> float | None:
    """Relative error of its first outputs; None where it has other weights."""
    if self.name == _DENSE_INT8:
      return None
    first = y[:, : self.wanted.shape[1]]
    error = np.linalg.norm(first - self.wanted) / np.linalg.norm(self.wanted)
    return float(f'{error:.2g}')


_DENSE_INT8 = 'dense int8'


def make_weights(
  inputs: int, outputs: int, *, only: Sequence[str] = ()
) -> Weights:
  """Draws weights of all forms.

  Args:
    inputs: K.
    outputs: N.
    only: parts of names of compressed forms to make; none: all.
  """
  rng = np.random.default_rng(0)
  dense = rng.normal(size=(inputs, outputs)).astype(np.float32)
  sampled = {DENSE: dense[:, :_SAMPLED]}
  placed = {}
  for name, make in makers(inputs, outputs, rng).items():
    if not only or any(part in name for part in only):
      matrix = make()
      sampled[name] = _first_outputs(matrix)
      placed[name] = jax.tree.map(jnp.asarray, matrix)
  return Weights(dense, placed, sampled, _foreign(dense))


def _first_outputs(matrix: Any) -> np.ndarray:
  count = min(_SAMPLED, matrix.shape[1])
  if isinstance(matrix, inference.SparseMatrix):
    return inference.decode(matrix)[:, :count]
  return np.asarray(inference.rows_of(matrix, jnp.arange(count))).T


def makers(
  inputs: int, outputs: int, rng: np.random.Generator
) -> dict[str, Callable[[], Any]]:
  """Returns what makes compressed matrices, by name.

  Args:
    inputs: K.
    outputs: N.
    rng: of their values.
  """
  shape = (outputs, inputs)
  book = rng.normal(size=16).astype(np.float32)
  with_zero = np.concatenate([[0], book[1:]]).astype(np.float32)

  def codes(entries: int) -> np.ndarray:
    return rng.integers(0, entries, shape, np.uint8)

  def sparse(density: float) -> Any:
    kept = rng.random(shape, np.float32) < density
    return inference.sparse_matrix(np.maximum(codes(16), 1) * kept, with_zero)

  makers: dict[str, Callable[[], Any]] = {
    '4-bit codebook': lambda: inference.codebook_matrix(codes(16), book),
    '8-bit codebook': lambda: inference.codebook_matrix(
      codes(256), rng.normal(size=256)
    ),
    '8-bit uniform': lambda: inference.uniform_matrix(
      rng.integers(-127, 128, shape, np.int8), 0.01
    ),
    'ternary': lambda: inference.ternary_matrix(
      rng.integers(-1, 2, shape, np.int8), 0.7, -0.6
    ),
  }
  for density in _DENSITIES:
    name = f'{density:.0%} + 4-bit codebook'
    makers[name] = functools.partial(sparse, density)
  return makers


def _foreign(
  dense: np.ndarray,
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
  """Products of other libraries, of those that are there."""
  if jax.default_backend() != 'cpu':
    return {}
  found = {}
  for name in onnx_products.FORMS:
    try:
      found[name] = onnx_products.make_product(name, dense)
    except ValueError:
      continue
  return found


def make_forms(weights: Weights, batch: int, *, backend: str) -> list[Form]:
  """Makes products, the dense ones of float32 and bfloat16 first.

  Args:
    weights: in all their forms.
    batch: rows of activations.
    backend: of `inference.BACKENDS`; forms that it can't run are left out.
  """
  inputs = weights.dense.shape[0]
  rng = np.random.default_rng(1)
  x = rng.normal(size=(batch, inputs)).astype(np.float32)

  def wanted(name: str) -> np.ndarray:
    return x.astype(np.float64) @ weights.sampled[name]

  forms = []
  for name, dtype, multiply, options in _dense_products():
    array = jnp.asarray(weights.dense, dtype)
    product = Product(multiply, jnp.asarray(x, dtype), array, options)
    forms.append(_form(name, product, array.nbytes, wanted(DENSE)))
  for name, matrix in weights.matrices.items():
    sparse = isinstance(matrix, inference.SparseMatrix)
    for mode in inference.MODES[:1] if sparse else inference.MODES:
      multiply = functools.partial(inference.matmul, backend=backend, mode=mode)
      product = Product(multiply, jnp.asarray(x), matrix)
      size = inference.nbytes(matrix)
      try:
        forms.append(_form(f'{name}, {mode}', product, size, wanted(name)))
      except ValueError as error:
        print(f'{name}: left out: {error}')
        break
  for name, run in weights.foreign.items():
    size = onnx_products.nbytes(name, weights.dense)
    forms.append(
      Form(name, functools.partial(run, x), None, size, wanted(DENSE))
    )
  return forms


def _form(name: str, product: Product, nbytes: int, wanted: np.ndarray) -> Form:
  run = functools.partial(product.compiled(), product.x, product.matrix)
  return Form(name, run, product, nbytes, wanted)


def _dense_products() -> list[tuple[str, Any, Callable[..., Any], Any]]:
  """Names, dtypes, products and compiler options of what is not compressed."""
  found: list[Any] = [
    (DENSE, jnp.float32, jnp.matmul, None),
    ('dense bfloat16', jnp.bfloat16, jnp.matmul, None),
  ]
  if jax.default_backend() == 'gpu':
    cublas = {'xla_gpu_enable_triton_gemm': False}
    found.append(('dense bfloat16, cuBLAS', jnp.bfloat16, jnp.matmul, cublas))
    to_int32 = functools.partial(jnp.matmul, preferred_element_type=jnp.int32)
    found.append((_DENSE_INT8, jnp.int8, to_int32, None))
  return found
