"""One trainer; stages are data."""
