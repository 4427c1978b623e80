"""What owner-sharded exchange does to training, against all-gather.

    python -m experiments.benchmark owners [--workers 4 8 16] [--seeds 0 1 2]

An owner adds up what the workers selected in its stripe, selects again and
forwards c times as many entries as one worker sent it; the rest waits with it.
Deep Gradient Compression of LeNet-300-100 on MNIST, simulated workers, one
stage of warm-up: error on examples held out of training, mean over the seeds,
and paired with all-gather of the same seed and workers. c = P forwards nearly
all.
"""

import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.benchmark.harness import Benchmark
from experiments.reports.gradient import standard_error
from experiments.runtime import options
from experiments.training.run import run

_ALL_GATHER = 'all_gather'


def make_config(
  workers: int, forward: float, seed: int, epochs: float
) -> dict[str, Any]:
  """Returns the config of one run; a `forward` of 0 is all-gather."""
  reducer = {
    'name': 'deep_gradient_compression',
    'density': 1e-3,
    'momentum': 0.9,
    'exchange': 'owner_sharded' if forward else _ALL_GATHER,
    'forward': forward or 1.0,
  }
  warm_up = {'epochs': 0.25, 'reducer': {**reducer, 'density': 1 / 64}}
  return {
    'seed': seed,
    'mapping': 'vmap',
    'workers': workers,
    'cpu_devices': 1,
    'batch_size': 128,
    'dataset': {'validation': 5000, 'mean': 0.1307, 'std': 0.3081},
    'model': {'name': 'lenet300'},
    'optimizer': {
      'name': 'sgd', 'learning_rate': 0.02, 'schedule': 'cosine',
    },
    'reducer': reducer,
    'stage_order': ('warm_up', 'train'),
    'stages': {'warm_up': warm_up, 'train': {'epochs': epochs - 0.25}},
    'log_every': 1000,
  }  # fmt: skip


def summarized(
  errors: Mapping[str, Mapping[int, float]], **fields: Any
) -> list[dict[str, Any]]:
  """Returns a row for each exchange.

  Args:
    errors: by exchange and seed, as fractions; 'all_gather' among them.
    **fields: of each row.
  """
  rows = []
  for exchange, by_seed in errors.items():
    beside = [
      100 * (error - errors[_ALL_GATHER][seed])
      for seed, error in by_seed.items()
    ]
    percent = [100 * error for error in by_seed.values()]
    row = {
      **fields,
      'exchange': exchange,
      'error_percent': round(statistics.mean(percent), 3),
      'standard_error': round(standard_error(percent), 3),
      'minus_all_gather': round(statistics.mean(beside), 3),
      'paired_error': round(standard_error(beside), 3),
      'errors_percent': [round(p, 3) for p in percent],
    }
    rows.append(row)
  return rows


def _errors(
  workers: int, names: Mapping[str, float], given: Any
) -> tuple[dict[str, dict[int, float]], dict[str, int]]:
  """Errors by exchange and seed, and bytes that each exchange sends."""
  errors: dict[str, dict[int, float]] = {name: {} for name in names}
  sent = {}
  for seed in given.seeds:
    for name, forward in names.items():
      config = make_config(workers, forward, seed, given.epochs)
      with tempfile.TemporaryDirectory() as workdir:
        report = run(config, workdir)
      errors[name][seed] = 1 - report.accuracy['final']
      if report.network is not None:
        sent[name] = report.network.sent_bytes_per_step
  return errors, sent


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  for workers in given.workers:
    names = {_ALL_GATHER: 0.0}
    factors = dict.fromkeys([*given.forward, workers])
    names |= {f'owner_sharded c={c:g}': float(c) for c in factors}
    errors, sent = _errors(workers, names, given)
    found = summarized(
      errors, workers=workers, seeds=len(given.seeds), epochs=given.epochs
    )
    yield [{**r, 'sent_bytes': sent[r['exchange']]} for r in found]


main = Benchmark(
  name='owners',
  about=__doc__,
  options={
    'workers': options.integer([4, 8, 16], least=2),
    'forward': options.number([1.0, 2.0], 'c; also P'),
    'seeds': options.integer([0, 1, 2], least=0),
    'epochs': options.number(
      3.0,
      fits=lambda epochs: 0.25 < epochs < math.inf,
      otherwise='not more than the warm-up, 0.25',
    ),
  },
  measure=_rows,
  parts=lambda given: len(given.workers),
).main
