"""The process that feeds inputs to the reader: started by `fuzz`.

It may be killed by what it runs. So it keeps its counts and the input at hand
in a file that is mapped into memory, and writes findings to another at once.
"""

import importlib
import json
import mmap
import os
import pathlib
import random
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

USUAL_LIMIT = 1 << 24
"""Bytes of arrays that most inputs may claim: more would take the time."""

_FULL_LIMIT_EVERY = 256
_MEMORY = 4 << 30
_WORTH_A_LOOK = 0.01
_MAX_INPUT = 1 << 20
_LAYOUT = struct.Struct('<6Qd')


class Counts(NamedTuple):
  """What a worker did.

  Attributes:
    inputs: begun.
    decoded: files that were read to the end.
    refused: by a ValueError that says where.
    worst_bytes: size of the input that took longest.
    peak_rss: bytes, of the process.
    length: of the last input.
    worst_seconds: of the processor, on any input.
  """

  inputs: int = 0
  decoded: int = 0
  refused: int = 0
  worst_bytes: int = 0
  peak_rss: int = 0
  length: int = 0
  worst_seconds: float = 0.0


class Board:
  """Counts and the last input, in a file that outlives the process."""

  def __init__(self, directory: pathlib.Path):
    path = directory / 'board'
    if not path.exists():
      path.write_bytes(bytes(_LAYOUT.size + _MAX_INPUT))
    with path.open('r+b') as file:
      self._map = mmap.mmap(file.fileno(), 0)

  def counts(self) -> Counts:
    """Returns what is written there."""
    return Counts(*_LAYOUT.unpack_from(self._map))

  def put(self, counts: Counts) -> None:
    """Writes counts."""
    _LAYOUT.pack_into(self._map, 0, *counts)

  def put_input(self, data: bytes) -> None:
    """Writes the input that is about to run."""
    self._map[_LAYOUT.size : _LAYOUT.size + len(data)] = data

  def last_input(self) -> bytes:
    """Returns the input that ran last."""
    end = _LAYOUT.size + self.counts().length
    return self._map[_LAYOUT.size : end]


class Trial:
  """Runs inputs, one after the other, and keeps account.

  Args:
    directory: of the board, of `findings.jsonl` and of `worst.bwz`.
    seconds: of the processor after which an input is a finding, and the process
      ends.
  """

  def __init__(self, directory: pathlib.Path, seconds: float):
    self._directory = directory
    self._seconds = seconds
    self._board = Board(directory)
    self._known: set[str] = set()
    self._check = importlib.import_module('tests.fuzz.inputs').check

  def run(self, data: bytes) -> None:
    """Runs one input; what it finds is written down, not raised."""
    data = data[:_MAX_INPUT]
    counts = self._board.counts()
    full = counts.inputs % _FULL_LIMIT_EVERY == 0
    self._board.put_input(data)
    counts = counts._replace(inputs=counts.inputs + 1, length=len(data))
    self._board.put(counts)
    signal.setitimer(signal.ITIMER_PROF, self._seconds)
    start = time.process_time()
    try:
      decoded = self._check(data, max_bytes=None if full else USUAL_LIMIT)
      refused = not decoded
    except KeyboardInterrupt:
      raise
    except BaseException as error:
      # The panics of a native module are no Exception.
      decoded = refused = False
      self._write_finding(data, error)
    seconds = time.process_time() - start
    signal.setitimer(signal.ITIMER_PROF, 0)
    if seconds > counts.worst_seconds:
      (self._directory / 'worst.bwz').write_bytes(data)
      counts = counts._replace(worst_seconds=seconds, worst_bytes=len(data))
    peak = _peak_rss() if seconds > _WORTH_A_LOOK else 0
    self._board.put(
      counts._replace(
        decoded=counts.decoded + decoded,
        refused=counts.refused + refused,
        peak_rss=max(counts.peak_rss, peak),
      )
    )

  def _write_finding(self, data: bytes, error: BaseException) -> None:
    place = traceback.extract_tb(error.__traceback__)[-1]
    key = f'{type(error).__name__} at {place.name}, line {place.lineno}'
    if key in self._known:
      return
    self._known.add(key)
    finding = {'what': f'{key}: {error}', 'input': data.hex()}
    with (self._directory / 'findings.jsonl').open('a') as file:
      file.write(json.dumps(finding) + '\n')


def _peak_rss() -> int:
  """High-water mark of resident bytes since the process began.

  That of `getrusage` also counts what the parent held when it forked.
  """
  status = pathlib.Path('/proc/self/status').read_text('utf-8')
  return int(status.split('VmHWM:')[1].split()[0]) << 10


def by_structure(trial: Trial, *, first: int, last: int, seed: int) -> None:
  """Runs inputs `first` to `last`, each a function of its number and the seed.

  Args:
    trial: that runs them.
    first: number of the first input.
    last: one past the number of the last.
    seed: of all choices.
  """
  inputs: Any = importlib.import_module('tests.fuzz.inputs')
  files = inputs.seeds()
  for number in range(first, last):
    rng = random.Random(f'{seed}/{number}')
    data = rng.choice(files)
    for _ in range(rng.choice((1, 1, 2, 3))):
      data = inputs.mutate(data, files, rng, inputs.byte_havoc)
    trial.run(data)


def by_coverage(
  directory: pathlib.Path, *, seconds: float, runs: int, seed: int
) -> None:
  """Runs inputs that atheris finds by what they cover. Ends the process.

  Args:
    directory: as of `Trial`; the corpus is kept there too.
    seconds: as of `Trial`.
    runs: how many.
    seed: of all choices.
  """
  atheris: Any = importlib.import_module('atheris')
  with atheris.instrument_imports(include=['bandwidth.coding']):
    inputs: Any = importlib.import_module('tests.fuzz.inputs')
  files = inputs.seeds()
  corpus = directory / 'corpus'
  corpus.mkdir(exist_ok=True)
  for number, data in enumerate(files):
    (corpus / f'seed{number}').write_bytes(data)
  trial = Trial(directory, seconds)

  def havoc(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
      return inputs.byte_havoc(data, rng)
    return bytes(atheris.Mutate(data, len(data) + 64))

  def mutate(data: bytes, max_size: int, number: int) -> bytes:
    out = inputs.mutate(data, files, random.Random(number), havoc)
    return out[:max_size]

  atheris.Setup(
    [
      'fuzz', str(corpus), f'-runs={runs}', f'-seed={seed + 1}',
      f'-max_len={1 << 16}', f'-artifact_prefix={directory}/',
      f'-rss_limit_mb={_MEMORY >> 20}', f'-timeout={int(20 * seconds)}',
    ],
    trial.run,
    custom_mutator=mutate,
  )  # fmt: skip
  atheris.Fuzz()


def main(argv: Sequence[str]) -> None:
  """Runs an engine; see `fuzz`, which says with what arguments."""
  engine, path, seconds, first, last, seed = argv
  directory = pathlib.Path(path)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  # One thread, so that seconds are those of a core.
  os.environ.setdefault('OMP_NUM_THREADS', '1')
  if engine == 'coverage':
    by_coverage(
      directory, seconds=float(seconds), runs=int(last), seed=int(seed)
    )
    return
  resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
  by_structure(
    Trial(directory, float(seconds)),
    first=int(first),
    last=int(last),
    seed=int(seed),
  )


if __name__ == '__main__':
  main(sys.argv[1:])
