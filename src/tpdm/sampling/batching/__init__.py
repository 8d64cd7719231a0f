"""Denoiser calls of several images computed as one."""
