"""What the sync and the async client share: each call and its values are defined here once, by subject."""
