"""The page of one evaluation: the table, curves, samples, and the ones that should make one doubt."""

import base64
import html
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from consistune.pages.demo import STYLE
from consistune.pages.pictures import SMALLEST_SIDE, grid, png_bytes
from consistune.pages.plots import STYLES, Axis, lines

WORDS = {
    "kid": "Kernel distance (KID)",
    "is": "Inception Score",
    "precision": "Precision",
    "recall": "Recall",
    "novelty": "Novelty, pixels",
    "novelty_features": "Novelty, features",
    "copies": "Copies",
    "near_copies": "Near copies",
    "accuracy": "Accuracy",
    "frechet_train": "Fréchet distance to training images, % of their variance",
    "frechet_held_out": "Fréchet distance to held-out images, % of their variance",
    "memorisation": "Novelty, pixels",
    "loss": "Loss",
}
SHARES = {"precision", "recall", "copies", "near_copies", "accuracy"}
CAPTIONS = {
    "samples": "Samples, the first seeds",
    "worst": "Farthest from real features: each sample, and below it the nearest training image",
    "memorised": "Nearest to a training image: each sample, and below it that image",
}


def evaluation_page(
    results: dict[str, Any],
    pictures: Mapping[str, Mapping[str, Tensor]],
    curves: Mapping[str, tuple[list[float], list[float]]],
) -> str:
    """The page of an evaluation.

    Args:
        results: what results.json holds.
        pictures: row → {"samples", "worst", "memorised"} → uint8 images [n, C, H, W]; the latter two are
            pairs, sample and training image in turn.
        curves: name → (images seen, value) of the training run, where the model lies in one.
    """
    extractor, reference = results["extractor"], results["reference"]
    title = html.escape(results["model"]["path"])
    not_fid = "" if extractor["name"] == "fid" else f" {extractor['name']} is not FID."
    images = "an unknown number of" if reference["images"] is None else f"{reference['images']:,}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>consistune evaluate: {title}</title><style>{STYLE}{EXTRA}</style></head><body>
<h1>{title}</h1>
<p>{results["samples"]:,} samples a block against {images} reference images
({html.escape(str(reference["source"]))}), features by <strong>{extractor["name"]}</strong>.{not_fid}</p>
<h2>Measures</h2>
<div class="scroll">{_table(results["rows"])}</div>
{_notes(results)}
{_search(results["search"])}
{"".join(_gallery(name, shown) for name, shown in pictures.items())}
{_training(curves)}
<h2>To repeat it</h2>
<pre>{html.escape(_record(results))}</pre>
</body></html>
"""


EXTRA = """
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
td span { color: var(--soft); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) { td span { display: block; } }
"""


def _word(name: str) -> str:
    return WORDS.get(name, name)


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(n for row in rows for n in row["summary"] if not _beside(n, row["summary"])))
    head = "".join(f"<th>{html.escape(row['name'])}</th>" for row in rows)
    body = []
    for name in names:
        cells = "".join(f"<td>{_cell(name, row['summary'])}</td>" for row in rows)
        body.append(f"<tr><td>{html.escape(_word(name))}</td>{cells}</tr>")
    return f"<table><thead><tr><th>Measure</th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _beside(name: str, summary: Mapping[str, Any]) -> bool:
    """An error, a deviation or a bias stands in the cell of the number that it belongs to."""
    stem, _, end = name.rpartition("_")
    return end in ("error", "deviation", "bias") and stem in summary


def _cell(name: str, summary: Mapping[str, Any]) -> str:
    if name not in summary:
        return "–"
    found = summary[name]
    text = _number(name, found["mean"])
    if found["standard_error"] is not None:
        text += f" ± {_number(name, found['standard_error'])}"
        if name.startswith("f"):
            text += f" <span>(min {_number(name, found['min'])})</span>"
    for end, sign in (("error", "± "), ("deviation", "sd "), ("bias", "bias +")):
        other = summary.get(f"{name}_{end}")
        if other is not None:
            text += f" <span>({sign}{_number(name, other['mean'])})</span>"
    return text


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if name in SHARES else f"{value:.4g}"


def _notes(results: dict[str, Any]) -> str:
    blocks = len(results["rows"][0]["seeds"])
    several = (
        f"Mean ± standard error of {blocks} blocks of seeds. "
        if blocks > 1
        else "One block of seeds: the spread between blocks is not known. "
    )
    return f"""<p class="soft">{several}Bias: what the Fréchet distance of as many samples of the reference
distribution itself would be if features were Gaussian, to first order in 1/N; it is contained in the number.
Precision and recall: k = 3. Novelty: mean distance to the nearest training image over the same for held-out
images; about 1 is new, towards 0 is copied. Copies: identical to a training image. Near copies: nearer to one
than 99 % of the held-out images are, so real images have 1 %.</p>"""


def _search(search: dict[str, Any] | None) -> str:
    if search is None:
        return ""
    plot = f"<div class='plots'><figure>{search_plot(search)}</figure></div>"
    return f"<h2>Search of {search['setting']}</h2>{plot}"


def search_series(search: dict[str, Any]) -> tuple[Any, Axis, Axis, str]:
    """What `lines` and `lines_png` draw of a search."""
    points = search["curve"]
    series = {search["metric"]: ([p["value"] for p in points], [p["distance"] for p in points])}
    x = Axis(search["setting"], log=search["setting"] == "mid-t")
    return series, x, Axis(search["metric"]), f"{search['samples']:,} samples, the same seeds"


def search_plot(search: dict[str, Any]) -> str:
    return lines(*search_series(search))


def _training(curves: Mapping[str, tuple[list[float], list[float]]]) -> str:
    if not curves:
        return ""
    together: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, points in curves.items():  # evaluate/SAMPLER/MEASURE, evaluate/MEASURE or loss
        sampler, _, measure = name.removeprefix("evaluate/").rpartition("/")
        together.setdefault(measure, {})[sampler or measure] = points
    plots = (
        f"<figure>{lines(dict(series), Axis('thousand images seen'), Axis(''), _word(measure))}</figure>"
        for measure, all_series in together.items()
        for series in _at_most(len(STYLES), list(all_series.items()))
    )
    return f"<h2>Training</h2><div class='plots'>{''.join(plots)}</div>"


def _at_most(count: int, values: list[Any]) -> list[list[Any]]:
    """The values in parts that one picture can tell apart."""
    return [values[i : i + count] for i in range(0, len(values), count)]


def _gallery(name: str, shown: Mapping[str, Tensor]) -> str:
    figures = []
    for kind, images in shown.items():
        if len(images) == 0:
            continue
        data = base64.b64encode(_sheet(kind, images)).decode()
        caption = CAPTIONS[kind]
        figures.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return f"<h2>{html.escape(name)}</h2><div class='pictures'>{''.join(figures)}</div>"


def _sheet(kind: str, images: Tensor) -> bytes:
    scale = max(1, SMALLEST_SIDE // images.shape[-1])
    if kind == "samples":
        return png_bytes(grid(images), scale)
    half = len(images) // 2
    across = min(8, half)
    rows = []
    for start in range(0, half, across):  # a row of samples, and under it a row of their neighbours
        pair = slice(2 * start, 2 * min(start + across, half))
        rows += [images[pair][0::2], images[pair][1::2]]
    return png_bytes(grid(torch.cat(rows), columns=across), scale)


def _record(results: dict[str, Any]) -> str:
    environment, extractor = results["environment"], results["extractor"]
    seeds = "; ".join(f"{first}-{last}" for first, last in results["rows"][0]["seeds"])
    return "\n".join(
        [
            " ".join(environment["command"]),
            f"model    sha256 {results['model']['sha256']}",
            f"data     {results['data']['name']}, sha256 {results['data']['sha256']}",
            f"features {extractor['identity']}, file sha256 {extractor['file_sha256']}",
            f"seeds    {seeds}; labels: {results['labels']}",
            f"with     consistune {environment['consistune']}, torch {environment['torch']}, "
            f"{environment['device']}, {environment['processes']} process(es), {results['seconds']:.0f} s, "
            f"{results['when']}",
        ]
    )
