"""Logs without identity, figures for Prometheus."""
