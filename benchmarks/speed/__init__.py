"""Speed and memory: of calls, rollouts, training and serving."""
