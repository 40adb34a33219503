//! What people and programs read: tables and texts within 80 columns, JSON, YAML, Markdown, HTML.
//! Decides nothing.

pub mod html;
pub mod neutral;
pub mod plan;
pub mod table;

use serde::Serialize;

pub use neutral::neutral;

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
    Yaml,
    Markdown,
    Html,
}

/// The width of what is no terminal: nothing wraps.
pub const UNLIMITED: usize = usize::MAX;

/// How texts look.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub colour: bool,
    /// Columns of the terminal; [`UNLIMITED`] where the reader is a program.
    pub width: usize,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            colour: false,
            width: 80,
        }
    }
}

/// Colours by meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Bad,
    Warn,
    Dim,
    Strong,
}

impl Style {
    /// The text in a colour, where colours are wanted.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let text = neutral(text);
        if !self.colour {
            return text.into_owned();
        }
        let code = match tone {
            Tone::Good => 32,
            Tone::Bad => 31,
            Tone::Warn => 33,
            Tone::Dim => 2,
            Tone::Strong => 1,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// The text in lines that fit, all of them indented.
    pub fn wrap(&self, indent: usize, text: &str) -> String {
        let space = " ".repeat(indent);
        let options = textwrap::Options::new(self.width.max(40))
            .initial_indent(&space)
            .subsequent_indent(&space)
            .break_words(false)
            // Names are not broken at their hyphens: they are there to be copied.
            .word_separator(textwrap::WordSeparator::AsciiSpace)
            .word_splitter(textwrap::WordSplitter::NoHyphenation);
        textwrap::fill(&neutral(text), options)
    }
}

/// A value as JSON or YAML, with a line break at its end.
///
/// # Errors
/// What the serializer says; ours never refuse.
pub fn data<T: Serialize>(value: &T, format: Format) -> Result<String, String> {
    match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(|e| e.to_string()),
        _ => serde_json::to_string_pretty(value)
            .map(|t| t + "\n")
            .map_err(|e| e.to_string()),
    }
}

/// `1 service`, `2 services`.
pub fn count(n: usize, one: &str) -> String {
    if n == 1 {
        format!("1 {one}")
    } else {
        format!("{n} {one}s")
    }
}
