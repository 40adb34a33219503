//! `make demo`: the sandbox, the real operator binary, sample policies, drift from outside; told as
//! it happens.
//!
//! Exits non-zero if any step of the story did not happen. `--keep` leaves everything running.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Parser;
use sandbox::{Api, Options, Pubsub, Sandbox};
use serde_json::{Value, json};

/// Shows what run-invoker does, in under a minute, on this machine only.
#[derive(Parser)]
struct Args {
    /// Leave the sandbox and the operator running until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// With --keep: services and no policies, and no story.
    #[arg(long)]
    bare: bool,
    /// Without the Pub/Sub emulator, even if it is installed: drift is detected by polling alone.
    #[arg(long)]
    no_events: bool,
    /// Where the kubeconfig, the environment and the operator's log go; `.demo` if not given.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// With --keep: free ports instead of 8001 to 8003 and 8080.
    #[arg(long)]
    any_port: bool,
}

struct Stage {
    sandbox: Sandbox,
    http: reqwest::Client,
    colour: bool,
    started: Instant,
    folder: PathBuf,
    mark: u64,
}

const PROJECT: &str = "acme-prod";
const EU: &str = "europe-west1";
const US: &str = "us-central1";
const INVOKER: &str = "roles/run.invoker";
/// The operator's own namespace: where the chart puts it, and `doctor` looks for it.
const HOME: &str = "run-invoker";

/// Ends the operator with the demo, however that ends.
struct Operator(Child);
impl Drop for Operator {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-TERM", &self.0.id().to_string()])
            .status();
        let _ = self.0.wait();
    }
}

impl Stage {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
    fn chapter(&self, title: &str) {
        println!(
            "\n{} {}",
            self.paint(
                "1;36",
                &format!("[{:4.1}s]", self.started.elapsed().as_secs_f64())
            ),
            self.paint("1", title)
        );
    }
    fn say(&self, text: &str) {
        for line in text.lines() {
            println!("        {line}");
        }
    }
    fn command(&self, text: &str) {
        println!("        {}", self.paint("33", &format!("$ {text}")));
    }
    fn good(&self, text: &str) {
        println!("      {} {text}", self.paint("32", "✔"));
    }

    /// Applies a file as `kubectl apply --server-side -f` does.
    async fn apply(&self, file: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        for part in text.split("\n---") {
            let object: Value = serde_saphyr::from_str(part)?;
            let (kind, meta) = (
                object["kind"].as_str().unwrap_or_default(),
                &object["metadata"],
            );
            let name = meta["name"].as_str().unwrap_or_default();
            let path = match kind {
                "Namespace" => format!("/api/v1/namespaces/{name}"),
                "CustomResourceDefinition" => {
                    format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
                }
                "InvokerGuardrail" => {
                    format!("/apis/run-invoker.dev/v1alpha1/invokerguardrails/{name}")
                }
                "InvokerPolicy" => {
                    policy_path(meta["namespace"].as_str().unwrap_or_default(), name)
                }
                other => bail!("{}: no idea how to apply a {other}", file.display()),
            };
            let path = format!("{path}?fieldManager=demo&force=true&fieldValidation=Strict");
            self.patch(&path, "application/apply-patch+yaml", part.to_owned())
                .await?;
        }
        Ok(())
    }

    async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let path = format!("/api/v1/namespaces/{name}?fieldManager=demo&force=true");
        self.patch(&path, "application/apply-patch+yaml", object.to_string())
            .await
    }

    async fn patch(&self, path: &str, content_type: &str, body: String) -> anyhow::Result<()> {
        let url = format!("{}{path}", self.sandbox.kube_url());
        let answer = self
            .http
            .patch(url)
            .header("content-type", content_type)
            .body(body)
            .send()
            .await?;
        if !answer.status().is_success() {
            bail!(
                "{path} was refused: {}",
                answer.json::<Value>().await?["message"]
            );
        }
        Ok(())
    }

    /// Everything of a kind in a namespace.
    async fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let url = format!("{}{path}", self.sandbox.kube_url());
        let list: Value = self
            .http
            .get(url)
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    async fn policy(&self, key: &str) -> anyhow::Result<Option<Value>> {
        let (ns, name) = key.split_once('/').unwrap_or_default();
        let answer = self
            .http
            .get(format!(
                "{}{}",
                self.sandbox.kube_url(),
                policy_path(ns, name)
            ))
            .send()
            .await?;
        Ok(if answer.status() == 404 {
            None
        } else {
            Some(answer.json().await?)
        })
    }

    async fn merge(&self, key: &str, patch: Value) -> anyhow::Result<()> {
        let (ns, name) = key.split_once('/').unwrap_or_default();
        self.patch(
            &policy_path(ns, name),
            "application/merge-patch+json",
            patch.to_string(),
        )
        .await
    }

    /// Asks for a reconcile now, as `kubectl annotate` does.
    async fn nudge(&self, key: &str) -> anyhow::Result<()> {
        let value = self.sandbox.journal.last().to_string();
        self.merge(
            key,
            json!({"metadata": {"annotations": {"run-invoker.dev/requested-at": value}}}),
        )
        .await
    }

    /// Waits for a condition; prints its message.
    async fn wait(&self, key: &str, type_: &str, status: &str, reason: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.policy(key).await?.unwrap_or_default();
            let condition = found["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|c| c["type"] == type_)
                .cloned()
                .unwrap_or_default();
            if condition["status"] == status
                && condition["reason"] == reason
                && condition["observedGeneration"] == found["metadata"]["generation"]
            {
                let text = format!("{key}: {type_}={status} ({reason})");
                println!("      {} {}", self.paint("32", "✔"), self.paint("1", &text));
                self.say(&wrap(condition["message"].as_str().unwrap_or_default(), 70));
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "{key} did not become {type_}={status} ({reason}); it says {}",
                    found["status"]
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Lets a ServiceAccount of the namespace payments do what the chart's role of that name does.
    async fn bind(&self, who: &str, role: &str, resource: &str) -> anyhow::Result<()> {
        let group = "rbac.authorization.k8s.io";
        let kinds = "/apis/rbac.authorization.k8s.io/v1/namespaces/payments";
        let rules = json!([
            {"apiGroups": ["run-invoker.dev"], "resources": [resource], "verbs": ["create", "get", "list"]},
            {"apiGroups": ["run-invoker.dev"], "resources": ["invokeraccessrequests", "invokerpolicies"], "verbs": ["get", "list"]}]);
        let role_object = json!({"apiVersion": format!("{group}/v1"), "kind": "Role",
            "metadata": {"name": role, "namespace": "payments"}, "rules": rules});
        let binding = json!({"apiVersion": format!("{group}/v1"), "kind": "RoleBinding",
            "metadata": {"name": role, "namespace": "payments"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": who, "namespace": "payments"}]});
        for (plural, object) in [("roles", role_object), ("rolebindings", binding)] {
            let path = format!("{kinds}/{plural}/{role}?fieldManager=demo&force=true");
            self.patch(&path, "application/apply-patch+yaml", object.to_string())
                .await?;
        }
        self.command(&format!(
            "kubectl -n payments create rolebinding {role} --clusterrole run-invoker-{role} \\"
        ));
        self.say(&format!("    --serviceaccount payments:{who}"));
        Ok(())
    }

    /// Runs the plugin as somebody of the namespace payments, and shows what it says.
    async fn plugin(&self, who: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let shown: Vec<String> = arguments
            .iter()
            .map(|a| {
                if a.contains(' ') {
                    format!("'{a}'")
                } else {
                    (*a).to_owned()
                }
            })
            .collect();
        let shown = wrap(&shown.join(" "), 60).replace('\n', " \\\n    ");
        let mut lines = shown.lines();
        let first = lines.next().unwrap_or_default();
        self.say(&format!("{who}:"));
        self.command(&format!("kubectl invoker {first}"));
        lines.for_each(|line| self.say(line));
        let config = self.folder.join(format!("kubeconfig-{who}"));
        std::fs::write(&config, self.sandbox.kubeconfig_of("payments", who))?;
        let program = std::env::current_exe()?
            .parent()
            .and_then(Path::parent)
            .map(|p| p.join("kubectl-invoker"))
            .context("no target folder")?;
        let output = tokio::process::Command::new(program)
            .args(arguments)
            .args(["-n", "payments"])
            .env("KUBECONFIG", config)
            .env("RUN_INVOKER_CLOUD_RUN_ENDPOINT", self.sandbox.run_url())
            .env("RUN_INVOKER_ANONYMOUS", "true")
            .env("COLUMNS", "80")
            .output()
            .await?;
        self.say(String::from_utf8_lossy(&output.stdout).trim_end());
        self.say(&wrap(&String::from_utf8_lossy(&output.stderr), 70));
        anyhow::ensure!(output.status.success(), "{}", output.status);
        Ok(())
    }

    /// Waits until a request in payments is in a phase; prints its message.
    async fn request(&self, name: &str, phase: &str) -> anyhow::Result<()> {
        let url = format!(
            "{}/apis/run-invoker.dev/v1alpha1/namespaces/payments/invokeraccessrequests/{name}",
            self.sandbox.kube_url()
        );
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let found: Value = self.http.get(&url).send().await?.json().await?;
            // Pending it is from the first moment; with a plan the operator has read it.
            let is_read = found["status"]["plan"].is_string();
            if is_read && found["status"]["phase"] == phase {
                let text = format!("payments/{name}: {phase}");
                println!("      {} {}", self.paint("32", "✔"), self.paint("1", &text));
                let message = found["status"]["message"].as_str().unwrap_or_default();
                self.say(&wrap(message, 70));
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{name} did not become {phase}; it says {}",
                found["status"]
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until IAM has exactly these unconditional invokers.
    async fn iam(&self, region: &str, name: &str, wanted: &[&str]) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(25);
        let mut wanted: Vec<&str> = wanted.to_vec();
        wanted.sort_unstable();
        loop {
            let have = self.sandbox.run.members(PROJECT, region, name, INVOKER);
            if have == wanted {
                self.good(&format!("IAM of {name} ({region}):"));
                for m in &have {
                    self.say(&format!("  {m}"));
                }
                if have.is_empty() {
                    self.say("  (nobody)");
                }
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("IAM of {name} ({region}) is {have:?}, not {wanted:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn mark(&mut self) {
        self.mark = self.sandbox.journal.last();
    }

    fn calls(&self) -> (usize, usize) {
        let ours = self.sandbox.journal.since(self.mark, |e| {
            e.api == Api::Run && !e.user_agent.contains("gcloud")
        });
        let count = |suffix: &str| ours.iter().filter(|e| e.path().ends_with(suffix)).count();
        (count(":getIamPolicy"), count(":setIamPolicy"))
    }

    /// What `gcloud run services add-iam-policy-binding` sends: one read and one write by v1, with
    /// the etag.
    async fn gcloud_add(&self, region: &str, name: &str, member: &str) -> anyhow::Result<()> {
        self.command(&format!(
            "gcloud run services add-iam-policy-binding {name} \\"
        ));
        self.say(&format!(
            "    --region {region} --role {INVOKER} --member {member}"
        ));
        let base = format!(
            "{}/v1/projects/{PROJECT}/locations/{region}/services/{name}",
            self.sandbox.run_url()
        );
        let agent = "google-cloud-sdk gcloud/demo";
        let mut policy: Value = self
            .http
            .get(format!(
                "{base}:getIamPolicy?alt=json&options.requestedPolicyVersion=3"
            ))
            .header("user-agent", agent)
            .header("authorization", "Bearer as:mallory@acme.com")
            .send()
            .await?
            .json()
            .await?;
        let bindings = policy["bindings"].as_array_mut().context("no bindings")?;
        match bindings
            .iter_mut()
            .find(|b| b["role"] == INVOKER && b["condition"].is_null())
        {
            Some(b) => b["members"]
                .as_array_mut()
                .context("no members")?
                .push(json!(member)),
            None => bindings.push(json!({"role": INVOKER, "members": [member]})),
        }
        policy["version"] = json!(3);
        let answer = self
            .http
            .post(format!("{base}:setIamPolicy?alt=json"))
            .header("user-agent", agent)
            .header("authorization", "Bearer as:mallory@acme.com")
            .json(&json!({"policy": policy}))
            .send()
            .await?;
        if !answer.status().is_success() {
            bail!("the drift could not be made: {}", answer.text().await?);
        }
        Ok(())
    }
}

fn policy_path(ns: &str, name: &str) -> String {
    format!("/apis/run-invoker.dev/v1alpha1/namespaces/{ns}/invokerpolicies/{name}")
}

fn wrap(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let full = lines
            .last()
            .is_some_and(|l| !l.is_empty() && l.chars().count() + word.chars().count() >= width);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = args.folder.clone().unwrap_or_else(|| root.join(".demo"));
    std::fs::create_dir_all(&folder)?;
    let fixed_ports = args.keep && !args.any_port;
    let options = if fixed_ports {
        let at = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        Options {
            kube: at(8001),
            run: at(8002),
            control: at(8003),
        }
    } else {
        Options::default()
    };
    let sandbox = Sandbox::start(options)
        .await
        .context("starting the sandbox (is another demo running with --keep?)")?;
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut stage = Stage {
        sandbox,
        http: reqwest::Client::new(),
        colour,
        started: Instant::now(),
        folder,
        mark: 0,
    };

    println!(
        "{}",
        stage.paint(
            "1",
            "run-invoker: Cloud Run IAM, reconciled to policies in Git"
        )
    );
    println!("A sandbox stands in for the cluster and for Google; the operator is the real one.");

    stage.chapter("A project with services, some access granted by hand long ago");
    stage
        .sandbox
        .run
        .deploy(PROJECT, EU, "checkout", &[("team", "shop")]);
    stage
        .sandbox
        .run
        .deploy(PROJECT, EU, "reports", &[("team", "shop")]);
    stage
        .sandbox
        .run
        .deploy(PROJECT, EU, "invoices", &[("team", "payments")]);
    stage
        .sandbox
        .run
        .deploy(PROJECT, US, "ledger", &[("team", "payments")]);
    stage.sandbox.run.add_member(
        PROJECT,
        EU,
        "checkout",
        INVOKER,
        "user:left-in-2023@acme.com",
    );
    stage.sandbox.run.deploy(PROJECT, EU, "archive", &[]);
    for n in 1..=4 {
        stage.sandbox.run.add_member(
            PROJECT,
            EU,
            "archive",
            INVOKER,
            &format!("user:auditor{n}@acme.com"),
        );
    }
    stage
        .sandbox
        .run
        .change_world(|w| w.unknown = ["typo@acme-prod.iam.gserviceaccount.com".to_owned()].into());
    for (p, r, n) in stage.sandbox.run.services() {
        stage.say(&format!("{p}  {r:<13} {n}"));
    }

    let config = stage.folder.join("kubeconfig");
    std::fs::write(&config, stage.sandbox.kubeconfig())?;
    let definitions = std::fs::read_dir(root.join("crds"))?;
    let mut definitions: Vec<_> = definitions
        .map(|e| Ok(e?.path()))
        .collect::<std::io::Result<_>>()?;
    definitions.sort();
    for definition in definitions {
        stage.apply(&definition).await?;
    }
    stage
        .apply(&root.join("samples/00-namespaces.yaml"))
        .await?;
    stage.namespace(HOME).await?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let listen = if fixed_ports {
        "127.0.0.1:8080".to_owned()
    } else {
        format!("127.0.0.1:{port}")
    };
    let pubsub = if args.no_events {
        None
    } else {
        let started = Pubsub::start().await;
        started.context("starting the Pub/Sub emulator")?
    };
    match &pubsub {
        Some(_) => {
            stage.say("Audit events come over Google's own Pub/Sub emulator, which gcloud brought.")
        }
        None => stage.say(
            "The Pub/Sub emulator of gcloud is not installed: drift is detected by polling alone.",
        ),
    }
    if let Some(pubsub) = &pubsub {
        stage
            .sandbox
            .run
            .audit
            .publish_to(&pubsub.endpoint(), Pubsub::TOPIC);
    }
    let mut operator = start_operator(&stage, &config, &listen, pubsub.as_ref())?;
    if args.bare {
        return keep(&stage, &config, &listen).await;
    }

    stage.chapter("1. Audit: a first apply only shows the plan");
    stage.command("kubectl apply -f samples/10-audit.yaml");
    stage.mark();
    stage.apply(&root.join("samples/10-audit.yaml")).await?;
    stage
        .wait("shop/checkout", "Drifted", "True", "Drifted")
        .await?;
    let (_, writes) = stage.calls();
    anyhow::ensure!(writes == 0, "audit wrote to IAM");
    stage.good("nothing was written to IAM");

    stage.chapter("2. Enforce: IAM is reconciled to the policy");
    stage.command("kubectl -n shop patch ivp checkout --type merge \\");
    stage.say("    -p '{\"spec\":{\"mode\":\"Enforce\"}}'");
    stage.mark();
    stage
        .merge("shop/checkout", json!({"spec": {"mode": "Enforce"}}))
        .await?;
    stage
        .wait("shop/checkout", "Ready", "True", "InSync")
        .await?;
    let declared = [
        "group:shop-oncall@acme.com",
        "serviceAccount:frontend@acme-prod.iam.gserviceaccount.com",
    ];
    stage.iam(EU, "checkout", &declared).await?;
    let (reads, writes) = stage.calls();
    anyhow::ensure!(writes == 1, "{writes} writes for one change");
    stage.good(&format!(
        "{reads} reads (one to plan, one to verify) and {writes} write"
    ));

    stage.chapter("3. A selector: every service of a team, wherever it runs");
    stage.command("kubectl apply -f samples/20-selector.yaml");
    stage.apply(&root.join("samples/20-selector.yaml")).await?;
    stage
        .wait("payments/payments", "Ready", "True", "InSync")
        .await?;
    stage
        .iam(
            EU,
            "invoices",
            &["serviceAccount:frontend@acme-prod.iam.gserviceaccount.com"],
        )
        .await?;
    stage
        .iam(
            US,
            "ledger",
            &["serviceAccount:frontend@acme-prod.iam.gserviceaccount.com"],
        )
        .await?;

    stage.chapter("4. Access that ends by itself");
    stage.command("kubectl apply -f samples/30-expiring.yaml");
    stage.apply(&root.join("samples/30-expiring.yaml")).await?;
    stage
        .wait("payments/incident", "Ready", "True", "InSync")
        .await?;
    let policy = stage
        .sandbox
        .run
        .policy(PROJECT, US, "ledger")
        .unwrap_or_default();
    let expiring = policy["bindings"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|b| b["condition"].is_object())
        .context("no condition in IAM")?;
    stage.good("IAM enforces the end, also while the operator is down:");
    stage.say(&format!(
        "  {}\n  if {}",
        expiring["members"][0].as_str().unwrap_or_default(),
        expiring["condition"]["expression"]
            .as_str()
            .unwrap_or_default()
    ));

    stage.chapter("5. Access on request: Ada asks, Grace agrees, it ends by itself");
    stage.command("kubectl apply -f samples/70-requests.yaml");
    stage.apply(&root.join("samples/70-requests.yaml")).await?;
    stage
        .bind("ada", "requester", "invokeraccessrequests")
        .await?;
    stage.bind("grace", "approver", "invokerapprovals").await?;
    let ask = [
        "request",
        "--service",
        "ledger",
        "--region",
        US,
        "--name",
        "inc-7",
    ];
    let why = [
        "--for",
        "15s",
        "--reason",
        "INC-7: stuck",
        "--member",
        "user:ada@acme.com",
    ];
    stage.plugin("ada", &[&ask[..], &why[..]].concat()).await?;
    stage.request("inc-7", "Pending").await?;
    let agree = ["approve", "inc-7", "--request", "--yes", "--reason"];
    let refused = stage
        .plugin("ada", &[&agree[..], &["let me in"]].concat())
        .await;
    anyhow::ensure!(refused.is_err(), "she approved her own request");
    stage
        .plugin("grace", &[&agree[..], &["agreed by phone"]].concat())
        .await?;
    stage.request("inc-7", "Active").await?;

    stage.chapter("6. One invalid member never blocks the rest");
    stage.command("kubectl apply -f samples/40-bad-member.yaml");
    stage
        .apply(&root.join("samples/40-bad-member.yaml"))
        .await?;
    stage
        .wait("shop/reports", "Stalled", "True", "InvalidMember")
        .await?;
    stage
        .iam(EU, "reports", &["group:analysts@acme.com"])
        .await?;

    stage.chapter("7. Drift: somebody makes the checkout public from a laptop");
    stage.mark();
    stage.gcloud_add(EU, "checkout", "allUsers").await?;
    let made = Instant::now();
    stage.say(match &pubsub {
        Some(_) => "the audit log event arrives ...",
        None => "waiting for the next poll (every 10 s in this demo) ...",
    });
    stage.iam(EU, "checkout", &declared).await?;
    let (_, writes) = stage.calls();
    anyhow::ensure!(writes == 1, "{writes} writes to correct one drift");
    stage.good(&format!(
        "corrected {:.1} s after it was made, with one write, and on record:",
        made.elapsed().as_secs_f64()
    ));
    let deadline = Instant::now() + Duration::from_secs(10);
    let shown = loop {
        let events = stage
            .list("/apis/events.k8s.io/v1/namespaces/shop/events")
            .await?;
        let mut shown: Vec<(String, String)> = Vec::new();
        for e in &events {
            let (reason, note) = (
                e["reason"].as_str().unwrap_or_default(),
                e["note"].as_str().unwrap_or_default(),
            );
            if (reason.starts_with("Drift") || reason == "Revoked")
                && (note.contains("allUsers") || reason == "DriftCorrected")
            {
                shown.push((reason.into(), note.into()));
            }
        }
        if ["DriftDetected", "DriftCorrected"]
            .iter()
            .all(|r| shown.iter().any(|e| e.0 == *r))
        {
            break shown;
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "no event tells of the correction: {events:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    if pubsub.is_some() {
        let named = shown
            .iter()
            .any(|(_, note)| note.contains("by mallory@acme.com with gcloud"));
        anyhow::ensure!(named, "nobody says who made the drift: {shown:?}");
    }
    for (reason, note) in shown {
        stage.say(&wrap(&format!("{reason}: {note}"), 70));
    }

    stage.chapter("8. A guardrail: what the platform team lets a namespace declare");
    stage.command("kubectl apply -f samples/50-guardrail.yaml -f samples/51-partner.yaml");
    stage.apply(&root.join("samples/50-guardrail.yaml")).await?;
    stage.apply(&root.join("samples/51-partner.yaml")).await?;
    stage
        .wait("shop/partner", "Stalled", "True", "GuardrailViolated")
        .await?;
    stage
        .iam(
            EU,
            "reports",
            &["group:analysts@acme.com", "group:controlling@acme.com"],
        )
        .await?;

    stage.chapter("9. Large revocations need approval");
    stage.command("kubectl apply -f samples/60-archive.yaml");
    stage.apply(&root.join("samples/60-archive.yaml")).await?;
    stage
        .wait("shop/archive", "Stalled", "True", "ApprovalRequired")
        .await?;
    let found = stage.policy("shop/archive").await?.unwrap_or_default();
    let hash = found["status"]["services"][0]["approve"]
        .as_str()
        .context("no hash")?
        .to_owned();
    stage.command(&format!(
        "kubectl invoker approve archive -n shop --hash {hash}"
    ));
    stage
        .merge(
            "shop/archive",
            json!({"metadata": {"annotations": {"run-invoker.dev/approve": hash}}}),
        )
        .await?;
    stage
        .iam(EU, "archive", &["group:analysts@acme.com"])
        .await?;

    stage.chapter("10. Contested: something keeps adding the same member");
    for turn in 1..=4 {
        stage
            .gcloud_add(EU, "archive", "user:cron-job@acme.com")
            .await?;
        stage.nudge("shop/archive").await?;
        if turn <= 3 {
            stage
                .iam(EU, "archive", &["group:analysts@acme.com"])
                .await?;
        }
    }
    stage
        .wait("shop/archive", "Contested", "True", "Drifted")
        .await?;
    stage
        .wait("shop/archive", "Ready", "False", "Drifted")
        .await?;

    stage.chapter("11. Every write is recorded and can be rolled back");
    stage.command("kubectl -n shop get invokerchanges");
    let mut changes = stage
        .list("/apis/run-invoker.dev/v1alpha1/namespaces/shop/invokerchanges")
        .await?;
    changes.sort_by_key(|c| c["spec"]["at"].as_str().unwrap_or_default().to_owned());
    for c in &changes {
        let (s, name) = (
            &c["spec"],
            c["metadata"]["name"].as_str().unwrap_or_default(),
        );
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        stage.say(&format!(
            "{name:<38} {:<12} {:<8} +{} -{}",
            text(&s["reason"]),
            text(&s["outcome"]["phase"]),
            s["addedCount"],
            s["removedCount"]
        ));
    }
    let approved = changes
        .iter()
        .filter(|c| c["spec"]["reason"] == "Approved")
        .count();
    anyhow::ensure!(approved == 1, "{approved} approved changes on record");

    stage.chapter("12. Deleting a policy revokes what it listed, and nothing else");
    stage.command("kubectl -n payments delete ivp incident");
    let url = format!(
        "{}{}",
        stage.sandbox.kube_url(),
        policy_path("payments", "incident")
    );
    stage.http.delete(url).send().await?.error_for_status()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while stage.policy("payments/incident").await?.is_some() {
        anyhow::ensure!(Instant::now() < deadline, "the policy does not go");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left = stage
        .sandbox
        .run
        .policy(PROJECT, US, "ledger")
        .unwrap_or_default();
    anyhow::ensure!(
        !left.to_string().contains("ada@acme.com"),
        "the grant is still there: {left}"
    );
    stage.good("Ada's grant is gone");
    stage
        .iam(
            US,
            "ledger",
            &["serviceAccount:frontend@acme-prod.iam.gserviceaccount.com"],
        )
        .await?;

    stage.chapter("13. What was requested has ended");
    stage.request("inc-7", "Ended").await?;
    stage.plugin("grace", &["requests"]).await?;
    let left = stage.sandbox.run.policy(PROJECT, US, "ledger");
    anyhow::ensure!(
        !left
            .unwrap_or_default()
            .to_string()
            .contains("ada@acme.com"),
        "the grant is still there"
    );

    stage.chapter("Metrics that alerts use");
    stage.command(&format!("curl http://{listen}/metrics"));
    let metrics = stage
        .http
        .get(format!("http://{listen}/metrics"))
        .send()
        .await?
        .text()
        .await?;
    let mut told = 0;
    for line in metrics.lines().filter(|l| {
        [
            "run_invoker_policy_ready",
            "run_invoker_corrections_total",
            "run_invoker_drift_detected_total",
        ]
        .iter()
        .any(|p| l.starts_with(p))
    }) {
        stage.say(line);
        told += 1;
    }
    anyhow::ensure!(told > 4, "the metrics are not there");
    if let Some(code) = operator.0.try_wait()? {
        bail!(
            "the operator ended by itself: {code}; see {}",
            stage.folder.join("operator.log").display()
        );
    }

    println!(
        "\n{}",
        stage.paint(
            "1;32",
            &format!(
                "Every step happened, in {:.1} s.",
                stage.started.elapsed().as_secs_f64()
            )
        )
    );
    if args.keep {
        keep(&stage, &config, &listen).await?;
    } else {
        println!("Play with it yourself:  make demo KEEP=1   (leaves everything running)");
    }
    Ok(())
}

fn start_operator(
    stage: &Stage,
    config: &Path,
    listen: &str,
    pubsub: Option<&Pubsub>,
) -> anyhow::Result<Operator> {
    let binary = std::env::current_exe()?
        .parent()
        .and_then(Path::parent)
        .map(|p| p.join("run-invoker"))
        .context("no target folder")?;
    let log = std::fs::File::create(stage.folder.join("operator.log"))?;
    let child = Command::new(&binary)
        .args([
            "--cloud-run-endpoint",
            &stage.sandbox.run_url(),
            "--anonymous",
            "--listen",
            listen,
            "--lease-namespace",
            HOME,
        ])
        .args(pubsub.iter().flat_map(|p| {
            [
                "--event-subscription".to_owned(),
                Pubsub::SUBSCRIPTION.to_owned(),
                "--event-endpoint".to_owned(),
                p.endpoint(),
            ]
        }))
        .env("KUBECONFIG", config)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}; build it with: cargo build", binary.display()))?;
    Ok(Operator(child))
}

/// What the clients need to talk to the sandbox, as lines for a shell.
fn environment(stage: &Stage, config: &Path) -> anyhow::Result<String> {
    let token = stage.folder.join("token");
    std::fs::write(&token, "as:you@acme.com")?;
    let programs = std::env::current_exe()?
        .parent()
        .and_then(Path::parent)
        .map(Path::to_owned)
        .context("no target folder")?;
    let run = stage.sandbox.run_url();
    let lines = [
        "# kubectl".to_owned(),
        format!("export KUBECONFIG={}", config.display()),
        "# kubectl invoker".to_owned(),
        format!("export PATH={}:$PATH", programs.display()),
        format!("export RUN_INVOKER_CLOUD_RUN_ENDPOINT={run} RUN_INVOKER_ANONYMOUS=true"),
        "# gcloud".to_owned(),
        format!("export CLOUDSDK_API_ENDPOINT_OVERRIDES_RUN={run}/"),
        format!("export CLOUDSDK_AUTH_ACCESS_TOKEN_FILE={}", token.display()),
        format!(
            "export CLOUDSDK_CONFIG={}",
            stage.folder.join("gcloud").display()
        ),
        format!("export CLOUDSDK_CORE_PROJECT={PROJECT} CLOUDSDK_CORE_CHECK_GCE_METADATA=false"),
        "export CLOUDSDK_CORE_DISABLE_PROMPTS=1 CLOUDSDK_CORE_DISABLE_USAGE_REPORTING=true"
            .to_owned(),
    ];
    Ok(lines.join("\n") + "\n")
}

async fn keep(stage: &Stage, config: &Path, listen: &str) -> anyhow::Result<()> {
    let file = stage.folder.join("env");
    let environment = environment(stage, config)?;
    std::fs::write(&file, &environment)?;
    let shown = std::env::current_dir()
        .ok()
        .and_then(|here| file.strip_prefix(here).ok())
        .unwrap_or(&file);
    println!("\nIt stays up. In another terminal:");
    println!("\n  source {}", shown.display());
    println!("  kubectl get ivp -A");
    println!("  kubectl invoker drift -A");
    println!("  gcloud run services list");
    println!("\nwhich sets:\n");
    for line in environment.lines() {
        println!("  {line}");
    }
    println!("\nIn a browser:\n");
    println!(
        "  {}/         services and who may invoke them, live",
        stage.sandbox.control_url()
    );
    println!("  http://{listen}/metrics   the operator's metrics");
    println!(
        "\nThe operator's log: {}",
        stage.folder.join("operator.log").display()
    );
    println!("Ctrl-C ends it.");
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = tokio::signal::ctrl_c() => done?,
        _ = term.recv() => {}
    }
    Ok(())
}
