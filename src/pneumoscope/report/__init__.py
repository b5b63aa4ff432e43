"""Folders of results as pages: HTML, Markdown and figures."""
