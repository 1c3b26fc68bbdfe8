"""Checks of an installation, a model repository and a running server."""
