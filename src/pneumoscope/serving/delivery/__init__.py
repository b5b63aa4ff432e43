"""Sending results: retries, storage commitment, proof of delivery."""
