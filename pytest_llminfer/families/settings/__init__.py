"""Settings: the resolved configuration and the defaults of an engine."""
