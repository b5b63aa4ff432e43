"""Logs without identity, metrics for Prometheus."""
