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

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode)
  config.workers = config.cpu_devices = 4
  # Windows.
  config.eval_batch_size = 64
  config.dataset.name = 'brown'
  config.model = {'name': 'lstm', 'hidden': 128, 'layers': 2, 'tied': True}
  config.model.dropout = 0.0
  config.optimizer.update(learning_rate=40.0, schedule='cosine')
  config.optimizer.update(momentum=0.0, clip_norm=0.25)
  config.stages.train.epochs = 5.0
  config.log_every = 50

  if mode == 'runlocal':
    config.batch_size = 8
    config.model.hidden = 16
    config.dataset.vocabulary = 1000
    config.stages.train = {'steps': 4}
    config.log_every = 2
  return config
