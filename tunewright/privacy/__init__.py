"""Secrets and personal data in texts: found, and kept out of what is shown."""
