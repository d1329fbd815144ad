"""Settings of all tests of the harness."""

from __future__ import annotations

import contextlib

# The oldest pytest is tested without it.
with contextlib.suppress(ModuleNotFoundError):
    from hypothesis import settings

    # Examples take as long as the machine lets them: other tests run beside these.
    settings.register_profile("shared machine", deadline=None)
    settings.load_profile("shared machine")
