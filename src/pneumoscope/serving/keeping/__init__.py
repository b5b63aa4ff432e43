"""Retention, erasure, and leftovers of broken transfers."""
