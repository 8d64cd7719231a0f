"""Scores of finished images: higher is better, fp32, one per image."""

from tpdm.core.versions import check_versions

check_versions("transformers")
