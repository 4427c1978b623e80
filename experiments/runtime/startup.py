"""What programs do before their first array: devices, processes, errors."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

# Of malloc.h: no mapping of its own for a large block, nothing trimmed, and one
# arena, whose blocks all threads reuse.
_MALLOC = {-4: 0, -1: -1, -8: 1}


class InputError(ValueError):
  """What the user gave can't be used; the message is one line."""


class Processes(NamedTuple):
  """How the processes of a run find each other."""

  distributed: bool = False  # whether there are several
  # `host:port` of process 0; empty: found out by JAX, which knows TPU pods,
  # Slurm and Kubernetes.
  coordinator: str = ''
  count: int = 0  # number of processes; 0: found out
  index: int = -1  # of this process; -1: found out


def prepare_devices(config: Mapping[str, Any], processes: Processes) -> None:
  """Makes virtual CPU devices and joins the processes. Call it first.

  Raises:
    InputError: `cpu_devices` can't be split over the processes, JAX is running
      with other devices, or a pod can't find out about itself.
  """
  keep_memory()
  per_process = max(processes.count, 1)
  devices = int(config.get('cpu_devices', 0))
  if devices < 0 or devices % per_process:
    raise InputError(
      f'cpu_devices={devices} cannot be split over {per_process} processes'
    )
  if devices and 'xla_force_host_platform_device_count' not in os.environ.get(
    'XLA_FLAGS', ''
  ):
    # In a notebook JAX may be running already; its devices will do, or
    # make_workers says how many there are.
    with contextlib.suppress(RuntimeError):
      jax.config.update('jax_num_cpu_devices', devices // per_process)
  if processes.distributed:
    _join(processes)


def keep_memory() -> None:
  """Lets the process keep the memory that it has freed.

  On CPUs XLA allocates every result anew, and glibc gets large ones from the
  kernel, page by page, which for large arrays is most of the time.
  """
  if not sys.platform.startswith('linux'):
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:  # glibc's
    for option, value in _MALLOC.items():
      mallopt(option, value)


def _join(processes: Processes) -> None:
  try:
    if processes.coordinator:
      jax.distributed.initialize(
        processes.coordinator, processes.count, processes.index
      )
    else:
      jax.distributed.initialize()
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f'distributed: {_first_line(error)} Give --coordinator, --num_processes '
      'and --process_id where no pod, Slurm or Kubernetes provides them'
    ) from error


def fail(program: str, message: str, status: int = 2) -> Any:
  """Prints an error in one line and exits with a status."""
  print(f'{program}: error: {message}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  # Other processes of the run may be waiting in a collective that will never
  # complete; a clean shutdown would wait for them.
  if jax.distributed.is_initialized():
    os._exit(status)
  sys.exit(status)


def _first_line(error: BaseException) -> str:
  return str(error).strip().splitlines()[0]
