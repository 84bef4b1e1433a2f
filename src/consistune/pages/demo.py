"""The demo's report."""

from typing import Any

from consistune.pages.page import MISSING, Cell, Picture, Table, render
from consistune.pages.pictures import grid_png
from consistune.pages.plots import Axis, Plot

HEAD = (
    "Model", "Evaluations", "ms an image", "Fréchet to training, %", "Fréchet to held-out, %",
    "Accuracy", "Novelty",
)  # fmt: skip


SUBJECTS = {
    "digits": {
        "title": "Digits in one step",
        "data": "scikit-learn's 8×8 digits",
        "held_out": "Held-out digits",
        "example": "--classes 3 --out threes.png",
    },
    "emoji64-latent": {
        "title": "Emoji in one step",
        "data": "emoji of 64×64 pixels (Noto Emoji, Apache-2.0; Fluent Emoji, MIT), as latents 32×8×8 of the "
        "autoencoder taef2",
        "held_out": "Held-out emoji",
        "example": "--classes 1 --out animals.png",
    },
}
"""The families of recipes of which there is a demo, and its page's words."""


def demo_page(results: dict[str, Any]) -> str:
    """The page of `reproduce.demo.Demo.run`'s results: its JSON, and "pictures" (name → uint8 images)."""
    one_step = {row["name"]: row["frechet_train"] for row in results["rows"] if row["evaluations"] == 1}
    return render(
        "demo.html",
        results=results,
        subject=SUBJECTS[results["subject"]],
        teacher=results["rows"][0],
        forced=results["rows"][1],
        ect=one_step["ECT"],
        sct=one_step["SCT"],
        pictures=[Picture(name, grid_png(images, 10)) for name, images in results["pictures"].items()],
        measures=_table(results),
        curves=[_curve(results["curves"], steps) for steps in (1, 2)],
        variance=_variance(results["target_variance"]),
    )


def _table(results: dict[str, Any]) -> Table:
    rows = [
        (row["name"], str(row["evaluations"]), f"{1000 * row['seconds_an_image']:.3f}", *_measures(row))
        for row in results["rows"]
    ]
    to_training, _, accuracy, novelty = _measures(results["real"])
    name = SUBJECTS[results["subject"]]["held_out"]
    rows.append((name, "", "", to_training, MISSING, accuracy, novelty))
    return Table(HEAD, [[Cell(text) for text in row] for row in rows])


def _measures(row: dict[str, Any]) -> tuple[str, str, str, str]:
    return (
        f"{row['frechet_train']:.2f}",
        f"{row['frechet_held_out']:.2f}",
        MISSING if row["accuracy"] is None else f"{row['accuracy']:.1%}",
        f"{row['memorisation']:.2f}",
    )


def _curve(curves: dict[str, list[dict[str, Any]]], steps: int) -> Plot:
    series = {
        key.upper(): (
            [point["images"] / 1000 for point in curve],
            [point[f"steps_{steps}"]["frechet_train"] for point in curve],
        )
        for key, curve in curves.items()
    }
    title = f"{steps}-step samples while tuning"
    return Plot(series, Axis("thousand images seen"), Axis("Fréchet distance, %", log=True), title)


def _variance(table: list[dict[str, Any]]) -> Plot:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for point in table:
        xs, ys = series.setdefault(point["estimator"], ([], []))
        xs.append(point["t"])
        ys.append(point["relative"])
    error = Axis("relative mean squared error of x̂₀")
    return Plot(series, Axis("noise level t", log=True), error, "The estimators' error")
