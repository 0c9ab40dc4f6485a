"""Settings of the property tests."""

from __future__ import annotations

from hypothesis import settings

# a loaded machine is no reason to fail
settings.register_profile("planning", deadline=None, print_blob=True)
settings.load_profile("planning")
