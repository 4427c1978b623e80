"""Tables and plots of model compression from the reports below results/."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bandwidth.report import MemoryStage, markdown_table
from experiments.reports import gradient
from experiments.reports.plots import (
  MeasuredPoint,
  plot_rate_error,
  plot_stages,
)
from experiments.reports.published import DEEP_COMPRESSION_STAGES, published

NETWORKS = {'lenet300': 'LeNet-300-100', 'lenet5': 'LeNet-5'}
Reports = list[dict[str, Any]]


def _with_files(directory: pathlib.Path) -> Reports:
  reports = gradient.read_reports(directory).values()
  return [report for report in reports if 'memory' in report]


def tables(results: pathlib.Path) -> str:
  """Returns, for each config whose runs left files, tables in Markdown.

  Args:
    results: with a directory for each config.

  Returns:
    Bytes on disk and error of every file and seed, then of what else a user has
    today, means over the seeds.
  """
  parts = [
    '# Files of compressed networks',
    'Bytes are sizes on disk, ratios to float32 without any header, errors of '
    'what the file decodes to.',
  ]
  for directory in sorted(p for p in results.iterdir() if p.is_dir()):
    reports = _with_files(directory)
    if reports:
      parts += [
        f'## {directory.name}',
        f'`{reports[0]["command"]}`; {reports[0]["device"]}; '
        f'{statistics.median(r["seconds"] for r in reports) / 60:.1f} minutes '
        'a seed',
        _seeds(reports),
      ]
      if reports[0]['memory'].get('baselines'):
        parts.append(_baselines(reports))
  return '\n\n'.join(parts) + '\n'


def _seeds(reports: Reports) -> str:
  names = [row['name'] for row in reports[0]['memory']['stages']]
  header = ['seed', *(f'{name}: bytes, ratio, error' for name in names)]
  rows = [
    [str(report['seed']), *map(_cell, report['memory']['stages'])]
    for report in reports
  ]
  if len(reports) > 1:
    columns = zip(*(r['memory']['stages'] for r in reports), strict=True)
    rows.append(['mean', *(_cell(_mean(column)) for column in columns)])
  return markdown_table(header, rows)


def _cell(row: Mapping[str, Any]) -> str:
  error = 1 - row['accuracy']
  return f'{row["bytes"]:,.0f}, {row["ratio"]:.1f}x, {error:.2%}'


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  fields = ('bytes', 'ratio', 'accuracy')
  means = {f: statistics.fmean(row[f] for row in rows) for f in fields}
  return {'name': rows[0]['name'], **means}


def _baselines(reports: Reports) -> str:
  columns = zip(*(r['memory']['baselines'] for r in reports), strict=True)
  rows = [
    [
      row['name'],
      f'{row["bytes"]:,.0f}',
      f'{row["ratio"]:.1f}x',
      f'{1 - row["accuracy"]:.2%}',
    ]
    for row in map(_mean, columns)
  ]
  header = ['same network, today', 'bytes', 'ratio', 'error']
  return markdown_table(header, rows)


def plot(results: pathlib.Path) -> list[pathlib.Path]:
  """Draws what there are reports for; returns the files, below `plots/`."""
  plots = results / 'plots'
  plots.mkdir(exist_ok=True)
  drawn = []
  for network, title in NETWORKS.items():
    compressed = _with_files(results / f'mnist_{network}_deep_compression')
    rated = {
      path.name: reports
      for path in sorted(results.glob(f'mnist_{network}_rate*'))
      if (reports := _with_files(path))
    }
    if compressed:
      drawn.append(plots / f'{network}_stages.png')
      _plot_stages(network, title, compressed, drawn[-1])
    if rated:
      drawn.append(plots / f'{network}_rate_error.png')
      _plot_curve(network, title, compressed, rated, drawn[-1])
  return drawn


def _plot_stages(
  network: str, title: str, reports: Reports, path: pathlib.Path
) -> None:
  columns = zip(*(r['memory']['stages'] for r in reports), strict=True)
  means = [_mean(column) for column in columns]
  stages = [
    MemoryStage(**{**mean, 'bytes': round(mean['bytes'])}) for mean in means
  ]
  plot_stages(
    stages[1:],
    path,
    dense_bytes=reports[0]['memory']['dense_bytes'],
    published=DEEP_COMPRESSION_STAGES[network],
    title=f'{title}, means of {len(reports)} seeds',
  )


def _plot_curve(
  network: str,
  title: str,
  compressed: Reports,
  rated: Mapping[str, Reports],
  path: pathlib.Path,
) -> None:
  curve = [_point('rate-aware', reports) for reports in rated.values()]
  curve.sort(key=lambda point: statistics.median(point.file_bytes))
  if compressed:
    curve.append(_point('Deep Compression, here', compressed))
  everything = [*compressed, *(r for group in rated.values() for r in group)]
  errors = [100 * (1 - r['accuracy']['baseline']) for r in everything]
  plot_rate_error(
    curve,
    published(network, coded=True) + published(network, coded=False),
    path,
    dense=MeasuredPoint(
      'dense, here', [r['memory']['dense_bytes'] for r in everything], errors
    ),
    title=f'{title} on MNIST',
  )


def _point(label: str, reports: Reports) -> MeasuredPoint:
  return MeasuredPoint(
    label,
    [report['memory']['file_bytes'] for report in reports],
    [100 * (1 - report['accuracy']['final']) for report in reports],
  )
