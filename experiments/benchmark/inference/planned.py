"""Products in the form that `plan_inference` chooses, beside dense ones.

    python -m experiments.benchmark planned [--shapes 4096x1000 …]
      [--batches 1 16 64] [--backend auto] [--mode exact] [--output F.json]

For each shape (inputs x outputs), batch and compressed matrix: the form that
was chosen, from products of the matrix itself (`own shape`) and from a table of
square ones (`table`), and how much faster than the dense product it then is,
timed anew. A choice is right where that is 1 within what two timings of one
program differ by, which `noise` says: the dense product beside itself.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bandwidth import inference
from bandwidth.inference import planning
from bandwidth.inference.timing import program_of
from experiments.benchmark.harness import Benchmark
from experiments.benchmark.inference import forms
from experiments.runtime import options
from experiments.runtime.startup import keep_memory

_MATRICES = ('4-bit codebook', '8-bit codebook', '10% + 4-bit codebook')


def matrices_of(inputs: int, outputs: int) -> dict[str, Any]:
  """Returns compressed matrices by name."""
  makers = forms.makers(inputs, outputs, np.random.default_rng(0))
  return {name: makers[name]() for name in _MATRICES}


def _programs(
  matrix: Any, batch: int, chosen: Sequence[Any], *, backend: str, mode: str
) -> list[Callable[[], Any]]:
  """The dense product twice, then those of what was chosen."""
  x = jnp.asarray(
    np.random.default_rng(1).normal(size=(batch, matrix.shape[0])), jnp.float32
  )
  dense = planning.converted(matrix, 'dense')
  return [
    program_of(x, jax.tree.map(jnp.asarray, form), backend=backend, mode=mode)
    for form in (dense, dense, *chosen)
  ]


def _rows_of(
  shape: tuple[int, int],
  batch: int,
  timings: Sequence[inference.Timing],
  *,
  backend: str,
  mode: str,
  repeats: int,
) -> list[dict[str, Any]]:
  """Plans the matrices of a shape in both ways and times what was chosen."""
  rows = []
  for name, matrix in matrices_of(*shape).items():
    plans = {
      'own shape': inference.plan_inference(
        {'kernel': matrix}, batch=batch, backend=backend, mode=mode
      ),
      'table': inference.plan_inference(
        {'kernel': matrix}, timings, batch=batch
      ),
    }
    programs = _programs(
      matrix, batch, [plan.params['kernel'] for plan in plans.values()],
      backend=backend, mode=mode,
    )  # fmt: skip
    dense, again, *planned = planning.interleaved(
      programs, repeats, least_seconds=1e-2
    )
    for (way, plan), seconds in zip(plans.items(), planned, strict=True):
      choice = plan.choices['kernel']
      expected = choice.seconds['dense'] / choice.seconds[choice.kind]
      rows.append(
        {
          'shape': f'{shape[0]}x{shape[1]}',
          'batch': batch,
          'matrix': name,
          'planned_by': way,
          'form': choice.kind,
          'dense_us': round(1e6 * dense, 1),
          'planned_us': round(1e6 * seconds, 1),
          'predicted_speedup': round(expected, 2),
          'speedup': round(dense / seconds, 2),
          'noise': round(dense / again, 2),
        }
      )
  return rows


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  keep_memory()
  timings = inference.measure_forms(
    batches=given.batches, backend=given.backend, mode=given.mode
  )
  for shape, batch in itertools.product(given.shapes, given.batches):
    yield _rows_of(
      shape, batch, timings, backend=given.backend, mode=given.mode,
      repeats=given.repeats,
    )  # fmt: skip


main = Benchmark(
  name='planned',
  about=__doc__,
  options={
    'shapes': options.shape(
      ['784x300', '300x100', '384x1536', '9216x4096', '4096x1000']
    ),
    'batches': options.integer([1, 16, 64]),
    'backend': options.choice(inference.BACKENDS, 'auto'),
    'mode': options.choice(inference.MODES, 'exact'),
    'repeats': options.integer(9),
  },
  measure=_rows,
  parts=lambda given: len(given.shapes) * len(given.batches),
  seed=0,
).main
