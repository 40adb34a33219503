//! Tables as kubectl has them: a head in capitals, no lines, cells that wrap instead of running out
//! of the terminal.

use comfy_table::{ContentArrangement, Table, presets};

use super::Style;

/// A table; empty columns at the end of lines leave no blanks behind.
pub fn table(style: &Style, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(style.width).unwrap_or(80));
    table.set_header(head.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines()
        .map(|l| l.trim_end().to_owned() + "\n")
        .collect()
}

/// The same as Markdown.
pub fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |text: &String| text.replace('|', "\\|").replace('\n', " ");
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
}
