"""The pages for readers and administrators, sign-in, STOW-RS."""
