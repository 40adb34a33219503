#![cfg(feature = "cli")]
//! Executes the pages: every block of commands in README.md and docs/ is run as it stands, against
//! the demo's sandbox and the real operator, with real kubectl, helm and gcloud; what a page shows as
//! output is compared with what came out.
//!
//! - ```` ```sh ```` is run, command by command, in the order of the page. A block ```` ```text ````
//!   right after it is its output; times, ages, hashes, names of records and ports may differ.
//! - Without such a block, every command has to succeed.
//! - ```` ```yaml ```` that begins with `# NAME.yaml` is that file.
//! - `# Needs …` as the first line of a block says why it cannot run here. It is parsed, and what can
//!   be known of its commands is checked: flags of the plugin, values of the chart, kinds, targets.
//!
//! `UPDATE=1` writes what came out into the pages. `PAGE=docs/cookbook` runs the pages whose
//! path begins so. What a page needs beforehand is in `tests/tour/`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]
#![expect(clippy::print_stdout, reason = "says what is not tested")]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use clap::CommandFactory as _;
use common::{repository, which};
use regex::Regex;
use serde_json::Value;

/// Why a block cannot run here, and a program that only such a block has.
const NEEDS: [(&str, &[&str]); 5] = [
    ("Google Cloud", &["gcloud"]),
    ("a real cluster", &["kubectl", "helm", "curl"]),
    ("Terraform", &["terraform"]),
    ("a registry", &["docker", "cosign", "helm", "make"]),
    ("some minutes", &["make", "cargo", "apt-get"]),
];

/// Kinds that pages name and that are not the operator's.
const BUILT_IN: [&str; 25] = [
    "all",
    "clusterrole",
    "clusterrolebinding",
    "crd",
    "deploy",
    "deployment",
    "events",
    "lease",
    "leases",
    "leases.coordination.k8s.io",
    "namespace",
    "namespaces",
    "networkpolicy",
    "pods",
    "podmonitor",
    "quota",
    "rolebinding",
    "secret",
    "serviceaccount",
    "servicemonitor",
    // Config Connector's, on the page about leaving it.
    "iampolicymember",
    "iampolicymembers",
    "iampartialpolicies",
    "iampolicies",
    "iampartialpolicy",
];

/// Pages whose sections have nothing to do with each other: each has a sandbox of its own.
const APART: [&str; 1] = ["docs/cookbook.md"];

/// What starts the sandbox that a page is run on: this test has started it already, on free ports.
const STARTED: [&str; 3] = ["make demo", "make demo KEEP=1", "make sandbox"];

/// Programs whose commands a page may have.
const PROGRAMS: [&str; 38] = [
    "apt-get",
    "awk",
    "base64",
    "bash",
    "cargo",
    "cat",
    "cd",
    "cosign",
    "cp",
    "curl",
    "do",
    "docker",
    "done",
    "echo",
    "export",
    "gcloud",
    "git",
    "grep",
    "head",
    "helm",
    "install",
    "jq",
    "kubectl",
    "make",
    "chmod",
    "mkdir",
    "perl",
    "read",
    "sed",
    "sleep",
    "sort",
    "source",
    "tail",
    "terraform",
    "tr",
    "while",
    "for",
    "timeout",
];

struct Block {
    /// Number of the line with the opening fence, from 0.
    line: usize,
    indent: String,
    language: String,
    text: String,
    /// Line of the closing fence.
    end: usize,
}

impl Block {
    /// What it needs that is not here.
    fn needs(&self) -> Option<&str> {
        self.text.lines().next()?.strip_prefix("# Needs ")
    }
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in page.lines().enumerate() {
        let bare = line.trim_start();
        match (&mut open, bare.strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block {
                    line: number,
                    indent: line[..line.len() - bare.len()].to_owned(),
                    language: language.to_owned(),
                    text: String::new(),
                    end: 0,
                });
            }
            (Some(_), Some(_)) => {
                let mut block = open.take().unwrap();
                block.end = number;
                found.push(block);
            }
            (Some(block), None) => {
                block.text += line.strip_prefix(block.indent.as_str()).unwrap_or(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

/// The pages that people write, as paths in the repository.
fn pages() -> Vec<String> {
    let mut found: Vec<String> = ["README.md", "SECURITY.md", "CONTRIBUTING.md"]
        .map(str::to_owned)
        .to_vec();
    for folder in ["docs", "docs/runbooks"] {
        for entry in fs::read_dir(repository(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                found.push(format!("{folder}/{name}"));
            }
        }
    }
    found.sort();
    found
}

fn read(page: &str) -> String {
    fs::read_to_string(repository(page)).unwrap()
}

/// Whether bash can parse it, and what it says if not.
fn parses(script: &str) -> Result<(), String> {
    let output = Command::new("bash")
        .args(["-n", "-c", script])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.is_empty() { Ok(()) } else { Err(said) }
}

/// The commands of a block: lines, and those that go over several lines.
fn commands(text: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut command = String::new();
    for line in text.lines() {
        command += line;
        if line.ends_with('\\')
            || (parses(&command).is_err() && !text.ends_with(&format!("{command}\n")))
        {
            command.push('\n');
            continue;
        }
        parses(&command)?;
        let command = std::mem::take(&mut command);
        if !command.trim().is_empty() && !command.starts_with('#') {
            found.push(command);
        }
    }
    if command.is_empty() {
        Ok(found)
    } else {
        Err(format!("has no end: {command}"))
    }
}

/// The simple commands in a command, as words: what is between pipes and the like.
fn simple_commands(command: &str) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = vec![Vec::new()];
    let (mut word, mut quote, mut started) = (String::new(), None, false);
    let mut chars = command.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '#') if !started => while chars.next_if(|c| *c != '\n').is_some() {},
            (None, '\'' | '"') => (quote, started) = (Some(c), true),
            (Some(q), c) if q == c => quote = None,
            (None, '\\') => {
                if let Some(c) = chars.next().filter(|c| *c != '\n') {
                    word.push(c);
                    started = true;
                }
            }
            (None, '>' | '<') => {
                // A redirection, and what follows a heredoc, is not for the program.
                if chars.peek() == Some(&'<') {
                    let here: String = chars.by_ref().skip(1).collect();
                    let mark = here
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .trim_matches(['\'', '"', ' ']);
                    let rest = here.split(&format!("\n{mark}")).nth(1).unwrap_or_default();
                    let first = here.lines().next().unwrap_or_default();
                    let tail = first.strip_prefix(mark).unwrap_or_default();
                    all.extend(simple_commands(&format!("{tail}\n{rest}")));
                    break;
                }
                while chars.next_if(|c| matches!(c, ' ' | '>' | '&')).is_some() {}
                while chars
                    .next_if(|c| !c.is_whitespace() && !matches!(c, '|' | ';' | ')'))
                    .is_some()
                {}
                word.clear();
            }
            (None, ' ' | '\t') => {
                if std::mem::take(&mut started) {
                    all.last_mut().unwrap().push(std::mem::take(&mut word));
                }
            }
            (None, '|' | ';' | '&' | '\n' | '(' | ')') => {
                if std::mem::take(&mut started) {
                    all.last_mut().unwrap().push(std::mem::take(&mut word));
                }
                all.push(Vec::new());
            }
            (_, c) => {
                word.push(c);
                started = true;
            }
        }
    }
    if started {
        all.last_mut().unwrap().push(word);
    }
    let assignment = Regex::new("^[A-Z_]+=").unwrap();
    for words in &mut all {
        let program = words.iter().position(|w| {
            !assignment.is_match(w) && !["do", "while", "then", "if"].contains(&w.as_str())
        });
        words.drain(..program.unwrap_or(words.len()));
    }
    all.retain(|w| !w.is_empty());
    all
}

/// What can be known of a command without running it.
fn check(words: &[String]) -> Result<(), String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["kubectl", "invoker", args @ ..] => plugin_takes(args),
        ["kubectl", args @ ..] => kinds_exist(args),
        ["helm", args @ ..] => chart_has(args),
        ["make", args @ ..] => targets_exist(args),
        ["cargo", args @ ..] => match args.iter().position(|a| *a == "--test") {
            Some(at) if !repository(&format!("tests/{}.rs", args[at + 1])).exists() => {
                Err(format!("there is no test {}", args[at + 1]))
            }
            _ => Ok(()),
        },
        [program, ..] if PROGRAMS.contains(program) => Ok(()),
        [program, ..] => Err(format!(
            "{program}: not a program that pages may use; is it a typo?"
        )),
        [] => Ok(()),
    }
}

fn plugin_takes(args: &[&str]) -> Result<(), String> {
    let all = std::iter::once("kubectl-invoker").chain(args.iter().copied());
    match run_invoker::cli::Args::command().try_get_matches_from(all) {
        Ok(_) => Ok(()),
        Err(e)
            if matches!(
                e.kind(),
                clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
            ) =>
        {
            Ok(())
        }
        Err(e) => Err(e.to_string()),
    }
}

fn kinds_exist(args: &[&str]) -> Result<(), String> {
    const WITH_VALUE: [&str; 14] = [
        "-n",
        "--namespace",
        "--context",
        "-o",
        "-l",
        "--type",
        "-p",
        "-f",
        "--for",
        "--field-selector",
        "--sort-by",
        "--tail",
        "--replicas",
        "--kubeconfig",
    ];
    let mut words = Vec::new();
    let mut rest = args.iter();
    while let Some(word) = rest.next() {
        if WITH_VALUE.contains(word) {
            rest.next();
        } else if !word.starts_with('-') {
            words.push(*word);
        }
    }
    let own: BTreeSet<String> = run_invoker::api::definitions()
        .into_iter()
        .flat_map(|d| {
            let names = d.spec.names;
            let (full, short) = (
                format!("{}.{}", names.plural, d.spec.group),
                names.short_names,
            );
            [names.plural, names.singular.unwrap_or_default(), full]
                .into_iter()
                .chain(short.unwrap_or_default())
        })
        .collect();
    let kinds = match words.as_slice() {
        [
            "get" | "describe" | "patch" | "annotate" | "label" | "delete" | "wait" | "scale"
            | "explain" | "edit" | "logs",
            kinds,
            ..,
        ] => kinds,
        [
            "rollout" | "auth",
            _,
            "get" | "update" | "patch" | "delete" | "list",
            kinds,
            ..,
        ] => kinds,
        ["rollout" | "create", kinds, ..] if words[0] == "create" => kinds,
        ["rollout", _, kinds, ..] => kinds,
        [
            "apply" | "diff" | "replace" | "krew" | "config" | "port-forward" | "auth",
            ..,
        ] => return Ok(()),
        [] => return Ok(()),
        [verb, ..] => return Err(format!("kubectl {verb}: not known to this test")),
    };
    for kind in kinds.split(',') {
        let kind = kind.split('/').next().unwrap().split_once('.').map_or_else(
            || kind.split('/').next().unwrap(),
            |(first, _)| {
                if kind.contains("run-invoker.dev") || words[0] == "explain" {
                    first
                } else {
                    kind.split('/').next().unwrap()
                }
            },
        );
        if !own.contains(kind) && !BUILT_IN.contains(&kind) {
            return Err(format!("there is no kind {kind}"));
        }
    }
    Ok(())
}

fn chart_has(args: &[&str]) -> Result<(), String> {
    let schema: Value =
        serde_json::from_str(&read("charts/run-invoker/values.schema.json")).unwrap();
    // A value in braces is a list and has commas of its own.
    let paths =
        Regex::new(r"(?:^|,)([a-zA-Z][a-zA-Z.\\/]*)(?:\[\d+\][^=]*)?=(?:\{[^}]*\})?").unwrap();
    let mut rest = args.iter();
    while let Some(word) = rest.next() {
        if word.starts_with("charts/") && !repository(word).exists() {
            return Err(format!("there is no chart {word}"));
        }
        if !word.starts_with("--set") {
            continue;
        }
        let given = rest.next().ok_or("--set of nothing")?;
        let mut seen = 0;
        for path in paths.captures_iter(given) {
            let mut at = &schema;
            for key in path[1].split('.') {
                let open = at["properties"].is_null();
                at = if open { at } else { &at["properties"][key] };
                if at.is_null() {
                    return Err(format!("the chart has no value {}", &path[1]));
                }
            }
            seen += 1;
        }
        if seen == 0 {
            return Err(format!("--set {given}: not understood"));
        }
    }
    Ok(())
}

fn targets_exist(args: &[&str]) -> Result<(), String> {
    let makefile = read("Makefile");
    for target in args
        .iter()
        .filter(|a| !a.contains('=') && !a.starts_with('-'))
    {
        if !makefile
            .lines()
            .any(|l| l.starts_with(&format!("{target}:")))
        {
            return Err(format!("there is no target {target}"));
        }
    }
    Ok(())
}

/// What stands in for the words in capitals, and for names of records and hashes in examples.
fn filled_in(command: &str) -> String {
    const WORDS: [(&str, &str); 9] = [
        (r"\bHOST_PROJECT\b", "acme-ops"),
        (r"\bPROJECT\b", "acme-prod"),
        (
            "sha256:…",
            "sha256:0000000000000000000000000000000000000000000000000000000000000000",
        ),
        (r"\bNAMESPACE\b", "shop"),
        (r"\b(POLICY|NAME)\b", "checkout"),
        (r"\bRELEASE\b", "run-invoker"),
        (r"\bYOUR-REGISTRY\b", "registry.example"),
        (
            r"\bcheckout-\d{8}-\d{9}-[0-9a-f]{6}\b",
            "$(kubectl -n shop get ivp checkout -o jsonpath='{.status.lastChange}')",
        ),
        (
            r"/approve=[0-9a-f]{12}\b",
            "/approve=$(kubectl -n shop get ivp archive -o jsonpath='{.status.services[0].approve}')",
        ),
    ];
    let mut command = command.to_owned();
    for (pattern, value) in WORDS {
        let pattern = Regex::new(pattern).unwrap();
        command = pattern
            .replace_all(&command, regex::NoExpand(value))
            .into_owned();
    }
    // What it shows is agreed to.
    let asks = Regex::new(r"kubectl invoker (approve|deny|rollback)").unwrap();
    asks.replace_all(&command, "kubectl invoker $1 --yes")
        .into_owned()
}

/// What may differ from run to run.
fn normal(text: &str) -> String {
    const DIFFERS: [(&str, &str); 15] = [
        (r"\x1b\[[0-9;]*m", ""),
        (r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z", "TIME"),
        (r"\b\d{2}:\d{2}:\d{2}Z?\b", "TIME"),
        (r"-\d{8}-\d{9}-[0-9a-f]{6}\b", "-RECORD"),
        (r"-[0-9a-f]{8}-\d{8}-\d{6}\b", "-APPROVAL"),
        (r"\b[0-9a-f]{40}\b", "HASH"),
        (r"\b[0-9a-f]{12}([0-9a-f]{4})?\b", "HASH"),
        (r"127\.0\.0\.1:\d+", "ADDRESS"),
        (r"\b(\d+d)?(\d+h)?(\d+m)?\d+(ms|s|m|h|d)\b", "AGE"),
        (r"\b\d+\.\d+ s\b", "AGE"),
        (r"\S+ renewed its Lease", "HOLDER renewed its Lease"),
        (r"replica: run-invoker/\S+", "replica: run-invoker/HOLDER"),
        // A poll may find it before its event comes; the demo itself insists on the name.
        ("actor unknown|by [^ ]+ with gcloud at TIME", "by SOMEBODY"),
        (r#""?etag"?: .*"#, "etag: ETAG"),
        // How much of a budget the last minute took hangs on when somebody asks.
        (r"\b\d+\s+of\s+(\d+\s+(?:reads|writes))\b", "SOME of $1"),
    ];
    let mut text = text.to_owned();
    for (pattern, word) in DIFFERS {
        text = Regex::new(pattern)
            .unwrap()
            .replace_all(&text, word)
            .into_owned();
    }
    // Columns are as wide as what is in them, and what happened in one second has no order.
    let mut paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    paragraphs.sort();
    paragraphs.join("\n")
}

/// The demo as a process, with the folder that commands are run in.
struct World {
    demo: Child,
    folder: PathBuf,
}

impl World {
    /// `story`: after everything that `make demo` shows. If not, with services and no policies.
    fn start(story: bool) -> Self {
        Self::try_start(story)
            // Google's emulator of Pub/Sub does not always come up.
            .or_else(|_| Self::try_start(story))
            .unwrap_or_else(|said| panic!("the demo ended: {said}"))
    }

    fn try_start(story: bool) -> Result<Self, String> {
        let folder = common::own_path("tour");
        fs::create_dir_all(&folder).unwrap();
        // Everything of a checkout but what this test would change.
        for entry in fs::read_dir(repository("")).unwrap() {
            let entry = entry.unwrap();
            if ![".demo", ".git"].iter().any(|n| entry.file_name() == *n) {
                std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name())).unwrap();
            }
        }
        let mut demo = Command::new(demo_program())
            .args(["--keep", "--any-port", "--folder"])
            .arg(folder.join(".demo"))
            .args(if story {
                &[][..]
            } else {
                &["--bare", "--no-events"]
            })
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        let stdout = demo.stdout.take().unwrap();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.starts_with("Ctrl-C ends it") {
                return Ok(Self { demo, folder });
            }
            said.push(line);
        }
        demo.wait().unwrap();
        fs::remove_dir_all(&folder).ok();
        Err(said.join("\n"))
    }

    /// Runs a command as in the shell that ran the one before; whether it was content, and what it
    /// printed.
    fn run(&self, command: &str) -> (i32, String) {
        let state = self.folder.join(".demo/state");
        let script = format!(
            "set -a -o pipefail\n[ -e {0} ] && source {0}\n{command}\ncode=$?\nexport -p | grep -v ' PWD=' > {0}\nexit $code\n",
            state.display()
        );
        let file = self.folder.join(".demo/command");
        fs::write(&file, script).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("bash")
            .args(["-c", "exec timeout 120 bash \"$0\" 2>&1 < /dev/null"])
            .arg(&file)
            .current_dir(&self.folder)
            .env("PATH", format!("{}:{path}", repository("bin").display()))
            .env("HOME", self.folder.join(".demo"))
            .env("COLUMNS", "100")
            .env_remove("KUBECONFIG")
            .output()
            .unwrap();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    /// Waits as a person does who reads, until the operator has seen every policy as it is now.
    fn settle(&self) {
        for _ in 0..20 {
            std::thread::sleep(Duration::from_secs(1));
            let (_, said) = self.run("kubectl get ivp -A -o json");
            let list: Value = serde_json::from_str(&said).unwrap_or_default();
            let policies = list["items"].as_array().cloned().unwrap_or_default();
            let seen = |p: &Value| p["status"]["observedGeneration"] == p["metadata"]["generation"];
            if policies.iter().all(seen) {
                return;
            }
        }
    }

    fn ok(&self, command: &str) {
        let (code, said) = self.run(command);
        assert_eq!(code, 0, "{command}: {said}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        Command::new("kill")
            .args(["-INT", &self.demo.id().to_string()])
            .status()
            .ok();
        self.demo.wait().ok();
        if std::env::var_os("KEEP").is_none() {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

/// The demo as cargo built it with this test; built now, if it is older than what it is made of.
fn demo_program() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let build = || {
        let folder = Path::new(env!("CARGO_BIN_EXE_run-invoker"))
            .parent()
            .unwrap();
        let program = folder.join("examples/demo");
        let changed = |path: &Path| fs::metadata(path).and_then(|m| m.modified());
        let fresh = changed(&program).is_ok_and(|built| {
            let made_of = fs::read_to_string(program.with_extension("d")).unwrap_or_default();
            let mut made_of = made_of.split_whitespace().skip(1);
            made_of.all(|f| changed(Path::new(f)).is_ok_and(|at| at <= built))
        });
        if !fresh {
            let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
            let built = Command::new(cargo)
                .args(["build", "--quiet", "--example", "demo"])
                .current_dir(repository(""))
                .status();
            assert!(built.unwrap().success(), "the demo does not build");
        }
        program
    };
    BUILT.get_or_init(build).clone()
}

/// Where what a page, or a section of it, needs beforehand is: files, and `before.sh`. The runbooks
/// share one sandbox.
fn stage(page: &str, section: usize) -> String {
    if page.starts_with("docs/runbooks/") {
        return "docs-runbooks".into();
    }
    let name = page.trim_end_matches(".md").replace('/', "-");
    if APART.contains(&page) {
        return format!("{name}-{section}");
    }
    name
}

fn open(stage: &str) -> World {
    let readme = stage == "README";
    let world = World::start(readme);
    let whole_page = stage.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
    let folders = [stage, whole_page, "."].map(|f| repository("tests/tour").join(f));
    let folder = folders
        .iter()
        .find(|f| f.join("before.sh").exists())
        .unwrap();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(folder.join("."))
        .arg(&world.folder)
        .status();
    assert!(copied.unwrap().success());
    // Who reads on has a cluster. What else the shell needs, the page has to say.
    world.ok("export KUBECONFIG=$PWD/.demo/kubeconfig");
    if !readme {
        world.ok("source .demo/env");
    }
    world.ok("set -e; source ./before.sh; set +e");
    world
}

#[test]
fn every_block_says_what_it_is_and_every_command_is_known() {
    let mut problems = Vec::new();
    let code = Regex::new("`(kubectl invoker [^`]+)`").unwrap();
    let mut checked = 0;
    for page in pages() {
        let text = read(&page);
        for block in blocks(&text) {
            let place = format!("{page}:{}", block.line + 1);
            if block.language != "sh" {
                if !["text", "yaml", "hcl", "promql", "json"].contains(&block.language.as_str()) {
                    problems.push(format!(
                        "{place}: what is {:?}? Commands are sh, output is text",
                        block.language
                    ));
                }
                continue;
            }
            match commands(&block.text) {
                Err(e) => problems.push(format!("{place}: {e}")),
                Ok(commands) => {
                    for words in commands.iter().flat_map(|c| simple_commands(c)) {
                        checked += 1;
                        if let Err(e) = check(&words) {
                            problems.push(format!("{place}: {}: {e}", words.join(" ")));
                        }
                    }
                }
            }
            if let Some(needs) = block.needs() {
                let known = NEEDS.iter().find(|n| needs == format!("{}.", n.0));
                if !known.is_some_and(|n| n.1.iter().any(|p| block.text.contains(p))) {
                    problems.push(format!(
                        "{place}: needs {needs} One of {:?}, and a command that does",
                        NEEDS.map(|n| n.0)
                    ));
                }
            }
        }
        // Commands within a sentence or a table.
        for found in code.captures_iter(&text) {
            for words in simple_commands(&found[1]) {
                checked += 1;
                // The name of a command, without what it is given.
                if words.len() == 3
                    && run_invoker::cli::Args::command()
                        .find_subcommand(&words[2])
                        .is_some()
                {
                    continue;
                }
                if let Err(e) = check(&words) {
                    problems.push(format!("{page}: {}: {e}", words.join(" ")));
                }
            }
        }
    }
    // What the chart says after an installation.
    let notes = read("charts/run-invoker/templates/NOTES.txt");
    let command = Regex::new(r"(?m)kubectl invoker [^)\n]+").unwrap();
    for found in command.find_iter(&notes) {
        for words in simple_commands(found.as_str()) {
            checked += 1;
            if let Err(e) = check(&words) {
                problems.push(format!("NOTES.txt: {}: {e}", words.join(" ")));
            }
        }
    }
    println!("{checked} commands are known");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(checked > 100, "only {checked} commands were found");
}

/// Runs a page; what is wrong with it, and how many of its blocks were run and how many only read.
fn tour(
    page: &str,
    world: &mut Option<(String, World)>,
    problems: &mut Vec<String>,
) -> (usize, usize) {
    let text = read(page);
    let all = blocks(&text);
    let runs = |b: &Block| b.language == "sh" && b.needs().is_none();
    let (mut ran, mut marked) = (0, 0);
    let colours = Regex::new(r"\x1b\[[0-9;]*m").unwrap();
    let changes = Regex::new("kubectl.* (apply|patch|annotate)|add-iam-policy").unwrap();
    let mut update: Vec<(usize, usize, String)> = Vec::new();
    for (number, block) in all.iter().enumerate() {
        let section = text
            .lines()
            .take(block.line)
            .filter(|l| l.starts_with("## "))
            .count();
        let stage = stage(page, section);
        if world.as_ref().is_some_and(|w| w.0 != stage) {
            *world = None;
        }
        if block.language == "yaml" {
            let name = block.text.lines().next().and_then(|l| l.strip_prefix("# "));
            if let (Some(name), true) =
                (name.filter(|n| n.ends_with(".yaml")), all.iter().any(runs))
            {
                let world = &world.get_or_insert_with(|| (stage.clone(), open(&stage))).1;
                fs::write(world.folder.join(name), filled_in(&block.text)).unwrap();
            }
        }
        if block.language != "sh" {
            continue;
        }
        if !runs(block) {
            marked += 1;
            continue;
        }
        let world = &world.get_or_insert_with(|| (stage.clone(), open(&stage))).1;
        ran += 1;
        let place = format!("{page}:{}", block.line + 1);
        let expected = all.get(number + 1).filter(|next| {
            ["text", "yaml"].contains(&next.language.as_str())
                && text
                    .lines()
                    .skip(block.end + 1)
                    .take(next.line - block.end - 1)
                    .all(|l| l.trim().is_empty())
        });
        let mut output = String::new();
        for command in commands(&block.text).unwrap() {
            if STARTED.contains(&command.split('#').next().unwrap().trim()) {
                continue;
            }
            let (code, said) = world.run(&filled_in(&command));
            println!("{place}$ {command}\n{said}[{code}]");
            if changes.is_match(&command) {
                world.settle();
            }
            // 2: there are differences. And a search may find nothing.
            let fine = code == 0
                || (code == 2 && command.contains("kubectl invoker"))
                || (code == 1 && said.is_empty() && command.contains("| grep"));
            if !fine && expected.is_none() {
                problems.push(format!("{place}: {command}: exit {code}\n{said}"));
            }
            output += &said;
        }
        let Some(expected) = expected else { continue };
        if normal(&output) == normal(&expected.text) {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            let lines: String = colours
                .replace_all(&output, "")
                .lines()
                .map(|l| format!("{}{}\n", expected.indent, l.trim_end()))
                .collect();
            update.push((expected.line + 1, expected.end, lines));
        } else {
            problems.push(format!(
                "{place}: the page shows\n{}\nand this came out:\n{output}",
                expected.text
            ));
        }
    }
    let mut lines: Vec<String> = text.lines().map(|l| format!("{l}\n")).collect();
    for (from, to, new) in update.into_iter().rev() {
        lines.splice(from..to, [new]);
    }
    if lines.concat() != text {
        fs::write(repository(page), lines.concat()).unwrap();
    }
    (ran, marked)
}

/// Runs the pages that are wanted; how many blocks were executed.
fn run_pages(wanted: impl Fn(&str) -> bool) -> usize {
    let needed = ["kubectl", "helm", "gcloud", "jq"];
    let missing = needed.into_iter().find(|tool| which(tool).is_none());
    let missing = missing.or(sandbox::Pubsub::program()
        .is_none()
        .then_some("the Pub/Sub emulator"));
    if let Some(missing) = missing {
        assert!(
            std::env::var_os("CI").is_none(),
            "{missing} is not installed, and on CI this test must run"
        );
        println!("NOT TESTED: {missing} is not installed, so no page is executed");
        return usize::MAX;
    }
    let only = std::env::var("PAGE").ok();
    let mut problems = Vec::new();
    let (mut ran, mut marked, mut world) = (0, 0, None);
    for page in pages().into_iter().filter(|p| wanted(p)) {
        if only.as_ref().is_none_or(|o| page.starts_with(o)) {
            let (r, m) = tour(&page, &mut world, &mut problems);
            (ran, marked) = (ran + r, marked + m);
        }
    }
    println!("{ran} blocks were executed, {marked} need what is not here");
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
    if only.is_some() { usize::MAX } else { ran }
}

#[test]
fn the_tour_in_the_readme_happens_as_it_is_told() {
    let ran = run_pages(|page| page == "README.md");
    assert!(ran > 9, "only {ran} blocks were executed");
}

#[test]
fn every_block_of_the_pages_runs_and_prints_what_the_page_shows() {
    let ran = run_pages(|page| page != "README.md");
    assert!(ran > 50, "only {ran} blocks were executed");
}
