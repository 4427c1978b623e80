r"""Chooses the channels or bits of each layer, within a budget.

    python -m experiments.search --config configs/quickstart_search.py \
      --workdir W

Trains the network of the config, unless `search.network` names one that is
trained; searches; and leaves in the directory search.json with policy, scores,
frontier and seeds, search.md, frontier.png, policy.png, and the smaller network
as model.bwz. To go on training it:

    python -m experiments.train --config CONFIG:policy=W/search.json \
      --workdir W2
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from experiments.policy.run import run
from experiments.program import flags

_STARTED = time.monotonic()


def act(config: Mapping[str, Any], workdir: str) -> None:
  """Searches, and shows what was found."""
  run(config, workdir, started=_STARTED)
  print((pathlib.Path(workdir) / 'search.md').read_text('utf-8'))


if __name__ == '__main__':
  flags.run(act, program='search')
