"""The suites that users run: `pytest suites/` in a checkout, `pytest --pyargs pytest_llminfer.suites` once installed."""
