"""Training over several workers: a step, stages of steps, what they leave."""
