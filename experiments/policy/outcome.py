"""What a search leaves: search.json, search.md, frontier.png, policy.png."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bandwidth.files import replace_text
from bandwidth.report import device, markdown_table
from experiments.compression.files import MODEL
from experiments.policy.choice import SearchResult
from experiments.policy.export import ExportResult
from experiments.policy.kinds import kind_of
from experiments.policy.setup import SearchSetup
from experiments.reports.policy import plot_frontier, plot_policy
from experiments.runtime import provenance

SEARCH = 'search.json'


def make_outcome(
  prepared: SearchSetup,
  found: SearchResult,
  frontier: Sequence[Mapping[str, Any]],
  exported: ExportResult,
) -> dict[str, Any]:
  """Returns what `search.json` says, but for the seconds."""
  plan, priced = prepared.plan, prepared.priced
  given = plan.config['search']
  (searched,) = (row for row in frontier if row['searcher'] == 'searched')
  fractions = found.histories.costs * (priced.costs.unit / priced.whole)
  return {
    'config': json.loads(json.dumps(plan.config, default=list)),
    'command': provenance.command(),
    'commit': provenance.commit(),
    'device': device(),
    'searcher': dict(given['searcher']),
    'evaluations': int(found.histories.scores.size),
    'seeds': given['seeds'],
    'traces': found.traces,
    'budget': given['budget'],
    'cost': {
      'name': given['cost']['name'],
      'whole': priced.whole,
      'budget': given['budget'] * priced.whole,
      'found': priced.exact(found.best),
      'fraction': searched['cost'],
    },
    'policy': prepared.subject.policy(found.best),
    'score': {
      'of': given['score'],
      'by_seed': np.fmax.reduce(found.histories.scores, axis=1).tolist(),
      'examples': {
        'search': given['images'],
        'check': len(plan.task.evaluated) - given['images'],
      },
      'finalists': found.finalists,
      'check': dict(searched),
      'test': exported.tested,
      'masked_minus_exported': exported.difference,
    },
    'frontier': list(frontier),
    'history': {
      'scores': found.histories.scores.tolist(),
      'costs': fractions.tolist(),
    },
    'model': exported.model,
    'weights': MODEL,
  }


def write_outcome(outcome: Mapping[str, Any], directory: pathlib.Path) -> None:
  """Writes plots, table and, last, search.json."""
  plot_frontier(outcome['frontier'], directory / 'frontier.png', outcome)
  plot_policy(outcome['policy'], directory / 'policy.png')
  replace_text(directory / 'search.md', to_markdown(outcome))
  text = json.dumps(outcome, indent=2) + '\n'
  replace_text(directory / SEARCH, text)


def to_markdown(outcome: Mapping[str, Any]) -> str:
  """Returns the tables of a search for people."""
  kind = kind_of(outcome['config']['search']['decisions']['name'])
  policy = [
    [row['name'], row['label'], f'{row["fraction"]:.0%}']
    for row in outcome['policy']
  ]
  frontier = [
    [row['searcher'], f'{row["cost"]:.1%}', f'{row["accuracy"]:.2%}',
     f'{row["loss"]:.4f}']
    for row in outcome['frontier']
  ]  # fmt: skip
  parts = [
    '# Search',
    f'`{outcome["command"]}`',
    *_sentences(outcome),
    '## Policy',
    markdown_table(['layer', kind.labels, 'of all'], policy),
    '## On examples that the search has not seen, not fine-tuned',
    _examples(outcome),
    markdown_table(['', 'cost', 'accuracy', 'loss'], frontier),
  ]
  return '\n\n'.join(parts) + '\n'


def _sentences(outcome: Mapping[str, Any]) -> list[str]:
  cost, test = outcome['cost'], outcome['score']['test']
  seconds, name = outcome['seconds'], outcome['searcher']['name']
  return [
    f'{outcome["evaluations"]:,} evaluations by {name} in '
    f'{seconds["evaluate"]:.1f} s, compiled in {seconds["compile"]:.1f} s; '
    f'{seconds["total"]:.0f} s in all. {cost["name"]}: '
    f'{_amount(cost["found"])} of {_amount(cost["whole"])}, '
    f'{cost["fraction"]:.1%} (budget {_amount(cost["budget"])}).',
    f'{outcome["weights"]}: {test["accuracy"]:.2%} of the '
    f'{test["examples"]:,} test examples, not fine-tuned; '
    f'{test["file_bytes"]:,} bytes.',
    *_unrounded(outcome),
  ]


def _unrounded(outcome: Mapping[str, Any]) -> list[str]:
  if not any(row['name'].endswith('/activations') for row in outcome['policy']):
    return []
  return [
    'The file holds weights in their bits. What layers read is rounded in the '
    'search and on the unseen examples below, not in the accuracy of the file.'
  ]


def _amount(cost: float) -> str:
  # Multiply-adds and bytes are whole, seconds are not.
  return f'{cost:,.0f}' if cost >= 1000 else f'{cost:.4g}'


def _examples(outcome: Mapping[str, Any]) -> str:
  score = outcome['score']
  seen, check = score['examples']['search'], score['examples']['check']
  statistics = outcome['config']['search']['statistics']
  recalibrated = (
    ' In all of them, the whole network too, batch normalization has the '
    f'statistics of {statistics:,} training images.'
  )
  return (
    f'Accuracy and loss are of {check:,} training examples that were held out. '
    f'The search compared candidates by their {score["of"]} on {seen:,} others '
    f'of those; `searched` is then the best of {score["finalists"]} on these, '
    'which favors it a little. The test set chose nothing.'
    f'{recalibrated if statistics else ""}'
  )
