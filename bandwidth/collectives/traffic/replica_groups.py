"""Which devices a collective joins, from the notations of compiled programs."""

import math
import re
from itertools import pairwise

import numpy as np

Groups = tuple[tuple[int, ...], ...]
"""Device ids; the devices of one tuple exchange with each other."""

_AXIS = re.compile(r"'?([^',=:]+)'?(?:=(\d+))?(?::\((\d+)\)(\d+))?")


def parse_groups(text: str, device_ids: str | None = None) -> Groups | None:
  """Reads the value of `replica_groups`.

  Args:
    text: `{{0,1},{2,3}}`; `[2,4]<=[4,2]T(1,0)`, which is row g of
      `arange(8).reshape(4, 2).transpose(1, 0).reshape(2, 4)`; or
      `mesh['a'=2,'b'=4] {'b'}`, which is all devices along axis b, and where
      `{'b':(2)2}` is the part of size 2 of axis b that has 2 before it.
    device_ids: of a mesh whose devices are not in order, `([4,2]T(1,0)) {'b'}`,
      with the axes behind it.

  Returns:
    The groups. None for `{}`: all devices in one.

  Raises:
    ValueError: the notation is another.

  >>> parse_groups('[2,2]<=[2,2]T(1,0)')
  ((0, 2), (1, 3))
  >>> parse_groups("mesh['dcn'=2,'ici'=2] {'ici'}")
  ((0, 1), (2, 3))
  """
  if text in ('{}', '{{}}'):
    return None
  if text.startswith('{{'):
    return _listed(text)
  if match := re.fullmatch(r'\[([\d,]+)\](<=.*)', text):
    ids = _iota(match[2][2:]).reshape(_numbers(match[1]))
  elif match := re.fullmatch(r'mesh\[(.*?)\]\s*(\{.*\})?', text):
    ids = _along_axes(match[1], match[2], device_ids)
  else:
    raise ValueError(f'compiled: replica_groups={text!r} is not understood')
  return tuple(tuple(map(int, row)) for row in ids.reshape(len(ids), -1))


def parse_pairs(text: str) -> Groups:
  """Reads pairs (source, target), `{{0,1},{1,0}}` or `{{0->1},{1->0}}`.

  >>> parse_pairs('{{0->2},{2->0}}')
  ((0, 2), (2, 0))
  """
  return _listed(text)


def parse_slice_groups(text: str) -> Groups:
  """Reads the groups of a transfer between TPU slices.

  Args:
    text: `{1,2}x{0:3}`, device d of slices 1 and 2 for d = 0 to 3, or a list of
      groups of ids.

  Returns:
    Groups of ids as `jax.Device.id` numbers devices of several slices:
    100,000 times the slice, plus the device.

  >>> parse_slice_groups('{1,2}x{0:1}')
  ((100000, 200000), (100001, 200001))
  """
  match = re.fullmatch(r'\{([\d,:]+)\}x\{([\d,:]+)\}', text)
  if not match:
    return _listed(text)
  slices, devices = _ranges(match[1]), _ranges(match[2])
  return tuple(tuple(100_000 * s + d for s in slices) for d in devices)


def _listed(text: str) -> Groups:
  groups = re.findall(r'\{([^{}]+)\}', text)
  return tuple(_numbers(group.replace('->', ',')) for group in groups)


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(',') if number.strip())


def _ranges(text: str) -> list[int]:
  ids: list[int] = []
  for part in text.split(','):
    first, _, last = part.partition(':')
    ids.extend(range(int(first), int(last or first) + 1))
  return ids


def _iota(text: str) -> np.ndarray:
  """`[4,2]T(1,0)` is `arange(8).reshape(4, 2).transpose(1, 0)`."""
  match = re.fullmatch(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
  if not match:
    raise ValueError(f'compiled: device ids {text!r} are not understood')
  sizes = _numbers(match[1])
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(_numbers(match[2])) if match[2] else ids


def _along_axes(
  mesh: str, axes: str | None, device_ids: str | None
) -> np.ndarray:
  """Device ids [groups, devices of a group]."""
  sizes = {name: int(size) for name, size, *_ in _AXIS.findall(mesh)}
  ids = np.arange(math.prod(sizes.values()))
  if device_ids is not None:
    listed, _, axes = device_ids[1:].rpartition(') ')
    ids = _iota(listed) if '[' in listed else np.array(_numbers(listed))
  pieces, grouped = _cut(sizes, _AXIS.findall((axes or '{}')[1:-1]))
  rest = [i for i in range(len(pieces)) if i not in grouped]
  joined = math.prod(pieces[i] for i in grouped)
  return ids.reshape(pieces).transpose(rest + grouped).reshape(-1, joined)


def _cut(
  sizes: dict[str, int], parts: list[tuple[str, str, str, str]]
) -> tuple[list[int], list[int]]:
  """Cuts mesh axes where parts of them begin and end.

  Returns:
    Sizes of all pieces, and the positions of those that the parts are made of.
  """
  wanted = []
  for name, _, before, size in parts:
    low = int(before or 1)
    wanted.append((name, low, low * int(size or sizes[name])))
  pieces = []
  for axis, size in sizes.items():
    borders = {1, size}.union(*(b for a, *b in wanted if a == axis))
    ordered = sorted(borders)
    pieces += [(axis, *cut) for cut in pairwise(ordered)] or [(axis, 1, 1)]
  grouped = [
    i
    for name, low, high in wanted
    for i, (axis, start, stop) in enumerate(pieces)
    if axis == name and low <= start and stop <= high
  ]
  return [stop // start for _, start, stop in pieces], grouped
