"""Rebuilds results/: trains configs and keeps their reports.

    python -m experiments.reproduce [NAME[:MODE] ...] [--seeds 0 1 2]
    python -m experiments.reproduce --rebuild

Each run is a process of its own in `runs/NAME/SEED`: `experiments.compress`
where the config has stages that write files, else `experiments.train`. Its
report becomes `results/NAME/SEED.json`; with a mode of the config the name is
NAME-MODE. A run that was stopped goes on. Then `results/summary.md` and the
plots are made of all reports that are there.
"""

import argparse
import pathlib
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bandwidth.base import check_known
from bandwidth.files import replace_text
from bandwidth.report import markdown_table
from experiments.config import config_names, named_config
from experiments.reports import compression, gradient, inference, search
from experiments.runtime import command

ROOT = pathlib.Path(__file__).parent.parent
DEFAULT_NAMES = (
  'quickstart',
  'mnist_lenet5',
  'mnist_lenet300_deep_compression',
  'mnist_lenet5_deep_compression',
  'mnist_lenet300_rate',
  'mnist_lenet5_rate',
)


def _program(config: str, mode: str) -> str:
  """Which program runs a config: the one that writes its tables, if any."""
  stages = named_config(config, mode).stages.values()
  return 'compress' if any(s.get('files') for s in stages) else 'train'


def _train(name: str, seed: int, runs: pathlib.Path) -> pathlib.Path:
  config, _, mode = name.partition(':')
  workdir = runs / directory_of(name) / str(seed)
  program = [sys.executable, '-m', f'experiments.{_program(config, mode)}']
  suffix = f':{mode}' if mode else ''
  flags = [f'--config=configs/{config}.py{suffix}', f'--config.seed={seed}']
  program += [*flags, f'--workdir={workdir}']
  subprocess.run(program, check=True, cwd=ROOT)
  return ROOT / workdir / 'report.json'


def directory_of(name: str) -> str:
  """Returns the directory below results/ of NAME or NAME:MODE."""
  return name.replace(':', '-')


def summarize(results: pathlib.Path) -> str:
  """Returns a Markdown table of the reports below a directory."""
  header = [
    'config',
    'seeds',
    'error or perplexity, mean',
    'min to max',
    'dense error, mean',
    'gradient ratio',
    'file bytes, median',
    'file ratio, median',
    'minutes a run',
    'device',
    'command of the first seed',
  ]
  rows = []
  for directory in sorted(p for p in results.iterdir() if p.is_dir()):
    if reports := list(gradient.read_reports(directory).values()):
      rows.append(_row(directory.name, reports))
  return markdown_table(header, rows) + '\n'


def _row(name: str, reports: list[dict[str, Any]]) -> list[str]:
  form = '{:.2f}' if 'perplexity' in reports[0] else '{:.2%}'
  scores = [gradient.score(report, 'final') for report in reports]
  dense = [gradient.score(report, 'baseline') for report in reports]
  memory = [report['memory'] for report in reports if 'memory' in report]
  minutes = [report['seconds'] / 60 for report in reports]
  ratio = reports[0].get('network', {}).get('ratio_run', 1.0)
  return [
    name,
    ' '.join(str(report['seed']) for report in reports),
    form.format(statistics.mean(scores)),
    f'{form.format(min(scores))} to {form.format(max(scores))}',
    form.format(statistics.mean(dense)) if memory else '',
    f'{ratio:.3g}x',
    _median(memory, 'file_bytes', '{:,.0f}'),
    _median(memory, 'ratio', '{:.1f}x'),
    f'{statistics.median(minutes):.1f}',
    reports[0]['device'],
    f'`{reports[0]["command"]}`',
  ]


def rebuild(results: pathlib.Path) -> None:
  """Writes the summary, the tables and the plots anew."""
  replace_text(results / 'summary.md', summarize(results))
  replace_text(results / 'compression.md', compression.tables(results))
  replace_text(results / 'gradient.md', gradient.tables(results))
  replace_text(results / 'search.md', search.tables(results))
  replace_text(results / 'inference.md', inference.tables(results))
  compression.plot(results)
  search.plot(results)
  inference.plot(results)


def _median(memory: list[dict[str, Any]], field: str, form: str) -> str:
  if not memory:
    return ''
  return form.format(statistics.median(row[field] for row in memory))


def main(argv: Sequence[str]) -> int:
  """Trains and collects; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='reproduce',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('names', nargs='*', default=DEFAULT_NAMES, metavar='NAME')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0])
  parser.add_argument('--runs', type=pathlib.Path, default=pathlib.Path('runs'))
  parser.add_argument(
    '--rebuild', action='store_true', help='tables and plots only, no runs'
  )
  return command.run('reproduce', parser, _run, argv)


def _run(options: argparse.Namespace) -> int:
  known = config_names()
  for name in options.names:
    check_known('NAME', name.partition(':')[0], known)
  results = ROOT / 'results'
  if options.rebuild:
    rebuild(results)
    return 0
  for name in options.names:
    for seed in options.seeds:
      try:
        report = _train(name, seed, options.runs)
      except subprocess.CalledProcessError as error:
        print(f'reproduce: error: {name}, seed {seed} failed', file=sys.stderr)
        return error.returncode
      kept = results / directory_of(name)
      kept.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(report, kept / f'{seed}.json')
      rebuild(results)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
