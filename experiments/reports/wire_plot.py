"""Plot of seconds a step on links of several rates."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from experiments.reports.plots import figure_at


def plot_wire(
  rows: Sequence[Mapping[str, Any]], path: str | pathlib.Path
) -> None:
  """Plots milliseconds a step, a group of bars for each rate.

  Args:
    rows: what `experiments.benchmark wire` writes.
    path: of the PNG file.

  Raises:
    ValueError: there are no rows, or `path` is no .png or cannot be written.
  """
  if not rows:
    raise ValueError('rows: there are none to plot')
  with figure_at(path, (8, 4.5)) as figure:
    _draw(figure.subplots(), rows)


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
  rates = list(dict.fromkeys(row['rate'] for row in rows))
  names = list(dict.fromkeys(row['reducer'] for row in rows))
  width = 0.8 / len(names)
  for index, name in enumerate(names):
    found = {row['rate']: row['ms'] for row in rows if row['reducer'] == name}
    places = [i for i, rate in enumerate(rates) if rate in found]
    axes.bar(
      [i + (index - (len(names) - 1) / 2) * width for i in places],
      [found[rates[i]] for i in places],
      width,
      label=name,
    )
  axes.set_yscale('log')
  axes.set_xticks(range(len(rates)), rates)
  axes.set_xlabel('rate of each link')
  axes.set_ylabel('ms a step, selection included')
  axes.legend(frameon=False, fontsize='small')
