"""Products from the compressed form, beside dense ones and what one has today.

    python -m experiments.benchmark inference [--shapes 4096x4096 …]
      [--batches 1 8 64] [--backend auto] [--plot F.png] [--output F.json]
    python -m experiments.benchmark inference
      --models lenet300 minilm efficientnet_lite0 [--folder DIR]

For each shape (inputs x outputs), batch and form: bytes that a product reads,
milliseconds, bytes a second and what part of the measured copy bandwidth that
is, speedup over XLA's dense product in float32 with all threads, what the ratio
of bytes would allow at most, and the relative error beside float64. Programs
take turns; medians. `gains until batch` is the largest batch at which a form is
still faster than the dense product. Forms of onnxruntime are for CPUs, need
`pip install onnx onnxruntime`, and are left out without. On a GPU times are
those of its kernels (`device_time`).

With `--models` whole networks run instead, at batch 1, from their .bwz files,
which are made in `--folder` where they are missing. Speedups are over the
fastest of XLA's dense float32 programs: weights as arguments, as constants, and
with kernels of one input joined, as ours have them too. `planned` keeps the
kernels dense that are predicted to be faster so; `compressed` is what part of
the bytes is not. Cosines and agreement are of the outputs with the dense ones.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import inference
from bandwidth.base import unknown_name
from bandwidth.inference.planning import interleaved
from experiments.benchmark import onnx_products, table
from experiments.benchmark.device_time import Product, seconds_of
from experiments.benchmark.pretrained import BROWN, CIFAR10
from experiments.inference_results import plot_roofline
from experiments.startup import keep_memory

NAME = 'inference'

SQUARES = ('1024x1024', '4096x4096', '8192x8192')
LAYERS = {
  '784x300': 'LeNet-300-100',
  '300x100': 'LeNet-300-100',
  '9216x4096': 'AlexNet fc6',
  '4096x4096': 'AlexNet and VGG-16 fc7',
  '4096x1000': 'AlexNet and VGG-16 fc8',
  '25088x4096': 'VGG-16 fc6',
  '384x384': 'MiniLM attention',
  '384x1536': 'MiniLM hidden',
  '1536x384': 'MiniLM output',
}
"""Layers that are in use, and whose they are."""

_DENSE = 'dense float32'
_DENSITIES = (0.1, 0.05, 0.02)
_COPIED = 1 << 26


class Form(NamedTuple):
  """A product to time.

  Attributes:
    name: of the form and its mode of arithmetic.
    product: the product.
    nbytes: that it reads of the matrix.
    wanted: what it approximates: x times its own weights, float64 [B, N].
  """

  name: str
  product: Product
  nbytes: int
  wanted: np.ndarray


class Foreign(NamedTuple):
  """A product of another library; fields are those of `Form`."""

  name: str
  run: Callable[[], Any]
  nbytes: int
  wanted: np.ndarray


def copy_bandwidth(repeats: int) -> float:
  """Returns the bytes a second that a large copy reads and writes."""
  size = _COPIED * (16 if jax.default_backend() == 'gpu' else 1)
  array = jnp.ones(size // 4, jnp.float32)
  copy = Product(lambda _, a: -a, jnp.zeros(()), array)
  (seconds,) = seconds_of([copy], repeats)
  return 2 * size / seconds


def _random_matrices(
  inputs: int, outputs: int, rng: np.random.Generator, only: Sequence[str]
) -> dict[str, Any]:
  """Compressed matrices by name."""
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
  return {
    name: make()
    for name, make in makers.items()
    if not only or any(part in name for part in only)
  }


def make_forms(
  inputs: int,
  outputs: int,
  batch: int,
  *,
  backend: str,
  only: Sequence[str] = (),
) -> list[Form]:
  """Makes products of a shape, the dense ones first.

  Args:
    inputs: K.
    outputs: N.
    batch: rows of activations.
    backend: of `inference.BACKENDS`; forms that it can't run are left out.
    only: parts of names of compressed forms to make; none: all.
  """
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, inputs)).astype(np.float32)
  given = jnp.asarray(x)
  weights = rng.normal(size=(inputs, outputs)).astype(np.float32)
  wanted = x.astype(np.float64) @ weights
  forms = [
    Form(
      name,
      Product(multiply, given.astype(dtype), jnp.asarray(weights, dtype), more),
      weights.size * jnp.dtype(dtype).itemsize,
      wanted,
    )
    for name, dtype, multiply, more in _dense_products()
  ]
  made = _random_matrices(inputs, outputs, rng, only)
  for name, matrix in made.items():
    placed = jax.tree.map(jnp.asarray, matrix)
    exact = x.astype(np.float64) @ inference.decode(matrix)
    sparse = isinstance(matrix, inference.SparseMatrix)
    for mode in inference.MODES[:1] if sparse else inference.MODES:
      product = Product(
        functools.partial(inference.matmul, backend=backend, mode=mode),
        given,
        placed,
      )
      try:
        jax.eval_shape(product.fn, given, placed)
      except ValueError as error:
        print(f'{name}: left out: {error}')
        break
      size = inference.nbytes(matrix)
      forms.append(Form(f'{name}, {mode}', product, size, exact))
  return forms


def _dense_products() -> list[tuple[str, Any, Callable[..., Any], Any]]:
  """Names, dtypes, products and compiler options of what is not compressed."""
  found: list[Any] = [
    (_DENSE, jnp.float32, jnp.matmul, None),
    ('dense bfloat16', jnp.bfloat16, jnp.matmul, None),
  ]
  if jax.default_backend() == 'gpu':
    cublas = {'xla_gpu_enable_triton_gemm': False}
    found.append(('dense bfloat16, cuBLAS', jnp.bfloat16, jnp.matmul, cublas))
    to_int32 = functools.partial(jnp.matmul, preferred_element_type=jnp.int32)
    found.append(('dense int8', jnp.int8, to_int32, None))
  return found


def make_foreign(inputs: int, outputs: int, batch: int) -> list[Foreign]:
  """Makes products of other libraries, of those that are there."""
  if jax.default_backend() != 'cpu':
    return []
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, inputs)).astype(np.float32)
  weights = rng.normal(size=(inputs, outputs)).astype(np.float32)
  wanted = x.astype(np.float64) @ weights
  made = []
  for name in onnx_products.FORMS:
    try:
      run = onnx_products.make_product(name, weights, x)
    except ValueError:
      continue
    made.append(Foreign(name, run, onnx_products.nbytes(name, weights), wanted))
  return made


def product_rows(
  inputs: int,
  outputs: int,
  batch: int,
  *,
  backend: str,
  repeats: int,
  copied: float,
  only: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Times all products of a shape and batch.

  Args:
    inputs: K.
    outputs: N.
    batch: rows of activations.
    backend: of `inference.BACKENDS`.
    repeats: of which medians count.
    copied: bytes a second of a copy.
    only: see `make_forms`.
  """
  forms = make_forms(inputs, outputs, batch, backend=backend, only=only)
  foreign = make_foreign(inputs, outputs, batch)
  timed, made = _timed(forms, foreign, repeats)
  rows = []
  for form, own, y in zip((*forms, *foreign), timed, made, strict=True):
    error = np.linalg.norm(y - form.wanted) / np.linalg.norm(form.wanted)
    rate = form.nbytes / own
    rows.append(
      {
        'shape': (shape := f'{inputs}x{outputs}'),
        'layer': LAYERS.get(shape, ''),
        'batch': batch,
        'form': form.name,
        'bytes': form.nbytes,
        'ms': round(1e3 * own, 4),
        'gb_per_second': round(rate / 1e9, 2),
        'of_copy': round(rate / copied, 3),
        'speedup': round(timed[0] / own, 2),
        'over_bfloat16': round(timed[1] / own, 2),
        'ceiling': round(forms[0].nbytes / form.nbytes, 1),
        'error': float(f'{error:.2g}') if form.name != 'dense int8' else None,
      }
    )
  return rows


def _timed(
  forms: Sequence[Form], foreign: Sequence[Foreign], repeats: int
) -> tuple[list[float], list[np.ndarray]]:
  """Seconds of all products, and what they are; on a CPU they take turns."""
  programs = [form.product.compiled() for form in forms]
  arguments = [(form.product.x, form.product.matrix) for form in forms]
  runs: list[Callable[[], Any]] = [
    functools.partial(run, *own)
    for run, own in zip(programs, arguments, strict=True)
  ]
  runs += [other.run for other in foreign]
  made = [np.asarray(run(), np.float64) for run in runs]
  if jax.default_backend() == 'gpu':
    return seconds_of([form.product for form in forms], repeats), made
  return interleaved(runs, repeats, least_seconds=5e-3), made


def add_crossovers(rows: list[dict[str, Any]]) -> None:
  """Adds to each row the largest batch at which its form gains."""
  for row in rows:
    same = [
      other
      for other in rows
      if (other['shape'], other['form']) == (row['shape'], row['form'])
    ]
    until = 0
    for other in sorted(same, key=lambda each: each['batch']):
      if other['speedup'] <= 1:
        break
      until = other['batch']
    row['gains_until_batch'] = until


def shape_of(text: str) -> tuple[int, int]:
  """Reads inputs x outputs.

  Raises:
    ValueError: the text is no shape.

  >>> shape_of('784x300')
  (784, 300)
  """
  inputs, _, outputs = text.partition('x')
  if not (inputs.isdigit() and outputs.isdigit()):
    raise ValueError(f'shapes={text!r} is not INPUTSxOUTPUTS')
  if not (int(inputs) and int(outputs)):
    raise ValueError(f'shapes={text!r} is empty')
  return int(inputs), int(outputs)


def _run_models(given: argparse.Namespace) -> None:
  # Products alone need none of the data sets.
  from experiments.benchmark import inference_models, inference_networks

  for name in given.models:
    if name not in inference_networks.NETWORKS:
      raise ValueError(
        unknown_name('models', name, inference_networks.NETWORKS)
      )
  keep_memory()
  rows: list[dict[str, Any]] = []
  with tempfile.TemporaryDirectory() as temporary:
    options = inference_networks.Options(
      folder=given.folder or pathlib.Path(temporary),
      brown=given.brown,
      cifar10=given.cifar10,
      split=given.split,
      examples=given.examples,
      pixels=given.pixels,
    )
    for name in given.models:
      network = inference_networks.make_network(name, options)
      rows += inference_models.network_rows(
        network, backend=given.backend, repeats=given.repeats,
        modes=given.modes,
      )  # fmt: skip
      if given.output:
        table.write(given.output, NAME, rows)
  table.show(rows)


def _run(given: argparse.Namespace) -> None:
  shapes = [shape_of(text) for text in given.shapes]
  for field in ('batches', 'repeats', 'examples', 'pixels'):
    for value in np.atleast_1d(getattr(given, field)).tolist():
      if value < 1:
        raise ValueError(f'{field}={value} is not positive')
  if given.models:
    _run_models(given)
    return
  keep_memory()
  copied = copy_bandwidth(given.repeats)
  print(f'a copy reads and writes {copied / 1e9:.1f} GB a second')
  rows: list[dict[str, Any]] = []
  for inputs, outputs in shapes:
    for batch in given.batches:
      rows += product_rows(
        inputs, outputs, batch, backend=given.backend, repeats=given.repeats,
        copied=copied, only=given.forms,
      )  # fmt: skip
      if given.output:
        table.write(given.output, NAME, rows, {'copy_bytes_per_second': copied})
  add_crossovers(rows)
  table.show(rows)
  if given.plot:
    plot_roofline(rows, copied, given.plot)
  if given.output:
    table.write(given.output, NAME, rows, {'copy_bytes_per_second': copied})


def main(argv: Sequence[str]) -> int:
  """Times products; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog=f'benchmark {NAME}',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--shapes', nargs='+', default=[*dict.fromkeys((*SQUARES, *LAYERS))])
  add('--batches', type=int, nargs='+', default=[1, 2, 4, 8, 16, 32, 64])
  add('--backend', default='auto', choices=inference.BACKENDS)
  add('--forms', nargs='+', default=(), help='parts of names, e.g. 4-bit')
  add('--repeats', type=int, default=9)
  add('--plot', type=pathlib.Path, help='roofline')
  add('--output', type=pathlib.Path, help='JSON file')
  add('--models', nargs='+', default=[], help='networks instead of products')
  add('--modes', nargs='+', default=inference.MODES, choices=inference.MODES)
  add('--folder', type=pathlib.Path, help='of their files; default: none kept')
  add('--brown', type=pathlib.Path, default=BROWN, help=f'default {BROWN}')
  add('--cifar10', type=pathlib.Path, default=CIFAR10, help=str(CIFAR10))
  add('--split', default='test', choices=('valid', 'test'), help='of Brown')
  add('--examples', type=int, default=1000, help='sentences or images')
  add('--pixels', type=int, default=224, help='of an image')
  try:
    _run(parser.parse_args(argv))
  except ValueError as error:
    print(f'benchmark {NAME}: error: {error}', file=sys.stderr)
    return 2
  return 0
