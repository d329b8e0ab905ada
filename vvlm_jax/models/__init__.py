"""The towers and their assembly: pure modules, no files, no devices."""
