"""Reads the text of a compiled XLA program into computations and instructions.

Only as far as counting needs it: names, shapes, operands and attributes.
"""

import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,<=?]*)\](?:\{([^}]*)\})?')
_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) ?(\(.*)?\{$')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_COMMENT = re.compile(r'/\*.*?\*/')
_PACKED = re.compile(r'E\((\d+)\)')
_OPEN, _CLOSE = '([{', ')]}'


class ArrayShape(NamedTuple):
  """One array of a program.

  Attributes:
    dtype: as JAX names it: 'float32', 'bfloat16', 'bool', 'float8_e4m3fn'.
    shape: dimensions; the bound of one that is dynamic.
    nbytes: without the padding of tiled layouts. Elements of less than eight
      bits take a byte each, unless their layout packs them.
  """

  dtype: str
  shape: tuple[int, ...]
  nbytes: int


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation: `name = shape opcode(operands), attributes`."""

  name: str
  shape: str
  opcode: str
  arguments: str
  tail: str
  is_root: bool

  @functools.cached_property
  def attributes(self) -> dict[str, str]:
    """What follows the operands, as text by name."""
    pairs = (part.partition('=') for part in split(self.tail.lstrip(', ')))
    return {name.strip(): value.strip() for name, _, value in pairs}

  @functools.cached_property
  def operands(self) -> list[str]:
    """Names of the operands."""
    parts = split(_COMMENT.sub('', self.arguments))
    return [part.split()[-1].lstrip('%') for part in parts if part.strip()]

  def called(self, *attributes: str) -> list[str]:
    """Names of the computations that the attributes refer to."""
    text = ' '.join(self.attributes.get(name, '') for name in attributes)
    return re.findall(r'%?([\w.\-]+)', text)


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    entry: name of the computation that is run.
    computations: instructions by name, by name of their computation.
    replicas: number of copies of the program that run side by side.
    partitions: number of devices that each copy is split over.
  """

  entry: str
  computations: dict[str, dict[str, Instruction]]
  replicas: int
  partitions: int

  def root(self, computation: str) -> Instruction:
    """The instruction whose value the computation returns."""
    return next(i for i in self.computations[computation].values() if i.is_root)


def parse(compiled: Any) -> Program:
  """Reads a compiled program.

  Args:
    compiled: a `jax.stages.Compiled`, or its text.

  Raises:
    ValueError: it is no compiled program, or several.

  >>> import jax
  >>> program = parse(jax.jit(lambda x: x + 1).lower(1.0).compile())
  >>> [i.opcode for i in program.computations[program.entry].values()][:1]
  ['parameter']
  """
  text = _text(compiled)
  modules = re.findall(r'^HloModule .*', text, re.MULTILINE)
  if len(modules) != 1:
    raise ValueError(
      f'compiled={_brief(compiled)} is no compiled program: its text has '
      f'{len(modules)} HLO modules, not one'
    )
  entry, computations = _computations(text)
  if entry is None:
    raise ValueError(f'compiled={_brief(compiled)} has no ENTRY computation')

  def count(name: str) -> int:
    match = re.search(rf'\b{name}=(\d+)', modules[0])
    return int(match[1]) if match else 1

  return Program(
    entry, computations, count('replica_count'), count('num_partitions')
  )


def _text(compiled: Any) -> str:
  if isinstance(compiled, str):
    return compiled
  text = compiled.as_text() if hasattr(compiled, 'as_text') else None
  if not isinstance(text, str):
    raise ValueError(
      f'compiled={_brief(compiled)} is no compiled program; '
      'jax.jit(f).lower(*args).compile() makes one'
    )
  return text


def _brief(value: Any) -> str:
  text = repr(value)
  return text if len(text) < 60 else text[:57] + '...'


def _computations(
  text: str,
) -> tuple[str | None, dict[str, dict[str, Instruction]]]:
  entry, current = None, None
  computations: dict[str, dict[str, Instruction]] = {}
  for line in text.splitlines():
    if match := _HEADER.match(line):
      current = computations.setdefault(match[2], {})
      entry = match[2] if match[1] else entry
    elif line.startswith('}'):
      current = None
    elif current is not None and (match := _INSTRUCTION.match(line)):
      instruction = _instruction(match[2], match[3], bool(match[1]))
      current[instruction.name] = instruction
  return entry, computations


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
  text = text.strip()
  stop = closing(text, 0) + 1 if text[0] == '(' else text.index(' ')
  shape, rest = text[:stop], text[stop:].lstrip()
  opcode, _, _ = rest.partition('(')
  end = closing(rest, len(opcode))
  arguments, tail = rest[len(opcode) + 1 : end], rest[end + 1 :]
  return Instruction(name, shape, opcode.strip(), arguments, tail, is_root)


def closing(text: str, start: int) -> int:
  """Position of the bracket that closes the one at `start`."""
  depth, quoted = 0, False
  for i in range(start, len(text)):
    char = text[i]
    if char == '"' and text[i - 1] != '\\':
      quoted = not quoted
    elif not quoted and char in _OPEN:
      depth += 1
    elif not quoted and char in _CLOSE:
      depth -= 1
      if not depth:
        return i
  raise ValueError(f'compiled: unbalanced brackets in {text[:60]!r}')


def split(text: str) -> list[str]:
  """Splits at the commas that are outside of brackets and quotes.

  >>> split('a, {b, c}, "d, e"')
  ['a', ' {b, c}', ' "d, e"']
  """
  parts, start, i = [], 0, 0
  while i < len(text):
    char = text[i]
    if char in _OPEN:
      i = closing(text, i)
    elif char == '"':
      i = _end_of_quote(text, i)
    elif char == ',':
      parts.append(text[start:i])
      start = i + 1
    i += 1
  parts.append(text[start:])
  return parts


def _end_of_quote(text: str, start: int) -> int:
  i = start + 1
  while i < len(text) and (text[i] != '"' or text[i - 1] == '\\'):
    i += 1
  return i


def tuple_elements(shape: str) -> list[str]:
  """The shapes in a tuple's, or the shape itself where it is none.

  >>> tuple_elements('(f32[2]{0:T(8,128)}, (s32[], pred[3]))')
  ['f32[2]{0:T(8,128)}', '(s32[], pred[3])']
  """
  shape = _COMMENT.sub('', shape)
  if not shape.startswith('('):
    return [shape]
  return [part.strip() for part in split(shape[1 : closing(shape, 0)])]


def arrays(shape: str) -> tuple[ArrayShape, ...]:
  """All arrays of a shape, tuples flattened.

  >>> arrays('(bf16[3,2]{1,0:T(8,128)(2,1)}, u32[], token[])')[0]
  ArrayShape(dtype='bfloat16', shape=(3, 2), nbytes=12)
  """
  found = []
  for dtype, dims, layout in _ARRAY.findall(_COMMENT.sub('', shape)):
    if dtype in ('token', 'opaque'):
      continue
    sizes = [d.replace('<=', '') for d in dims.split(',') if d]
    found.append(_array(dtype, tuple(map(int, sizes)), layout))
  return tuple(found)


def _array(dtype: str, shape: tuple[int, ...], layout: str) -> ArrayShape:
  packed = _PACKED.search(layout)
  bits = int(packed[1]) if packed else max(8, _bits(dtype))
  return ArrayShape(
    _jax_name(dtype), shape, math.ceil(math.prod(shape) * bits / 8)
  )


def _bits(dtype: str) -> int:
  match = re.match(r'[a-z]+(\d+)', dtype)
  return int(match[1]) if match else 8


def _jax_name(dtype: str) -> str:
  if dtype == 'pred':
    return 'bool'
  kind = {'f': 'float', 'bf': 'bfloat', 's': 'int', 'u': 'uint', 'c': 'complex'}
  match = re.fullmatch(r'([a-z]+)(\d+)(\w*)', dtype)
  if match is None:
    raise ValueError(f'compiled: dtype {dtype!r} is not understood')
  name = kind.get(match[1], match[1]) + match[2]
  return f'{name}_{match[3]}' if match[3] else name
