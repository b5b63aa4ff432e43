"""The gate: which images are not analysed, judged by header and pixels, and the reason."""
