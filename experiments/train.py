"""The main job: trains a network over several workers, and says what it sent.

    python -m experiments.train --config configs/quickstart.py --workdir W

The run resumes from its last checkpoint if the directory has one. What it
leaves there: config.json, metrics.jsonl, TensorBoard event files, checkpoints/,
report.json and report.md.
"""

import functools
import time

from experiments.program import flags
from experiments.training.run import run

_STARTED = time.monotonic()


if __name__ == '__main__':
  flags.run(functools.partial(run, started=_STARTED), program='train')
