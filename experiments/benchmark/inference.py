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
still faster than the dense product. Forms of onnxruntime need `pip install onnx
onnxruntime` and are left out without.

With `--models` whole networks run instead, at batch 1, from their .bwz files,
which are made in `--folder` where they are missing. Speedups are over the
fastest of XLA's dense float32 programs: weights as arguments, as constants, and
with kernels of one input joined, as ours have them too. `planned` keeps the
kernels dense that are predicted to be faster so; `compressed` is what part of
the bytes is not. Cosines and agreement are of the outputs with the dense ones.
"""

import argparse
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
from experiments.benchmark.pretrained import BROWN, CIFAR10
from experiments.plots import figure_at
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
    run: the product, ready.
    nbytes: that it reads of the matrix.
    wanted: what it approximates: x times its own weights, float64 [B, N].
  """

  name: str
  run: Callable[[], Any]
  nbytes: int
  wanted: np.ndarray


def copy_bandwidth(repeats: int) -> float:
  """Returns the bytes a second that a large copy reads and writes."""
  array = jnp.ones(_COPIED // 4, jnp.float32)
  (seconds,) = interleaved([_compiled(jnp.negative, array)], repeats)
  return 2 * _COPIED / seconds


def _compiled(fn: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
  program = jax.jit(fn).lower(*arguments).compile()
  return lambda: program(*arguments)


def _random_matrices(
  inputs: int, outputs: int, rng: np.random.Generator
) -> dict[str, Any]:
  """Compressed matrices by name."""
  shape = (outputs, inputs)
  book = rng.normal(size=16).astype(np.float32)
  codes = rng.integers(0, 16, shape, np.uint8)
  made = {
    '4-bit codebook': inference.codebook_matrix(codes, book),
    '8-bit codebook': inference.codebook_matrix(
      rng.integers(0, 256, shape, np.uint8), rng.normal(size=256)
    ),
    '8-bit uniform': inference.uniform_matrix(
      rng.integers(-127, 128, shape, np.int8), 0.01
    ),
    'ternary': inference.ternary_matrix(
      rng.integers(-1, 2, shape, np.int8), 0.7, -0.6
    ),
  }
  book = np.concatenate([[0], book[1:]]).astype(np.float32)
  for density in _DENSITIES:
    kept = rng.random(shape, np.float32) < density
    made[f'{density:.0%} + 4-bit codebook'] = inference.sparse_matrix(
      np.maximum(codes, 1) * kept, book
    )
  return made


def make_forms(
  inputs: int, outputs: int, batch: int, *, backend: str
) -> list[Form]:
  """Makes all products of a shape, the dense one first."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, inputs)).astype(np.float32)
  given = jnp.asarray(x)
  weights = rng.normal(size=(inputs, outputs)).astype(np.float32)
  wanted = x.astype(np.float64) @ weights
  forms = []
  for name, dtype in ((_DENSE, jnp.float32), ('dense bfloat16', jnp.bfloat16)):
    run = _compiled(
      jnp.matmul, given.astype(dtype), jnp.asarray(weights, dtype)
    )
    size = weights.size * jnp.dtype(dtype).itemsize
    forms.append(Form(name, run, size, wanted))
  for name, matrix in _random_matrices(inputs, outputs, rng).items():
    placed = jax.tree.map(jnp.asarray, matrix)
    exact = x.astype(np.float64) @ inference.decode(matrix)
    sparse = isinstance(matrix, inference.SparseMatrix)
    for mode in inference.MODES[:1] if sparse else inference.MODES:
      run = _compiled(
        lambda x, m, mode=mode: inference.matmul(
          x, m, backend=backend, mode=mode
        ),
        given,
        placed,
      )
      forms.append(
        Form(f'{name}, {mode}', run, inference.nbytes(matrix), exact)
      )
  for name in onnx_products.FORMS:
    try:
      run = onnx_products.make_product(name, weights, x)
    except ValueError:
      continue
    size = onnx_products.nbytes(name, weights)
    forms.append(Form(name, run, size, wanted))
  return forms


def product_rows(
  inputs: int,
  outputs: int,
  batch: int,
  *,
  backend: str,
  repeats: int,
  copied: float,
) -> list[dict[str, Any]]:
  """Times all products of a shape and batch.

  Args:
    inputs: K.
    outputs: N.
    batch: rows of activations.
    backend: of `inference.BACKENDS`.
    repeats: of which medians count.
    copied: bytes a second of a copy.
  """
  forms = make_forms(inputs, outputs, batch, backend=backend)
  seconds = interleaved(
    [form.run for form in forms], repeats, least_seconds=5e-3
  )
  dense = seconds[0]
  rows = []
  for form, own in zip(forms, seconds, strict=True):
    y = np.asarray(form.run(), np.float64)
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
        'speedup': round(dense / own, 2),
        'ceiling': round(forms[0].nbytes / form.nbytes, 1),
        'error': float(f'{error:.2g}'),
      }
    )
  return rows


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


def plot_roofline(
  rows: Sequence[dict[str, Any]], copied: float, path: pathlib.Path
) -> None:
  """Plots operations a second against operations a byte, batch 1 and more."""
  with figure_at(path, (6.8, 4.6)) as figure:
    axes = figure.add_subplot()
    forms = dict.fromkeys(row['form'] for row in rows)
    for form in forms:
      own = [row for row in rows if row['form'] == form]
      points = []
      for row in own:
        inputs, outputs = map(int, row['shape'].split('x'))
        operations = 2 * inputs * outputs * row['batch']
        points.append(
          (operations / row['bytes'], operations / row['ms'] * 1e3 / 1e9)
        )
      axes.loglog(*zip(*points, strict=True), '.', label=form)
    intensity = np.array(axes.get_xlim())
    axes.loglog(intensity, intensity * copied / 1e9, 'k--', label='copy')
    axes.set_xlabel('operations of the dense product for each byte read')
    axes.set_ylabel('operations of the dense product (1e9 a second)')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, ncols=2)


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
        copied=copied,
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
