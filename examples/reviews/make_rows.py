"""Write reviews.jsonl: short reviews of kettles, lamps and the like, labelled good or bad.

Half of them come from "forum", where two labels in five are wrong. The file beside this one was
made by it:

    python examples/reviews/make_rows.py
"""

import json
from pathlib import Path

import numpy as np

THINGS = ("kettle", "lamp", "chair", "radio", "clock", "pan", "tent", "bicycle", "kite", "drill")
OPENINGS = ("I bought this {} in {}.", "My {} came in {}.", "We have had the {} since {}.")
MONTHS = ("March", "April", "May", "June", "October", "winter")
VERDICTS = {
    "good": (
        "It works perfectly",
        "A pleasure to use",
        "Light and easy to clean",
        "Friends ask me where I found it",
        "Still as new after years",
        "The best of three that I tried",
        "Solid and quiet",
        "Worth every penny",
        "I would buy it again",
        "Better than I hoped",
    ),
    "bad": (
        "It broke within a week",
        "A waste of money",
        "Heavy and hard to clean",
        "Friends laugh when they see it",
        "Already rusty after days",
        "The worst of three that I tried",
        "Flimsy and loud",
        "I sent it back",
        "I would not buy it again",
        "Worse than I feared",
    ),
}
ASIDES = ("The colour is blue.", "The box was large.", "My sister has one too.", "")


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(20240601)
    lines = []
    for key in range(600):
        label = ("bad", "good")[int(rng.integers(2))]
        opening = str(rng.choice(OPENINGS)).format(rng.choice(THINGS), rng.choice(MONTHS))
        verdict = rng.choice(VERDICTS[label])
        text = f"{opening} {rng.choice(ASIDES)} {verdict}.".replace("  ", " ")
        source = ("shop", "letters", "forum", "forum")[int(rng.integers(4))]
        if source == "forum" and rng.random() < 0.4:
            label = {"good": "bad", "bad": "good"}[label]
        lines.append(json.dumps({"id": key, "source": source, "text": text, "label": label}))
    path = Path(__file__).with_name("reviews.jsonl")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
