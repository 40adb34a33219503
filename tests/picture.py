"""Draws the dashboards from what the live test asked Prometheus (target/dashboards/*.json), for people to look at.

Not Grafana: the layout, titles and data are the dashboard's, the drawing is matplotlib's.
"""

import json
import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image


def legend(template, metric):
    if template in ("", "__auto"):
        return ", ".join(f"{k}={v}" for k, v in metric.items() if k != "__name__") or "value"
    return re.sub(r"{{(\w+)}}", lambda m: metric.get(m.group(1), ""), template)


def last(answer):
    return float(answer["result"][0]["values"][-1][1]) if answer["result"] else float("nan")


def draw(name, folder):
    with open(f"{folder}/{name}.json", encoding="utf-8") as file:
        data = json.load(file)
    board, answers = data["board"], iter(data["answers"])
    panels = board["panels"]
    bottom = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    figure = plt.figure(figsize=(18, bottom * 0.42))
    figure.suptitle(board["title"], x=0.01, ha="left", fontsize=15)
    for panel in panels:
        pos = panel["gridPos"]
        box = [pos["x"] / 24 + 0.025, 1 - (pos["y"] + pos["h"]) / (bottom + 1.5) - 1 / (bottom + 1.5)]
        size = [pos["w"] / 24 - 0.04, pos["h"] / (bottom + 1.5) * 0.72]
        mine = [next(answers) for _ in panel.get("targets", [])]
        axes = figure.add_axes([*box, *size])
        axes.set_title(panel["title"], fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        if panel["type"] in ("row", "text"):
            axes.axis("off")
            if panel["type"] == "text":
                axes.text(0, 0.9, panel["options"]["content"], fontsize=7, va="top", family="monospace", parse_math=False)
        elif panel["type"] == "stat":
            axes.axis("off")
            axes.text(0.5, 0.4, f"{last(mine[0]):g}", fontsize=22, ha="center", va="center")
        elif panel["type"] == "table":
            axes.axis("off")
            rows = [f"{legend('', r['metric'])}   {float(r['values'][-1][1]):g}" for r in mine[0]["result"]]
            axes.text(0, 0.95, "\n".join(rows), fontsize=7, va="top", family="monospace")
        else:
            for answer in mine:
                for series in answer["result"]:
                    times, values = zip(*((float(t), float(v)) for t, v in series["values"]))
                    axes.plot(times, values, label=legend(answer["legend"], series["metric"]), linewidth=1)
            axes.legend(fontsize=6, loc="upper left", ncols=2)
            axes.xaxis.set_visible(False)
    figure.savefig(f"{folder}/{name}.png", dpi=70)


def front(folder, file):
    """The first rows of the fleet dashboard, small, for the README."""
    with open(f"{folder}/fleet.json", encoding="utf-8") as source:
        data = json.load(source)
    answers = iter(data["answers"])
    panels = [(p, [next(answers) for _ in p.get("targets", [])]) for p in data["board"]["panels"]]
    stats = [p for p in panels if p[0]["type"] == "stat"][:6]
    charts = [p for p in panels if p[0]["type"] == "timeseries"][:2]
    plt.rcParams.update({"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(12, 4.6), facecolor="#f4f5f7")
    figure.text(0.02, 0.93, data["board"]["title"], fontsize=14, weight="bold")

    def card(box, title):
        axes = figure.add_axes(box, facecolor="white")
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.015 / box[2], 1 - 0.04 / box[3], title, fontsize=9, color="#55606e", va="top", transform=axes.transAxes)

    for place, (panel, (answer, *_)) in enumerate(stats):
        box = [0.02 + place * 0.1617, 0.64, 0.151, 0.24]
        card(box, panel["title"])
        value = last(answer)
        share = panel["fieldConfig"]["defaults"].get("unit") == "percentunit"
        good = value == 1 if share else value == 0
        text = f"{value:.0%}" if share else f"{value:g}"
        figure.text(box[0] + box[2] / 2, box[1] + 0.09, text, fontsize=24, ha="center", va="center", color="#1a7f37" if good else "#b35900")
    for place, (panel, mine) in enumerate(charts):
        box = [0.02 + place * 0.485, 0.04, 0.475, 0.56]
        card(box, panel["title"])
        axes = figure.add_axes([box[0] + 0.03, box[1] + 0.14, box[2] - 0.045, box[3] - 0.24], facecolor="white")
        for answer in mine:
            for series in answer["result"]:
                times, values = zip(*((float(t), float(v)) for t, v in series["values"]))
                label = legend(answer["legend"], series["metric"]).replace("_", " ")
                axes.plot([t - times[0] for t in times], values, label=label, linewidth=2)
        axes.tick_params(labelsize=8, length=0, colors="#55606e")
        axes.grid(axis="y", color="#e3e6ea")
        axes.set_xlabel("seconds", fontsize=8, color="#55606e")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=5, frameon=False)
    figure.savefig(f"{folder}/front.png", dpi=80, facecolor=figure.get_facecolor())
    with Image.open(f"{folder}/front.png") as picture:
        picture.convert("RGB").quantize(64).save(file, optimize=True)


if __name__ == "__main__":
    for view in ("fleet", "policy"):
        draw(view, sys.argv[1])
    front(sys.argv[1], sys.argv[2])
