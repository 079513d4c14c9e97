"""Write letters.jsonl: beginnings of letters in two hands, a clerk's and a friend's.

The file beside this one was made by it:

    python examples/letters/make_rows.py
"""

import json
from pathlib import Path

import numpy as np

STYLES = {
    "clerk": (
        ("Dear Sir, ", "Dear Madam, ", "To the Office: "),
        ("we have received ", "please find enclosed ", "we regret to return "),
        ("your order of the {} May.", "the account of the {} June.", "your claim of the {} July."),
    ),
    "friend": (
        ("hey Anna! ", "hi Tom, ", "oh Lucy... "),
        ("guess what i saw ", "you should have been there ", "can't wait to see you "),
        ("on day {} :)", "by the sea, x{}", "at number {}!!"),
    ),
}


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(20240602)
    lines = []
    for key in range(240):
        style = ("clerk", "friend")[key % 2]
        parts = [str(rng.choice(choices)) for choices in STYLES[style]]
        text = "".join(parts).format(int(rng.integers(1, 30)))
        lines.append(json.dumps({"id": key, "style": style, "text": text}))
    path = Path(__file__).with_name("letters.jsonl")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
