"""What pruning one layer alone does to a trained network, with a plot.

    python -m experiments.benchmark sensitivity --model W/dense.safetensors

Each prunable array is pruned by magnitude to several sparsities, without
retraining, and the accuracy is measured (Han et al., arXiv 1506.02626, figure
6). By default on examples held out of training, so that choosing sparsities
does not touch the test set; the network should not have seen them either.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from bandwidth import pruning
from experiments.benchmark.harness import Benchmark
from experiments.inference.evaluation import FileNetwork, config_of, load
from experiments.reports.plots import plot_sensitivity
from experiments.runtime import options


def scan(
  loaded: FileNetwork, sparsities: Sequence[float]
) -> list[pruning.SensitivityRow]:
  """Returns the rows of a network; raises as `pruning.sensitivity_scan`."""
  rules = [('.*/kernel', True), ('.*', False)]
  return pruning.sensitivity_scan(
    lambda params: loaded.measure(params, loaded.model_state)['accuracy'],
    loaded.params,
    sparsities,
    rules=rules,
  )


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  config = config_of(given.model, given.config)
  config['dataset'] = {**config['dataset'], 'validation': given.validation}
  split = 'validation' if given.validation else 'test'
  loaded = load(given.model, config, split=split)
  yield [row._asdict() for row in scan(loaded, given.sparsities)]


main = Benchmark(
  name='sensitivity',
  about=__doc__,
  options={
    'model': options.path(options.REQUIRED, '.bwz or .safetensors'),
    'config': options.path(None, 'config.json of the run'),
    'validation': options.integer(5000, 'held out; 0: the test set', least=0),
    'sparsities': options.number(
      [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98],
      fits=lambda value: 0 <= value <= 1,
      otherwise='not in [0, 1]',
    ),
  },
  measure=_rows,
  plot=lambda rows, given, path: plot_sensitivity(
    [pruning.SensitivityRow(**row) for row in rows], path
  ),
).main
