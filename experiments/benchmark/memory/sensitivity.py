"""What pruning one layer alone does to a trained network, with a plot.

    python -m experiments.benchmark sensitivity --model W/dense.safetensors

Each prunable array is pruned by magnitude to several sparsities, without
retraining, and the accuracy is measured (Han et al., arXiv 1506.02626, figure
6). By default on examples held out of training, so that choosing sparsities
does not touch the test set; the network should not have seen them either.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from bandwidth import pruning
from experiments.inference.evaluation import FileNetwork, config_of, load
from experiments.reports.plots import plot_sensitivity
from experiments.runtime import table


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


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='benchmark sensitivity',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--model', type=pathlib.Path, required=True, help='.bwz or .safetensors')
  add('--config', type=pathlib.Path, help='config.json of the run')
  add('--validation', type=int, default=5000, help='held out; 0: the test set')
  add(
    '--sparsities',
    type=float,
    nargs='+',
    default=[0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98],
  )
  add('--plot', type=pathlib.Path, help='PNG file')
  add('--output', help='JSON file of the rows')
  options = parser.parse_args(argv)
  try:
    config = config_of(options.model, options.config)
    config['dataset'] = {**config['dataset'], 'validation': options.validation}
    loaded = load(
      options.model,
      config,
      split='validation' if options.validation else 'test',
    )
    found = scan(loaded, options.sparsities)
    rows = [row._asdict() for row in found]
    table.show(rows)
    if options.plot:
      plot_sensitivity(found, options.plot)
    if options.output:
      table.write(options.output, 'sensitivity', rows)
  except (ValueError, OSError) as error:
    message = ' '.join(str(error).split())
    print(f'benchmark sensitivity: error: {message}', file=sys.stderr)
    return 2
  return 0
