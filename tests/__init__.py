"""Tests of the harness: ``unit`` without an engine, ``plugin`` through pytest itself, ``engines`` with real engines."""
