"""tpdm: learned per-image denoising schedules for text-to-image pipelines."""
