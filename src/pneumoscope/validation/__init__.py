"""A bundle on another hospital's images: sites, groups, calibration, checklist; the bundle is left as it is."""
