"""How long things stay: retention, erasure, leftovers of broken transfers."""
