"""Opens the page of `kubectl invoker access -o html` in real Chromium: filters, sorts, walks with the keyboard, and takes pictures.

Usage: browser.py PAGE FOLDER
"""

import pathlib
import re
import shutil
import subprocess
import sys

CHECK = """
<script>
const say = [], want = (what, ok) => { if (!ok) say.push(what); };
const visible = () => [...document.querySelectorAll("tbody tr")].filter(r => !r.hidden);
const type = (id, text) => { const i = document.getElementById(id); i.value = text; i.dispatchEvent(new Event("input")); };
const all = visible().length, names = () => visible().map(r => r.cells[0].textContent);
want("rows", all > 3);
want("filters are shown", !document.getElementById("filters").hidden);
type("by-principal", "ALLUSERS");
want("filter by principal", visible().length === 1 && names()[0] === "allUsers");
type("by-principal", "");
type("by-service", "archive");
want("filter by service", visible().length < all && [...document.querySelectorAll("thead th")].filter(h => !h.hidden).length === 3);
want("what is shown is said", document.getElementById("summary").textContent.includes("shown"));
type("by-service", "");
want("filters go", visible().length === all);
const count = document.querySelector("[data-sort=count]");
count.click(); count.click();
const numbers = visible().map(r => Number(r.cells[1].textContent));
want("sort by number, downwards", numbers.every((n, i) => i === 0 || numbers[i - 1] >= n));
want("sort is announced", count.closest("th").getAttribute("aria-sort") === "descending");
document.querySelector("[data-sort=name]").click();
want("sort by name", names().every((n, i) => i === 0 || names()[i - 1] <= n));
const cell = document.querySelector("tbody .cell");
cell.focus();
want("what has focus is told", document.getElementById("detail").textContent === cell.title && cell.title.length > 10);
cell.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true}));
cell.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
want("arrows move", document.activeElement !== cell || document.querySelectorAll("tbody .cell").length === 1);
want("every button has a name", [...document.querySelectorAll("button")].every(b => b.textContent.trim() || b.getAttribute("aria-label")));
want("nothing comes from elsewhere", performance.getEntriesByType("resource").length === 0);
document.title = say.length ? "FAIL: " + say.join("; ") : "PASS";
</script>
</body>"""


def main():
    page, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("make browser needs chromium (Debian package chromium); it is not installed here")
    folder.mkdir(parents=True, exist_ok=True)
    common = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800"]
    checked = folder / "checked.html"
    checked.write_text(page.read_text(encoding="utf-8").replace("</body>", CHECK), encoding="utf-8")
    dump = subprocess.run([*common, "--dump-dom", checked.resolve().as_uri()], capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", dump.stdout, re.S)
    title = title.group(1) if title else "no title"
    for scheme, number in (("light", 1), ("dark", 0)):
        flags = [f"--blink-settings=preferredColorScheme={number}", f"--screenshot={folder.resolve()}/access-{scheme}.png"]
        subprocess.run([*common, *flags, page.resolve().as_uri()], capture_output=True, timeout=120, check=True)
    print(f"{title}; pictures in {folder}")
    sys.exit(0 if title == "PASS" else 1)


main()
