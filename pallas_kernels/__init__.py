"""Device kernels. Arrays in, arrays out; this package imports `jax` only."""
