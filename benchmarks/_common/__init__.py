"""What the benchmark scripts share: options, timing, the machine, peers, tables, files and plots."""
