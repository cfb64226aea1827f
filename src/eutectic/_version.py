"""The version: one place for the package, its manifests and its command."""

__version__ = "0.1.0"
