"""Accounts of readers, and the audit trail of who saw what."""
