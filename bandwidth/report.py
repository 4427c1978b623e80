"""The bandwidth report as data: rows, not strings.

A report says what a run needed of the scarce bandwidths, in bytes that were
measured. `Report.to_dict` is what `report.json` holds, `Report.to_markdown` the
same for people.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

_NO_HEADER = ('', '')
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax')


def versions() -> dict[str, str | None]:
  """Returns the versions of Python and of the packages that numbers hang on."""
  found: dict[str, str | None] = {'python': platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = None
  return found


def device() -> str:
  """Returns the devices of this process in words: number and kind."""
  devices = jax.devices()
  kind = devices[0].device_kind
  if devices[0].platform == 'cpu':
    kind = f'virtual CPU devices on {_processor()}'
  return f'{len(devices)} x {kind}'


def _processor() -> str:
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text('utf-8')
  except OSError:
    return platform.processor() or platform.machine()
  models = [line for line in text.splitlines() if line.startswith('model name')]
  if not models:
    return platform.machine()
  cores = len(os.sched_getaffinity(0))
  plural = 's' if cores > 1 else ''
  return f'{cores} core{plural} of {models[0].split(":", 1)[1].strip()}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkReport:
  """Bytes that one worker sends in training.

  Attributes:
    workers: that average their gradients.
    dense_bytes_per_step: of a float32 all-reduce of the same gradients.
    sent_bytes_per_step: by the reducer of the last stage, in closed form.
    ratio_steady: dense bytes by sent bytes in the last stage.
    ratio_run: the same for all steps of all stages, warm-up included.
    hlo_bytes_per_step: read from the compiled program of the last stage; 0
      where workers are simulated on one device.
  """

  workers: int
  dense_bytes_per_step: int
  sent_bytes_per_step: int
  ratio_steady: float
  ratio_run: float
  hlo_bytes_per_step: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryStage:
  """A step of model compression, and the file that it gives.

  Attributes:
    name: of the step ('P', 'P+Q', 'P+Q+H').
    bytes: of its file.
    ratio: dense bytes by these.
    accuracy: of the network decoded from the file, a fraction.
  """

  name: str
  bytes: int
  ratio: float
  accuracy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryTensor:
  """One array of a compressed network.

  Attributes:
    name: of the parameter.
    shape: of the array.
    density: fraction of elements that are kept.
    weight_bits: coded bits for a kept weight.
    index_bits: coded bits for the place of a kept weight.
    bytes: of the array in the file, everything counted.
  """

  name: str
  shape: tuple[int, ...]
  density: float
  weight_bits: float
  index_bits: float
  bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryReport:
  """Bytes of a compressed network on disk.

  Attributes:
    dense_bytes: of its arrays in float32.
    file_bytes: of the file, everything counted.
    ratio: dense by file bytes.
    stages: rows, one for each step of the compression.
    tensors: rows, one for each array.
    baselines: rows, one for each way that a user has today, of the same dense
      network.
  """

  dense_bytes: int
  file_bytes: int
  ratio: float
  stages: tuple[MemoryStage, ...]
  tensors: tuple[MemoryTensor, ...]
  baselines: tuple[MemoryStage, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What a run left.

  Attributes:
    config: as resolved.
    command: that made the run.
    commit: of this code; None outside of a checkout.
    device: in words, see `device`.
    seconds: wall clock, from the start of the program, all resumptions added.
    seed: of the run.
    accuracy: `baseline` (the dense network of the run) and `final`, as
      fractions of the evaluated split.
    perplexity: likewise, of a language model, whose accuracy is that of the
      next token.
    network: gradient bytes, where workers exchanged any.
    memory: model bytes, where the run compressed its model.
    details: further facts (parameters, FLOPs, compile seconds, …).
    versions: of Python and packages.
  """

  config: Mapping[str, Any]
  command: str
  commit: str | None
  device: str
  seconds: float
  seed: int
  accuracy: Mapping[str, float]
  perplexity: Mapping[str, float] | None = None
  network: NetworkReport | None = None
  memory: MemoryReport | None = None
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  versions: Mapping[str, str | None] = dataclasses.field(
    default_factory=versions
  )

  def to_dict(self) -> dict[str, Any]:
    """Returns plain dictionaries, without the parts that are not there."""
    plain = dataclasses.asdict(self)
    if self.memory is not None and not self.memory.baselines:
      del plain['memory']['baselines']
    return {
      key: value
      for key, value in plain.items()
      if value is not None or key == 'commit'
    }

  def to_markdown(self) -> str:
    """Returns the report as Markdown."""
    rows = [
      *_perplexity(self.perplexity),
      ('accuracy', f'{self.accuracy["final"]:.2%}'),
      ('accuracy of the dense baseline', f'{self.accuracy["baseline"]:.2%}'),
      *((key.replace('_', ' '), _show(v)) for key, v in self.details.items()),
      ('seconds', f'{self.seconds:.1f}'),
      ('seed', str(self.seed)),
      ('device', self.device),
      ('versions', ', '.join(f'{k} {v}' for k, v in self.versions.items())),
      ('commit', str(self.commit)),
    ]
    parts = ['# Bandwidth report', f'`{self.command}`']
    parts.append(markdown_table(_NO_HEADER, rows))
    if self.network is not None:
      parts += [
        '## Network, bytes a worker sends',
        markdown_table(_NO_HEADER, _rows(self.network)),
      ]
    if self.memory is not None:
      parts += _memory_markdown(self.memory)
    return '\n\n'.join(parts) + '\n'


def _perplexity(values: Mapping[str, float] | None) -> list[tuple[str, str]]:
  if values is None:
    return []
  return [
    ('perplexity', f'{values["final"]:.2f}'),
    ('perplexity of the dense baseline', f'{values["baseline"]:.2f}'),
  ]


def _memory_markdown(memory: MemoryReport) -> list[str]:
  tables = (memory.stages, memory.baselines, memory.tensors)
  names = ('stages', 'baselines', 'tensors')
  rows = [row for row in _rows(memory) if row[0] not in names]
  parts = ['## Memory, bytes on disk', markdown_table(_NO_HEADER, rows)]
  for table in tables:
    if table:
      header = [field.name for field in dataclasses.fields(table[0])]
      body = [[_show(getattr(r, name)) for name in header] for r in table]
      parts.append(markdown_table([h.replace('_', ' ') for h in header], body))
  return parts


def _rows(section: Any) -> list[tuple[str, str]]:
  return [
    (field.name.replace('_', ' '), _show(getattr(section, field.name)))
    for field in dataclasses.fields(section)
  ]


def _show(value: Any) -> str:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return str(value)
  return f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a Markdown table.

  >>> print(markdown_table(['name', 'bytes'], [['dense', '28,672']]))
  | name | bytes |
  | --- | --- |
  | dense | 28,672 |
  """
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
