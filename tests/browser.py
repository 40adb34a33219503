"""Opens the page of `kubectl invoker access -o html` in real Chromium: filters, sorts, walks with the keyboard, and takes pictures.

Usage: browser.py PAGE FOLDER, or browser.py --picture PAGE FILE for a picture alone
"""

import pathlib
import re
import shutil
import subprocess
import sys
import zlib

CHECK = """
<script>
const say = [], want = (what, ok) => { if (!ok) say.push(what); };
const visible = () => [...body.children].filter(r => !r.hidden);
const type = (id, text) => { const i = $(id); i.value = text; i.dispatchEvent(new Event("input")); };
const all = visible().length, names = () => visible().map(r => r.dataset.text);
const shownColumns = () => columns.filter(c => !c.hidden).length;
const isPublic = r => !!r.querySelector(".public");
want("rows", all > 3);
want("filters are shown", !$("filters").hidden);
want("what is public is first", isPublic(visible()[0]) && visible().map(isPublic).join().lastIndexOf("true") < visible().map(isPublic).join().indexOf("false"));
type("by-principal", "ALLUSERS");
want("filter by principal", visible().length === 1 && names()[0] === "allUsers");
type("by-principal", "");
type("by-service", "archive");
want("filter by service", visible().length < all && shownColumns() === 1);
want("what is shown is said", summary.textContent.includes("shown"));
type("by-service", "");
want("filters go", visible().length === all && shownColumns() === columns.length);
const sign = document.querySelector("[data-kind=public]");
sign.click();
want("a sign filters", visible().length > 0 && visible().every(isPublic) && sign.getAttribute("aria-pressed") === "true");
want("and only its cells are left", [...body.querySelectorAll(".grant")].every(g => g.hidden || g.parentElement.hidden || g.dataset.kinds.includes("public")));
want("what is exported is what is shown", csv().split("\\r\\n").length === 2 + visible().flatMap(r => [...r.querySelectorAll(".grant")].filter(g => !g.hidden)).length && csv().includes('"allUsers","archive"'));
sign.click();
want("and go again", visible().length === all);
want("a formula is a text", field("=1+1") === '"\\'=1+1"');
$("has-grants").click();
want("only services with grants", shownColumns() === new Set([...body.querySelectorAll(".grant")].map(g => g.getAttribute("aria-colindex"))).size);
$("has-grants").click();
const count = document.querySelector("[data-sort=count]");
count.click(); count.click();
const numbers = visible().map(r => Number(r.children[1].textContent));
want("sort by number, downwards", numbers.every((n, i) => i === 0 || numbers[i - 1] >= n));
want("sort is announced", count.parentElement.getAttribute("aria-sort") === "descending");
document.querySelector("[data-sort=name]").click();
want("sort by name", names().every((n, i) => i === 0 || names()[i - 1] <= n));
const cell = document.querySelector(".cell");
cell.focus();
// A window that is not in front tells nobody of the focus.
if (!document.hasFocus()) cell.dispatchEvent(new FocusEvent("focusin", {bubbles: true}));
want("what has focus is told", detail.textContent === cell.title && cell.title.length > 10);
cell.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true}));
cell.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
want("arrows move", document.activeElement !== cell || document.querySelectorAll(".cell").length === 1);
want("every button has a name", [...document.querySelectorAll("button")].every(b => b.textContent.trim() || b.getAttribute("aria-label")));
want("names are shown whole", visible().every(r => r.children[0].scrollWidth <= r.children[0].clientWidth + 1));
dispatchEvent(new Event("beforeprint"));
const sheets = [...document.querySelectorAll("#sheets table")];
want("sheets", sheets.length === Math.ceil(columns.length / SHEET));
want("every grant is on a sheet", sheets.reduce((n, t) => n + [...t.tBodies[0].querySelectorAll("td + td + td")].filter(c => c.firstChild).length, 0) === body.querySelectorAll(".grant").length);
$("sheets").style.display = "block";
// Letter is the narrowest: 11 inches without two margins of 10 mm, at 96 to the inch.
want("a sheet is as wide as paper", sheets.every(t => t.offsetWidth <= 980 && t.tHead.offsetHeight <= 180));
$("sheets").style.display = "";
dispatchEvent(new Event("afterprint"));
want("and they go again", !$("sheets").firstChild);
const frame = document.querySelector(".frame");
frame.scrollTop = 200; frame.scrollLeft = 200;
const edge = frame.getBoundingClientRect().top;
want("titles stay in view", Math.abs(document.querySelector(".head").getBoundingClientRect().top - edge) < 3);
want("names stay in view", visible().every(r => r.children[0].getBoundingClientRect().left < frame.getBoundingClientRect().left + 3));
want("nothing comes from elsewhere", performance.getEntriesByType("resource").length === 0);
document.title = say.length ? "FAIL: " + say.join("; ") : "PASS";
</script>
</body>"""

# How long the largest page takes, in milliseconds: until it can be used, and for what somebody does then.
TIMES = """
<script>
const times = {}, clock = (what, f) => { const t = performance.now(); f(); matrix.getBoundingClientRect(); document.body.offsetHeight; times[what] = Math.round(performance.now() - t); };
const put = (id, text) => { const i = $(id); i.value = text; i.dispatchEvent(new Event("input")); };
times.usable = Math.round(performance.now());
clock("filter by principal", () => put("by-principal", "caller-19"));
clock("filter by service", () => { put("by-principal", ""); put("by-service", "service-2"); });
clock("all again", () => put("by-service", ""));
clock("sort", () => document.querySelector("[data-sort=count]").click());
clock("by sign", () => document.querySelector("[data-kind=public]").click());
document.title = JSON.stringify(times);
</script>
</body>"""


# A colour that only the titles have, so that they are found on each sheet.
TITLES = "<style>@media print { #sheets thead * { color: rgb(10, 200, 30) !important; } }</style></head>"


def sheets_without_titles(common, page, folder):
    """How many sheets the page takes on paper, and how many of them have no titles."""
    marked, paper = folder / "marked.html", folder / "access.pdf"
    marked.write_text(page.read_text(encoding="utf-8").replace("</head>", TITLES), encoding="utf-8")
    flags = ["--no-pdf-header-footer", f"--print-to-pdf={paper.resolve()}"]
    subprocess.run([*common, *flags, marked.resolve().as_uri()], capture_output=True, timeout=240, check=True)
    data = paper.read_bytes()
    objects = dict(re.findall(rb"(?m)^(\d+) 0 obj\n(.*?)\nendobj", data, re.S))
    sheets = [o for o in objects.values() if re.search(rb"/Type /Page\b", o)]
    bare = 0
    for sheet in sheets:
        content = objects[re.search(rb"/Contents (\d+) 0 R", sheet).group(1)]
        stream = content.split(b"stream\n", 1)[1].rsplit(b"\nendstream", 1)[0]
        if b"FlateDecode" in content:
            stream = zlib.decompress(stream)
        bare += not re.search(rb"\.0392\d* \.784\d* \.117\d* rg", stream)
    return len(sheets), bare


def title_of(common, page, script, folder):
    checked = folder / "checked.html"
    checked.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    dump = subprocess.run([*common, "--dump-dom", checked.resolve().as_uri()], capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", dump.stdout, re.S)
    return title.group(1) if title else "no title"


def main():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("make browser needs chromium (Debian package chromium); it is not installed here")
    if sys.argv[1] == "--picture":
        page, file = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1180,840"]
        flags += ["--blink-settings=preferredColorScheme=1", f"--screenshot={file.resolve()}"]
        subprocess.run([chromium, *flags, page.resolve().as_uri()], capture_output=True, timeout=120, check=True)
        return
    page, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    common = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800"]
    title = title_of(common, page, CHECK, folder)
    sheets, bare = sheets_without_titles(common, page, folder)
    if sheets == 0 or bare > 0:
        title = f"FAIL: {bare} of {sheets} sheets have no titles; {title}"
    for scheme, number in (("light", 1), ("dark", 0)):
        flags = [f"--blink-settings=preferredColorScheme={number}", f"--screenshot={folder.resolve()}/access-{scheme}.png"]
        subprocess.run([*common, *flags, page.resolve().as_uri()], capture_output=True, timeout=120, check=True)
    large = folder / "large.html"
    if large.exists():
        sheets, bare = sheets_without_titles(common, large, folder)
        print(f"500 services and 2,000 principals on paper: {sheets} sheets, {bare} without titles")
        if bare > 0:
            title = f"FAIL: {bare} of {sheets} sheets have no titles; {title}"
        print(f"500 services and 2,000 principals, milliseconds: {title_of(common, large, TIMES, folder)}")
        subprocess.run([*common, f"--screenshot={folder.resolve()}/access-large.png", large.resolve().as_uri()], capture_output=True, timeout=120, check=True)
    print(f"{title}; pictures in {folder}")
    sys.exit(0 if title == "PASS" else 1)


main()
