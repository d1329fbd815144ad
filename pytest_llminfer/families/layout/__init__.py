"""Layout: how every parameter is stored."""
