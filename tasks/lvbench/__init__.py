"""LVBench by 20-minute bins of duration and by its six abilities."""
