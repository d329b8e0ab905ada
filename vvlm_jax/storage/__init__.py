"""Files of folders and buckets."""
