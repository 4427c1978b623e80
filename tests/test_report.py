import json

import jax

from bandwidth.report import (
  MemoryReport,
  MemoryStage,
  MemoryTensor,
  NetworkReport,
  Report,
  device,
)

NETWORK = NetworkReport(
  workers=4,
  dense_bytes_per_step=6000,
  sent_bytes_per_step=60,
  ratio_steady=100.0,
  ratio_run=50.0,
  hlo_bytes_per_step=60,
)
MEMORY = MemoryReport(
  dense_bytes=1000,
  file_bytes=25,
  ratio=40.0,
  stages=(MemoryStage(name='P', bytes=100, ratio=10.0, accuracy=0.98),),
  tensors=(
    MemoryTensor(
      name='Dense_0/kernel',
      shape=(3, 4),
      density=0.25,
      weight_bits=4.4,
      index_bits=3.7,
      bytes=25,
    ),
  ),
)


def make_report(**parts):
  return Report(
    config={'seed': 0},
    command='python -m experiments.train',
    commit=None,
    device='1 x cpu',
    seconds=12.5,
    seed=0,
    accuracy={'baseline': 0.98, 'final': 0.975},
    details={'parameters': 1234},
    **parts,
  )


def test_parts_that_are_not_there_are_left_out():
  plain = make_report().to_dict()
  assert 'network' not in plain
  assert 'memory' not in plain
  assert plain['commit'] is None
  assert set(plain['versions']) == {'python', 'jax', 'jaxlib', 'flax', 'optax'}


def test_dictionary_survives_json_with_the_names_of_the_contract():
  plain = json.loads(
    json.dumps(make_report(network=NETWORK, memory=MEMORY).to_dict())
  )
  assert plain['network']['hlo_bytes_per_step'] == 60
  assert set(plain['memory']) == {
    'dense_bytes',
    'file_bytes',
    'ratio',
    'stages',
    'tensors',
  }
  assert plain['memory']['stages'][0]['name'] == 'P'
  assert plain['memory']['tensors'][0]['shape'] == [3, 4]


def test_markdown_shows_every_row():
  text = make_report(network=NETWORK, memory=MEMORY).to_markdown()
  assert '| accuracy | 97.50% |' in text
  assert '| dense bytes per step | 6,000 |' in text
  assert '| P | 100 | 10 | 0.98 |' in text
  assert 'Dense_0/kernel' in text


def test_devices_in_words():
  count, kind = device().split(' x ')
  assert int(count) == jax.device_count()
  assert kind.startswith('virtual CPU devices on ')
