"""Computed radiographs: anatomy and images with a known truth."""
