"""Draws the dashboards from what the live test asked Prometheus (target/dashboards/*.json), for people to look at.

Not Grafana: the layout, titles and data are the dashboard's, the drawing is matplotlib's.

    picture.py FOLDER PICTURES: whole dashboards to PICTURES/fleet.png and policy.png, the top of the first to dashboard.png
"""

import json
import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

GREEN, ORANGE, GREY, PAPER = "#1a7f37", "#b35900", "#55606e", "#f4f5f7"
UNITS = {"s": lambda v: f"{v:.2g} s", "percentunit": lambda v: f"{v:.0%}", "bytes": lambda v: f"{v / 2**20:.0f} MiB"}


def legend(template, metric):
    if template in ("", "__auto"):
        return ", ".join(f"{k}={v}" for k, v in metric.items() if k != "__name__") or "value"
    return re.sub(r"{{(\w+)}}", lambda m: metric.get(m.group(1), ""), template)


def last(answer):
    return float(answer["result"][0]["values"][-1][1]) if answer["result"] else float("nan")


def load(folder, view):
    """The board, and its panels, each with the answers to its queries."""
    with open(f"{folder}/{view}.json", encoding="utf-8") as file:
        data = json.load(file)
    answers = iter(data["answers"])
    return data["board"], [(p, [next(answers) for _ in p.get("targets", [])]) for p in data["board"]["panels"]]


def color_of(panel, value):
    """The colour of the highest threshold that the value reaches."""
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    reached = [s["color"] for s in steps if s["value"] is None or value >= s["value"]]
    return {"green": GREEN, "red": "#b3261e", "orange": ORANGE, "yellow": ORANGE}.get(reached[-1] if reached else "", GREY)


def words(panel, value):
    defaults = panel["fieldConfig"]["defaults"]
    for mapping in defaults.get("mappings", []):
        if mapping["type"] == "value" and f"{value:g}" in mapping["options"]:
            return mapping["options"][f"{value:g}"].get("text", f"{value:g}")
    return UNITS.get(defaults.get("unit"), lambda v: f"{v:g}")(value)


def card(figure, box, title):
    axes = figure.add_axes(box, facecolor="white")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    width, height = figure.get_size_inches()
    axes.text(0.08 / (box[2] * width), 1 - 0.08 / (box[3] * height), title, fontsize=8, color=GREY, va="top", transform=axes.transAxes)
    return axes


def inner(figure, box, bottom=0.42):
    """The place for a chart within a card, clear of title and legend."""
    width, height = figure.get_size_inches()
    left, top = 0.4 / width, 0.3 / height
    below = bottom / height
    axes = figure.add_axes([box[0] + left, box[1] + below, box[2] - left - 0.1 / width, box[3] - below - top], facecolor="white")
    axes.tick_params(labelsize=6, length=0, colors=GREY)
    axes.tick_params(axis="x", labelbottom=False)
    return axes


def lines(axes, panel, mine, columns):
    series = [(a, s) for a in mine for s in a["result"]]
    scale = 2**20 if panel["fieldConfig"]["defaults"].get("unit") == "bytes" else 1
    drawn = []
    for answer, one in series:
        times, values = zip(*((float(t), float(v) / scale) for t, v in one["values"]))
        label = legend(answer["legend"], one["metric"]).replace("_", " ")
        axes.plot([t - times[0] for t in times], values, label=label, linewidth=1.5)
        drawn.extend(v for v in values if v == v)
    axes.grid(axis="y", color="#e3e6ea")
    axes.set_ylim(0, max(drawn, default=0) * 1.1 or 1)
    if not drawn:
        axes.text(0.5, 0.5, "no data in this minute", fontsize=8, color=GREY, ha="center", transform=axes.transAxes)
    if series:
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=columns, frameon=False)


def timeline(axes, panel, mine):
    series = [s for a in mine for s in a["result"]]
    for row, one in enumerate(series):
        values = [(float(t), float(v)) for t, v in one["values"]]
        start = values[0][0]
        for t, v in values:
            axes.barh(row, 1, left=t - start, color=color_of(panel, v), height=0.6)
        axes.text(0.3, row, legend(mine[0]["legend"], one["metric"]), fontsize=7, color="white", va="center")
    axes.set_yticks([])


def draw(figure, panel, mine, box):
    kind = panel["type"]
    axes = card(figure, box, panel["title"])
    if kind == "stat":
        value = last(mine[0])
        axes.text(0.5, 0.4, words(panel, value), fontsize=18, ha="center", va="center", color=color_of(panel, value))
    elif kind == "text":
        axes.text(0.01, 0.8, panel["options"]["content"].replace("```\n", "").removesuffix("```"), fontsize=7, va="top", family="monospace", parse_math=False)
    elif kind == "table":
        rows = [f"{legend('', r['metric'])}   {float(r['values'][-1][1]):g}" for r in mine[0]["result"]]
        axes.text(0.02, 0.8, "\n".join(rows), fontsize=7, va="top", family="monospace")
    elif kind == "state-timeline":
        timeline(inner(figure, box, 0.2), panel, mine)
    else:
        lines(inner(figure, box), panel, mine, columns=max(3, round(box[2] * 10)))


def save(figure, file, colors=64):
    figure.savefig(file, dpi=80, facecolor=figure.get_facecolor())
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(colors).save(file, optimize=True)


def whole(folder, view, file):
    board, panels = load(folder, view)
    bottom = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p, _ in panels)
    width, unit, head = 15, 0.3, 0.5
    height = bottom * unit + head
    figure = plt.figure(figsize=(width, height), facecolor=PAPER)
    figure.text(0.012, 1 - 0.3 / height, board["title"], fontsize=13, weight="bold", va="center")
    gap = 0.05
    for panel, mine in panels:
        x, y, w, h = (panel["gridPos"][k] for k in "xywh")
        low = 1 - (head + (y + h) * unit) / height
        if panel["type"] == "row":
            title = panel["title"].replace("$namespace", "All")
            figure.text(0.012, low + h * unit / height / 2, title, fontsize=10, weight="bold", color=GREY, va="center")
            continue
        box = [(x / 24 * width + gap) / width, low + gap / height, (w / 24 * width - 2 * gap) / width, (h * unit - 2 * gap) / height]
        draw(figure, panel, mine, box)
    save(figure, file)


def front(folder, file):
    """The first figures and charts of the fleet dashboard, small, for the README."""
    board, panels = load(folder, "fleet")
    stats = [p for p in panels if p[0]["type"] == "stat"][:6]
    charts = [p for p in panels if p[0]["type"] == "timeseries"][:2]
    figure = plt.figure(figsize=(12, 4.6), facecolor=PAPER)
    figure.text(0.02, 0.93, board["title"], fontsize=14, weight="bold")
    for place, (panel, mine) in enumerate(stats):
        draw(figure, panel, mine, [0.02 + place * 0.1617, 0.64, 0.151, 0.24])
    for place, (panel, mine) in enumerate(charts):
        draw(figure, panel, mine, [0.02 + place * 0.485, 0.04, 0.475, 0.56])
    save(figure, file)


if __name__ == "__main__":
    SOURCE, PICTURES = sys.argv[1:]
    plt.rcParams.update({"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False})
    for view in ("fleet", "policy"):
        whole(SOURCE, view, f"{PICTURES}/{view}.png")
    front(SOURCE, f"{PICTURES}/dashboard.png")
