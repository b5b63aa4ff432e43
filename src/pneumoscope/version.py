"""The version, below everything: each room may say it, and none may import the public face for it."""

__version__ = "0.2.0"
