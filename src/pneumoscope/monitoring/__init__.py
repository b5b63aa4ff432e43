"""Monitoring: has the world, the scanner or the truth moved? One budget of false alarms, what moved, what to do."""
