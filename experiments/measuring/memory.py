"""What a call takes: seconds, and the memory that it adds."""

import contextlib
import ctypes
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

_PROCESS = pathlib.Path('/proc/self')


class Cost(NamedTuple):
  """What a call took.

  Attributes:
    seconds: of the processor.
    clock: seconds on the wall.
    peak: bytes by which the resident set rose at most; 0 where the system does
      not say.
    kept: bytes by which it is larger afterwards.
  """

  seconds: float
  clock: float
  peak: int
  kept: int


def cost_of(call: Callable[[], Any]) -> tuple[Any, Cost]:
  """Calls something with a clean heap; returns its result and what it took."""
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).malloc_trim(0)
  with contextlib.suppress(OSError):
    # Begins a new high-water mark of the resident set.
    (_PROCESS / 'clear_refs').write_text('5')
  before = _resident('VmRSS')
  cpu, start = time.process_time(), time.perf_counter()
  out = call()
  clock = time.perf_counter() - start
  seconds = time.process_time() - cpu
  after, most = _resident('VmRSS'), _resident('VmHWM')
  return out, Cost(seconds, clock, most - before, after - before)


def _resident(key: str) -> int:
  """Bytes, from Linux."""
  try:
    status = (_PROCESS / 'status').read_text('utf-8')
  except OSError:
    return 0
  return int(status.split(f'{key}:')[1].split()[0]) << 10
