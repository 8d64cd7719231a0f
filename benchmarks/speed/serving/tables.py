"""docs/serving.md's tables from docs/results/serving*.json."""

from benchmarks.page import table

NAMES = {
    "alone": "one at a time",
    "static": "static batches, all rows",
    "cut": "static batches, finished rows cut",
    "steps": "step-level batches",
}


def _spread(values, digits):
    """Median and range; "" if an older run did not measure it."""
    if values is None:
        return ""
    low, middle, high = values
    return f"{middle:{digits}} [{low:{digits}}, {high:{digits}}]"


def _saturated_run(run, facts):
    head = "way | images / s | to static | to static, processor time | processor s per image | rows per image | steps"
    found, lines = run["saturated"], []
    for name, row in found["ways"].items():
        cells = [
            NAMES[name],
            f"{row['per_second']:.1f}",
            *(_spread(row[k], ".2f") for k in ("ratio", "processor_ratio")),
        ]
        lines.append([*cells, f"{row['processor']:.3f}", f"{row['rows']:.2f}", f"{row['steps']:.2f}"])
    ratios = found["ways"]["steps"]["processor_ratio"]
    busy = "" if ratios is None else f", in processor time {_spread([r / found['bound'] for r in ratios], '.0%')}"
    cut = found["ways"]["cut"]["ratio"][1] / found["bound"]
    return (
        f"{run['side']} pixels:\n\n{table(head, lines, narrow=True)}\n\n"
        f"Bound of step-level over static batches, E[max N over the batch] / mean N: {found['bound']:.2f}. Reached: "
        f"{_spread(found['of_bound'], '.0%')}{busy}; by batches whose finished "
        f"rows are cut {cut:.0%} (median and range of {facts['repeats']} repetitions; {facts['images']} images, "
        f"{facts['slots']} at once). {_fixed(found['ways'])}"
    )


def _fixed(ways):
    """The cost of an image in addition to its rows, from two ways that differ only in rows."""
    static, cut = ways["static"], ways["cut"]
    row = (static["processor"] - cut["processor"]) / (static["rows"] - cut["rows"])
    if row <= 0:
        return ""
    fixed = (static["processor"] - row * static["rows"]) / row
    return (
        f"Encoding, decoding and the pipeline's code take as long as {fixed:.1f} rows of the denoiser for each image."
    )


def saturated(facts):
    return "\n\n".join(_saturated_run(run, facts) for run in facts["runs"])


def _latency_run(run, facts):
    head = "arrivals | load | way | images | p50, s | p95, s | steps per image | rows per step"
    lines = []
    for row in run["latency"]:
        rows = "" if row["rows"] is None else f"{row['rows'] / row['steps']:.2f}"
        cells = [row["arrivals"], f"{row['load']:.0%}", NAMES[row["way"]], str(row.get("images", facts["images"]))]
        lines.append([*cells, *(f"{row[key]:.2f}" for key in ("p50", "p95", "steps")), rows])
    return (
        f"{run['side']} pixels:\n\n{table(head, lines, narrow=True)}\n\n"
        f"Load is the mean rate as a share of what static batches can do ({run['capacity']:.1f} images / s). "
        f"The same prompts, seeds and arrival times for every way with as many images. "
        f"{_later(run, facts['images'])}{_again(run)}"
    )


def _again(run):
    """Cells that were measured at another revision than the rest."""
    found = sorted({(row["images"], row["revision"] or "unknown") for row in run["latency"] if "revision" in row})
    return "".join(f" Cells of {images} images: revision {revision[:7]}." for images, revision in found)


def _later(run, images):
    """Cases in which step-level batches answer later than static ones of as many images."""
    found = {(row["arrivals"], row["load"], row["way"]): row for row in run["latency"]}
    cells = sorted({key[:2] for key in found})
    pairs = [(cell, found[(*cell, "steps")], found[(*cell, "static")]) for cell in cells]
    assert all(a.get("images", images) == b.get("images", images) for _, a, b in pairs), "ways of different images"
    later = [f"{kind} at {load:.0%}" for (kind, load), a, b in pairs if a["p95"] >= b["p95"]]
    where = "nowhere" if not later else ", ".join(later)
    return f"The p95 of step-level batches is above that of static ones: {where} ({len(cells)} cases)."


def latency(facts):
    return "\n\n".join(_latency_run(run, facts) for run in facts["runs"])


def mixes(facts):
    found = facts["mixes"]
    return (
        f"{found['mixes']} random mixes of {found['images']} requests in all: steps differ in {found['steps_differ']}, "
        f"largest difference of a time {found['times']:.1e}, of a pixel {found['pixels']} of 255; "
        f"{found['equal']:.1%} of the images are equal bit by bit."
    )


def device(facts):
    versions, revision = facts["versions"], (facts["git_revision"] or "unknown")[:7]
    return (
        f"{facts['hardware']}; torch {versions['torch']}, diffusers {versions['diffusers']}, revision {revision}; "
        f"{facts['backbone']}, seed {facts['seed']}."
    )


PARTS = {"saturated": ("runs", saturated), "latency": ("runs", latency), "mixes": ("mixes", mixes)}


def sections(shape, facts):
    """The sections of docs/serving.md on one shape; a section without results says how to measure them."""
    names = PARTS if shape == "tinyworld" else ("saturated", "latency")
    return {f"{name} {shape}": _filled(shape, name, facts) for name in names}


def _filled(shape, name, facts):
    key, make = PARTS[name]
    if key not in facts:
        return f"Not measured yet: `python -m benchmarks.speed serving --shape {shape}`."
    return f"{make(facts)}\n\n{device(facts)}"
