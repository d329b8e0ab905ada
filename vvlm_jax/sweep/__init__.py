"""Many runs: points to run configs, the store they write to, and the workers that run them."""
