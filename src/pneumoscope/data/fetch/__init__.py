"""Public data sets: a catalogue, downloads that resume, archives unpacked safely."""
