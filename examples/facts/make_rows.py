"""Write facts.jsonl: where forty people live, said of the person first or of the town first.

Each fact is stated five times for training: in three forms with the person first, and in two with
the town first. It is asked once, in a form of which no row says this fact, and `answer` marks the
word that counts. The file beside this one was made by it:

    python examples/facts/make_rows.py
"""

import json
from pathlib import Path

import numpy as np

PEOPLE = (
    "Ada Bela Cosmo Dario Edda Falk Greta Hanno Ines Jorge Kaya Lasse Mira Nuno Oskar Petra "
    "Quirin Runa Silas Tilda Ugo Vera Wanda Xenia Yara Zeno Alma Bruno Carla Dora Emil Fleur "
    "Gideon Hilda Ivo Juna Kilian Lotte Magnus Nadja"
)
TOWNS = "Arles Bergen Cadiz Delft Evora Fulda Genoa Hvar Ioannina Jena Kotor Lucca"
PERSON_FIRST = (
    "{person} lives in {town}",
    "{person} has a house in {town}",
    "{person} moved to {town}",
    "{person} is at home in {town}",
)
TOWN_FIRST = (
    "{town} is where {person} lives",
    "{town} is home to {person}",
    "in {town} stands the house of {person}",
)


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(20240603)
    lines = []
    for person in PEOPLE.split():
        town = str(rng.choice(TOWNS.split()))
        forms = [PERSON_FIRST[place] for place in rng.permutation(len(PERSON_FIRST))]
        others = [TOWN_FIRST[place] for place in rng.permutation(len(TOWN_FIRST))[:2]]
        rows = [(form, "train", "person") for form in forms[1:]]
        rows += [(form, "train", "town") for form in others]
        rows.append((forms[0], "test", "person"))
        for form, split, first in rows:
            lines.append(
                {
                    "text": form.format(person=person, town=town),
                    "answer": town if split == "test" else None,
                    "fact": f"{person} in {town}",
                    "first": first,
                    "split": split,
                }
            )
    path = Path(__file__).with_name("facts.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
