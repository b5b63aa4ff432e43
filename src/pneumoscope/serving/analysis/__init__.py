"""Analysing waiting images: worker, guarded child process, task."""
