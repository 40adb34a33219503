//! One self-contained page: a matrix of principals and services, with filter and sort. It is whole
//! without scripts, follows the system's light or dark, and can be used without a mouse.

use std::{collections::BTreeMap, fmt::Write as _};

/// A service.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub place: String,
    /// Its IAM check is off.
    pub open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellKind {
    /// A policy lists it.
    Listed,
    Unlisted,
    /// Under a condition, or until a time.
    Conditional,
    Public,
    /// It is granted and gives no access.
    Dead,
}

impl CellKind {
    const ALL: [Self; 5] = [
        Self::Listed,
        Self::Unlisted,
        Self::Conditional,
        Self::Public,
        Self::Dead,
    ];

    fn class(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Unlisted => "unlisted",
            Self::Conditional => "conditional",
            Self::Public => "public",
            Self::Dead => "dead",
        }
    }

    /// Told apart without colours.
    fn sign(self) -> &'static str {
        match self {
            Self::Listed => "●",
            Self::Unlisted => "○",
            Self::Conditional => "◐",
            Self::Public => "▲",
            Self::Dead => "×",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Listed => "listed by a policy",
            Self::Unlisted => "granted, and no policy lists it",
            Self::Conditional => "under a condition, or until a time",
            Self::Public => "everybody",
            Self::Dead => "granted, and gives no access",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Cell {
    pub column: usize,
    pub kind: CellKind,
    pub words: String,
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// The page.
pub fn matrix(
    columns: &[Column],
    rows: &BTreeMap<String, Vec<Cell>>,
    notes: &[String],
    at: &str,
) -> String {
    let mut body = String::new();
    for (member, cells) in rows {
        push_row(&mut body, columns, member, cells);
    }
    let entry = |k: &CellKind| {
        let (class, sign, words) = (k.class(), k.sign(), k.words());
        format!("<li><span class=\"{class}\">{sign}</span> {words}</li>")
    };
    let legend: String = CellKind::ALL.iter().map(entry).collect();
    let note = |n: &String| format!("<p class=\"note\">{}</p>", escape(n));
    let notes: String = notes.iter().map(note).collect();
    let summary = format!(
        "{} principals, {} services, read {}",
        rows.len(),
        columns.len(),
        escape(at)
    );
    PAGE.replace("{{summary}}", &summary)
        .replace("{{legend}}", &legend)
        .replace("{{head}}", &head(columns))
        .replace("{{notes}}", &notes)
        // Last: what is in it is data, and must not be taken for one of the marks above.
        .replace("{{body}}", &body)
}

fn head(columns: &[Column]) -> String {
    let mut head = String::from(
        "<th scope=\"col\" class=\"corner\" aria-sort=\"ascending\"><button data-sort=\"name\">Principal</button></th>\
         <th scope=\"col\" class=\"number\"><button data-sort=\"count\">Services</button></th>",
    );
    for c in columns {
        let open = if c.open {
            "<span class=\"public\">▲ IAM check off</span>"
        } else {
            ""
        };
        let _ = write!(
            head,
            "<th scope=\"col\" data-text=\"{0} {1}\"><span class=\"service\">{0}</span><span class=\"place\">{1}</span>{open}</th>",
            escape(&c.name),
            escape(&c.place)
        );
    }
    head
}

fn push_row(body: &mut String, columns: &[Column], member: &str, cells: &[Cell]) {
    let mut by_column: BTreeMap<usize, Vec<&Cell>> = BTreeMap::new();
    for cell in cells {
        by_column.entry(cell.column).or_default().push(cell);
    }
    let name = escape(member);
    let _ = write!(
        body,
        "<tr data-text=\"{name}\"><th scope=\"row\">{name}</th><td class=\"number\">{}</td>",
        by_column.len()
    );
    for (n, c) in columns.iter().enumerate() {
        match by_column.get(&n) {
            None => body.push_str("<td></td>"),
            Some(cells) => push_cells(body, c, member, cells),
        }
    }
    body.push_str("</tr>\n");
}

fn push_cells(body: &mut String, column: &Column, member: &str, cells: &[&Cell]) {
    let words: Vec<&str> = cells.iter().map(|c| c.words.as_str()).collect();
    let label = escape(&format!(
        "{member} on {}: {}",
        column.name,
        words.join(" / ")
    ));
    let _ = write!(
        body,
        "<td><button class=\"cell\" aria-label=\"{label}\" title=\"{label}\">"
    );
    for cell in cells {
        let (class, sign) = (cell.kind.class(), cell.kind.sign());
        let _ = write!(body, "<span class=\"{class}\">{sign}</span>");
    }
    body.push_str("</button></td>");
}

const PAGE: &str = r##"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Who can invoke what</title>
<style>
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --soft: #5c6570; --line: #d5dae0; --head: #f3f5f7;
  --listed: #1a7f37; --unlisted: #9a6700; --conditional: #0b63c5; --public: #cf222e; --focus: #0b63c5; }
@media (prefers-color-scheme: dark) { :root { --back: #14181d; --text: #e6e9ed; --soft: #9aa4af; --line: #333b44; --head: #1d232a;
  --listed: #4ac26b; --unlisted: #d4a72c; --conditional: #6cb6ff; --public: #ff7b72; --focus: #6cb6ff; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.25rem; background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; }
.note, #summary { color: var(--soft); margin: .15rem 0; }
form { display: flex; flex-wrap: wrap; gap: .75rem 1.25rem; margin: 1rem 0 .5rem; }
label { display: flex; flex-direction: column; font-size: .85rem; color: var(--soft); }
input { font: inherit; color: inherit; background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: .35rem .55rem; width: 17rem; max-width: 80vw; }
ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: .5rem 0 1rem; font-size: .9rem; }
.frame { overflow: auto; max-height: 75vh; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: separate; border-spacing: 0; }
th, td { border-bottom: 1px solid var(--line); border-right: 1px solid var(--line); padding: .3rem .55rem; text-align: center; }
thead th { position: sticky; top: 0; background: var(--head); z-index: 2; vertical-align: bottom; font-weight: 600; }
tbody th { position: sticky; left: 0; background: var(--head); text-align: left; font-weight: 400; font-family: ui-monospace, monospace; font-size: .85rem;
  min-width: 19rem; max-width: 28rem; overflow-wrap: anywhere; z-index: 1; }
thead .corner { left: 0; z-index: 3; text-align: left; }
.service, .place { display: block; white-space: nowrap; } .place { font-size: .75rem; font-weight: 400; color: var(--soft); }
.number { font-variant-numeric: tabular-nums; }
button { white-space: nowrap; font: inherit; color: inherit; background: none; border: 0; padding: .1rem .3rem; border-radius: 4px; cursor: pointer; }
thead button { font-weight: 600; } thead button::after { content: " ↕"; color: var(--soft); }
[aria-sort=ascending] button::after { content: " ↑"; } [aria-sort=descending] button::after { content: " ↓"; }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 1px; }
.cell { font-size: 1.05rem; }
.listed { color: var(--listed); } .unlisted { color: var(--unlisted); } .conditional { color: var(--conditional); } .public { color: var(--public); font-weight: 600; } .dead { color: var(--soft); }
#detail { min-height: 2.8em; margin: .75rem 0 0; overflow-wrap: anywhere; }
[hidden] { display: none !important; }
</style>
</head>
<body>
<h1>Who can invoke what</h1>
<p id="summary">{{summary}}</p>
{{notes}}
<form id="filters" hidden>
<label>Principals with<input id="by-principal" type="search" autocomplete="off"></label>
<label>Services with<input id="by-service" type="search" autocomplete="off"></label>
</form>
<ul aria-label="Signs">{{legend}}</ul>
<div class="frame" tabindex="0" role="region" aria-label="Matrix of principals and services">
<table>
<thead><tr>{{head}}</tr></thead>
<tbody>
{{body}}</tbody>
</table>
</div>
<p id="detail" role="status" aria-live="polite"></p>
<script>
"use strict";
const table = document.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
const heads = [...table.tHead.rows[0].cells], detail = document.getElementById("detail"), summary = document.getElementById("summary");
const total = summary.textContent, principal = document.getElementById("by-principal"), service = document.getElementById("by-service");
document.getElementById("filters").hidden = false;
document.getElementById("filters").addEventListener("submit", e => e.preventDefault());
function filter() {
  const want = service.value.trim().toLowerCase(), who = principal.value.trim().toLowerCase();
  const shown = heads.map((h, n) => n < 2 || h.dataset.text.toLowerCase().includes(want));
  heads.forEach((h, n) => { h.hidden = !shown[n]; });
  let count = 0;
  for (const row of rows) {
    const cells = [...row.cells];
    cells.forEach((c, n) => { c.hidden = !shown[n]; });
    const has = cells.some((c, n) => n > 1 && shown[n] && c.firstChild);
    row.hidden = !row.dataset.text.toLowerCase().includes(who) || (want !== "" && !has);
    if (!row.hidden) count++;
  }
  summary.textContent = (want || who) ? total + " – shown: " + count + " principals, " + (shown.filter(Boolean).length - 2) + " services" : total;
}
principal.addEventListener("input", filter);
service.addEventListener("input", filter);
for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = button.dataset.sort === "count" ? r => Number(r.cells[1].textContent) : r => r.dataset.text;
    rows.sort((a, b) => { const x = key(a), y = key(b); return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
    body.append(...rows);
  });
}
const tell = e => { const b = e.target.closest(".cell"); if (b) detail.textContent = b.title; };
body.addEventListener("click", tell);
body.addEventListener("focusin", tell);
body.addEventListener("keydown", e => {
  const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[e.key], cell = e.target.closest("td");
  if (!step || !cell) return;
  const list = [...body.rows].filter(r => !r.hidden);
  let y = list.indexOf(cell.parentElement), x = cell.cellIndex;
  for (;;) {
    y += step[0]; x += step[1];
    const next = list[y] && list[y].cells[x];
    if (!next) return;
    const button = next.querySelector(".cell");
    if (button && !next.hidden) { button.focus(); e.preventDefault(); return; }
  }
});
</script>
</body>
</html>
"##;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_iam_says_cannot_become_markup() {
        let columns = [Column {
            name: "web".into(),
            place: "r, p".into(),
            open: false,
        }];
        let cell = Cell {
            column: 0,
            kind: CellKind::Listed,
            words: "<b>\"".into(),
        };
        let rows = BTreeMap::from([("<script>alert(1)</script>{{legend}}".to_owned(), vec![cell])]);
        let page = matrix(&columns, &rows, &[], "now");
        assert!(!page.contains("<script>alert") && !page.contains("<b>"));
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;{{legend}}"));
        assert_eq!(page.matches("<script>").count(), 1);
    }
}
