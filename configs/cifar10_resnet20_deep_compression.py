r"""Deep Compression of ResNet-20 on CIFAR-10: dense, prune, share, code.

The target is no loss against its own dense network. Convolutions have codes of
6 bits, the classifier of 5. Its accuracy here is not measured yet: the run is
for a GPU.

python -m experiments.compress \
  --config configs/cifar10_resnet20_deep_compression.py --workdir W
"""

from configs import default


def get_config(mode: str = '') -> default.ConfigDict:
  config = default.begin(__file__, mode)
  default.train_resnet(config)
  default.set_stages(config, 'steps', dense=64_000, prune=64_000, share=8_000)
  default.deep_compression(
    config,
    {'sparsity': 0.7, 'distribution': 'erdos_renyi_kernel', 'until': 0.4},
    rules=(('Dense_0/kernel', 5), ('.*/kernel', 6), ('.*', None)),
    learning_rate=0.001,
    weight_decay=0.0,
  )
  default.write_files(config, checkpoint_every_epochs=5.0)

  if mode == 'runlocal':
    default.shorten_images(config)
  return config
