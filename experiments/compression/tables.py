"""The tables of Deep Compression (arXiv 1510.00149), from files on disk."""

import pathlib
from collections.abc import Mapping
from typing import Any

from bandwidth import coding
from bandwidth.report import MemoryReport, MemoryStage
from experiments.runtime.table import markdown


def stage_table(memory: MemoryReport) -> str:
  """Returns the sizes and errors of a run's files, as the paper's table 1.

  Args:
    memory: of the run's report.

  Returns:
    Markdown. A kilobyte is 1000 bytes; ratios are to float32 arrays without any
    header.
  """
  header = ('file', 'bytes', 'KB', 'ratio', 'error')
  rows = [_stage(row) for row in (*memory.stages, *memory.baselines)]
  return markdown(header, rows)


def _stage(row: MemoryStage) -> tuple[str, ...]:
  return (
    row.name,
    f'{row.bytes:,}',
    f'{row.bytes / 1000:.2f}',
    f'{row.ratio:.1f}x',
    f'{1 - row.accuracy:.2%}',
  )


def layer_table(paths: Mapping[str, pathlib.Path]) -> str:
  """Returns a row for each array, as the paper's tables 2 and 3.

  Args:
    paths: .bwz files by name, of one network. Bits are for each weight that is
      kept; where weights and their places are coded together, all of them are
      weight bits.

  Returns:
    Markdown: weights, share that is kept, then of each file bits of weights and
    indices, and its bytes in percent of float32.
  """
  ledgers: dict[str, dict[str, Any]] = {}
  for name, path in paths.items():
    with coding.open_file(path) as reader:
      ledgers[name] = {row.name: row for row in reader.ledger().tensors}
  first = next(iter(ledgers.values()))
  header = ['array', 'weights', 'kept']
  for name in ledgers:
    header += [f'{name}: weight bits', 'index bits', '% of float32']
  rows = []
  for array, row in first.items():
    cells = [array, f'{row.size:,}', f'{row.density:.1%}']
    for ledger in ledgers.values():
      entry = ledger[array]
      share = 100 * entry.bytes / max(4 * entry.size, 1)
      cells += [
        f'{entry.weight_bits:.1f}',
        f'{entry.index_bits:.1f}',
        f'{share:.2f}',
      ]
    rows.append(cells)
  return markdown(header, rows)


def ledger_table(path: pathlib.Path) -> str:
  """Returns where the bytes of a .bwz file went; they add up to its size."""
  with coding.open_file(path) as reader:
    components = reader.ledger().components
  rows = [(name, f'{count:,}') for name, count in components.items() if count]
  rows.append(('total', f'{path.stat().st_size:,}'))
  return markdown(('component', 'bytes'), rows)
