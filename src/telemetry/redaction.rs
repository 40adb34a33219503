//! No member in the log, whatever a message quotes: at info and above, e-mail addresses and federated
//! identities are left out of every line. At debug they are there for whoever asks for it.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// An @ in the path or the query of a URL.
const IN_URL: &str = "%40";

/// What stands in the place of a member.
const INSTEAD: &str = "(member)";

/// Standard error, without members for whoever did not ask for more than info.
#[derive(Clone, Copy, Debug)]
pub struct Redacting;

impl<'a> MakeWriter<'a> for Redacting {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { redacts: true }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        Line {
            redacts: *event.level() <= Level::INFO,
        }
    }
}

/// One line: a subscriber hands a whole event over at once.
#[derive(Debug)]
pub struct Line {
    redacts: bool,
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut out = io::stderr().lock();
        match std::str::from_utf8(line) {
            Ok(text) if self.redacts => out.write_all(redacted(text).as_bytes())?,
            _ => out.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A text without e-mail addresses and federated identities.
fn redacted(text: &str) -> Cow<'_, str> {
    if !text.contains('@') && !text.contains(IN_URL) && !text.contains("principal") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((start, end)) = next_member(rest) {
        out.push_str(&rest[..start]);
        out.push_str(INSTEAD);
        rest = &rest[end..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Where the next member begins and ends.
fn next_member(text: &str) -> Option<(usize, usize)> {
    let federated = ["principal://", "principalSet://"]
        .iter()
        .filter_map(|scheme| text.find(scheme))
        .min()
        .map(|start| (start, start + length(&text[start..], is_of_uri)));
    let mut from = 0;
    let email = loop {
        let found = ["@", IN_URL].iter().filter_map(|sign| {
            let at = text[from..].find(sign)?;
            Some((at + from, sign.len()))
        });
        let Some((at, sign)) = found.min() else {
            break None;
        };
        let before = text[..at].chars().rev().take_while(|c| is_of_local(*c));
        let start = at - before.map(char::len_utf8).sum::<usize>();
        let end = at + sign + length(&text[at + sign..], is_of_domain);
        // Not every @ is one of an address.
        if start < at && text[at + sign..end].contains('.') {
            break Some((start, end));
        }
        from = at + sign;
    };
    federated.into_iter().chain(email).min()
}

fn length(text: &str, is_of_it: fn(char) -> bool) -> usize {
    text.chars()
        .take_while(|c| is_of_it(*c))
        .map(char::len_utf8)
        .sum()
}

/// RFC 5322, section 3.2.3 (atext), and the dot; not the slash, which separates.
fn is_of_local(c: char) -> bool {
    c.is_alphanumeric() || ".!#$%&'*+=?^_`{|}~-".contains(c)
}

fn is_of_domain(c: char) -> bool {
    c.is_alphanumeric() || c == '.' || c == '-'
}

fn is_of_uri(c: char) -> bool {
    !c.is_whitespace() && !"\"\\<>,;".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_left_out_wherever_a_message_quotes_them() {
        for (text, wanted) in [
            ("nothing here", "nothing here"),
            (
                r#"invalid type: string \"user:ada@acme.com\", expected a map"#,
                r#"invalid type: string \"user:(member)\", expected a map"#,
            ),
            (
                "unknown variant `serviceAccount:a@p.iam.gserviceaccount.com`, and b+c@acme.co.uk.",
                "unknown variant `serviceAccount:(member)`, and (member)",
            ),
            (
                "principalSet://iam.googleapis.com/projects/1/pool/* and principal://x/y@z.de, gone",
                "(member) and (member), gone",
            ),
            (
                "a principal is named, at 12:00 @ noon",
                "a principal is named, at 12:00 @ noon",
            ),
            ("image@sha256:abc stays", "image@sha256:abc stays"),
            ("grüße@straße.de", "(member)"),
            (
                "GET /v1/roles?member=user%3Aada%40acme.com&x=1",
                "GET /v1/(member)&x=1",
            ),
        ] {
            assert_eq!(redacted(text), wanted);
        }
    }
}
