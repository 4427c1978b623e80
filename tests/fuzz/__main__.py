"""Feeds hostile files to the reader of `.bwz`, and counts what comes of it.

    python -m tests.fuzz [--inputs N] [--output F.json]

Each input must be decoded, with a ledger that adds up to its size, or be
refused by a ValueError that names section and byte, within `--seconds` of the
processor and 4 GiB of memory; anything else is a finding. Inputs come from real
files of every kind of payload, in two ways: 'structure' changes payloads,
directories, shapes and bytes, and puts the checksums right; 'coverage' lets
atheris (libFuzzer) choose what to change by what its inputs cover, by the same
changes and its own. Arrays may claim 16 MiB, and those of every 256th input
what the reader's own limit allows.
"""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.runtime import options, table
from experiments.runtime.command import cli
from tests.fuzz.worker import Board

NAME = 'fuzz'
ENGINES = ('structure', 'coverage')
_ROOT = pathlib.Path(__file__).parents[2]
_STATUS = re.compile(r'cov: (\d+) ft: (\d+) corp: (\d+)')


class _Plan(NamedTuple):
  inputs: int
  seconds: float
  seed: int


def measure(
  engine: str, *, inputs: int, seconds: float = 10.0, seed: int = 0
) -> dict[str, Any]:
  """Runs one engine in processes of its own and returns its row.

  Args:
    engine: one of `ENGINES`.
    inputs: how many.
    seconds: that one input may take.
    seed: of all choices.

  Raises:
    ValueError: atheris is not installed, or a worker can't start.
  """
  if engine == 'coverage' and importlib.util.find_spec('atheris') is None:
    raise ValueError("engines='coverage' needs atheris: pip install atheris")
  plan = _Plan(inputs, seconds, seed)
  start = time.perf_counter()
  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    log = _run(engine, directory, plan)
    counts = Board(directory).counts()
    findings = _findings(directory)
  row = {
    'engine': engine,
    'inputs': counts.inputs,
    'decoded': counts.decoded,
    'refused': counts.refused,
    'findings': len(findings),
    'worst_seconds': round(counts.worst_seconds, 3),
    'worst_bytes': counts.worst_bytes,
    'peak_rss_mb': round(counts.peak_rss / 1e6),
    'minutes': round((time.perf_counter() - start) / 60, 1),
    'found': findings,
  }
  status = _STATUS.findall(log)
  if status:
    edges, features, corpus = map(int, status[-1])
    row |= {'edges': edges, 'features': features, 'corpus': corpus}
  return row


def _run(engine: str, directory: pathlib.Path, plan: _Plan) -> str:
  """Starts workers until all inputs have run; returns what the last said."""
  board = Board(directory)
  while True:
    done = board.counts().inputs
    worker = [sys.executable, '-m', 'tests.fuzz.worker']
    rest = [plan.seconds, done, plan.inputs, plan.seed + done]
    if engine == 'structure':
      rest[-1] = plan.seed
    else:
      rest[-2] = plan.inputs - done
    path = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
    process = subprocess.run(
      [*worker, engine, str(directory), *map(str, rest)],
      env={**os.environ, 'PYTHONPATH': path},
      capture_output=True,
      text=True,
      errors='replace',
      check=False,
    )
    counts = board.counts()
    if counts.inputs == done:
      last = (process.stderr.strip() or 'no word').splitlines()[-1]
      raise ValueError(f'engines={engine!r}: the worker ended with: {last}')
    if process.returncode:
      _record_end(directory, board, process)
    if counts.inputs >= plan.inputs:
      return process.stderr


def _record_end(
  directory: pathlib.Path,
  board: Board,
  process: subprocess.CompletedProcess[str],
) -> None:
  last = (process.stderr.strip() or 'no word').splitlines()[-1]
  finding = {
    'what': f'the process ended with {process.returncode}: {last}',
    'input': board.last_input().hex(),
  }
  with (directory / 'findings.jsonl').open('a') as file:
    file.write(json.dumps(finding) + '\n')


def _findings(directory: pathlib.Path) -> list[dict[str, str]]:
  """Distinct findings; each has `what`, and `input` in hexadecimal."""
  path = directory / 'findings.jsonl'
  if not path.exists():
    return []
  found = [json.loads(line) for line in path.read_text().splitlines()]
  return list({each['what']: each for each in reversed(found)}.values())


def main(argv: Sequence[str]) -> int:
  """Runs the engines; returns 0, 1 if something was found, 2 for an error."""
  return cli('fuzz', lambda: _measure_all(argv))


def _measure_all(argv: Sequence[str]) -> int:
  given = options.parse(
    'fuzz',
    __doc__,
    {
      'inputs': options.integer(50_000, 'for each engine'),
      'engines': options.choice(ENGINES, ENGINES),
      'seconds': options.number(10.0, 'that one input may take'),
      'seed': options.integer(0, least=0),
      'output': options.path(None, 'JSON file of the rows'),
    },
    argv,
  )
  start = time.monotonic()
  rows = [
    measure(engine, inputs=given.inputs, seconds=given.seconds, seed=given.seed)
    for engine in given.engines
  ]
  table.show(rows)
  for row in rows:
    for found in row['found']:
      print(f'{row["engine"]}: {found["what"]}')
  if given.output:
    seconds = round(time.monotonic() - start, 1)
    facts = {'seed': given.seed, 'seconds': seconds}
    table.write(given.output, NAME, rows, facts)
  return int(any(row['findings'] for row in rows))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
