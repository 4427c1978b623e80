"""Rebuilds results/: trains configs and keeps their reports.

    python -m experiments.reproduce [NAME ...] [--seeds 0 1 2]

Each run is `experiments.train` in a process of its own, in `runs/NAME/SEED`,
and its report becomes `results/NAME/SEED.json`. A run that was stopped goes on.
Then `results/summary.md` is written from all reports that are there.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bandwidth.base import unknown_name
from experiments.files import replace_text

ROOT = pathlib.Path(__file__).parent.parent
DEFAULT_NAMES = ('quickstart', 'mnist_lenet5')


def _train(name: str, seed: int, runs: pathlib.Path) -> pathlib.Path:
  workdir = runs / name / str(seed)
  command = [sys.executable, '-m', 'experiments.train']
  command += [f'--config=configs/{name}.py', f'--config.seed={seed}']
  command += [f'--workdir={workdir}']
  subprocess.run(command, check=True, cwd=ROOT)
  return ROOT / workdir / 'report.json'


def summarize(results: pathlib.Path) -> str:
  """Returns a Markdown table of the reports below a directory."""
  header = [
    'config',
    'seeds',
    'error, mean',
    'error, min to max',
    'gradient ratio',
    'minutes a run',
    'device',
    'command of the first seed',
  ]
  lines = [header, ['---'] * len(header)]
  for directory in sorted(p for p in results.iterdir() if p.is_dir()):
    files = sorted(directory.glob('[0-9]*.json'), key=lambda p: int(p.stem))
    reports = [json.loads(p.read_text('utf-8')) for p in files]
    reports = [r for r in reports if 'accuracy' in r]
    if reports:
      lines.append(_row(directory.name, reports))
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def _row(name: str, reports: list[dict[str, Any]]) -> list[str]:
  errors = [1 - report['accuracy']['final'] for report in reports]
  minutes = [report['seconds'] / 60 for report in reports]
  ratio = reports[0].get('network', {}).get('ratio_run', 1.0)
  return [
    name,
    ' '.join(str(report['seed']) for report in reports),
    f'{statistics.mean(errors):.2%}',
    f'{min(errors):.2%} to {max(errors):.2%}',
    f'{ratio:.3g}x',
    f'{statistics.median(minutes):.1f}',
    reports[0]['device'],
    f'`{reports[0]["command"]}`',
  ]


def main(argv: Sequence[str]) -> int:
  """Trains and collects; returns the exit status."""
  parser = argparse.ArgumentParser(prog='reproduce', description=__doc__)
  parser.add_argument('names', nargs='*', default=DEFAULT_NAMES, metavar='NAME')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0])
  parser.add_argument('--runs', type=pathlib.Path, default=pathlib.Path('runs'))
  options = parser.parse_args(argv)
  known = [path.stem for path in (ROOT / 'configs').glob('*.py')]
  for name in options.names:
    if name not in known:
      parser.error(unknown_name('NAME', name, known))
  results = ROOT / 'results'
  for name in options.names:
    for seed in options.seeds:
      try:
        report = _train(name, seed, options.runs)
      except subprocess.CalledProcessError as error:
        print(f'reproduce: error: {name}, seed {seed} failed', file=sys.stderr)
        return error.returncode
      (results / name).mkdir(parents=True, exist_ok=True)
      shutil.copyfile(report, results / name / f'{seed}.json')
      replace_text(results / 'summary.md', summarize(results))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
