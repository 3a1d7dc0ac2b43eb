"""The version of this package; also what the `User-Agent` says."""

__version__ = "0.1.0"
