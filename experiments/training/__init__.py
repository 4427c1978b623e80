"""Training over several workers: one step, stages of steps, and what they leave."""
