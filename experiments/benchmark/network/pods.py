"""Chips that need not exist, and what a program sends between them."""

import importlib.util
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from bandwidth.collectives.traffic import hlo
from experiments.training.workers import Workers


class Pod(NamedTuple):
  """Chips to compile for."""

  topology: str  # of a slice, 'v5e:16x16'
  slices: int  # joined by the data-center network
  workers: Workers  # one chip each


def make_pod(topology: str, *, slices: int = 1) -> Pod:
  """Describes chips to the compiler.

  Args:
    topology: of a slice, 'v5e:16x16'.
    slices: 1: workers along one axis 'data'; more: along ('dcn', 'ici').

  Raises:
    ValueError: the compiler knows no such topology.
  """
  from jax.experimental import topologies

  several = {'num_slices': slices} if slices > 1 else {}
  try:
    devices = topologies.get_topology_desc(
      platform='tpu', topology_name=topology, **several
    ).devices
  except Exception as error:
    # The compiler's plugin has no narrower type for what it refuses.
    reason = str(error).strip().splitlines()[0]
    raise ValueError(f'topology={topology!r}: {reason}') from None
  in_order = sorted(devices, key=lambda d: (_slice(d), d.id))
  chips = len(in_order) // slices
  axes = {'dcn': slices, 'ici': chips} if slices > 1 else {'data': chips}
  mesh = Mesh(
    np.array(in_order).reshape(list(axes.values())),
    tuple(axes),
    axis_types=(AxisType.Auto,) * len(axes),
  )
  workers = Workers(mapping='shard_map', axes=axes, mesh=mesh)
  return Pod(topology, slices, workers)


def _slice(device: Any) -> int:
  # Devices of a single slice don't have the attribute.
  return getattr(device, 'slice_index', 0)


def prepare_compiler() -> None:
  """Lets JAX compile for chips that are not here. Call it first.

  Raises:
    ValueError: the compiler is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError("the TPU compiler is missing: pip install '.[tpu]'")
  # The compiler needs no TPU, and JAX must not look for one.
  jax.config.update('jax_platforms', 'cpu')
  # Its library is also the driver of the chips, and lets only one process of a
  # machine load it, which is needless where there are none.
  devices = pathlib.Path('/dev')
  if not any(devices.glob('accel*')) and not (devices / 'vfio').exists():
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')


def share_between_slices(collective: hlo.Collective, mesh: Mesh) -> Fraction:
  """Returns the fraction of the bytes sent that goes to other slices.

  In a group of n chips, m of them in one slice, `(n-m)/(n-1)`: each chip sends
  as much to one of the others as to another.
  """
  if collective.between_slices:
    slices = {device.id: _slice(device) for device in mesh.devices.flat}
  else:
    slices = dict(enumerate(map(_slice, mesh.devices.flat)))
  if collective.pairs:
    crosses = any(slices[a] != slices[b] for a, b in collective.pairs)
    return Fraction(int(crosses))
  where = [slices[chip] for chip in max(collective.groups, key=len)]
  together = max(where.count(index) for index in where)
  return Fraction(len(where) - together, max(len(where) - 1, 1))


def sent_by(compiled: Any, mesh: Mesh) -> list[dict[str, Any]]:
  """A row for each collective; bytes are those of one chip and one step."""
  rows = []
  for c in hlo.collectives(compiled):
    total, outside = c.sent_bytes * c.count, share_between_slices(c, mesh)
    rows.append(
      {
        'kind': c.kind,
        'dtype': c.dtype,
        'shape': ' '.join(str(list(shape)) for shape in c.shapes[:3])
        + (' ...' if len(c.shapes) > 3 else ''),
        'group': c.group_size,
        'count': c.count,
        'ici_bytes': float(total * (1 - outside)),
        'dcn_bytes': float(total * outside),
      }
    )
  return rows


def columns_of(sent: Sequence[Mapping[str, Any]]) -> dict[str, int]:
  """Returns how many collectives there are, and the bytes of each link.

  Args:
    sent: of `sent_by`.
  """
  links = ('ici_bytes', 'dcn_bytes')
  return {
    'collectives': sum(row['count'] for row in sent),
    **{link: math.ceil(sum(row[link] for row in sent)) for link in links},
  }
