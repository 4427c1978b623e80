r"""A two-layer LSTM on the Brown corpus, four workers, dense gradients.

The dense baseline of language modeling: tied embeddings, windows of 35 tokens,
each from a zero state, a vocabulary of 10,000 with `<unk>`; plain SGD with
gradient clipping, as in Zaremba et al., arXiv 1409.2329. Its five epochs have
not been run yet.

    python -m experiments.train --config configs/brown_lstm.py --workdir W \
      --config.dataset.data_dir=DIR

DIR holds train.txt, valid.txt and test.txt: of the 500 documents of the corpus
in the order of their names, a sentence a line, number i is in valid.txt where
i % 10 is 8, in test.txt where it is 9, else in train.txt.

The learning rate was chosen on valid.txt (`--config.dataset.validation=1`), one
epoch each: perplexity 204 with 20, 181 with 40; 247 with 1 and momentum 0.9.
After two epochs with 40: 144.
"""

import ml_collections


def get_config(mode: str = '') -> ml_collections.ConfigDict:
  if mode not in ('', 'runlocal'):
    raise ValueError(f'brown_lstm.py:{mode} is unknown; known: runlocal')
  config = ml_collections.ConfigDict()
  config.seed = 0

  config.mapping = 'pmap'
  config.workers = 4
  config.cpu_devices = 4

  # Windows.
  config.batch_size = 64
  config.eval_batch_size = 64
  config.dataset = ml_collections.ConfigDict()
  config.dataset.name = 'brown'
  config.dataset.source = 'auto'
  config.dataset.data_dir = ''
  config.dataset.validation = 0
  config.dataset.vocabulary = 10_000
  config.dataset.window = 35

  config.model = ml_collections.ConfigDict()
  config.model.name = 'lstm'
  config.model.hidden = 128
  config.model.layers = 2
  config.model.tied = True
  config.model.dropout = 0.0

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.learning_rate = 40.0
  config.optimizer.schedule = 'cosine'
  config.optimizer.momentum = 0.0
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip_norm = 0.25

  config.reducer = ml_collections.ConfigDict()
  config.reducer.name = 'dense_all_reduce'
  config.reducer.dtype = 'float32'

  config.stage_order = ('train',)
  config.stages = ml_collections.ConfigDict()
  config.stages.train = ml_collections.ConfigDict({'epochs': 5.0})

  config.log_every = 50
  config.eval_every_epochs = 1.0
  config.checkpoint_every_epochs = 1.0

  if mode == 'runlocal':
    config.batch_size = 8
    config.model.hidden = 16
    config.dataset.vocabulary = 1000
    config.stages.train = ml_collections.ConfigDict({'steps': 4})
    config.log_every = 2
  return config
