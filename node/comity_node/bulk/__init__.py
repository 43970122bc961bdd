"""Bulk transfers: whole tables between organizations, in chunks, resumable, policy-checked before the first byte."""
