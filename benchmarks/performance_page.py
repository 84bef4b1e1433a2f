"""The tables of docs/performance.md, all or those named, from the JSON that the benchmarks wrote."""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pages import fill

RESULTS = Path(__file__).parent / "results"
GIB = 2**30
SHARE = "share of the plain loop's"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def span(ratio: dict[str, float]) -> str:
    return f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"


def steps() -> str:
    rows = [
        "| network | precision | images a second | times as fast as plain | gradient's error |",
        "|---|---|---|---|---|",
    ]
    for key, entry in read("training_step").items():
        if not key.startswith("step "):
            continue
        for name, timing in entry["times"].items():
            plain = name == "plain"
            faster = "1" if plain else span(entry["times as fast"][name])
            error = "" if plain else f"{entry['errors'][name]['gradient']:.0e}"
            network = f"{key.removeprefix('step ')}, batch {entry['batch']}"
            word = "plain, fp32" if plain else name
            rows.append(f"| {network} | {word} | {timing['images a second']:.2f} | {faster} | {error} |")
    return "\n".join(rows)


def levers() -> str:
    entry = read("training_step")["levers"]
    rows = [
        f"| DDPM++, batch {entry['batch']}, one thread | | seconds | times as fast |",
        "|---|---|---|---|",
    ]
    for part, label in (("steps", "whole step"), ("passes", "two passes and a backward, fp32")):
        first = next(iter(entry[part]))
        base = entry[part][first]["seconds"]
        for name, timing in entry[part].items():
            seconds = timing["seconds"]
            each = [a / b for a, b in zip(base, seconds, strict=True)]
            found = {"median": statistics.median(each), "low": min(each), "high": max(each)}
            cells = f"{timing['median']:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
            rows.append(f"| {label} | {name} | {cells} | {'1' if name == first else span(found)} |")
    return "\n".join(rows)


def memory() -> str:
    rows = [
        "| network | | kept by the forward pass | peak | share of plain's | freed memory given back "
        "| share of plain's |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, entry in read("training_step").items():
        if not key.startswith("memory "):
            continue
        both = entry["forms"], entry["forms, freed memory given back"]
        for form in both[0]["bytes"]:
            cells = " | ".join(
                f"{found['bytes'][form] / GIB:.2f} GiB | {found[SHARE].get(form, 1.0):.2f}" for found in both
            )
            kept = f"{entry['kept'][form] / GIB:.2f} GiB"
            rows.append(f"| {key.removeprefix('memory ')} | {form} | {kept} | {cells} |")
    return "\n".join(rows)


def sampling() -> str:
    rows = [
        "| threads, batch | | images a second | latency | times as fast as diffusers |",
        "|---|---|---|---|---|",
    ]
    for threads, result in sorted(read("sampling").items(), reverse=True):
        for batch, entry in result["batches"].items():
            for name, timing in entry["times"].items():
                ratio = entry["times as fast as the peer"].get(name)
                speed = f"{timing['images a second']:.2f} | {timing['median'] * 1000:.0f} ms"
                faster = "1" if ratio is None else span(ratio)
                rows.append(f"| {threads.split()[0]}, {batch} | {name} | {speed} | {faster} |")
    sizes = [
        f"{name}: {size['parameters'] / 1e6:.1f} million parameters, {size['flops'] / 1e9:.1f} GFLOP an image"
        for name, size in result["sizes"].items()
    ]
    off = [f"{name} {value:.0f}" for name, value in result["pixel levels off"].items()]
    about = f"{'; '.join(sizes)}. Levels of 255 from fp32's images (99th percentile): {', '.join(off)}."
    return "\n".join([*rows, "", about])


def startup() -> str:
    result = read("startup")
    rows = ["| | seconds | of it, imports |", "|---|---|---|"]
    for name, timing in result["times"].items():
        low, high = min(timing["seconds"]), max(timing["seconds"])
        parts = ", ".join(f"{package} {seconds:.2f}" for package, seconds in result["imports"][name].items())
        rows.append(f"| `{name}` | {timing['median']:.2f} ({low:.2f} to {high:.2f}) | {parts} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "step": steps,
    "levers": levers,
    "memory": memory,
    "sampling": sampling,
    "startup": startup,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        fill("performance.md", name, TABLES[name]())
