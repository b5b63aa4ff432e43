"""Figures of labelled, scored images with their intervals: arrays in, estimates out, no files."""
