"""Bytes on disk: bounded reads, atomic replacement, the journal, and array metadata."""
