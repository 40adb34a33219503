//! The recording of the demo, held to the demo: it is made by hand (`make recording`), and a story
//! that goes on without it is noticed here.

use std::fs;

use regex::Regex;

use crate::root;

/// What can be read in an SVG that svg-term made, in one line.
pub fn shown(svg: &str) -> String {
    let text = Regex::new(r"<text[^>]*>([^<]*)</text>").unwrap();
    let words: Vec<&str> = text
        .captures_iter(svg)
        .map(|found| found.get(1).map_or("", |m| m.as_str()))
        .collect();
    let entities = [
        ("&apos;", "'"),
        ("&quot;", "\""),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ];
    let joined = words.join(" ");
    entities
        .iter()
        .fold(joined, |text, (entity, sign)| text.replace(entity, sign))
}

#[test]
fn the_recording_tells_the_story_of_the_demo() {
    let demo = fs::read_to_string(root().join("examples/demo.rs")).unwrap();
    let svg = fs::read_to_string(root().join("docs/pictures/demo.svg")).unwrap();
    let shown = shown(&svg);
    // Titles, and commands that are the same in every run.
    let told =
        Regex::new(r#"(?s)\.(chapter|command)\(\s*"((?:[^"\\{]|\\\\)*)"\s*,?\s*\)"#).unwrap();
    let mut counts = [0, 0];
    for found in told.captures_iter(&demo) {
        let text = found[2].replace("\\\\", "\\");
        counts[usize::from(&found[1] == "command")] += 1;
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            shown.contains(&words),
            "docs/pictures/demo.svg does not show {words:?}: make recording"
        );
    }
    assert!(counts[0] > 10 && counts[1] > 5, "{counts:?}");
}
