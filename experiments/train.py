"""The main job: trains a network over several workers, and says what it sent.

    python -m experiments.train --config configs/quickstart.py --workdir W

The run resumes from its last checkpoint if the directory has one. What it
leaves there: config.json, metrics.jsonl, TensorBoard event files, checkpoints/,
report.json and report.md.
"""

import time
from collections.abc import Sequence

from experiments.runtime import startup
from experiments.runtime.startup import InputError
from experiments.training.run import run

_STARTED = time.monotonic()


def main(argv: Sequence[str]) -> None:
  """Trains as the flags say."""
  if len(argv) > 1:
    raise InputError(f'{argv[1]!r} is no flag; see --help')
  values = startup.flags.FLAGS
  config = startup.config_from_flags()
  if not values.workdir:
    raise InputError('--workdir is missing')
  startup.prepare_devices(config, startup.processes_from_flags())
  run(config, values.workdir, started=_STARTED)


if __name__ == '__main__':
  startup.define_flags()
  startup.run(main, program='train')
