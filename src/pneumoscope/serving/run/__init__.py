"""Running the gateway: supervisor, processes, and the check before the start."""
