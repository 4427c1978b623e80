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
Those of a mode stand beside its plan too, which rounds less.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import inference
from bandwidth.inference import native
from experiments.benchmark.harness import Benchmark
from experiments.benchmark.inference import forms
from experiments.compression.packages import BROWN, CIFAR10
from experiments.measuring import device_time
from experiments.measuring.turns import in_place, take_turns
from experiments.reports.inference import plot_roofline
from experiments.runtime import options
from experiments.runtime.startup import keep_memory

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

MODELS = ('lenet300', 'minilm', 'efficientnet_lite0')
"""Networks of `networks.MAKERS`."""

_COPIED = 1 << 29


def _copy_bandwidth(repeats: int) -> float:
  """Returns the bytes a second that a large copy reads and writes.

  On a CPU it goes to where it came from: fresh memory would be filled with
  zeros first.
  """
  array = jnp.ones(_COPIED // 4, jnp.float32)
  if jax.default_backend() == 'gpu':
    copy = device_time.Product(lambda _, a: -a, jnp.zeros(()), array)
    (seconds,) = device_time.seconds_of([copy], repeats)
    return 2 * _COPIED / seconds
  negative = jax.jit(jnp.negative, donate_argnums=0)
  turns = take_turns({'copy': in_place(negative, array)}, repeats)
  return 2 * _COPIED / turns.median('copy')


def _product_rows(
  weights: forms.Weights,
  batch: int,
  *,
  backend: str,
  repeats: int,
  copied: float,
) -> list[dict[str, Any]]:
  """Times all products with some weights."""
  made = forms.make_forms(weights, batch, backend=backend)
  outcomes = [np.asarray(form.run(), np.float64) for form in made]
  products = [form.product for form in made if form.product]
  if jax.default_backend() == 'gpu':
    timed = device_time.seconds_of(products, repeats)
  else:
    runs = [form.run for form in made]
    timed = device_time.apart(runs, len(products), repeats, least_seconds=1e-2)
  shape = '{}x{}'.format(*weights.dense.shape)
  return [
    {
      'shape': shape,
      'layer': LAYERS.get(shape, ''),
      'batch': batch,
      'form': form.name,
      'bytes': form.nbytes,
      'ms': round(1e3 * own, 4),
      'gb_per_second': round(form.nbytes / own / 1e9, 2),
      'of_copy': round(form.nbytes / own / copied, 3),
      'speedup': round(timed[0] / own, 2),
      'over_bfloat16': round(timed[1] / own, 2),
      'ceiling': round(made[0].nbytes / form.nbytes, 1),
      'error': form.error(y),
    }
    for form, own, y in zip(made, timed, outcomes, strict=True)
  ]


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


def _instructions(name: str) -> dict[str, str]:
  """Chooses native kernels; returns what is to be known of the choice.

  Raises:
    ValueError: this machine lacks them.
  """
  if name == 'best':
    return {}
  if native.use(name) != name:
    raise ValueError(f'instructions={name!r}: this machine has none')
  return {'instructions': name, 'xla_flags': os.environ.get('XLA_FLAGS', '')}


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  if given.models:
    # Products alone need none of the data sets.
    from experiments.benchmark.inference import networks

    keep_memory()
    yield from networks.rows(given)
    return
  instructions = _instructions(given.instructions)
  keep_memory()
  copied = _copy_bandwidth(given.repeats)
  given.facts |= {'copy_bytes_per_second': copied, **instructions}
  print(f'a copy reads and writes {copied / 1e9:.1f} GB a second')
  for inputs, outputs in given.shapes:
    weights = forms.make_weights(inputs, outputs, only=given.forms)
    for batch in given.batches:
      yield _product_rows(
        weights, batch, backend=given.backend, repeats=given.repeats,
        copied=copied,
      )  # fmt: skip


def _finish(rows: list[dict[str, Any]], given: Any) -> list[dict[str, Any]]:
  if not given.models:
    add_crossovers(rows)
  return rows


def _parts(given: Any) -> int:
  return len(given.models) or len(given.shapes) * len(given.batches)


def _plot(rows: list[dict[str, Any]], given: Any, path: pathlib.Path) -> None:
  if given.models:
    raise ValueError('plot: the roofline is of products, not of models')
  plot_roofline(rows, given.facts['copy_bytes_per_second'], path)


main = Benchmark(
  name='inference',
  about=__doc__,
  options={
    'shapes': options.shape([*dict.fromkeys((*SQUARES, *LAYERS))]),
    'batches': options.integer([1, 2, 4, 8, 16, 32, 64]),
    'backend': options.choice(inference.BACKENDS, 'auto'),
    'instructions': options.choice(
      native.INSTRUCTIONS,
      'best',
      "of native kernels; for XLA's see --xla_cpu_max_isa",
    ),
    'forms': options.text([], 'parts of names, e.g. 4-bit'),
    'repeats': options.integer(9),
    'models': options.choice(MODELS, [], 'networks instead of products'),
    'modes': options.choice(inference.MODES, inference.MODES),
    'folder': options.path(None, 'of their files; default: none kept'),
    'brown': options.path(BROWN),
    'cifar10': options.path(CIFAR10),
    'split': options.choice(('valid', 'test'), 'test', 'of Brown'),
    'examples': options.integer(1000, 'sentences or images'),
    'pixels': options.integer(224, 'of an image'),
  },
  measure=_rows,
  parts=_parts,
  finish=_finish,
  plot=_plot,
  seed=0,
).main
