"""Training of TPMs by reinforcement learning."""
