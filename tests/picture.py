"""Draws the dashboards from what the live test asked Prometheus (target/dashboards/*.json), for people to look at.

Not Grafana: the layout, titles and data are the dashboard's, the drawing is matplotlib's.
"""

import json
import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


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


if __name__ == "__main__":
    for view in ("fleet", "policy"):
        draw(view, sys.argv[1])
