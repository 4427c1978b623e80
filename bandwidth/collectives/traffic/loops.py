"""How often the loops of a compiled program run."""

import dataclasses
import re

from bandwidth.collectives.traffic.hlo_text import Instruction, Program

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SAME_VALUE = (
  'copy',
  'copy-start',
  'copy-done',
  'bitcast',
  'convert',
  'reshape',
)


@dataclasses.dataclass(frozen=True)
class _Linear:
  """An integer `state[index] + offset`, or `offset` where index is None."""

  index: int | None
  offset: int


@dataclasses.dataclass(frozen=True)
class _Tuple:
  elements: tuple['_Value', ...]


@dataclasses.dataclass(frozen=True)
class _Compare:
  left: _Linear
  right: _Linear
  direction: str


_STATE = 'state'
_Value = _Linear | _Tuple | _Compare | str | None


def trip_count(
  program: Program, computation: str, loop: Instruction
) -> int | None:
  """Returns how often the body of a `while` runs, None if that depends on data.

  XLA:CPU and GPU write it down. For TPU it is worked out of loops as `lax.scan`
  and `lax.fori_loop` make them: an integer of the state starts at a constant,
  moves by a constant, and is compared with a constant.
  """
  if match := _KNOWN.search(loop.tail):
    return int(match[1])
  (body,), (condition,) = loop.called('body'), loop.called('condition')
  test = _value_of_root(program, condition)
  after = _value_of_root(program, body)
  before = _evaluate(program, computation, loop.operands[0], {})
  if not (
    isinstance(test, _Compare)
    and isinstance(after, _Tuple)
    and isinstance(before, _Tuple)
  ):
    return None
  left = _course(test.left, before, after)
  right = _course(test.right, before, after)
  if left is None or right is None:
    return None
  if not left[1] and right[1]:
    mirrored = {'GT': 'LT', 'GE': 'LE', 'LT': 'GT', 'LE': 'GE'}
    left, right = right, left
    return _trips(left, right, mirrored.get(test.direction, test.direction))
  return _trips(left, right, test.direction)


def _course(
  value: _Linear, before: _Tuple, after: _Tuple
) -> tuple[int, int] | None:
  """First value and step of an integer that a loop compares."""
  if value.index is None:
    return value.offset, 0
  start, next_ = before.elements[value.index], after.elements[value.index]
  if not isinstance(start, _Linear) or start.index is not None:
    return None
  if not isinstance(next_, _Linear) or next_.index != value.index:
    return None
  return start.offset + value.offset, next_.offset


def _trips(
  moving: tuple[int, int], bound: tuple[int, int], direction: str
) -> int | None:
  (start, step), (stop, still) = moving, bound
  if still or not step:
    return None
  distance, speed = (stop - start) * (1 if step > 0 else -1), abs(step)
  ahead = {'LT': step > 0, 'LE': step > 0, 'GT': step < 0, 'GE': step < 0}
  if direction == 'NE':
    return distance // speed if distance % speed == 0 <= distance else None
  if not ahead.get(direction, False):
    return None
  if direction in ('LE', 'GE'):
    distance += 1
  return max(0, -(-distance // speed))


def _value_of_root(program: Program, computation: str) -> _Value:
  return _evaluate(
    program, computation, program.root(computation).name, {0: _STATE}
  )


def _evaluate(
  program: Program, computation: str, name: str, parameters: dict[int, _Value]
) -> _Value:
  """The value of an instruction, as far as it is a simple integer."""
  i = program.computations[computation].get(name)
  if i is None:
    return None

  def operand(position: int) -> _Value:
    return _evaluate(program, computation, i.operands[position], parameters)

  if i.opcode == 'constant':
    return _Linear(None, int(i.arguments)) if _is_integer(i) else None
  if i.opcode == 'parameter':
    return parameters.get(int(i.arguments))
  if i.opcode in _SAME_VALUE:
    return operand(0)
  if i.opcode == 'tuple':
    return _Tuple(tuple(operand(p) for p in range(len(i.operands))))
  if i.opcode == 'get-tuple-element':
    return _element(operand(0), int(i.attributes['index']))
  if i.opcode in ('add', 'subtract'):
    return _sum(operand(0), operand(1), 1 if i.opcode == 'add' else -1)
  if i.opcode == 'compare':
    left, right = operand(0), operand(1)
    if isinstance(left, _Linear) and isinstance(right, _Linear):
      return _Compare(left, right, i.attributes['direction'])
    return None
  if i.opcode in ('fusion', 'call'):
    (called,) = i.called('calls', 'to_apply')
    values = {p: operand(p) for p in range(len(i.operands))}
    return _evaluate(program, called, program.root(called).name, values)
  return None


def _is_integer(i: Instruction) -> bool:
  return re.fullmatch(r'-?\d+', i.arguments.strip()) is not None


def _element(value: _Value, index: int) -> _Value:
  if value == _STATE:
    return _Linear(index, 0)
  return value.elements[index] if isinstance(value, _Tuple) else None


def _sum(left: _Value, right: _Value, sign: int) -> _Value:
  if not isinstance(left, _Linear) or not isinstance(right, _Linear):
    return None
  if right.index is None:
    return _Linear(left.index, left.offset + sign * right.offset)
  if left.index is None and sign > 0:
    return _Linear(right.index, left.offset + right.offset)
  return None
