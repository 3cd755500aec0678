"""Loss functions: (sum, weight sum) pairs of packed batches."""
