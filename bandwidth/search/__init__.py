"""Search of compression policies, compiled as one program.

A `Space` is what may be decided: how many channels each group of layers keeps
(`make_space`), or how many bits (`decisions.bit_options`). A cost model prices
every candidate (`cost_model`, `tabulate`), `check_budget` turns an amount into
a budget that no candidate exceeds, and a `Problem` says how good a candidate
is. `make_searcher` makes a searcher by name (`SEARCHERS`): a pure
function `(key, data, budget) -> History`.

Two layers are to share half of the multiply-adds, the first being worth three
times as much as the second:

>>> import jax
>>> import jax.numpy as jnp
>>> from bandwidth import pruning, search
>>> net = {
...   'a': {'kernel': jnp.ones((8, 32))},
...   'b': {'kernel': jnp.ones((32, 32))},
...   'c': {'kernel': jnp.ones((32, 8))},
... }
>>> order = [('a', 'input'), ('b', 'a'), ('c', 'b')]
>>> groups = pruning.channel_groups(
...   net, [pruning.Dense(name, reads) for name, reads in order]
... )
>>> layers = [
...   search.LayerShape(name, 'dense', *net[name]['kernel'].shape)
...   for name in 'abc'
... ]
>>> space = search.make_space(layers, groups, divisor=8)
>>> macs = search.cost_model('macs')
>>> costs = search.tabulate(space, macs)
>>> budget = search.check_budget(space, costs, 0.5 * 1536)
>>> def objective(worth, candidate):
...   return jnp.sum(worth * candidate)
>>> problem = search.Problem(space, objective)
>>> data = search.make_data(space, costs, objective=jnp.array([3.0, 1.0]))
>>> searcher = search.make_searcher('random', problem, evaluations=64)
>>> history = jax.jit(searcher)(jax.random.key(0), data, jnp.int32(budget))
>>> found = history.candidates[search.best(history)]
>>> space.kept(found), search.exact_cost(space, macs, found)
({'a': 32, 'b': 8}, 576.0)
"""

from bandwidth.search.problem.budget import check_budget
from bandwidth.search.problem.cost import (
  COSTS,
  Costs,
  cost_model,
  cost_of,
  exact_cost,
  tabulate,
)
from bandwidth.search.problem.interface import (
  Data,
  History,
  Problem,
  Searcher,
  best,
  evaluate,
  make_data,
)
from bandwidth.search.problem.space import LayerShape, Space, make_space
from bandwidth.search.searchers import (
  BITS,
  SEARCHERS,
  SINGLE,
  check_searcher,
  make_searcher,
)

__all__ = [
  'BITS',
  'COSTS',
  'SEARCHERS',
  'SINGLE',
  'Costs',
  'Data',
  'History',
  'LayerShape',
  'Problem',
  'Searcher',
  'Space',
  'best',
  'check_budget',
  'check_searcher',
  'cost_model',
  'cost_of',
  'evaluate',
  'exact_cost',
  'make_data',
  'make_searcher',
  'make_space',
  'tabulate',
]
