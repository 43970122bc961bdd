"""Builders that several tests share: real keys and certificates, real documents, organizations in one process."""
