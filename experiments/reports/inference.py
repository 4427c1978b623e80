"""Tables and plots of inference from the compressed form, from results/.

Files are results/benchmark/{inference,gpu_launches,loading,planned}*.json; what
is absent is left out.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from bandwidth.report import markdown_table
from experiments.reports.plots import figure_at
from experiments.reports.search_comparison import origin, read_benchmarks

_PRODUCTS = 'inference'
_OTHERS = {
  'inference_models': 'Whole networks',
  'planned': 'Planned forms',
  'loading': 'Opening a file',
  'gpu_launches': 'Ways of dealing out work on a GPU',
}
_AT_ONE = {
  'form': 'form',
  'bytes': 'bytes',
  'ms': 'ms',
  'gb_per_second': 'GB/s',
  'of_copy': 'of a copy',
  'speedup': 'speedup',
  'over_bfloat16': 'over bfloat16',
  'ceiling': 'ceiling',
  'error': 'error',
  'gains_until_batch': 'gains until batch',
}
_LARGE = ('4096x4096', '8192x8192')


def tables(results: pathlib.Path) -> str:
  """Returns Markdown made of the files below a directory."""
  parts = ['# Inference from the compressed form']
  for file in read_benchmarks(results, f'{_PRODUCTS}*.json'):
    if 'copy_bytes_per_second' in file:
      parts += _products(file)
  for name, title in _OTHERS.items():
    for file in read_benchmarks(results, f'{name}*.json'):
      parts += [f'## {title}', _origin(file), _whole(file['rows'])]
  return '\n\n'.join(parts) + '\n'


def _origin(file: Mapping[str, Any]) -> str:
  note = file.get('note')
  return origin(file) + (f' {note}' if note else '')


def _products(file: Mapping[str, Any]) -> list[str]:
  rows = file['rows']
  copied = file['copy_bytes_per_second'] / 1e9
  parts = [
    f'## Products on {file["device"]}{_with(file)}',
    f'{_origin(file)} A copy reads and writes {copied:,.0f} GB a second.',
  ]
  shapes = dict.fromkeys(row['shape'] for row in rows)
  for shape in shapes:
    if shape in _LARGE:
      own = [r for r in rows if (r['shape'], r['batch']) == (shape, 1)]
      table = [[_text(row.get(key)) for key in _AT_ONE] for row in own]
      parts += [
        f'{shape}, batch 1:',
        markdown_table([*_AT_ONE.values()], table),
      ]
  if len(shapes) > len(_LARGE):
    at_one = [row for row in rows if row['batch'] == 1]
    parts += [
      'Speedup over XLA dense float32 at batch 1, by shape:',
      _crossed(at_one, 'shape', 'speedup'),
      'Largest batch at which a form still gains on it, by shape:',
      _crossed(at_one, 'shape', 'gains_until_batch'),
    ]
  if len({row['batch'] for row in rows}) > 1:
    for shape in shapes:
      own = [row for row in rows if row['shape'] == shape]
      if shape in _LARGE and len({row['batch'] for row in own}) > 1:
        parts += [
          f'Speedup over XLA dense float32 at {shape}, by batch:',
          _crossed(own, 'batch', 'speedup'),
        ]
  return parts


def _with(file: Mapping[str, Any]) -> str:
  """Instructions of kernels and flags of XLA, where they were chosen."""
  chosen = [file.get('instructions'), file.get('xla_flags')]
  return ''.join(f', {text}' for text in chosen if text)


def _crossed(rows: Sequence[Mapping[str, Any]], across: str, value: str) -> str:
  """A table of forms against something else."""
  columns = list(dict.fromkeys(row[across] for row in rows))
  forms = list(dict.fromkeys(row['form'] for row in rows))
  found = {(row['form'], row[across]): row.get(value) for row in rows}
  return markdown_table(
    ['form', *map(str, columns)],
    [
      [form, *(_text(found.get((form, column))) for column in columns)]
      for form in forms
    ],
  )


def _whole(rows: Sequence[Mapping[str, Any]]) -> str:
  """A table of all columns."""
  columns = list(dict.fromkeys(key for row in rows for key in row))
  return markdown_table(
    [column.replace('_', ' ') for column in columns],
    [[_text(row.get(column)) for column in columns] for row in rows],
  )


def _text(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, bool):
    return 'yes' if value else ''
  if isinstance(value, int):
    return f'{value:,}'
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def plot(results: pathlib.Path) -> None:
  """Draws a roofline of each kind of device."""
  found: dict[str, list[Mapping[str, Any]]] = {}
  for file in read_benchmarks(results, f'{_PRODUCTS}*.json'):
    # Of kernels that this machine would not choose there are tables only.
    if 'copy_bytes_per_second' in file and 'instructions' not in file:
      kind = 'cpu' if 'CPU' in file['device'] else 'gpu'
      found.setdefault(kind, []).append(file)
  for kind, files in found.items():
    rows = [row for file in files for row in file['rows']]
    copied = files[0]['copy_bytes_per_second']
    path = results / 'plots' / f'inference_roofline_{kind}.png'
    plot_roofline(rows, copied, path)


def plot_roofline(
  rows: Sequence[Mapping[str, Any]], copied: float, path: pathlib.Path
) -> None:
  """Plots operations a second against operations a byte, batch by batch.

  Args:
    rows: of the benchmark; of 4096 x 4096 alone, where it is among them.
    copied: bytes a second of a copy.
    path: of a .png file.
  """
  large = [row for row in rows if row['shape'] == _LARGE[0]]
  rows = large or rows
  with figure_at(path, (7.2, 5.0)) as figure:
    axes = figure.add_subplot()
    colors = _colors(dict.fromkeys(_family(row['form']) for row in rows))
    for form in dict.fromkeys(row['form'] for row in rows):
      points = sorted(_point(row) for row in rows if row['form'] == form)
      axes.loglog(
        *zip(*points, strict=True), color=colors(_family(form)), label=form,
        marker=_MARKS.get(_mode(form), 'o'), markersize=4, alpha=0.8,
        linewidth=0.8,
      )  # fmt: skip
    intensity = np.array(axes.get_xlim())
    axes.loglog(
      intensity, intensity * copied / 1e9, 'k--', label='bytes of a copy'
    )
    axes.set_title(f'{rows[0]["shape"]}, one point a batch', fontsize=9)
    axes.set_xlabel('operations of the dense product for each byte read')
    axes.set_ylabel('operations of the dense product, 1e9 a second')
    axes.grid(alpha=0.3)
    figure.legend(fontsize=6, ncols=4, loc='outside lower center')


_MARKS = {'exact': 'o', 'int16': 's', 'int8': '^'}


def _family(form: str) -> str:
  return form.partition(',')[0]


def _mode(form: str) -> str:
  return form.partition(', ')[2]


def _colors(families: Mapping[str, None]) -> Callable[[str], Any]:
  shades = [matplotlib.colormaps['tab20'](i) for i in range(20)]
  # Dark ones first, then the light ones.
  order = [*shades[::2], *shades[1::2]]
  return dict(zip(families, order, strict=False)).__getitem__


def _point(row: Mapping[str, Any]) -> tuple[float, float]:
  inputs, outputs = map(int, row['shape'].split('x'))
  operations = 2 * inputs * outputs * row['batch']
  return operations / row['bytes'], operations / row['ms'] * 1e3 / 1e9
