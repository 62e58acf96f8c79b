"""Speed, side by side with what people would otherwise use; see `benchmarks.run`."""
