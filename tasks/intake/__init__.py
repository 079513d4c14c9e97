"""What users bring: tables, arrays, recipes and weights, read and refused."""
