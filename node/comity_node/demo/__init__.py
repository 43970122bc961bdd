"""Five organizations on one machine: the whole way, live, on real data (`comity demo`)."""
