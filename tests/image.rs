//! The image, as `make image` builds it: user, size, what is in it, that a second build is
//! identical, and that it runs with a read-only root. `make image-test`; ignored by default,
//! because it compiles the operator twice.
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
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{eventually, repository, tool};
use kube::{Api, api::PostParams};
use run_invoker::api::InvokerPolicy;
use sandbox::Sandbox;
use serde_json::{Value, json};

const LIMIT: u64 = 25 * 1024 * 1024;

/// An image that was saved and unpacked.
struct Image {
    said: String,
    id: String,
    config: Value,
    layers: Vec<String>,
    root: PathBuf,
}

fn say(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let text = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// `make image` of the sources in a folder; what it says is `Err` if it fails.
fn build(sources: &Path, out: &Path, settings: &[(&str, String)]) -> Result<Image, String> {
    let mut command = Command::new("make");
    command
        .args(["--no-print-directory", "image"])
        .current_dir(sources)
        .env("OUT", out)
        .env("IMAGE", "run-invoker:test")
        .envs(settings.iter().map(|(k, v)| (k, v)));
    for name in ["RUSTFLAGS", "CARGO_MANIFEST_DIR", "LD_LIBRARY_PATH"] {
        command.env_remove(name);
    }
    let (fine, text) = say(&mut command);
    if !fine {
        return Err(text);
    }
    println!("{text}");
    Ok(unpack(out, &text))
}

fn sha256(file: &Path) -> String {
    let (fine, text) = tool("sha256sum", &[file.to_str().unwrap()], Path::new("/"));
    assert!(fine, "{text}");
    text.split(' ').next().unwrap().to_owned()
}

fn unpack(out: &Path, said: &str) -> Image {
    let (saved, root) = (out.join("saved"), out.join("unpacked"));
    for folder in [&saved, &root] {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).unwrap();
    }
    let archive = out.join("run-invoker.tar");
    let (fine, text) = tool("tar", &["xf", archive.to_str().unwrap()], &saved);
    assert!(fine, "{text}");
    let read = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(saved.join(name)).unwrap()).unwrap()
    };
    let manifest = read("manifest.json")[0].clone();
    let config = manifest["Config"].as_str().unwrap();
    let layers: Vec<&str> = manifest["Layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_str().unwrap())
        .collect();
    for layer in &layers {
        let layer = saved.join(layer);
        let (fine, text) = tool("tar", &["xpf", layer.to_str().unwrap()], &root);
        assert!(fine, "{text}");
    }
    let id = format!("sha256:{}", sha256(&saved.join(config)));
    assert!(said.contains(&id), "{id}: {said}");
    Image {
        said: said.to_owned(),
        id,
        config: read(config),
        layers: layers.iter().map(|l| sha256(&saved.join(l))).collect(),
        root,
    }
}

/// Every file below a folder, by its path in there.
fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    found
}

/// The sources of the working tree in another folder, as in a clean checkout: newer than all that
/// was compiled, so that cargo compiles them.
fn copy_of_the_sources(to: &Path) {
    let list =
        "git ls-files -co --exclude-standard | tar c -T - --ignore-failed-read | tar x -m -C";
    let (fine, text) = say(Command::new("bash")
        .args(["-c", &format!("set -o pipefail; {list} \"$1\""), "copy"])
        .arg(to)
        .current_dir(repository("")));
    assert!(fine, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "compiles the operator twice; make image-test"]
async fn the_image_is_small_reproducible_and_runs_read_only() {
    let here = repository("");
    let out = repository("target").join(format!("image-test-{}", std::process::id()));
    fs::create_dir_all(&out).unwrap();
    let revision = |of: &str| ("REVISION", of.to_owned());
    let time = ("SOURCE_DATE_EPOCH", "1700000000".to_owned());
    let first = match build(&here, &out.join("1"), &[revision("test"), time.clone()]) {
        Ok(image) => image,
        Err(text) if text.contains("none works here") || text.contains("make image: needs") => {
            let why = text.lines().find(|l| l.starts_with("make image: "));
            println!("NOT TESTED: the image. {}", why.unwrap());
            return;
        }
        Err(text) => panic!("{text}"),
    };
    what_is_in_it(&first);

    // The same sources in another folder; with IMAGE_TEST_FULL every crate is compiled again.
    let copy = std::env::temp_dir().join(format!("run-invoker-image-{}", std::process::id()));
    fs::create_dir_all(&copy).unwrap();
    copy_of_the_sources(&copy);
    let mut settings = vec![revision("test"), time];
    if std::env::var_os("IMAGE_TEST_FULL").is_none() {
        let shared = here.join("target/image").display().to_string();
        settings.push(("CARGO_TARGET_DIR", shared));
        settings.push((
            "CUT",
            here.display().to_string().trim_end_matches('/').to_owned(),
        ));
    }
    let second = build(&copy, &out.join("2"), &settings).unwrap();
    // Not what lay there from the first time.
    assert!(
        second.said.contains("Compiling run-invoker v"),
        "{}",
        second.said
    );
    let both = |file: &str| {
        (
            sha256(&first.root.join(file)),
            sha256(&second.root.join(file)),
        )
    };
    for file in files(&first.root) {
        let (one, other) = both(&file);
        assert_eq!(one, other, "{file} differs between two builds");
    }
    assert_eq!(first.layers, second.layers, "a layer differs");
    assert_eq!(first.id, second.id, "the configuration differs");
    fs::remove_dir_all(copy).unwrap();

    it_runs(&first).await;
    fs::remove_dir_all(out).unwrap();
}

fn what_is_in_it(image: &Image) {
    let config = &image.config["config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["/run-invoker"]));
    assert_eq!(image.config["created"], "2023-11-14T22:13:20Z");
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].clone();
    assert_eq!(label("revision"), "test");
    assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
    let there = files(&image.root);
    let wanted = [
        "etc/group",
        "etc/nsswitch.conf",
        "etc/passwd",
        "etc/ssl/certs/ca-certificates.crt",
        "run-invoker",
        "usr/share/doc/run-invoker/LICENSE",
        "usr/share/sbom/run-invoker.cdx.json",
    ];
    assert_eq!(there, wanted.map(str::to_owned).into());
    let size: u64 = there
        .iter()
        .map(|f| fs::metadata(image.root.join(f)).unwrap().len())
        .sum();
    println!("the image has {size} bytes in {} files", there.len());
    assert!(size <= LIMIT, "{size} bytes are more than 25 MiB");
    for file in &there {
        let mode = fs::metadata(image.root.join(file)).unwrap().permissions();
        assert_eq!(
            mode.mode() & 0o7022,
            0,
            "{file} can be written, or is setuid"
        );
    }
    let read = |file: &str| fs::read_to_string(image.root.join(file)).unwrap();
    assert!(read("etc/passwd").contains("nonroot:x:65532:65532:"));
    let certificates = read("etc/ssl/certs/ca-certificates.crt");
    assert!(certificates.matches("BEGIN CERTIFICATE").count() > 100);
    // Nothing of this machine is in the program: no library, no path.
    let program = fs::read(image.root.join("run-invoker")).unwrap();
    let has = |text: &str| program.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(!has("/lib64/ld-linux"), "not static");
    for path in [env!("CARGO_MANIFEST_DIR"), "/.cargo/registry"] {
        assert!(!has(path), "{path} is in the program");
    }
    bill(&serde_json::from_str(&read("usr/share/sbom/run-invoker.cdx.json")).unwrap());
}

/// The bill of materials names what Cargo.lock has, with its checksum, and what is not a crate.
fn bill(bill: &Value) {
    assert_eq!(
        (&bill["bomFormat"], &bill["specVersion"]),
        (&json!("CycloneDX"), &json!("1.5"))
    );
    let lock = fs::read_to_string(repository("Cargo.lock")).unwrap();
    let components = bill["components"].as_array().unwrap();
    assert!(components.len() > 150, "{}", components.len());
    let mut names = BTreeSet::new();
    for part in components {
        let (name, version) = (
            part["name"].as_str().unwrap(),
            part["version"].as_str().unwrap(),
        );
        names.insert(name);
        assert!(!part["licenses"].is_null(), "{name}");
        if let Some(hash) = part["hashes"][0]["content"].as_str() {
            let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
            let (_, rest) = lock.split_once(&entry).unwrap();
            let rest = rest.split("\n\n").next().unwrap();
            assert!(rest.contains(&format!("checksum = \"{hash}\"")), "{name}");
        }
    }
    for name in [
        "tokio",
        "rustls",
        "google-cloud-run-v2",
        "rust-std",
        "glibc",
        "ca-certificates",
    ] {
        assert!(
            names.contains(name),
            "{name} is not in the bill of materials"
        );
    }
    for name in ["clap_complete", "insta", "sandbox", "serde_derive"] {
        assert!(!names.contains(name), "{name} is not in the program");
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the image's program as the kubelet would: its root read-only, as 65532, without
/// capabilities, with hosts and resolver of the machine and a folder mounted into it.
async fn it_runs(image: &Image) {
    let (_, id) = tool("id", &["-u"], Path::new("/"));
    if id.trim() != "0" {
        println!("NOT TESTED: running the image needs root, for a mount namespace");
        return;
    }
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    sandbox.run.deploy("acme-prod", "europe-west1", "web", &[]);
    let mounted = image.root.with_file_name("mounted");
    let _ = fs::remove_dir_all(&mounted);
    fs::create_dir(&mounted).unwrap();
    fs::create_dir_all(image.root.join("config")).unwrap();
    // By name, so that the program's own resolver is used.
    let by_name = |text: String| text.replace("127.0.0.1", "localhost");
    fs::write(mounted.join("kubeconfig"), by_name(sandbox.kubeconfig())).unwrap();
    for file in ["hosts", "resolv.conf"] {
        fs::copy(Path::new("/etc").join(file), mounted.join(file)).unwrap();
        fs::write(image.root.join("etc").join(file), "").unwrap();
    }
    let port = common::free_port();
    let script = r#"
        set -e
        mount --bind "$1" "$1"
        for file in hosts resolv.conf; do mount --bind -o ro "$2/$file" "$1/etc/$file"; done
        mount --bind "$2" "$1/config"
        mount -o remount,bind,ro "$1/config"
        mount -o remount,bind,ro "$1"
        root=$1; shift 2
        exec setpriv --no-new-privs chroot --userspec=65532:65532 --groups= "$root" /run-invoker "$@"
    "#;
    let child = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "bash",
            "-c",
            script,
            "run",
        ])
        .args([&image.root, &mounted])
        .args([
            "--anonymous",
            "--cloud-run-endpoint",
            &by_name(sandbox.run_url()),
        ])
        .args(["--listen", &format!("127.0.0.1:{port}"), "--log", "info"])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("KUBECONFIG", "/config/kubeconfig")
        .env("POD_NAME", "image-test")
        .env("POD_NAMESPACE", "default")
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let child = Running(child);
    let url = format!("http://127.0.0.1:{port}/readyz");
    eventually(Duration::from_secs(30), "/readyz is green", || async {
        match reqwest::get(&url).await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", child.0.id())).unwrap();
    let status = proc("status");
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(field("Name:"), "run-invoker");
    assert_eq!(field("Uid:"), "65532 65532 65532 65532");
    assert_eq!(field("Gid:"), "65532 65532 65532 65532");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    let mounts = proc("mountinfo");
    let options: Vec<(&str, &str)> = mounts
        .lines()
        .map(|l| l.split(' ').collect::<Vec<_>>())
        .map(|f| (f[4], f[5]))
        .collect();
    assert!(options.iter().any(|(at, _)| *at == "/"), "{mounts}");
    for (at, options) in options {
        assert!(
            options.split(',').any(|o| o == "ro"),
            "{at} can be written: {options}"
        );
    }
    // Ready is not all: it grants, too.
    let policy = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": "web"},
        "spec": {"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}], "mode": "Enforce",
            "invokers": [{"member": "user:a@acme.com"}]}});
    let policies: Api<InvokerPolicy> = Api::namespaced(client, "default");
    let policy = serde_json::from_value(policy).unwrap();
    policies
        .create(&PostParams::default(), &policy)
        .await
        .unwrap();
    eventually(Duration::from_secs(30), "the grant is made", || async {
        let run = &sandbox.run;
        match run.members("acme-prod", "europe-west1", "web", "roles/run.invoker") {
            members if members == ["user:a@acme.com"] => Ok(()),
            members => Err(format!("{members:?}")),
        }
    })
    .await;
    println!("the image runs as 65532 with a read-only root, /readyz is green, and it grants");
}
