"""Results as JSON, as tables in the pages (never typed by hand), and as a picture."""

import json
import pathlib
import re
import statistics

from .workloads import OPERATIONS

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = pathlib.Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
BLOCK = re.compile(
    r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL
)
# What the first page shows: one size of every kind.
HEADLINE = {
    ("pairwise", "forward", "long"),
    ("pairwise", "vjp", "long"),
    ("match", "best_match", "long"),
    ("match", "match_anchors", "dense"),
    ("losses", "giou", "1M pairs"),
    ("losses", "ciou", "1M pairs"),
    ("nms", "random", "4,096"),
    ("nms", "random", "16,384"),
    ("assigners", "atss", "coco × 8"),
    ("assigners", "task_aligned", "coco × 8"),
    ("rotated", "forward", "thousand"),
    ("rotated", "vjp", "thousand"),
    ("rotated", "losses", "100k pairs"),
    # Where an accelerator was measured.
    ("pairwise", "forward", "wide"),
    ("pairwise", "vjp", "wide"),
    ("match", "best_match", "coco × 64"),
    ("match", "best_match", "lopsided"),
    ("losses", "giou", "16M pairs"),
    ("losses", "ciou", "16M pairs"),
    ("nms", "random", "65,536"),
    ("nms", "clusters", "65,536"),
}


def save(results, path):
    """Writes one row per line, to a file or to `<device>-<date>.json` in a folder."""
    if path.suffix != ".json":
        path.mkdir(parents=True, exist_ok=True)
        head = results["head"]
        device = re.sub(r"[^a-z0-9]+", "-", head["device"].lower()).strip("-")
        path = path / f"{device}-{head['date']}.json"
    rows = ",\n".join(json.dumps(row) for row in results["rows"])
    head = json.dumps(results["head"], indent=1)
    path.write_text(f'{{"head": {head},\n"rows": [\n{rows}\n]}}\n')
    return path


def committed():
    """The newest results of every device."""
    newest = {}
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stem[-10:]):
        results = json.loads(path.read_text())
        newest[results["head"]["device"]] = results
    return list(newest.values())


def by_job(results, regime):
    """{job: {implementation: row}} of one regime."""
    found = {}
    for row in results["rows"]:
        if row["regime"] == regime:
            job = row["family"], row["case"], row["workload"], row["pairs"]
            found.setdefault(job, {})[row["implementation"]] = row
    return found


def regimes(results):
    return list(dict.fromkeys(row["regime"] for row in results["rows"]))


def ratio(row, to):
    """Median over the rounds that both took part in."""
    return statistics.median(x / y for x, y in zip(row["ms"], to["ms"], strict=False))


def number(x):
    return f"{x:,.0f}" if x >= 99.5 else f"{x:.2g}" if x < 10 else f"{x:.0f}"


def spread(row, ours):
    """Median, extremes, and how many times jaxiou's own time that is."""
    low, middle, high = min(row["ms"]), statistics.median(row["ms"]), max(row["ms"])
    text = f"{number(middle)} ({number(low)}–{number(high)})"
    return text if row is ours else f"{text} {number(ratio(row, ours))}×"


def memory(row, ours):
    peak, temporary = row["peak_bytes"], row["temporary_bytes"]
    return " / ".join("–" if x is None else number(x / 1e6) for x in (peak, temporary))


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grid(results, regime, cell, *, leave_out=()):
    """Jobs down, implementations across."""
    jobs = by_job(results, regime)
    names = list(dict.fromkeys(name for rows in jobs.values() for name in rows))
    names = [name for name in names if name not in leave_out]
    lines = []
    for (family, case, workload, pairs), rows in jobs.items():
        cells = [
            cell(rows[name], rows["jaxiou"]) if "ms" in rows.get(name, {}) else ""
            for name in names
        ]
        size = "" if family in ("nms", "rescoring") else f"{pairs / 1e6:,.3g}"
        lines.append([f"{family} {case} {workload}", size, *cells])
    return markdown(["job", "million pairs", *names], lines)


def heading(results):
    head = results["head"]
    versions = ", ".join(f"{name} {v}" for name, v in head["versions"].items())
    return (
        f"{head['device']}; {head['date']}; `{head['command']}`; commit "
        f"{head['commit']}; {versions}."
    )


def tables(results):
    """Everything that was measured on one device."""
    parts = [f"**{heading(results)}**"]
    for regime in regimes(results):
        memory_is = f", {regime} memory" if results["head"]["platform"] == "cpu" else ""
        text = f"Milliseconds{memory_is}: median (lowest–highest), times jaxiou's."
        parts += [text, grid(results, regime, spread)]
    text = "Memory above the inputs, MB: peak with the result / XLA's temporaries."
    parts += [text, grid(results, regimes(results)[0], memory, leave_out=["limit"])]
    notes = {
        f"- {row['implementation']}, {row['case']} {row['workload']}: {row['note']}."
        for row in results["rows"]
        if "note" in row
    }
    return "\n\n".join([*parts, *(["\n".join(sorted(notes))] if notes else [])])


def headline(results):
    """jaxiou's times, and what the others take in terms of them."""
    kinds = regimes(results)
    lines, others = [], ["naive JAX", "torchvision", "torch.compile", "powerboxes"]
    jobs = {kind: by_job(results, kind) for kind in kinds}
    for job in [job for job in jobs[kinds[-1]] if job[:3] in HEADLINE]:
        rows = jobs[kinds[-1]][job]
        ours = rows["jaxiou"]
        times = [number(statistics.median(jobs[k][job]["jaxiou"]["ms"])) for k in kinds]
        cells = [
            f"{number(ratio(rows[name], ours))}×" if "ms" in rows.get(name, {}) else ""
            for name in others
        ]
        limit = f"{1 / ratio(ours, rows['limit']):.0%}" if "limit" in rows else ""
        lines.append([" ".join(job[:3]), *times, limit, *cells])
    header = ["job", *(f"ms, {kind}" for kind in kinds), "of the limit", *others]
    if results["head"]["platform"] != "cpu":
        header[1] = "ms"
    return f"{markdown(header, lines)}\n\n{heading(results)}"


def fill(text, blocks):
    """A page with the figures of these blocks written anew; other blocks stay."""

    def block(found):
        if found[2] not in blocks:
            return found[0]
        return f"{found[1]}\n{blocks[found[2]] or 'Not measured yet.'}\n\n{found[3]}"

    return BLOCK.sub(block, text)


def page(text, every):
    """A page with the figures of the benchmarks written anew."""
    write = {"headline": headline, "all": tables}
    blocks = {
        name: "\n\n".join(figures(results) for results in every)
        for name, figures in write.items()
    }
    return fill(text, blocks)


def write_tables():
    for path in PAGES:
        path.write_text(page(path.read_text(), committed()))


def plot(results, path):
    """Roofline: pairs per second against operations per byte that has to move."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    kinds = regimes(results)
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(6 * len(kinds), 5), sharey=True, squeeze=False
    )
    markers = {"pairwise": "o", "match": "s", "losses": "^", "memory": "D"}
    for panel, kind in zip(panels[0], kinds, strict=True):
        points, write, arithmetic = {}, 0.0, 0.0
        for row in results["rows"]:
            # Of an IoU of upright boxes the operations are known.
            if row["regime"] != kind or "ms" not in row or row["family"] not in markers:
                continue
            rate = row["pairs"] / (statistics.median(row["ms"]) / 1e3)
            if row["implementation"] != "limit":
                intensity = OPERATIONS * row["pairs"] / row["traffic"]
                name = row["implementation"], row["family"]
                points.setdefault(name, []).append((intensity, rate))
            elif row["case"] == "forward":
                write = max(write, 4 * rate)
            elif row["case"] == "best_match":
                arithmetic = max(arithmetic, rate)
        names = list(dict.fromkeys(name for name, _ in points))
        for (name, family), found in points.items():
            colour = f"C{names.index(name)}"
            label = f"{name}, {family}"
            panel.scatter(
                *zip(*found, strict=True), c=colour, marker=markers[family], label=label
            )
        ends = [0.2, 2e4]
        if write:
            bound, label = [write * x / OPERATIONS for x in ends], write / 1e9
            panel.plot(ends, bound, "k--", lw=1, label=f"writes {label:.3g} GB/s")
        if arithmetic:
            label = f"arithmetic, {arithmetic / 1e9:.3g}G pairs/s"
            panel.axhline(arithmetic, color="k", lw=1, label=label)
        panel.set(xscale="log", yscale="log", title=f"{kind} memory")
        panel.set_xlabel("operations per byte that has to move")
        top = max([arithmetic, *(y for found in points.values() for _, y in found)])
        panel.set_ylim(top / 1e4, top * 3)
        panel.legend(fontsize="x-small", loc="lower right")
    panels[0][0].set_ylabel("pairs per second")
    figure.suptitle(f"{results['head']['device']}, {results['head']['date']}")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
