"""What a sweep knows of its jobs, in a folder or a bucket."""
