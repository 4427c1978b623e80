import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandwidth.collectives.traffic.choice import (
  Curve,
  Line,
  Speeds,
  choose_exchange,
)

PARAMS = {'w': jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}


def speeds(bytes_per_second, *, compress=6e-9, start=1e-4):
  link = Line(start, 1 / bytes_per_second)
  work = {'dense': 1e-9, 'all_gather': compress, 'owner_sharded': compress}
  return Speeds(link, link, {k: Line(0.0, v) for k, v in work.items()})


@pytest.mark.parametrize(
  ('rate', 'workers', 'density', 'expected'),
  [
    (1e9, 4, 1e-3, 'all_gather'),
    (1e7, 64, 1e-3, 'owner_sharded'),
    (1e11, 4, 1e-3, 'dense'),
    # At a quarter, messages to all of 32 are longer than the gradient.
    (1e7, 32, 0.25, 'owner_sharded'),
    (1e7, 4, 1, 'dense'),
  ],
)
def test_the_fastest_is_chosen(rate, workers, density, expected):
  choice = choose_exchange(
    PARAMS, density=density, workers=workers, speeds=speeds(rate)
  )
  assert choice.exchange == expected
  assert choice.seconds[expected] == min(choice.seconds.values())


def test_slow_selection_is_not_worth_it():
  arguments = {'density': 1e-3, 'workers': 4}
  slow = choose_exchange(PARAMS, speeds=speeds(1e9, compress=1e-6), **arguments)
  assert slow.exchange == 'dense'


def test_a_link_of_buffers_and_caches_is_no_line():
  # Fast up to a buffer of 4 MB, 1 GB/s beyond; the gradient is 6 MB sent.
  link = Curve((0.0, 4e6, 5e6), (1e-4, 2e-4, 1.2e-3))
  flat = {name: Line(0.0, 0.0) for name in ('dense', 'owner_sharded')}
  work = {**flat, 'all_gather': Line(0.0, 2e-9)}
  choice = choose_exchange(
    PARAMS, density=1e-3, workers=4, speeds=Speeds(link, link, work)
  )
  np.testing.assert_allclose(choice.seconds['dense'], 2.2e-3)
  assert 2e-3 < choice.seconds['all_gather'] < 2.2e-3
  assert choice.exchange == 'owner_sharded'
