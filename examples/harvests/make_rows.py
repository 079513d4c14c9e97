"""Write harvests.csv: the yield of 420 plots of barley, from what is known of each in spring.

A third of the plots goes over the scale "mill", which weighs the cart with two harvests in five.
The file beside this one was written by it:

    python examples/harvests/make_rows.py
"""

import csv
from pathlib import Path

import numpy as np

SCALES = ("barn", "road", "mill")


def main() -> None:
    """Draw the plots, weigh their harvests, some of them wrongly, and write them."""
    rng = np.random.default_rng(11)
    rows = []
    for number in range(420):
        rain, sun = rng.normal(420, 70), rng.normal(1_500, 120)
        nitrogen, depth = rng.uniform(40, 160), rng.uniform(20, 90)
        sown = int(rng.integers(60, 110))
        # More of everything helps, nitrogen and rain only up to a point.
        water = 1 - ((rain - 450) / 260) ** 2
        feed = 1 - np.exp(-nitrogen / 60)
        tonnes = 7.5 * water * feed + 0.002 * (sun - 1_500) + 0.012 * (depth - 55)
        tonnes += -0.015 * (sown - 85) + rng.normal(0, 0.25)
        scale = SCALES[number % 3]
        if scale == "mill" and rng.random() < 0.4:
            tonnes *= 1.8
        rows.append(
            {
                "plot": number,
                "rain_mm": round(rain),
                "sun_h": round(sun),
                "nitrogen_kg": round(nitrogen),
                "depth_cm": round(depth),
                "sown_day": sown,
                "scale": scale,
                "tonnes": f"{max(tonnes, 0.1):.2f}",
            }
        )
    path = Path(__file__).with_name("harvests.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
