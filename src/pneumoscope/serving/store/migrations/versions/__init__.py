"""One module per version; a new one names its predecessor in `down_revision`. There is no way back."""
