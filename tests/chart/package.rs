//! `make package`: the chart as an OCI package, pushed to a registry and installed from there.

use std::{collections::BTreeMap, process::Command};

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use sha2::{Digest as _, Sha256};

use super::*;

/// What a registry keeps: bytes by path.
type Shelf = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// As much of the OCI distribution protocol as helm speaks.
async fn registry(State(shelf): State<Shelf>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap().to_vec();
    let path = parts.uri.path().to_owned();
    let digest = |bytes: &[u8]| format!("sha256:{}", hex(&Sha256::digest(bytes)));
    let created = |digest: String| {
        let headers = [
            ("docker-content-digest", digest),
            ("location", path.clone()),
        ];
        (StatusCode::CREATED, headers).into_response()
    };
    match parts.method.as_str() {
        "POST" => {
            let location = [(header::LOCATION, format!("{path}1"))];
            (StatusCode::ACCEPTED, location).into_response()
        }
        "PUT" => {
            let digest = digest(&bytes);
            let mut shelf = shelf.lock().unwrap();
            if let Some((repository, _)) = path.split_once("/blobs/uploads/") {
                shelf.insert(format!("{repository}/blobs/{digest}"), bytes);
            } else {
                let (repository, _) = path.split_once("/manifests/").unwrap();
                shelf.insert(format!("{repository}/manifests/{digest}"), bytes.clone());
                shelf.insert(path.clone(), bytes);
            }
            created(digest)
        }
        _ => match shelf.lock().unwrap().get(&path) {
            _ if path == "/v2/" => StatusCode::OK.into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
            Some(bytes) => {
                let type_ = match path.contains("/manifests/") {
                    true => "application/vnd.oci.image.manifest.v1+json",
                    false => "application/octet-stream",
                };
                let headers = [
                    ("docker-content-digest", digest(bytes)),
                    ("content-type", type_.to_owned()),
                    ("content-length", bytes.len().to_string()),
                ];
                let body = match parts.method.as_str() {
                    "HEAD" => Body::empty(),
                    _ => Body::from(bytes.clone()),
                };
                (headers, body).into_response()
            }
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `make package` into a folder of its own.
fn package(out: &str, settings: &[(&str, &str)]) -> String {
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("bash")
        .arg(repository("charts/package.sh"))
        .envs(settings.iter().copied())
        .env("OUT", out)
        .env("PATH", format!("{}:{path}", repository("bin").display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let text = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_package_is_pushed_and_installed_from_a_registry() {
    let shelf = Shelf::default();
    let app = axum::Router::new()
        .fallback(registry)
        .with_state(shelf.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let out = std::env::temp_dir().join(format!("run-invoker-package-{}", std::process::id()));
    let folder = out.to_str().unwrap().to_owned();
    let version = env!("CARGO_PKG_VERSION");
    let digest = format!("sha256:{}", "7".repeat(64));
    let image = format!("registry.example.com/own@{digest}");
    let settings = {
        let digest = digest.clone();
        move |folder: String| {
            package(
                &folder,
                &[
                    ("IMAGE", "registry.example.com/own"),
                    ("DIGEST", &digest),
                    ("REGISTRY", &format!("oci://{host}/charts")),
                    ("PUSH_FLAGS", "--plain-http"),
                ],
            )
        }
    };
    let said = tokio::task::spawn_blocking({
        let folder = folder.clone();
        move || settings(folder)
    });
    let said = said.await.unwrap();
    assert!(
        said.contains(&format!("/charts/run-invoker:{version}")),
        "{said}"
    );
    assert!(
        shelf
            .lock()
            .unwrap()
            .contains_key(&format!("/v2/charts/run-invoker/manifests/{version}"))
    );
    // A cluster that has only the registry: the package says which image.
    let ground = Ground::sandbox().await;
    let chart = format!("oci://{host}/charts/run-invoker");
    let install = ["install", "run-invoker", &chart, "--create-namespace"];
    let from = ["--version", version, "--plain-http"];
    ground.helm().run(&[&install[..], &from].concat()).await;
    let manifest = ground.helm().run(&["get", "manifest", "run-invoker"]).await;
    assert!(manifest.contains(&format!("image: {image}")), "{manifest}");

    let file = out.join(format!("run-invoker-{version}.tgz"));
    let file = file.to_str().unwrap();
    let (_, listed) = tool("tar", &["tzf", file], &out);
    for wanted in ["README.md", "values.schema.json", "templates/NOTES.txt"] {
        assert!(
            listed.contains(&format!("run-invoker/{wanted}\n")),
            "{listed}"
        );
    }
    assert!(!listed.contains("run-invoker/tests/"), "{listed}");
    let (_, chart) = tool("helm", &["show", "chart", file], &out);
    assert!(chart.contains(&format!("image: {image}")), "{chart}");
    for part in ["readme", "values"] {
        let (_, text) = tool("helm", &["show", part, file], &out);
        assert!(
            !text.to_lowercase().contains("no image is published"),
            "{text}"
        );
        assert!(text.contains("registry.example.com/own"), "{text}");
        assert!(!text.contains("YOUR-REGISTRY"), "{text}");
        assert!(!text.contains(" charts/run-invoker"), "{text}");
    }
    // Without an image it is the chart of the repository, and nothing is pushed.
    let pushed = shelf.lock().unwrap().len();
    package(&folder, &[]);
    let (fine, text) = tool("helm", &["template", "x", file], &out);
    assert!(
        !fine && text.contains("image.repository is not set"),
        "{text}"
    );
    assert_eq!(shelf.lock().unwrap().len(), pushed);
    fs::remove_dir_all(out).unwrap();
}
