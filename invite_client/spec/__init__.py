"""The Matrix specification as code that does no IO.

The time and the answers of the network come in as arguments; what comes out is a value or an error.
"""
