"""Training over links of several rates: dense, and a thousandth of it.

    python -m experiments.benchmark training [--rates 100mbit 1gbit]

Each row is a run of `experiments.launch --rate` of a config, its processes in
network namespaces of their own: steps a second, bytes that the interface of
process 0 sent, and the seconds until an accuracy is reached, from the start of
the run, compilation included. The accuracy is what the first of the modes ends
with, at each rate. Needs root.
"""

import json
import pathlib
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.benchmark.harness import Benchmark
from experiments.runtime import options
from experiments.runtime.command import run_python
from experiments.runtime.links import parse_rate

_SENT = re.compile(r'launch: process 0 sent ([\d,]+) bytes')


def _run(
  rate: str, mode: str, given: Any, workdir: pathlib.Path
) -> dict[str, Any]:
  """Trains once.

  Raises:
    ValueError: the run failed; the message is the end of what it said.
  """
  suffix = f':{mode}' if mode else ''
  arguments = [
    '-m', 'experiments.launch', f'--processes={given.processes}',
    f'--rate={rate}', '--', f'--config={given.config}{suffix}',
    f'--workdir={workdir}', f'--config.seed={given.seed}',
  ]  # fmt: skip
  printed = run_python(arguments, f'{mode or "compressed"} at {rate}')
  lines = (workdir / 'metrics.jsonl').read_text('utf-8').splitlines()
  records = [json.loads(line) for line in lines]
  report = json.loads((workdir / 'report.json').read_text('utf-8'))
  sent = _SENT.search(printed)
  network = report['network']
  return {
    'rate': rate,
    'mode': mode or 'compressed',
    'parameters': report['details']['parameters'],
    'steps': records[-1]['step'],
    # Steps of the last stage, which is not the warm-up.
    'steps_per_second': _median_rate(records),
    'accuracy': report['accuracy']['final'],
    'seconds': round(report['seconds'], 1),
    'compile_seconds': round(report['details']['compile_seconds'], 1),
    'sent_bytes_per_step': network['sent_bytes_per_step'],
    'interface_bytes': int(sent[1].replace(',', '')) if sent else None,
    'evaluations': [
      [r['step'], r['seconds'], r['eval_accuracy']]
      for r in records
      if 'eval_accuracy' in r
    ],
  }


def _median_rate(records: Sequence[dict[str, Any]]) -> float:
  stage = records[-1]['stage']
  rates = [
    r['steps_per_second']
    for r in records
    if r['stage'] == stage and 'steps_per_second' in r
  ]
  return round(statistics.median(rates), 3) if rates else float('nan')


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Adds to the rows of one rate what they are beside the first of them.

  Args:
    rows: `steps_per_second`, `accuracy`, and `evaluations`, triples of a step,
      seconds and an accuracy.

  Returns:
    The rows with `speedup`, of a step; `seconds_to`, until the first row's
    final accuracy is reached, None where it is not; and `sooner`, by which
    factor.
  """
  first, out = rows[0], []
  goal = first['accuracy']
  for row in rows:
    reached = [s for _, s, accuracy in row['evaluations'] if accuracy >= goal]
    seconds = round(reached[0], 1) if reached else None
    speedup = row['steps_per_second'] / first['steps_per_second']
    out.append(
      {**row, 'speedup': round(speedup, 2), 'goal': goal, 'seconds_to': seconds}
    )
  start = out[0]['seconds_to']
  return [
    {**r, 'sooner': r['seconds_to'] and round(start / r['seconds_to'], 2)}
    for r in out
  ]


def _rows(given: Any) -> Iterator[list[dict[str, Any]]]:
  for rate in given.rates:
    found = []
    for mode in given.modes:
      with tempfile.TemporaryDirectory() as workdir:
        found.append(_run(rate, mode, given, pathlib.Path(workdir)))
      print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    yield compared(found)


main = Benchmark(
  name='training',
  about=__doc__,
  options={
    'processes': options.integer(4),
    'rates': options.text(['100mbit', '1gbit'], check=parse_rate),
    'modes': options.text(['dense', ''], 'of the config'),
    'config': options.text('configs/mnist_mlp_dgc.py'),
    'seed': options.integer(0, least=0),
  },
  measure=_rows,
  parts=lambda given: len(given.rates),
).main
