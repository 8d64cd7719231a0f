"""The only place that knows diffusers pipelines: hooks, the lazy scheduler, and the call that joins them."""

from tpdm.core.versions import check_versions

check_versions("diffusers", "transformers")
