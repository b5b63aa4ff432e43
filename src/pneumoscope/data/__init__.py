"""Images with labels and patients: read, checked, divided, cached, fetched, computed."""
