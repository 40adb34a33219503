//! Tables as kubectl has them: a head in capitals, no lines, cells that wrap instead of running out
//! of the terminal.

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};

use super::{Style, UNLIMITED, neutral};

/// Blanks between columns.
const GAP: u16 = 2;

/// A table. Cells wrap between words; a word is never split, because names are there to be copied:
/// the table is rather wider than the terminal. Empty columns at the end of lines leave no blanks behind.
pub fn table(style: &Style, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if style.width == UNLIMITED {
        table.set_content_arrangement(ContentArrangement::Disabled);
    } else {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(style.width).unwrap_or(u16::MAX));
    }
    table.set_header(head.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| neutral(cell)));
    }
    for (n, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP));
        let cells = rows.iter().filter_map(|row| row.get(n));
        let words = cells.flat_map(|cell| cell.lines()).flat_map(words);
        let longest = words
            .chain(head.get(n).copied())
            .map(|w| neutral(w).chars().count())
            .max();
        let longest = u16::try_from(longest.unwrap_or(0)).unwrap_or(u16::MAX);
        let width = Width::Fixed(longest.saturating_add(GAP));
        column.set_constraint(ColumnConstraint::LowerBoundary(width));
    }
    let text = table.to_string();
    text.lines()
        .map(|l| l.trim_end().to_owned() + "\n")
        .collect()
}

/// The words of a line; a sign stays with the name behind it.
fn words(line: &str) -> Vec<&str> {
    if line.starts_with("+ ") || line.starts_with("- ") {
        return vec![line];
    }
    line.split_whitespace().collect()
}

/// A text as Markdown shows it, letter by letter: what somebody else wrote makes no links, headings
/// or HTML on a page of ours.
///
/// Source: <https://spec.commonmark.org/0.31.2/#backslash-escapes>.
pub fn literal(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    // GitHub makes links of bare addresses.
    for c in neutral(text).replace("://", ":\u{0}//").chars() {
        if c == '\u{0}' {
            escaped.push('\\');
            continue;
        }
        if "\\`*_[]<>#~&".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// The same as Markdown; cells are Markdown already ([`literal`]).
pub fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |text: &String| neutral(text).replace('|', "\\|").replace('\n', " ");
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head.iter().map(|h| (*h).to_owned()).collect());
    text.push_str(&line(head.iter().map(|_| "---".to_owned()).collect()));
    for row in rows {
        text.push_str(&line(row.iter().map(cell).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_and_wraps() {
        let rows = vec![vec![
            "shop/checkout".to_owned(),
            "a message that is far too long for what is left of ".repeat(3),
        ]];
        let text = table(&Style::default(), &["policy", "message"], &rows);
        assert!(text.starts_with("POLICY"));
        assert!(
            text.lines()
                .all(|l| l.chars().count() <= 80 && l == l.trim_end()),
            "{text}"
        );
        assert!(text.lines().count() > 2);
    }

    #[test]
    fn what_somebody_wrote_is_no_markdown() {
        let text = literal("[free](http://evil.org) <img src=x> `a` *b* | #1 \u{1b}[2J");
        let row = vec![text];
        let shown = markdown(&["reason"], &[row]);
        assert_eq!(
            shown.lines().last(),
            Some(r"| \[free\](http:\//evil.org) \<img src=x\> \`a\` \*b\* \| \#1 \\u001b\[2J |"),
        );
    }

    #[test]
    fn a_name_is_never_split_and_piped_nothing_wraps() {
        let name = format!("checkout-{}", "20261124-100000000-aaaaaa".repeat(2));
        let member = "serviceAccount:frontend-of-the-shop@acme-prod.iam.gserviceaccount.com";
        let row = vec![
            name.clone(),
            "2h".into(),
            member.to_owned(),
            "three words here".repeat(9),
        ];
        let head = ["change", "age", "member", "why"];
        for width in [40, 80, 200] {
            let style = Style {
                colour: false,
                width,
            };
            let text = table(&style, &head, std::slice::from_ref(&row));
            assert!(
                text.contains(&name) && text.contains(member),
                "{width}:\n{text}"
            );
        }
        let style = Style {
            colour: false,
            width: UNLIMITED,
        };
        assert_eq!(table(&style, &head, &[row]).lines().count(), 2);
    }
}
