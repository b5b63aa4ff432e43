"""The bundle: weights with all that must travel with them; calibration, operating points, and how it computes."""
