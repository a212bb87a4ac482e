"""Shared parts of all reports: the page frame, charts, and number formats."""
