"""Beside a PACS: receive images, analyse them, send results and retry until they are delivered; pages for readers."""
