"""What all benchmarks share: options, rows as they come, table, JSON, plot."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.runtime import options, table
from experiments.runtime.command import cli

Rows = list[dict[str, Any]]

_PATIENCE = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
  """A benchmark, by what it measures."""

  # of the command, and of the file's `name` unless `title` says another
  name: str
  about: str | None  # what `--help` says
  # by name, beside `--output`, and `--plot` where there is a plot
  options: Mapping[str, options.Option]
  # options -> parts of the rows, as they are measured. What else is to be in
  # the file goes to the dictionary `facts` of the options.
  measure: Callable[[Any], Iterable[Sequence[Mapping[str, Any]]]]
  # options -> how many parts; None: that is not known
  parts: Callable[[Any], int] | None = None
  # (rows, options) -> the rows to show and write, of all so far
  finish: Callable[[Rows, Any], Rows] = lambda rows, given: rows
  # (rows, options), prints them
  show: Callable[[Rows, Any], None] = lambda rows, given: table.show(rows)
  # (rows, options, path), draws them
  plot: Callable[[Rows, Any, pathlib.Path], None] | None = None
  title: Callable[[Any], str] | None = None  # options -> `name` of the file
  # of what is random where no option says so; None: nothing is
  seed: int | None = None

  def main(self, argv: Sequence[str]) -> int:
    """Measures what the arguments say; returns the exit status."""
    program = f'benchmark {self.name}'
    return cli(program, lambda: self._run(program, argv))

  def _run(self, program: str, argv: Sequence[str]) -> None:
    known = {**self.options, 'output': options.path(None, 'JSON file')}
    if self.plot is not None:
      known['plot'] = options.path(None, 'PNG file')
    given = options.parse(program, self.about, known, argv)
    given.facts = {}
    found: Rows = []
    start = time.monotonic()
    progress = _Progress(program, self.parts(given) if self.parts else None)
    try:
      for part in self.measure(given):
        found += map(dict, part)
        progress.step()
        self._write(found, given, start, unfinished=True)
    except KeyboardInterrupt as error:
      kept = f'; rows are in {given.output}' if given.output and found else ''
      raise type(error)(f'stopped after {progress.done} parts{kept}') from None
    finally:
      progress.clear()
    rows = self.finish(found, given)
    self.show(rows, given)
    self._write(found, given, start, unfinished=False)
    if self.plot is not None and given.plot:
      self.plot(rows, given, given.plot)

  def _write(
    self, found: Rows, given: Any, start: float, *, unfinished: bool
  ) -> None:
    if not given.output:
      return
    facts = dict(given.facts)
    if (seed := _seed_of(given, self.seed)) is not None:
      facts['seed'] = seed
    facts['seconds'] = round(time.monotonic() - start, 1)
    if unfinished:
      facts['unfinished'] = True
    name = self.title(given) if self.title else self.name
    table.write(given.output, name, self.finish(found, given), facts)


def _seed_of(given: Any, otherwise: int | None) -> Any:
  """The option `seed`, or those that `seeds` lists or counts."""
  seeds = getattr(given, 'seeds', otherwise)
  if 'seeds' in given and isinstance(seeds, int):
    seeds = list(range(seeds))
  return getattr(given, 'seed', seeds)


class _Progress:
  """Says on stderr how far a run of more than ten seconds is."""

  def __init__(self, program: str, total: int | None):
    self.done = 0
    self._program, self._total = program, total
    self._start = self._said = time.monotonic()
    self._here = sys.stderr.isatty()

  def step(self) -> None:
    """Counts a part; a line of its own at most every ten seconds."""
    self.done += 1
    now = time.monotonic()
    pause = 0.0 if self._here else _PATIENCE
    if self.done == self._total or now - self._start < _PATIENCE:
      return
    if now - self._said < pause:
      return
    self._said = now
    line = f'{self._program}: {self.done}'
    if self._total:
      left = (now - self._start) / self.done * (self._total - self.done)
      line += f' of {self._total}, {round(left)} s left'
    end = '\r' if self._here else '\n'
    print(line.ljust(60 if self._here else 0), end=end, file=sys.stderr)
    sys.stderr.flush()

  def clear(self) -> None:
    """Leaves the line of a terminal empty."""
    if self._here and self._said > self._start:
      print(' ' * 60, end='\r', file=sys.stderr, flush=True)
