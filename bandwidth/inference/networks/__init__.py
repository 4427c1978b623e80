"""Networks of Flax that run from compressed parameters.

`linen` alone imports Flax, so it is imported where it is used:
`bandwidth.inference.CompressedNetwork` does.
"""
