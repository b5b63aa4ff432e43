"""Figures with intervals by patient, paired comparison of networks, and the lock of a test set."""
