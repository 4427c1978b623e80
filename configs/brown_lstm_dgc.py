"""A two-layer LSTM on the Brown corpus, a thousandth of the gradient sent.

Deep Gradient Compression (Lin et al. 2018, arXiv 1712.01887) at density 0.1 %
against dense training of as many epochs, and against plain top-k with error
feedback. As in the paper's language model, SGD has no momentum and gradients
are clipped: to 0.25, each worker's own to 0.25 / sqrt(4) before they are
summed. Small, so that it runs on a CPU: 2,000 words, four epochs of 3,485 steps.
Many steps matter: an element waits for some hundreds of them until it is sent.

The learning rate was chosen on the validation split
(`--config.dataset.validation=1`), seed 0: dense, perplexity 33.88 with 10 and
33.90 with 20; compressed, 34.72 with 7 and 33.90 with 10. With fewer steps
(`--config.batch_size=16 --config.dataset.vocabulary=5000`, two epochs, of which
0.4 warm up: 3,484) compression cost more: dense 72.9 with 20, 72.3 with 40;
compressed 74.6 with 20, 79.2 with 40. Measured: results/brown_lstm_dgc*/.

    python -m experiments.train --config configs/brown_lstm_dgc.py --workdir W --config.dataset.data_dir=DIR
    python -m experiments.train --config configs/brown_lstm_dgc.py:dense …
    python -m experiments.train --config configs/brown_lstm_dgc.py:top_k …
"""  # noqa: E501

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode, 'dense', 'top_k')
  config.update(mapping='vmap', workers=4, cpu_devices=1)
  # Windows.
  config.update(batch_size=8, eval_batch_size=64)
  config.dataset.update(name='brown', vocabulary=2000)
  config.model = {'name': 'lstm', 'hidden': 128, 'layers': 2, 'tied': True}
  config.model.dropout = 0.0
  config.optimizer.update(learning_rate=10.0, schedule='cosine')
  config.stages.train.epochs = 4.0
  local = {'momentum': 0.0, 'clip_norm': 0.25}
  default.compress_gradients(config, mode, 'epochs', 0.1, **local)
  config.log_every = 200
  config.eval_every_epochs = 0.0
  config.checkpoint_every_epochs = 2.0

  if mode == 'runlocal':
    default.shorten(config, 2)
    config.model.hidden = 16
    config.dataset.vocabulary = 1000
  return config
