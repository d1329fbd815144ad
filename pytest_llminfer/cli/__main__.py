"""``python -m pytest_llminfer.cli``: the same as the command ``llminfer``."""

from __future__ import annotations

from pytest_llminfer.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
