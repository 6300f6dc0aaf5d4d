"""Mixed precision under budgets: a search over a format per linear and over array parameters."""
