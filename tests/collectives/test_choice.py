import jax
import jax.numpy as jnp
import pytest

from bandwidth.collectives.choice import Line, Speeds, choose_exchange

PARAMS = {'w': jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}


def speeds(bytes_per_second, *, compress=6e-9, start=1e-4):
  link = Line(start, 1 / bytes_per_second)
  return Speeds(link, link, Line(0.0, 1e-9), Line(0.0, compress))


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
