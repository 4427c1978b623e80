"""Plots of what was measured, as PNG files.

Figures are built without `matplotlib.pyplot`, from Matplotlib's own defaults
and not from the user's settings: the same data give the same bytes. Files are
written aside, then renamed.
"""

import contextlib
import io
import itertools
import pathlib
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bandwidth.files import replace_bytes
from bandwidth.pruning import SensitivityRow
from bandwidth.report import MemoryStage
from experiments.reports.published import Accounting, PublishedPoint

_COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_LINES = ('-', '--', ':', '-.')
_PUBLISHED = '#444444'


class MeasuredPoint(NamedTuple):
  """A network that was compressed, with one or more seeds."""

  label: str  # points of one label are joined by a line
  file_bytes: Sequence[int]  # of the file, for each seed
  error_percent: Sequence[float]  # test error, for each seed


def plot_sensitivity(
  rows: Sequence[SensitivityRow], path: str | pathlib.Path
) -> None:
  """Plots accuracy against sparsity, one line for each parameter.

  Args:
    rows: of `bandwidth.pruning.sensitivity_scan`, whose `evaluate` returned an
      accuracy as a fraction.
    path: of the PNG file.

  Raises:
    ValueError: there are no rows, or `path` is no .png or cannot be written.
  """
  if not rows:
    raise ValueError('rows=[]: nothing to plot')
  names = list(dict.fromkeys(row.name for row in rows))
  with figure_at(path, (7.0, 4.2)) as figure:
    axes = figure.add_subplot()
    styles = itertools.cycle(itertools.product(_LINES, _COLORS))
    for name, (line, color) in zip(names, styles, strict=False):
      own = [row for row in rows if row.name == name]
      axes.plot(
        [100 * row.sparsity for row in own],
        [100 * row.value for row in own],
        line, color=color, marker='o', markersize=4,
        label=f'{name} ({own[0].size:,})',
      )  # fmt: skip
    dense = 100 * (rows[0].value - rows[0].change)
    axes.axhline(dense, color='black', linewidth=1, label='nothing pruned')
    axes.set_xlabel('sparsity of the one pruned parameter (%)')
    axes.set_ylabel('accuracy, not retrained (%)')
    axes.set_title('Sensitivity to pruning')
    axes.grid(alpha=0.3)
    figure.legend(
      loc='outside right upper', title='parameter (weights)', fontsize=8
    )


def plot_stages(
  stages: Sequence[MemoryStage],
  path: str | pathlib.Path,
  *,
  dense_bytes: int,
  published: Mapping[str, float],
  title: str,
) -> None:
  """Plots the size of the file after each stage beside the published ones.

  A published ratio is drawn as the size that it gives the same dense network.

  Args:
    stages: rows of a report's `memory`, in their order.
    path: of the PNG file.
    dense_bytes: of the network in float32.
    published: ratio by name of a stage, like `DEEP_COMPRESSION_STAGES`; stages
      that are not in it get no second bar.
    title: drawn above the plot.

  Raises:
    ValueError: there are no stages, or `path` is no .png or cannot be written.
  """
  if not stages:
    raise ValueError('stages=[]: nothing to plot')
  with figure_at(path, (6.4, 4.2)) as figure:
    axes = figure.add_subplot()
    for place, stage in enumerate(stages):
      both = stage.name in published
      _bar(
        axes, place - 0.2 * both, stage.bytes, dense_bytes,
        note=f'{stage.accuracy:.2%}', color=_COLORS[0],
        label='this file: ratio, accuracy' if place == 0 else '',
      )  # fmt: skip
    ratios = [(i, published.get(s.name)) for i, s in enumerate(stages)]
    drawn = [(place, ratio) for place, ratio in ratios if ratio]
    for i, (place, ratio) in enumerate(drawn):
      _bar(
        axes, place + 0.2, dense_bytes / ratio, dense_bytes,
        note='', color='#bbbbbb',
        label='at the published ratio' if i == 0 else '',
      )  # fmt: skip
    axes.set_xticks(range(len(stages)), [stage.name for stage in stages])
    axes.margins(y=0.18)
    axes.yaxis.set_major_formatter(FuncFormatter(_short_bytes))
    axes.set_ylabel('bytes on disk')
    axes.set_title(f'{title} ({_short_bytes(dense_bytes)} dense)')
    axes.legend(loc='upper right', fontsize=9)


def plot_rate_error(
  points: Sequence[MeasuredPoint],
  published: Sequence[PublishedPoint],
  path: str | pathlib.Path,
  *,
  dense: MeasuredPoint,
  title: str,
) -> None:
  """Plots test error against the bytes of the file.

  Points are medians over seeds, bars reach from the least to the greatest.
  Published results are drawn if they count coded bytes; others are not
  comparable, and a note below the plot says which were left out.

  Args:
    points: networks that were compressed here.
    published: what was published on the same network.
    path: of the PNG file.
    dense: the network that was compressed: its bytes in float32 make the ratio
      of the upper axis, its error the horizontal line.
    title: drawn above the plot.

  Raises:
    ValueError: nothing to plot, a point without seeds or with bytes that are
      not positive, or `path` is no .png or cannot be written.
  """
  coded = [point for point in published if point.accounting.is_coded]
  if not points and not coded:
    raise ValueError('points=[], published=[]: nothing to plot')
  for point in (*points, dense):
    _check_point(point)
  with figure_at(path, (7.4, 5.0)) as figure:
    axes = figure.add_subplot()
    axes.set_xscale('log')
    _draw_dense(axes, dense)
    _draw_measured(axes, points)
    labels = _draw_published(axes, coded)
    axes.set(xlabel='bytes on disk', ylabel='test error (%)', title=title)
    axes.grid(alpha=0.3, which='both')
    axes.margins(0.12)
    axes.legend(fontsize=8)
    _ratio_axis(axes, dense.file_bytes[0])
    figure.supxlabel(_left_out(published), fontsize=7.5, x=0.01, ha='left')
    _spread_labels(figure, axes, labels)


@contextlib.contextmanager
def figure_at(
  path: str | pathlib.Path, size: tuple[float, float]
) -> Iterator[Figure]:
  """Gives a figure to draw on, then writes it to the path."""
  path = pathlib.Path(path)
  if path.suffix != '.png':
    raise ValueError(f'path={str(path)!r} has not the suffix .png')
  with matplotlib.style.context('default'):
    figure = Figure(figsize=size, dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    yield figure
    buffer = io.BytesIO()
    # The name of the software has its version in it.
    figure.savefig(buffer, format='png', metadata={'Software': None})
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, buffer.getvalue())
  except OSError as error:
    raise ValueError(
      f'path={str(path)!r} cannot be written: {error.strerror}'
    ) from None


def _check_point(point: MeasuredPoint) -> None:
  sizes, errors = point.file_bytes, point.error_percent
  if not sizes or len(sizes) != len(errors):
    raise ValueError(
      f'{point.label}: {len(sizes)} file_bytes and {len(errors)} error_percent'
    )
  if min(sizes) <= 0:
    raise ValueError(f'{point.label}: file_bytes={min(sizes)} is not positive')


def _short_bytes(count: float, _: Any = None) -> str:
  """Writes bytes with a decimal prefix: 1500 becomes '1.5 KB'."""
  for unit, size in (('MB', 1e6), ('KB', 1e3)):
    if count >= size:
      return f'{count / size:.3g} {unit}'
  return f'{count:.3g} B'


def _bar(
  axes: Axes, x: float, size: float, dense: int, *, note: str, **style: Any
) -> None:
  axes.bar(x, size, 0.38, **style)
  text = f'{dense / size:.3g}x' + (f'\n{note}' if note else '')
  axes.annotate(
    text, (x, size), (0, 3), textcoords='offset points', ha='center', fontsize=9
  )


def _draw_dense(axes: Axes, dense: MeasuredPoint) -> None:
  errors = dense.error_percent
  median = statistics.median(errors)
  label = f'{dense.label}, {median:.2f} %'
  axes.axhline(median, color='black', linewidth=1, label=label)
  if len(errors) > 1:
    axes.axhspan(min(errors), max(errors), color='black', alpha=0.08)


def _draw_measured(axes: Axes, points: Sequence[MeasuredPoint]) -> None:
  labels = dict.fromkeys(point.label for point in points)
  for label, color in zip(labels, itertools.cycle(_COLORS), strict=False):
    own = sorted(
      (p for p in points if p.label == label),
      key=lambda p: statistics.median(p.file_bytes),
    )
    x, x_spread = _medians([p.file_bytes for p in own])
    y, y_spread = _medians([p.error_percent for p in own])
    seeds = sorted({len(p.file_bytes) for p in own})
    count = '-'.join(str(n) for n in (seeds[0], seeds[-1])[: len(seeds)])
    axes.errorbar(
      x, y, xerr=x_spread, yerr=y_spread, color=color, marker='o',
      markersize=5, capsize=3, linewidth=1.2, zorder=3,
      label=f'{label} (median, min to max; seeds: {count})',
    )  # fmt: skip


def _medians(
  samples: Sequence[Sequence[float]],
) -> tuple[list[float], list[list[float]]]:
  """Returns medians, and how far the least and the greatest lie from them."""
  medians = [statistics.median(sample) for sample in samples]
  pairs = list(zip(medians, samples, strict=True))
  return medians, [[m - min(s) for m, s in pairs],
                   [max(s) - m for m, s in pairs]]  # fmt: skip


def _draw_published(axes: Axes, points: Sequence[PublishedPoint]) -> list[Any]:
  """Draws results and returns their labels, which are still to be placed."""
  markers = {Accounting.CODED: 's', Accounting.CODED_NO_BIASES: 'D'}
  for accounting, marker in markers.items():
    own = [p for p in points if p.accounting == accounting and p.file_bytes]
    if own:
      axes.plot(
        [float(p.file_bytes or 0) for p in own],
        [p.error_percent for p in own],
        marker, color=_PUBLISHED, markerfacecolor='white', zorder=2,
        label=f'published, {accounting.value}',
      )  # fmt: skip
  return [
    axes.text(
      p.file_bytes, p.error_percent,
      f'{p.method}\n{p.ratio:g}x, {_short_bytes(p.file_bytes)}',
      fontsize=8, color=_PUBLISHED, zorder=4,
    )
    for p in points
    if p.file_bytes
  ]  # fmt: skip


def _ratio_axis(axes: Axes, dense_bytes: int) -> None:
  """Adds the ratio on top, and labels both axes in plain numbers."""
  left, right = axes.get_xlim()
  top = axes.twiny()
  top.set_xscale('log')
  top.set_xlim(dense_bytes / left, dense_bytes / right)
  top.set_xlabel('ratio to the dense network')
  axes.set_xlim(left, right)
  formats = (_short_bytes, lambda ratio, _: f'{ratio:g}x')
  for axis, form in zip((axes.xaxis, top.xaxis), formats, strict=True):
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(form))
    axis.set_minor_formatter(NullFormatter())


def _left_out(published: Sequence[PublishedPoint]) -> str:
  """Says which results are not drawn, and what they count."""
  groups: dict[str, list[str]] = {}
  for point in published:
    if not point.accounting.is_coded:
      text = f'{point.method} {point.ratio:g}x at {point.error_percent:g} %'
      groups.setdefault(point.accounting.value, []).append(text)
  if not groups:
    return ''
  lines = [f'{kind}: {", ".join(names)}' for kind, names in groups.items()]
  lines = [textwrap.fill(line, 120, subsequent_indent='  ') for line in lines]
  return '\n'.join(['Not drawn, for they count something else:', *lines])


def _spread_labels(figure: Figure, axes: Axes, labels: list[Any]) -> None:
  """Moves labels off points, the legend and each other."""
  # It imports pyplot, which looks for a display.
  from adjustText import adjust_text

  figure.draw_without_rendering()
  # The first line is that of the dense network and crosses the whole plot.
  points = np.concatenate([line.get_xydata() for line in axes.lines[1:]])
  # Not limited in time, so that the same data give the same bytes.
  adjust_text(
    labels, *points.T, ax=axes, objects=[axes.get_legend()], iter_lim=1000
  )
