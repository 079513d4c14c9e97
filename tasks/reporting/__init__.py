"""What a run found, told: on the terminal, in pictures, in MLflow."""
