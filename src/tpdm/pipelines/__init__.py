"""Diffusers pipelines driven by a policy: ``attach``, the scheduler, the hooks, the table of denoisers, loading."""

from tpdm.core.versions import check_versions

check_versions("diffusers", "transformers")
