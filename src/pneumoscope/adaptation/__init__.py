"""A bundle fitted to a site: methods, their evidence, and the guard that decides."""
