//! Stories that once broke a promise. They run for ever.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::story::Story;

/// A story that broke a promise, and what was wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The seed that it was found with; none if it was written by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The rule that it broke.
    pub rule: String,
    /// What happened, and why it was wrong.
    pub found: String,
    /// The shortest story.
    pub story: Story,
}

/// Where they are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Reads one.
pub fn load(path: &Path) -> Case {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Keeps one.
pub fn save(name: &str, case: &Case) {
    write(&folder().join(format!("{name}.json")), case);
}

/// Writes one to a file.
pub fn write(path: &Path, case: &Case) {
    let text = serde_json::to_string_pretty(case).unwrap_or_default() + "\n";
    std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// All of them, by name.
pub fn all() -> Vec<(String, Case)> {
    let mut found: Vec<(String, Case)> = std::fs::read_dir(folder())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|x| x == "json"))
        .map(|e| {
            (
                e.file_name().to_string_lossy().into_owned(),
                load(&e.path()),
            )
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}
