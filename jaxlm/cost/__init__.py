"""What a run costs before it runs: dry runs, compiled programs, floating-point operations."""
