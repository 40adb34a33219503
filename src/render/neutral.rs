//! Text from elsewhere made harmless: names, members and messages come from the cluster and from
//! Google, and a terminal acts on what is in them.

use std::borrow::Cow;

/// Whether a terminal or an editor acts on the character instead of showing it: controls, C1
/// included, and those that turn the direction of what follows or end a line unseen.
fn acts(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with every such character as `\u001b`, which is the same text in JSON.
pub fn neutral(text: &str) -> Cow<'_, str> {
    if text.contains(acts) {
        Cow::Owned(text.chars().fold(String::new(), push))
    } else {
        Cow::Borrowed(text)
    }
}

/// The text as it may go out: without anything that a terminal acts on but our own colours.
pub fn outgoing(text: &str, colour: bool) -> Cow<'_, str> {
    const OURS: [&str; 6] = ["[0m", "[1m", "[2m", "[31m", "[32m", "[33m"];
    if !colour || !text.contains('\u{1b}') {
        return neutral(text);
    }
    let mut parts = text.split('\u{1b}');
    let mut clean = neutral(parts.next().unwrap_or_default()).into_owned();
    for part in parts {
        clean.push_str(match OURS.iter().any(|o| part.starts_with(o)) {
            true => "\u{1b}",
            false => "\\u001b",
        });
        clean.push_str(&neutral(part));
    }
    Cow::Owned(clean)
}

fn push(mut clean: String, c: char) -> String {
    if acts(c) {
        clean.push_str(&format!("\\u{:04x}", u32::from(c)));
    } else {
        clean.push(c);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_shown_and_our_colours_stay() {
        let hostile = "user:a\u{1b}]0;x\u{7}\r\u{9b}2J\u{202e}@acme.com\n\tb";
        let shown = "user:a\\u001b]0;x\\u0007\\u000d\\u009b2J\\u202e@acme.com\n\tb";
        assert_eq!(neutral(hostile), shown);
        assert_eq!(outgoing(hostile, true), shown);
        let painted = "\u{1b}[31muser:a\u{1b}[0m \u{1b}[8m";
        assert_eq!(
            outgoing(painted, true),
            "\u{1b}[31muser:a\u{1b}[0m \\u001b[8m"
        );
        assert_eq!(
            outgoing(painted, false),
            "\\u001b[31muser:a\\u001b[0m \\u001b[8m"
        );
        assert!(matches!(neutral("user:ä@acme.com"), Cow::Borrowed(_)));
    }
}
