"""Policies: the TPM, fixed schedules and error control, and how TPMs are saved and loaded."""
