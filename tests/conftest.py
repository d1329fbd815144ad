"""Settings of all tests of the harness."""

from __future__ import annotations

from hypothesis import settings

# Examples take as long as the machine lets them: other tests run beside these.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
