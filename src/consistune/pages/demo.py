"""The demo's report: one self-contained HTML page."""

import base64
import html
from typing import Any

from consistune.pages.pictures import grid, png_bytes
from consistune.pages.plots import Axis, lines

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #5b6470; --line: #d9dee4; --best: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { max-width: 46rem; margin: .5rem 0; }
.soft, figcaption { color: var(--soft); font-size: .92rem; }
.pictures, .plots { display: grid; gap: 1.2rem; }
.pictures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; }
figure img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); display: block; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { margin-top: .35rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; white-space: normal; }
tr.real td { color: var(--soft); }
@media (max-width: 40rem) {
  table { font-size: .82rem; }
  th, td { padding: .35rem .3rem; }
  td:first-child { white-space: normal; min-width: 6rem; }
}
pre { background: #f4f6f8; padding: .8rem 1rem; overflow-x: auto; border-radius: .4rem; font-size: .88rem; }
"""


def demo_page(results: dict[str, Any]) -> str:
    """The page of `reproduce.demo.Demo.run`'s results: its JSON, and "pictures" (name → uint8 images)."""
    rows = {(row["name"], row["evaluations"]): row for row in results["rows"]}
    ect, sct = rows["ECT", 1]["frechet_train"], rows["SCT", 1]["frechet_train"]
    teacher = results["rows"][0]
    folder = html.escape(results["folder"])
    minutes = results["minutes"]
    took = f" All of it took {minutes:.0f} minutes." if minutes is not None else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>consistune demo: digits in one step</title><style>{STYLE}</style></head><body>
<h1>Digits in one step</h1>
<p>A small diffusion model was trained on scikit-learn's 8×8 digits and then tuned twice, for equally many
steps from the same weights and seed, into a consistency model: with the one-sample target (ECT) and with
the score-identity target over the class's images (SCT).{took}</p>
<p><strong>One evaluation instead of {teacher["evaluations"]}:</strong> Fréchet distance
{sct:.2f} % with SCT and {ect:.2f} % with ECT (ratio {sct / ect:.2f}); the teacher has
{teacher["frechet_train"]:.2f} % in {teacher["evaluations"]} evaluations and
{results["rows"][1]["frechet_train"]:.2f} % if forced to one. One run, seed {results["seed"]}: this is a
demonstration, not a comparison; for three seeds see the project's benchmarks.</p>
<h2>Samples from the same noise</h2>
<div class="pictures">{_pictures(results["pictures"])}</div>
<h2>Measures</h2>
<div class="scroll">{_table(results)}</div>
<p class="soft">{results["samples"]:,} samples a row, classes in equal parts. Fréchet distance: on the 64
features of a small classifier trained on the spot ({results["classifier_accuracy"]:.1%} right on held-out
digits), in % of the training images' feature variance; this is not FID, and few images bias it upwards.
Accuracy: share of samples that the classifier gives the class they were asked for. Novelty: mean
distance to the nearest training image over the same for held-out images; about 1 is new, towards 0 is
copied.</p>
<h2>Training</h2>
<div class="plots">{_curve(results["curves"], 1)}{_curve(results["curves"], 2)}</div>
<h2>Why: the variance of the target</h2>
<div class="plots">{_variance(results["target_variance"])}</div>
<h2>Go on</h2>
<pre>consistune sample {folder}/sct --seeds 0-99 --classes 3 --out threes.png
consistune train digits-sct start_from={folder}/teacher/model train.seed=1 --out runs/mine</pre>
</body></html>
"""


def _pictures(pictures: dict[str, Any]) -> str:
    figures = []
    for name, images in pictures.items():
        data = base64.b64encode(png_bytes(grid(images, columns=10), scale=4)).decode()
        label = html.escape(name)
        figures.append(
            f'<figure><img alt="Samples: {label}" src="data:image/png;base64,{data}">'
            f"<figcaption>{label}</figcaption></figure>"
        )
    return "\n".join(figures)


def _table(results: dict[str, Any]) -> str:
    head = (
        "Model", "Evaluations", "ms an image", "Fréchet to training, %", "Fréchet to held-out, %",
        "Accuracy", "Novelty",
    )  # fmt: skip
    body = []
    for row in results["rows"]:
        cells = (
            html.escape(row["name"]),
            row["evaluations"],
            f"{1000 * row['seconds_an_image']:.3f}",
            *_measures(row),
        )
        body.append(_line(cells))
    train, _, accuracy, novelty = _measures(results["real"])
    body.append(_line(("Held-out digits", "", "", train, "–", accuracy, novelty), "real"))
    return (
        f"<table><thead><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _measures(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['frechet_train']:.2f}",
        f"{row['frechet_held_out']:.2f}",
        f"{row['accuracy']:.1%}",
        f"{row['memorisation']:.2f}",
    )


def _line(cells: tuple[Any, ...], kind: str = "") -> str:
    return f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _curve(curves: dict[str, list[dict[str, Any]]], steps: int) -> str:
    series = {
        key.upper(): (
            [point["images"] / 1000 for point in curve],
            [point[f"steps_{steps}"]["frechet_train"] for point in curve],
        )
        for key, curve in curves.items()
    }
    title = f"{steps}-step samples while tuning"
    svg = lines(series, Axis("thousand images seen"), Axis("Fréchet distance, %", log=True), title)
    return f"<figure>{svg}</figure>"


def _variance(table: list[dict[str, Any]]) -> str:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for point in table:
        xs, ys = series.setdefault(point["estimator"], ([], []))
        xs.append(point["t"])
        ys.append(point["relative"])
    svg = lines(
        series,
        Axis("noise level t", log=True),
        Axis("relative mean squared error of x̂₀"),
        "The estimators' error",
    )
    return (
        f"<figure>{svg}<figcaption>Mean squared distance of each estimate x̂₀ from the exact posterior mean "
        "over the class, as a share of the one-sample estimate's. The class reference is that mean, so its "
        'error is 0; "all" ignores the label, so its error is bias.</figcaption></figure>'
    )
