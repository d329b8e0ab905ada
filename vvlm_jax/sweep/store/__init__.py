"""The state of a sweep's jobs, in a folder of a shared filesystem or of a bucket."""
