"""Rows of measurements: on the terminal, and in a file."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bandwidth.files import local_path, replace_text
from bandwidth.report import device, versions
from experiments.runtime import provenance

Row = Mapping[str, Any]


def environment() -> dict[str, Any]:
  """Returns what numbers hang on: `device`, `versions` and `commit`."""
  return {
    'device': device(),
    'versions': versions(),
    'commit': provenance.commit(),
  }


def write(
  path: str | pathlib.Path,
  name: str,
  rows: Sequence[Row],
  facts: Mapping[str, Any] | None = None,
) -> None:
  """Writes `{name, device, versions, commit, command, rows}` as JSON.

  Args:
    path: of the file. Its directory is made if it is missing.
    name: what the benchmark is called.
    rows: dictionaries of what JSON knows.
    facts: more fields, before the rows.

  Raises:
    ValueError: the file can't be written; the message says why.
  """
  path = local_path(path, argument='output')
  content = {
    'name': name,
    **environment(),
    'command': provenance.command(),
    **(facts or {}),
    'rows': [dict(row) for row in rows],
  }
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(content, indent=2) + '\n')
  except OSError as error:
    raise ValueError(
      f'output={str(path)!r} cannot be written: {error.strerror}'
    ) from None


def show(rows: Sequence[Row]) -> None:
  """Prints rows as a table; numbers are aligned to the right.

  Columns are the keys, in the order in which they appear first. Lists and
  dictionaries are left to the file.

  >>> show([{'name': 'dense', 'bytes': 28672}, {'name': 'top-16', 'ms': 0.25}])
  name     bytes    ms
  dense   28,672
  top-16          0.25
  """
  plain = [
    {k: v for k, v in row.items() if not isinstance(v, list | dict | tuple)}
    for row in rows
  ]
  columns = list(dict.fromkeys(key for row in plain for key in row))
  cells = [[_text(row.get(column)) for column in columns] for row in plain]
  numeric = [_is_numeric(row.get(c) for row in plain) for c in columns]
  table = [[column.replace('_', ' ') for column in columns], *cells]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  for line in table:
    aligned = [
      cell.rjust(width) if is_number else cell.ljust(width)
      for cell, width, is_number in zip(line, widths, numeric, strict=True)
    ]
    print('  '.join(aligned).rstrip())


def _is_numeric(values: Any) -> bool:
  return all(isinstance(v, int | float) for v in values if v is not None)


def _text(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, bool) or not isinstance(value, int | float):
    return str(value)
  if isinstance(value, int):
    return f'{value:,}'
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
