"""Plots of one search: accuracy against cost, and what each layer keeps."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reports.plots import figure_at

_MARKERS = {'uniform': 's', 'dynamic programming': 'o', 'searched': '*'}


def plot_frontier(
  points: Sequence[Mapping[str, Any]],
  path: pathlib.Path,
  outcome: Mapping[str, Any],
) -> None:
  """Plots accuracy against cost, one line a searcher."""
  with figure_at(path, (6.4, 4.2)) as figure:
    axes = figure.add_subplot()
    for name in dict.fromkeys(row['searcher'] for row in points):
      own = sorted(
        (row['cost'], row['accuracy'])
        for row in points
        if row['searcher'] == name
      )
      label = outcome['searcher']['name'] if name == 'searched' else name
      axes.plot(
        [100 * cost for cost, _ in own],
        [100 * accuracy for _, accuracy in own],
        marker=_MARKERS.get(name, 'D'), label=label,
        markersize=11 if name == 'searched' else 5,
        zorder=3 if name == 'searched' else 2,
      )  # fmt: skip
    axes.set_xlabel(f'{outcome["cost"]["name"]}, % of the whole network')
    axes.set_ylabel('accuracy on held-out examples, not fine-tuned (%)')
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right', fontsize=9)


def plot_policy(
  policy: Sequence[Mapping[str, Any]], path: pathlib.Path
) -> None:
  """Plots the fraction of channels, or of 8 bits, that each layer keeps."""
  with figure_at(path, (max(4.0, 0.4 * len(policy) + 2), 3.6)) as figure:
    axes = figure.add_subplot()
    kept = [100 * row['fraction'] for row in policy]
    bars = axes.bar(range(len(policy)), kept, color='#0072b2')
    axes.bar_label(bars, [row['label'] for row in policy], fontsize=7)
    names = [row['name'] for row in policy]
    axes.set_xticks(range(len(policy)), names, rotation=90, fontsize=7)
    axes.set_ylim(0, 110)
    axes.set_ylabel('kept (%)')
