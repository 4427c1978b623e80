"""Agents that learn a policy, and the environment in which they act."""
