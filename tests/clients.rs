//! Real clients against the sandbox: `kubectl`, `gcloud`, and Google's Python library, so that the
//! sandbox is not shaped after our own client. `make tools` fetches kubectl and the Python library;
//! gcloud is used where it is installed.
#![expect(clippy::unwrap_used, reason = "a test that fails panics")]
#![expect(clippy::print_stdout, reason = "says what is not tested")]

mod common;

#[path = "clients/access.rs"]
mod access;

use std::{path::PathBuf, process::Command, time::Duration};

use common::{Operator, Setup, Shell, eventually, which};
use sandbox::Sandbox;

/// Where a tool is. On CI it must be there; elsewhere its absence is said aloud.
fn need(tool: &str) -> Option<PathBuf> {
    let found = which(tool);
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "{tool} is not installed, and on CI this test must run"
        );
        println!("NOT TESTED: {tool} is not installed");
    }
    found
}

const POLICY: &str = "apiVersion: run-invoker.dev/v1alpha1
kind: InvokerPolicy
metadata: {name: web, namespace: shop}
spec:
  project: acme-prod
  services: [{name: web, region: europe-west1}]
  invokers: [{member: 'user:a@acme.com'}]
";

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("run-invoker-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kubectl_cannot_tell_the_sandbox_from_a_real_api_server() {
    let Some(program) = need("kubectl") else {
        return;
    };
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    sandbox.run.deploy("acme-prod", "europe-west1", "web", &[]);
    let home = folder("kubectl");
    std::fs::write(home.join("config"), sandbox.kubeconfig()).unwrap();
    let kubectl = Shell {
        program,
        env: vec![
            (
                "KUBECONFIG".into(),
                home.join("config").display().to_string(),
            ),
            ("HOME".into(), home.display().to_string()),
        ],
    };
    let crds = common::repository("crds");

    kubectl.ok(&["apply", "-f", crds.to_str().unwrap()]).await;
    kubectl
        .ok(&[
            "wait",
            "--for=condition=Established",
            "crd/invokerpolicies.run-invoker.dev",
            "--timeout=10s",
        ])
        .await;
    assert!(
        kubectl
            .ok(&["apply", "-f", crds.to_str().unwrap()])
            .await
            .contains("unchanged")
    );
    let client = common::client(&sandbox.kubeconfig()).await;
    let operator = Operator::start(client, sandbox.run_url(), &Setup::default()).await;
    let file = |name: &str, text: &str| {
        let path = home.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    kubectl
        .ok(&[
            "apply",
            "-f",
            &file(
                "ns.yaml",
                "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
            ),
        ])
        .await;

    // Refusals carry the rule's own words.
    let (fine, text) = kubectl
        .run(
            &["apply", "-f", "-"],
            &POLICY.replace("user:a@acme.com", "AllUsers"),
        )
        .await;
    assert!(
        !fine
            && text.contains("spec.invokers[0].member: Invalid value")
            && text.contains("case counts; write allUsers"),
        "{text}"
    );
    let (fine, text) = kubectl
        .run(
            &["apply", "-f", "-"],
            &POLICY.replace("project:", "projekt:"),
        )
        .await;
    assert!(
        !fine && text.contains("unknown field \"spec.projekt\""),
        "{text}"
    );

    let path = file("policy.yaml", POLICY);
    assert!(
        kubectl
            .ok(&["apply", "--dry-run=server", "-f", &path])
            .await
            .contains("created (server dry run)")
    );
    assert!(
        kubectl
            .ok(&["apply", "-f", &path])
            .await
            .contains("created")
    );
    assert!(
        kubectl
            .ok(&["apply", "-f", &path])
            .await
            .contains("unchanged")
    );
    kubectl
        .ok(&[
            "-n",
            "shop",
            "wait",
            "--for=condition=Ready",
            "ivp/web",
            "--timeout=20s",
        ])
        .await;
    let table = kubectl.ok(&["get", "ivp", "-A"]).await;
    let mut lines = table.lines();
    assert_eq!(
        lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
        [
            "NAMESPACE",
            "NAME",
            "MODE",
            "READY",
            "SERVICES",
            "DRIFTED",
            "REASON",
            "AGE"
        ]
    );
    assert_eq!(
        lines
            .next()
            .unwrap()
            .split_whitespace()
            .take(7)
            .collect::<Vec<_>>(),
        ["shop", "web", "Audit", "True", "1", "1", "Audited"]
    );
    let wide = kubectl
        .ok(&["-n", "shop", "get", "ivp", "-o", "wide"])
        .await;
    assert!(
        wide.contains("MISSING") && wide.contains("UNEXPECTED") && wide.contains("LAST CHANGE"),
        "{wide}"
    );
    assert!(
        kubectl
            .ok(&["get", "run-invoker", "-n", "shop"])
            .await
            .contains("web"),
        "the category finds it"
    );
    assert!(
        kubectl
            .ok(&["-n", "shop", "get", "ivp", "web", "-o", "yaml"])
            .await
            .contains("observedGeneration: 1")
    );
    let explained = kubectl.ok(&["explain", "invokerpolicy.spec.mode"]).await;
    assert!(
        explained.contains("Audit reports only and writes nothing to IAM"),
        "{explained}"
    );
    assert!(kubectl.ok(&["diff", "-f", &path]).await.is_empty());

    // Patches, server-side apply and its conflicts.
    kubectl
        .ok(&[
            "-n",
            "shop",
            "patch",
            "ivp",
            "web",
            "--type=merge",
            "-p",
            "{\"spec\":{\"mode\":\"Enforce\"}}",
        ])
        .await;
    kubectl
        .ok(&[
            "-n",
            "shop",
            "wait",
            "--for=jsonpath={.status.conditions[?(@.type=='Ready')].reason}=InSync",
            "ivp/web",
            "--timeout=20s",
        ])
        .await;
    let (fine, text) = kubectl
        .run(
            &["apply", "--server-side", "--field-manager=git", "-f", "-"],
            &POLICY.replace("spec:", "spec:\n  mode: Audit"),
        )
        .await;
    assert!(
        !fine && text.contains("conflict with \"kubectl-patch\""),
        "{text}"
    );
    kubectl
        .ok(&[
            "-n",
            "shop",
            "patch",
            "ivp",
            "web",
            "--type=json",
            "-p",
            "[{\"op\":\"replace\",\"path\":\"/spec/interval\",\"value\":\"1m\"}]",
        ])
        .await;
    let edit = Shell {
        program: kubectl.program.clone(),
        env: [
            kubectl.env.clone(),
            vec![("EDITOR".into(), "sed -i s/1m/2m/".into())],
        ]
        .concat(),
    };
    assert!(
        edit.ok(&["-n", "shop", "edit", "ivp", "web"])
            .await
            .contains("edited")
    );
    let (fine, text) = kubectl
        .run(
            &[
                "-n",
                "shop",
                "patch",
                "ivp",
                "web",
                "--type=merge",
                "-p",
                "{\"spec\":{\"project\":\"other-prod\"}}",
            ],
            "",
        )
        .await;
    assert!(!fine && text.contains("project cannot be changed"), "{text}");

    let described = kubectl.ok(&["-n", "shop", "describe", "ivp", "web"]).await;
    assert!(
        described.contains("Granted") && described.contains("web (europe-west1): user:a@acme.com"),
        "{described}"
    );
    assert!(
        kubectl
            .ok(&["-n", "shop", "get", "events"])
            .await
            .contains("Granted")
    );
    assert!(kubectl.ok(&["get", "lease"]).await.contains("under-test"));

    // A watch sees the deletion.
    let watching = {
        let (program, env) = (kubectl.program.clone(), kubectl.env.clone());
        tokio::spawn(async move {
            let shell = Shell { program, env };
            shell
                .run(
                    &[
                        "-n",
                        "shop",
                        "wait",
                        "--for=delete",
                        "ivp/web",
                        "--timeout=20s",
                    ],
                    "",
                )
                .await
        })
    };
    kubectl
        .ok(&["-n", "shop", "delete", "ivp", "web", "--timeout=20s"])
        .await;
    assert!(watching.await.unwrap().0);
    assert!(
        sandbox
            .run
            .members("acme-prod", "europe-west1", "web", "roles/run.invoker")
            .is_empty()
    );
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gcloud_works_unchanged_and_what_it_does_is_seen_as_drift() {
    let Some(program) = need("gcloud") else {
        return;
    };
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    sandbox
        .run
        .deploy("acme-prod", "europe-west1", "web", &[("team", "shop")]);
    let gcloud = common::gcloud(program, &sandbox);
    assert!(
        gcloud
            .ok(&["run", "services", "list"])
            .await
            .contains("web")
    );
    let service = ["web", "--region", "europe-west1"];
    let binding = ["--member", "user:a@acme.com", "--role", "roles/run.invoker"];
    let cmd = |verb: &'static str, rest: &[&'static str]| {
        [&["run", "services", verb][..], &service, rest].concat()
    };
    assert!(
        gcloud
            .ok(&cmd("get-iam-policy", &[]))
            .await
            .contains("etag: ACAB")
    );
    gcloud.ok(&cmd("add-iam-policy-binding", &binding)).await;
    assert_eq!(
        sandbox
            .run
            .members("acme-prod", "europe-west1", "web", "roles/run.invoker"),
        ["user:a@acme.com"]
    );
    gcloud
        .ok(&cmd(
            "add-iam-policy-binding",
            &[
                "--member",
                "user:c@acme.com",
                "--role",
                "roles/run.invoker",
                "--condition",
                "title=t,expression=request.path.startsWith('/x')",
            ],
        ))
        .await;
    let saved = gcloud
        .ok(&cmd("get-iam-policy", &["--format", "json"]))
        .await;
    assert!(
        saved.contains("\"version\": 3") && saved.contains("request.path"),
        "{saved}"
    );
    let file = folder("gcloud").join("policy.json").display().to_string();
    std::fs::write(&file, &saved).unwrap();
    gcloud
        .ok(&[
            "run",
            "services",
            "set-iam-policy",
            "web",
            &file,
            "--region",
            "europe-west1",
        ])
        .await;
    let (fine, text) = gcloud
        .run(
            &[
                "run",
                "services",
                "set-iam-policy",
                "web",
                &file,
                "--region",
                "europe-west1",
            ],
            "",
        )
        .await;
    assert!(
        !fine && text.contains("ABORTED: There were concurrent policy changes"),
        "{text}"
    );
    gcloud
        .ok(&cmd(
            "remove-iam-policy-binding",
            &[
                "--member",
                "user:a@acme.com",
                "--role",
                "roles/run.invoker",
                "--condition",
                "None",
            ],
        ))
        .await;
    let (fine, text) = gcloud
        .run(
            &[
                "run",
                "services",
                "get-iam-policy",
                "nope",
                "--region",
                "europe-west1",
            ],
            "",
        )
        .await;
    assert!(!fine && text.contains("does not exist"), "{text}");

    // The operator sees it.
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    common::namespace(&client, "shop").await;
    let operator = Operator::start(client.clone(), sandbox.run_url(), &Setup::default()).await;
    let policy: serde_json::Value =
        serde_saphyr::from_str(&POLICY.replace("spec:", "spec:\n  mode: Enforce\n  interval: 10s"))
            .unwrap();
    let api: kube::Api<run_invoker::api::InvokerPolicy> = kube::Api::namespaced(client, "shop");
    api.create(
        &Default::default(),
        &serde_json::from_value(policy).unwrap(),
    )
    .await
    .unwrap();
    let declared = || async {
        let members = sandbox
            .run
            .members("acme-prod", "europe-west1", "web", "roles/run.invoker");
        if members == ["user:a@acme.com"] {
            Ok(())
        } else {
            Err(format!("{members:?}"))
        }
    };
    eventually(Duration::from_secs(10), "granted", declared).await;
    gcloud
        .ok(&cmd(
            "add-iam-policy-binding",
            &[
                "--member",
                "user:intruder@evil.com",
                "--role",
                "roles/run.invoker",
                "--condition",
                "None",
            ],
        ))
        .await;
    eventually(Duration::from_secs(25), "corrected", declared).await;
    let after = gcloud.ok(&cmd("get-iam-policy", &[])).await;
    assert!(
        after.contains("user:c@acme.com") && !after.contains("intruder"),
        "foreign conditions stay: {after}"
    );
    operator.stop().await;
}

/// Runs a script of Google's Python clients, which gets the address of the sandbox.
async fn witness(sandbox: &Sandbox, script: &'static str) {
    let python = common::repository("bin/witness/bin/python");
    if !python.exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "bin/witness is not there; run `make tools`"
        );
        println!("NOT TESTED: bin/witness is not there; run `make tools`");
        return;
    }
    let host = sandbox.run_url().replace("http://", "");
    let output = tokio::task::spawn_blocking(move || {
        Command::new(python)
            .arg(common::repository(script))
            .arg(host)
            .output()
            .unwrap()
    })
    .await
    .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success() && text.contains("witness: all fine"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn googles_python_library_is_a_second_witness() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    for i in 0..5 {
        sandbox.run.deploy(
            "acme-prod",
            "europe-west1",
            &format!("web{i}"),
            &[("n", "x")],
        );
    }
    sandbox.run.change_world(|w| w.page_cap = Some(2));
    witness(&sandbox, "tests/witness.py").await;
}
