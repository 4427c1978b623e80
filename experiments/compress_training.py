"""Trains and compresses as a config says, and writes the paper's tables.

    python -m experiments.compress --config configs/… --workdir W

The run is that of `experiments.train`: what a stage trains and writes is in the
config, and a directory whose run is complete is only measured again.
`compression.md` has the sizes and errors of all files, of what else a user has
today, a row for each array, and where the bytes of `model.bwz` went.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from bandwidth.report import Report
from experiments import startup
from experiments.compression_tables import (
  layer_table,
  ledger_table,
  stage_table,
)
from experiments.files import replace_text
from experiments.model_files import SAFETENSORS, paths_of
from experiments.startup import InputError
from experiments.train import run

_STARTED = time.monotonic()


def tables(report: Report, workdir: str) -> str:
  """Returns the tables of a run whose files are in a directory, as Markdown."""
  if report.memory is None:
    raise InputError('config: no stage writes a file; see stages.NAME.files')
  stages = report.config['stages']
  pairs = [
    (str(name), str(coder))
    for stage in report.config['stage_order']
    for name, coder in stages[stage].get('files', ())
  ]
  paths = paths_of(pairs, pathlib.Path(workdir))
  coded = {n: paths[n] for n, coder in pairs if coder != SAFETENSORS}
  last = list(paths.values())[-1]
  parts = [
    '# Compression',
    f'`{report.command}`',
    stage_table(report.memory),
    '## Arrays',
    layer_table(coded),
    f'## Bytes of {last.name}',
    ledger_table(last),
  ]
  return '\n\n'.join(parts) + '\n'


def act(config: Mapping[str, Any], workdir: str) -> None:
  """Trains, compresses and tabulates.

  Raises:
    InputError: no stage writes a file, or as `experiments.train.run`.
  """
  if not any(s.get('files') for s in config['stages'].values()):
    raise InputError('config: no stage writes a file; see stages.NAME.files')
  report = run(config, workdir, started=_STARTED)
  text = tables(report, workdir)
  replace_text(pathlib.Path(workdir) / 'compression.md', text)
  print(text)


def program() -> None:
  """Runs as a program, with one line for what users get wrong."""
  startup.run(act, program='compress')
