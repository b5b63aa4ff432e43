"""Protocols: associations, HTTP, TLS, Orthanc, and the private parts of pynetdicom that they need."""
