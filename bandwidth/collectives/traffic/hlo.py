"""The collectives that a compiled program executes, and how often.

Counting `all-reduce` in the program's text would count one inside a loop once,
one split into start and done twice, and one between TPU slices never: there it
is a `send` to the host, which does the rest.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Generic, TypeVar

from bandwidth.collectives.traffic.hlo_text import (
  ArrayShape,
  Instruction,
  Program,
  arrays,
  parse,
  tuple_elements,
)
from bandwidth.collectives.traffic.loops import trip_count
from bandwidth.collectives.traffic.replica_groups import (
  Groups,
  parse_groups,
  parse_pairs,
  parse_slice_groups,
)

T = TypeVar('T')

REDUCING = ('all-reduce', 'all-gather', 'reduce-scatter')
KINDS = (
  *REDUCING,
  'all-to-all',
  'ragged-all-to-all',
  'collective-broadcast',
  'collective-permute',
)
_BETWEEN_SLICES = {
  'ALL_REDUCE': 'all-reduce',
  'ALL_GATHER': 'all-gather',
  'REDUCE_SCATTER': 'reduce-scatter',
  'ALL_TO_ALL': 'all-to-all',
  'ONE_TO_ONE': 'collective-permute',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """A collective operation of a compiled program, as one device sees it.

  Attributes:
    name: name of the HLO instruction.
    kind: 'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
      'ragged-all-to-all', 'collective-broadcast', 'collective-permute', 'send'.
    operands: arrays that the device puts in.
    results: arrays that it gets; none where a `recv` of their own gets them:
      of 'send', and between TPU slices.
    groups: ids of the devices that exchange with each other.
    pairs: (source, target) of 'collective-permute' and 'send'.
    count: executions in one run of the program.
    channel: channel id of the instruction, where it has one.
    op_name: where in the user's program it comes from.
    between_slices: it leaves a TPU slice for the data-center network. Its ids
      are then those of `jax.Device.id`; others number the devices of the
      program in the order of its mesh, of one slice where there are several.
  """

  name: str
  kind: str
  operands: tuple[ArrayShape, ...]
  results: tuple[ArrayShape, ...]
  groups: Groups
  pairs: Groups
  count: int
  channel: int | None
  op_name: str
  between_slices: bool

  @property
  def operand_bytes(self) -> int:
    """Bytes put in by one device in one execution."""
    return sum(array.nbytes for array in self.operands)

  @property
  def result_bytes(self) -> int:
    """Bytes received by one device in one execution."""
    return sum(array.nbytes for array in self.results)

  @property
  def dtype(self) -> str:
    """Of the operands; several are joined by '+'."""
    return '+'.join(dict.fromkeys(array.dtype for array in self.operands))

  @property
  def shapes(self) -> tuple[tuple[int, ...], ...]:
    """Of the operands."""
    return tuple(array.shape for array in self.operands)

  @property
  def group_size(self) -> int:
    """Devices in the largest group, or 2 where pairs join different ones."""
    if self.pairs:
      return max(len(set(pair)) for pair in self.pairs)
    return max((len(group) for group in self.groups), default=1)

  @property
  def sent_bytes(self) -> Fraction:
    """Bytes that the busiest device sends in one execution.

    With the algorithms that need least, in a group of n: all-reduce
    `2 (n-1)/n · operands`; all-gather `(n-1) · operands`, which is
    `(n-1)/n · results`; reduce-scatter and all-to-all `(n-1)/n · operands`;
    permute, send and broadcast `operands`; at most so much for a ragged
    all-to-all, whose sizes the program does not tell.
    """
    return self.operand_bytes * sent_fraction(self.kind, self.group_size)


def sent_fraction(kind: str, workers: int) -> Fraction:
  """Bytes sent per byte of operand, in a group of so many workers."""
  if workers == 1:
    return Fraction(0)
  others = Fraction(workers - 1, workers)
  per_kind = {
    'all-reduce': 2 * others,
    'all-gather': Fraction(workers - 1),
    'reduce-scatter': others,
    'all-to-all': others,
  }
  return per_kind.get(kind, Fraction(1))


def collectives(
  compiled: Any, *, unknown_trips: int | None = None
) -> list[Collective]:
  """Lists the collectives that one run of a compiled program executes.

  Of the branches of a conditional, the one that sends most. A pair of start and
  done is one collective, as is one that a TPU fuses in parts with computation.

  Args:
    compiled: a `jax.stages.Compiled`, or its text (optimized HLO).
    unknown_trips: executions to assume of a loop whose number depends on data.

  Raises:
    ValueError: `compiled` is no compiled program, or has collectives in a loop
      that runs an unknown number of times, and `unknown_trips` is not given.

  >>> import jax
  >>> f = jax.pmap(lambda x: jax.lax.psum(x, 'data'), axis_name='data')
  >>> [psum] = collectives(f.lower(jax.numpy.ones((8, 4096))).compile())
  >>> psum.kind, psum.shapes, psum.group_size, psum.count, psum.sent_bytes
  ('all-reduce', ((4096,),), 8, 1, Fraction(28672, 1))
  """
  program = parse(compiled)
  found = executed(
    program,
    lambda computation, i: _collective(program, computation, i),
    weigh=lambda collective: collective.sent_bytes,
    unknown_trips=unknown_trips,
  )
  return [dataclasses.replace(item, count=count) for item, count in found]


def executed(
  program: Program,
  select: Callable[[str, Instruction], T | None],
  *,
  weigh: Callable[[T], float | Fraction],
  unknown_trips: int | None = None,
) -> list[tuple[T, int]]:
  """Walks through what one run of a program executes.

  Args:
    program: the compiled program, parsed.
    select: `(name of the computation, instruction) -> item`; None skips it.
    weigh: `item -> weight`; of a conditional, the heaviest branch counts.
    unknown_trips: executions to assume of a loop whose number depends on data.

  Returns:
    Items with their number of executions, in the order of the text.

  Raises:
    ValueError: items are in a loop that runs an unknown number of times.
  """
  return _Walk(program, select, weigh, unknown_trips).through(program.entry)


@dataclasses.dataclass(frozen=True)
class _Walk(Generic[T]):
  program: Program
  select: Callable[[str, Instruction], T | None]
  weigh: Callable[[T], float | Fraction]
  unknown_trips: int | None

  def through(self, computation: str) -> list[tuple[T, int]]:
    """Items of a computation, and of all that it calls."""
    found: list[tuple[T, int]] = []
    for i in self.program.computations.get(computation, {}).values():
      item = self.select(computation, i)
      if item is not None:
        found.append((item, 1))
      found.extend(self._called(computation, i))
    return found

  def _called(self, computation: str, i: Instruction) -> list[tuple[T, int]]:
    if i.opcode == 'while':
      return self._repeated(computation, i)
    if i.opcode == 'conditional':
      names = ('branch_computations', 'true_computation', 'false_computation')
      branches = map(self.through, i.called(*names))
      return max(branches, key=self._weight, default=[])
    if i.opcode in ('fusion', 'call', 'async-start', 'custom-call'):
      names = i.called('calls', 'to_apply', 'called_computations')
      return [item for name in names for item in self.through(name)]
    return []

  def _weight(self, items: list[tuple[T, int]]) -> float | Fraction:
    return sum(self.weigh(item) * count for item, count in items)

  def _repeated(self, computation: str, i: Instruction) -> list[tuple[T, int]]:
    (body,), (condition,) = i.called('body'), i.called('condition')
    inside, tested = self.through(body), self.through(condition)
    if not inside and not tested:
      return []
    trips = trip_count(self.program, computation, i)
    trips = self.unknown_trips if trips is None else trips
    if trips is None:
      raise ValueError(
        f'compiled: loop {i.name!r} has collectives and runs an unknown number '
        'of times; unknown_trips= tells how many to assume'
      )
    return [(item, count * trips) for item, count in inside] + [
      (item, count * (trips + 1)) for item, count in tested
    ]


def _collective(
  program: Program, computation: str, i: Instruction
) -> Collective | None:
  kind = i.opcode.removesuffix('-start')
  if i.opcode == 'send':
    return _sent(program, computation, i)
  if kind not in KINDS or _is_continued(program, computation, i):
    return None
  # A start returns its operands, its results, and what its done waits for.
  starts = i.opcode != kind and kind != 'all-reduce'
  results = arrays(tuple_elements(i.shape)[1] if starts else i.shape)
  operands = _operands(program, computation, i)
  if kind == 'ragged-all-to-all':
    # Behind the data come the output, offsets and sizes.
    operands = operands[:1]
  if kind == 'all-reduce' and computation.startswith('all-reduce-scatter'):
    # A TPU slices inside this fusion, and sums only what it keeps.
    kind = 'reduce-scatter'
  pairs = parse_pairs(i.attributes.get('source_target_pairs', ''))
  groups = () if pairs else _groups(program, i, kind)
  return _make(i, kind, operands, results, groups=groups, pairs=pairs)


def _is_continued(program: Program, computation: str, i: Instruction) -> bool:
  """Whether this is a later part of one that a TPU runs beside computation.

  The fusion that starts it, those that carry it on and the one that ends it all
  repeat the instruction.
  """
  return 'chain_id=' in i.tail and not any(
    'AsyncCollectiveStart' in other.tail
    for other in program.computations[computation].values()
  )


def _sent(
  program: Program, computation: str, i: Instruction
) -> Collective | None:
  attributes = _frontend_attributes(i)
  operands = _operands(program, computation, i)
  transfer = attributes.get('_xla_megascale_transfer_type')
  if transfer is not None:
    kind = _BETWEEN_SLICES.get(transfer, 'send')
    target = attributes.get('_xla_megascale_target', '')
    groups = parse_slice_groups(target)
    pairs = groups if kind in ('collective-permute', 'send') else ()
    groups = () if pairs else groups
    return _make(
      i, kind, operands, (), groups=groups, pairs=pairs, between_slices=True
    )
  if i.attributes.get('is_host_transfer') == 'true':
    return None
  pairs = parse_pairs(attributes.get('_xla_send_recv_source_target_pairs', ''))
  return _make(i, 'send', operands, (), groups=(), pairs=pairs or ((0, 1),))


def _make(
  i: Instruction,
  kind: str,
  operands: tuple[ArrayShape, ...],
  results: tuple[ArrayShape, ...],
  *,
  groups: Groups,
  pairs: Groups,
  between_slices: bool = False,
) -> Collective:
  channel = i.attributes.get('channel_id')
  _, _, op_name = i.attributes.get('metadata', '').partition('op_name="')
  return Collective(
    name=i.name,
    kind=kind,
    operands=operands,
    results=results,
    groups=groups,
    pairs=pairs,
    count=1,
    channel=int(channel) if channel else None,
    op_name=op_name.partition('"')[0],
    between_slices=between_slices,
  )


def _operands(
  program: Program, computation: str, i: Instruction
) -> tuple[ArrayShape, ...]:
  known = program.computations[computation]
  missing = [name for name in i.operands if name not in known]
  if missing:
    raise ValueError(
      f'compiled: {i.name!r} has operands {missing} that are not in the text'
    )
  return tuple(
    array for name in i.operands for array in arrays(known[name].shape)
  )


def _frontend_attributes(i: Instruction) -> dict[str, str]:
  text = i.attributes.get('frontend_attributes', '{}')
  inner = Instruction('', '', '', '', text[1:-1], is_root=False)
  return {name: value.strip('"') for name, value in inner.attributes.items()}


def _groups(program: Program, i: Instruction, kind: str) -> Groups:
  text = i.attributes.get('replica_groups', '{}')
  groups = parse_groups(text, i.attributes.get('device_ids'))
  across_partitions = 'channel_id' in i.attributes
  if groups is None:
    n = program.replicas * (program.partitions if across_partitions else 1)
    return (tuple(range(n)),)
  global_ids = i.attributes.get('use_global_device_ids') == 'true'
  if across_partitions and kind in REDUCING and not global_ids:
    # The ids are those of replicas, each of which is all its partitions.
    each = range(program.partitions)
    return tuple(
      tuple(r * program.partitions + p for r in group for p in each)
      for group in groups
    )
  return groups
