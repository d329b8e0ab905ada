"""The page about a law."""
