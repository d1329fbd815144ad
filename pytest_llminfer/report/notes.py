"""The notes of a test that every report is made of; ``baselines/notes.py`` and the families' sections name the others."""

CELL = "llminfer_cell"
"""The id of the cell that a test belongs to: text, not JSON."""
DECIDED_BY_RECORD = "llminfer_decided_by_record"
"""The test asks for the fixture ``baseline``: ``true``."""
VERDICT = "llminfer_verdict"
"""A verdict: ``Verdict.to_dict``, and ``fatal``: whether it ended the test."""
LOADED = "llminfer_loaded"
"""An engine was loaded: ``{"cell", "spec", "phases", "afresh", "model"}``, the model as baselines name it, and what
``report.result.CellResult`` holds of ``EngineInfo``."""
