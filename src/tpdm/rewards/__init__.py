"""Rewards: one fp32 score per finished image. A higher score is better."""

from tpdm.core.versions import check_versions

check_versions("transformers")
