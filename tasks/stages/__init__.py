"""What names the artifacts of each stage of a run; `tasks.blueprint` puts them together."""
