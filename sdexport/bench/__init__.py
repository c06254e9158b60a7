"""Benchmarks: several systems draw one scenario in turns; times, memory and pictures of each."""
