"""Benchmarks: several systems generate one scenario in turns; times, memory and images of each."""
