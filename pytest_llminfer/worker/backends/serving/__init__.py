"""Engines asked through their own server, which is started and stopped here."""
