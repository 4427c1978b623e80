"""Where the numbers of a run go: metrics.jsonl, event files, the terminal."""

import json
import pathlib
import sys
from collections.abc import Mapping

import tensorboardX
import tqdm

from bandwidth.files import replace_text


class MetricsWriter:
  """Writes `metrics.jsonl` and TensorBoard event files into a directory.

  Args:
    directory: of the run, which gets the files.
    step: that the run begins or resumes at. What a run that was killed wrote
      after its last checkpoint is dropped, so that no step is there twice.
  """

  def __init__(self, directory: pathlib.Path, *, step: int):
    path = directory / 'metrics.jsonl'
    if path.exists():
      replace_text(path, _lines_until(path.read_text('utf-8'), step))
    self._file = path.open('a', encoding='utf-8')
    self._events = tensorboardX.SummaryWriter(
      str(directory), purge_step=step + 1 if step else None
    )

  def write(self, step: int, stage: str, scalars: Mapping[str, float]) -> None:
    """Writes one line, and one event for each scalar."""
    line = {'step': step, 'stage': stage, **scalars}
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    for name, value in scalars.items():
      self._events.add_scalar(name, value, step)

  def close(self) -> None:
    """Writes what is left and closes the files."""
    self._file.close()
    self._events.close()


def _lines_until(text: str, step: int) -> str:
  """Keeps complete lines of steps up to `step`."""
  kept = []
  for line in text.splitlines():
    try:
      if json.loads(line)['step'] <= step:
        kept.append(line + '\n')
    except (json.JSONDecodeError, KeyError):
      break
  return ''.join(kept)


class Progress:
  """A bar on a terminal, plain lines elsewhere.

  Args:
    steps: of the whole run.
    step: that it begins at.
    silent: shows nothing (processes other than the first).
  """

  def __init__(self, *, steps: int, step: int, silent: bool = False):
    self._silent, self._steps = silent, steps
    self._bar = None
    if not silent and sys.stderr.isatty():
      self._bar = tqdm.tqdm(total=steps, initial=step, unit='step')

  def update(self, step: int, stage: str, scalars: Mapping[str, float]) -> None:
    """Shows the scalars of a step."""
    numbers = ' '.join(f'{name}={value:.4g}' for name, value in scalars.items())
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      self._bar.set_postfix_str(f'{stage} {numbers}')
    else:
      self.say(f'step {step}/{self._steps} {stage} {numbers}')

  def say(self, line: str) -> None:
    """Prints a line above the bar."""
    if not self._silent:
      tqdm.tqdm.write(line, file=sys.stderr if self._bar else sys.stdout)
      sys.stdout.flush()

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.close()
