"""The journal: every answer once, under pseudonyms, in a file that is only appended to."""
