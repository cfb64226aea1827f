"""Models that were never in one basin: their symmetries, what matches them, and what to do after."""
