"""The stages of a run in their order, and the version of the numbers that each makes."""

# Raised when the numbers that a stage makes change; old artifacts then simply no longer match.
VERSIONS = {
    "checkpoints": 2,
    "bank": 3,  # of what a chunk holds, and of what names a retraining
    "features": 2,
    "scores": 3,
    "lds": 2,
    "solution": 6,
    "verdict": 6,
    "values": 1,
    "run": 4,  # also when tables gain columns, which reports of finished runs then read
    "tracking": 1,
}
STAGES = ("data", *VERSIONS)
