"""Training a Time Prediction Module by reinforcement learning; the denoiser stays frozen."""
