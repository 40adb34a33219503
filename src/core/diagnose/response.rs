//! An answer as a person copies it from a terminal: `curl -si` prints status line, headers and
//! body, `curl -sI` no body, a browser shows the body alone.

/// An answer, as far as it was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Response<'a> {
    pub status: Option<u16>,
    /// Names in lower case.
    pub headers: Vec<(String, &'a str)>,
    pub body: &'a str,
}

/// Headers by which a head without a status line is known: a body may begin with `Error: …`.
const KNOWN: [&str; 6] = [
    "date",
    "server",
    "content-type",
    "content-length",
    "location",
    "x-cloud-trace-context",
];

impl<'a> Response<'a> {
    /// Reads a text. Of several answers in a row (`curl -siL`, or a proxy's own before it) the last
    /// is the one that the caller got.
    pub fn read(text: &'a str) -> Self {
        let mut found = Self::one(text);
        loop {
            let next = Self::one(found.body);
            if next.status.is_none() {
                return found;
            }
            found = next;
        }
    }

    fn one(text: &'a str) -> Self {
        let (head, body) = divide(text);
        let first = head.lines().next().unwrap_or_default();
        let status = status_of(first);
        let lines = head.lines().map(str::trim_end);
        let headers: Vec<_> = lines.clone().filter_map(header).collect();
        let is_head = status.is_some()
            || (lines.count() == headers.len()
                && headers.iter().any(|(n, _)| KNOWN.contains(&n.as_str())));
        if !is_head {
            return Self {
                body: text.trim(),
                ..Self::default()
            };
        }
        Self {
            status,
            headers,
            body: body.trim(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&'a str> {
        let mut all = self.headers.iter();
        all.find(|(n, _)| n == name).map(|(_, value)| *value)
    }

    /// Whether the body is the page with which Google's front end answers 404 where nothing is.
    pub fn is_front_ends(&self) -> bool {
        let body = self.body.to_ascii_lowercase().replace('’', "'");
        self.is_page()
            && [
                "error 404",
                "was not found on this server",
                "that's all we know",
            ]
            .iter()
            .all(|words| body.contains(words))
    }

    /// Whether the body is a page. What its header says does not count: Identity-Aware Proxy sends
    /// plain text as `text/html`.
    pub fn is_page(&self) -> bool {
        let start: String = self.body.chars().take(512).collect();
        let start = start.to_ascii_lowercase();
        start.starts_with('<')
            && ["<!doctype html", "<html", "<title", "<head", "<body"]
                .iter()
                .any(|tag| start.contains(tag))
    }
}

/// Head and body, divided by the first empty line.
fn divide(text: &str) -> (&str, &str) {
    let text = text.trim();
    let at = ["\r\n\r\n", "\n\n"]
        .into_iter()
        .filter_map(|gap| text.find(gap).map(|at| (at, at + gap.len())))
        .min();
    at.map_or((text, ""), |(end, start)| (&text[..end], &text[start..]))
}

/// The code in `HTTP/1.1 403 Forbidden`.
fn status_of(line: &str) -> Option<u16> {
    let mut parts = line.strip_prefix("HTTP/")?.split_whitespace();
    parts.next()?;
    let code = parts.next()?.parse().ok()?;
    (100..600).contains(&code).then_some(code)
}

fn header(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.split_once(':')?;
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let is_name = !name.is_empty() && name.bytes().all(is_token);
    is_name.then(|| (name.to_ascii_lowercase(), value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_copied() {
        for (text, status, location, body) in [
            (
                "HTTP/2 403 \r\ncontent-type: text/html\r\n\r\n<html>no</html>\r\n",
                Some(403),
                None,
                "<html>no</html>",
            ),
            (
                "HTTP/2 403 \r\nserver: Google Frontend\r\n\r\n",
                Some(403),
                None,
                "",
            ),
            ("HTTP/1.1 401 Unauthorized\nServer: x", Some(401), None, ""),
            (
                "HTTP/1.1 200 Connection established\r\n\r\nHTTP/2 302\r\nLocation: https://a/\r\n\r\n",
                Some(302),
                Some("https://a/"),
                "",
            ),
            (
                "location: https://a/\r\nserver: Google Frontend\r\n\r",
                None,
                Some("https://a/"),
                "",
            ),
            ("{\"error\": \"no\"}", None, None, "{\"error\": \"no\"}"),
            ("Error: not yours", None, None, "Error: not yours"),
            ("HTTP/2 lots", None, None, "HTTP/2 lots"),
            ("", None, None, ""),
            ("\n\n", None, None, ""),
        ] {
            let found = Response::read(text);
            assert_eq!(
                (found.status, found.header("location"), found.body),
                (status, location, body),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_page_is_known_by_its_text() {
        for (body, is_page) in [
            ("<html><head><title>403 Forbidden</title>", true),
            ("<!DOCTYPE html>\n<html lang=en>", true),
            (
                "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
                false,
            ),
            ("Invalid IAP credentials: empty token", false),
            ("{\"html\": \"<html>\"}", false),
        ] {
            assert_eq!(Response::read(body).is_page(), is_page, "{body}");
        }
    }
}
