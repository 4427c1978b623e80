"""The table of gradient compression: ours, paired with dense, and published."""

import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from bandwidth.report import markdown_table


class _Pair(NamedTuple):
  """Runs of one network: results/NAME, NAME-dense and NAME-top_k."""

  name: str  # of the file in configs/
  network: str  # network, data and unit, in words
  published: str  # what the paper has of its own network
  # What the modes of the config end in, results/NAME-dense_VARIANT.
  variant: str = ''

  def directory(self, way: str) -> str:
    """Of the reports of a way of training; '' is Deep Gradient Compression."""
    mode = '_'.join(part for part in (way, self.variant) if part)
    return f'{self.name}-{mode}' if mode else self.name


_RESNET_110 = {
  '': ('4 workers', 6.25, 7.25, 6.13),
  '8': ('8 workers', 7.08, 6.98, 6.72),
  '16': ('16 workers', 6.86, 7.07, 6.80),
  '32': ('32 workers', 6.90, 7.90, 6.82),
}


def _resnet(workers: str) -> _Pair:
  count, dense, top_k, compressed = _RESNET_110[workers]
  return _Pair(
    'cifar10_resnet20_dgc',
    f'ResNet-20, CIFAR-10, {count} (simulated): test error, %',
    f'ResNet-110, CIFAR-10, {count}: {dense} dense, {top_k} gradient dropping, '
    f'{compressed} DGC (one run each)',
    workers,
  )


PAIRS = (
  _Pair(
    'mnist_lenet5_dgc',
    'LeNet-5, MNIST, 4 simulated workers, 12 epochs: test error, %',
    'ResNet-110, CIFAR-10, 4 workers: 6.25 dense, 7.25 gradient dropping, 6.13 '
    'DGC (one run each)',
  ),
  *map(_resnet, _RESNET_110),
  _Pair(
    'cifar10_resnet20_dgc',
    'ResNet-20, CIFAR-10, 4 simulated workers, only 4 epochs (on a CPU): test '
    'error, %',
    'as above, 164 epochs',
    'short',
  ),
  _Pair(
    'cifar10_resnet20_dgc',
    'ResNet-20, CIFAR-10, 4 simulated workers of 2 images, only 4 epochs (on a '
    'CPU): test error, %',
    'as above, 32 images a worker, 164 epochs',
    'small',
  ),
  _Pair(
    'brown_lstm_dgc',
    'LSTM-128 (2 layers, tied), Brown, 4 simulated workers, 4 epochs: test '
    'perplexity',
    'LSTM-1500, PTB, 4 workers: 72.30 dense, 72.24 DGC, 462x (one run each)',
  ),
)
_WAYS = (('', 'DGC'), ('dense', 'dense'), ('top_k', 'plain top-k'))


def score(report: dict[str, Any], which: str) -> float:
  """Returns what a report says, the less the better.

  Args:
    report: of a run, what `report.json` says.
    which: 'baseline', the dense network, or 'final'.

  Returns:
    The perplexity of a language model, else the error as a fraction.
  """
  if 'perplexity' in report:
    return report['perplexity'][which]
  return 1 - report['accuracy'][which]


def _score(report: dict[str, Any]) -> float:
  """Perplexity, or error in per cent."""
  return score(report, 'final') * (1 if 'perplexity' in report else 100)


def read_reports(directory: pathlib.Path) -> dict[int, dict[str, Any]]:
  """Returns the reports of a config's runs by seed, ascending; {} of none."""
  files = sorted(directory.glob('[0-9]*.json'), key=lambda p: int(p.stem))
  return {int(p.stem): json.loads(p.read_text('utf-8')) for p in files}


def standard_error(values: Sequence[float]) -> float:
  """Returns the standard error of a mean; NaN for fewer than two values."""
  if len(values) < 2:
    return math.nan
  return statistics.stdev(values) / math.sqrt(len(values))


def _with_error(values: Sequence[float], form: str) -> str:
  """The mean and, of several values, its standard error."""
  mean = format(statistics.mean(values), form)
  if len(values) < 2:
    return mean
  return f'{mean} ± {standard_error(values):.3f}'


def tables(results: pathlib.Path) -> str:
  """Returns Markdown made of the reports below a directory.

  Differences are paired: a run and the dense run of its seed. Positive is
  worse than dense.
  """
  parts = ['# Gradient compression: accuracy']
  for pair in PAIRS:
    dense = read_reports(results / pair.directory('dense'))
    found = {
      way: read_reports(results / pair.directory(mode)) for mode, way in _WAYS
    }
    rows = [_row(way, own, dense) for way, own in found.items() if own]
    if not rows:
      continue
    header = [
      'training', 'seeds', 'mean', 'min to max', 'minus dense, paired',
      'bytes a step', 'ratio', 'ratio of the run', 'minutes', 'command',
    ]  # fmt: skip
    parts += [
      f'## {pair.network}',
      f'Published: {pair.published}.',
      markdown_table(header, rows),
    ]
  return '\n\n'.join(parts) + '\n'


def _row(way: str, reports: dict[int, Any], dense: dict[int, Any]) -> list[str]:
  scores = [_score(r) for r in reports.values()]
  differences = [
    _score(r) - _score(dense[seed])
    for seed, r in reports.items()
    if seed in dense
  ]
  first = next(iter(reports.values()))
  network = first['network']
  minutes = statistics.median(r['seconds'] / 60 for r in reports.values())
  has_pairs = way != 'dense' and differences
  return [
    way,
    ' '.join(map(str, reports)),
    _with_error(scores, '.3f'),
    f'{min(scores):.2f} to {max(scores):.2f}',
    _with_error(differences, '+.3f') if has_pairs else '',
    f'{network["sent_bytes_per_step"]:,}',
    f'{network["ratio_steady"]:.0f}x',
    f'{network["ratio_run"]:.1f}x',
    f'{minutes:.1f}',
    f'`{first["command"]}`',
  ]
