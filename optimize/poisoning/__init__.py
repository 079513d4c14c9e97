"""What a contributor of a few rows could do: flips, insertions, perturbed inputs, their damage."""
