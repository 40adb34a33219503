//! One self-contained page (`access.html`): a matrix of principals and services, with filter, sort
//! and export. It is whole without scripts, follows the system's light or dark, and can be used without a mouse.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// A service.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub place: String,
    /// That anyone can call it, in a few words.
    pub open: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellKind {
    /// A policy lists it.
    Listed,
    Unlisted,
    /// Under a condition, or until a time.
    Conditional,
    Public,
    /// The permissions of the role are not known.
    Perhaps,
    /// It is granted and gives no access.
    Dead,
}

impl CellKind {
    const ALL: [Self; 6] = [
        Self::Listed,
        Self::Unlisted,
        Self::Conditional,
        Self::Public,
        Self::Perhaps,
        Self::Dead,
    ];

    fn class(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Unlisted => "unlisted",
            Self::Conditional => "conditional",
            Self::Public => "public",
            Self::Perhaps => "perhaps",
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
            Self::Perhaps => "?",
            Self::Dead => "×",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Listed => "listed by a policy",
            Self::Unlisted => "granted, and no policy lists it",
            Self::Conditional => "under a condition, or until a time",
            Self::Public => "everybody",
            Self::Perhaps => "perhaps: the permissions of the role are not known",
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
    super::neutral(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// The page: what is public comes first. Only grants are elements of it, so that it is as large as
/// there are grants, and not as principals times services.
pub fn matrix(
    columns: &[Column],
    rows: &BTreeMap<String, Vec<Cell>>,
    notes: &[String],
    at: &str,
) -> String {
    let is_public = |c: &Cell| c.kind == CellKind::Public;
    let public: BTreeSet<usize> = rows
        .values()
        .flatten()
        .filter(|c| is_public(c))
        .map(|c| c.column)
        .collect();
    let mut order: Vec<usize> = (0..columns.len()).collect();
    order.sort_by_key(|n| !(columns[*n].open.is_some() || public.contains(n)));
    let mut place = vec![0; columns.len()];
    for (at, n) in order.iter().enumerate() {
        place[*n] = at;
    }
    let mut head = String::new();
    for (at, n) in order.iter().enumerate() {
        head.push_str(&column(at, &columns[*n]));
    }
    let mut sorted: Vec<(&String, &Vec<Cell>)> = rows.iter().collect();
    sorted.sort_by_key(|(_, cells)| !cells.iter().any(is_public));
    let mut body = String::new();
    for (member, cells) in sorted {
        row(&mut body, member, cells, columns, &place);
    }
    let legend: String = CellKind::ALL
        .iter()
        .map(|k| {
            format!(
                "<li><button type=\"button\" aria-pressed=\"false\" data-kind=\"{0}\"><span class=\"{0}\">{1}</span> {2}</button></li>",
                k.class(),
                k.sign(),
                k.words()
            )
        })
        .collect();
    let notes: String = notes
        .iter()
        .map(|n| format!("<p class=\"note\">{}</p>", escape(n)))
        .collect();
    let longest = rows.keys().map(|m| m.chars().count()).max().unwrap_or(0);
    let summary = format!(
        "{} principals, {} services, read {}",
        rows.len(),
        columns.len(),
        escape(at)
    );
    PAGE.replace("{{summary}}", &summary)
        .replace("{{columns}}", &columns.len().to_string())
        .replace("{{colcount}}", &(columns.len() + 2).to_string())
        .replace("{{longest}}", &longest.to_string())
        .replace("{{rowcount}}", &(rows.len() + 1).to_string())
        .replace("{{legend}}", &legend)
        .replace("{{head}}", &head)
        .replace("{{notes}}", &notes)
        // Last: what is in it is data, and must not be taken for one of the marks above.
        .replace("{{body}}", &body)
}

/// The title of a service, in the column `at`.
fn column(at: usize, c: &Column) -> String {
    let open = c.open.map_or(String::new(), |words| {
        format!("<span class=\"public\">▲ {words}</span>")
    });
    let (name, place) = (escape(&c.name), escape(&c.place));
    format!(
        "<div role=\"columnheader\" class=\"column\" aria-colindex=\"{}\" style=\"--c:{at}\" title=\"{name} ({place})\" data-text=\"{name} {place}\"><span class=\"service\">{name} {open}</span><span class=\"place\">{place}</span></div>",
        at + 3
    )
}

/// A principal, with a cell for each service that it may invoke.
fn row(body: &mut String, member: &str, cells: &[Cell], columns: &[Column], place: &[usize]) {
    let mut by_column: BTreeMap<usize, Vec<&Cell>> = BTreeMap::new();
    for cell in cells {
        by_column.entry(place[cell.column]).or_default().push(cell);
    }
    let name = escape(member);
    let _ = write!(
        body,
        "<div role=\"row\" class=\"row\" data-text=\"{name}\"><div role=\"rowheader\" title=\"{name}\">{name}</div><div role=\"cell\" class=\"number\">{}</div>",
        by_column.len()
    );
    for (at, cells) in by_column {
        let words: Vec<&str> = cells.iter().map(|c| c.words.as_str()).collect();
        let service = &columns[cells[0].column].name;
        let label = escape(&format!("{member} on {service}: {}", words.join(" / ")));
        let kinds: Vec<&str> = cells.iter().map(|c| c.kind.class()).collect();
        let _ = write!(
            body,
            "<div role=\"cell\" class=\"grant\" aria-colindex=\"{}\" style=\"--c:{at}\" data-kinds=\"{}\"><button class=\"cell\" aria-label=\"{label}\" title=\"{label}\">",
            at + 3,
            kinds.join(" ")
        );
        for cell in cells {
            let _ = write!(
                body,
                "<span class=\"{}\">{}</span>",
                cell.kind.class(),
                cell.kind.sign()
            );
        }
        body.push_str("</button></div>");
    }
    body.push_str("</div>\n");
}

const PAGE: &str = include_str!("access.html");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_iam_says_cannot_become_markup() {
        let columns = [Column {
            name: "web".into(),
            place: "r, p".into(),
            open: None,
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

    /// The largest that somebody should be able to use: `make browser` opens it.
    #[test]
    fn a_page_is_as_large_as_there_are_grants() {
        let columns: Vec<Column> = (0..500)
            .map(|n| Column {
                name: format!("service-{n}"),
                place: "europe-west1, acme-prod".into(),
                open: (n == 250).then_some("IAM check off"),
            })
            .collect();
        let kind = |n: usize| CellKind::ALL[if n.is_multiple_of(37) { n % 5 } else { n % 2 }];
        let rows: BTreeMap<String, Vec<Cell>> = (0..2000)
            .map(|who| {
                let cells = (0..=who % 9).map(|n| Cell {
                    column: (who * 31 + n * 57) % 500,
                    kind: kind(who + n),
                    words: "by team/policy".into(),
                });
                let name =
                    format!("serviceAccount:caller-{who:04}@acme-prod.iam.gserviceaccount.com");
                (name, cells.collect())
            })
            .collect();
        let page = matrix(&columns, &rows, &[], "now");
        let grants: usize = rows.values().map(Vec::len).sum();
        assert!(
            page.len() < 40_000 + 500 * 400 + 2000 * 300 + grants * 500,
            "{}",
            page.len()
        );
        // What is public is first, in both directions.
        let first = page.split("data-kinds").next().unwrap();
        assert!(page.find("service-250 ").unwrap() < page.find("service-1 ").unwrap());
        assert!(first.contains("caller-"));
        if let Ok(folder) = std::env::var("ACCESS_PAGES") {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(format!("{folder}/large.html"), page).unwrap();
        }
    }
}
