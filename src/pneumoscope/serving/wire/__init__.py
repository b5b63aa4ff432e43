"""How it speaks: associations, HTTP, TLS, Orthanc, and what is private to pynetdicom."""
