#![cfg(feature = "cli")]
//! The kubectl plugin: each folder of `tests/cli` is a case, a world and a script; what the real
//! program prints on both streams and its exit code are a golden transcript. Time is frozen. And
//! two properties: what `plan` prints is what the operator then does, and what `export` writes is
//! no drift.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]
#![expect(clippy::print_stdout, reason = "says what it measured")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use common::{Deployed, Operator, Setup, deploy, eventually, repository};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use run_invoker::api::{
    InvokerAccessRequest, InvokerApproval, InvokerChange, InvokerGuardrail, InvokerLedger,
    InvokerPolicy, REQUESTED_AT,
};
use sandbox::{Api as Side, Sandbox};
use serde::Deserialize;
use serde_json::{Value, json};

/// The time in every transcript.
const NOW: &str = "2026-11-24T12:00:00Z";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    description: String,
    #[serde(default)]
    services: Vec<Deployed>,
    /// Policies of projects.
    #[serde(default)]
    projects: BTreeMap<String, Value>,
    /// What the sandbox's world is like.
    #[serde(default)]
    world: Value,
    /// Organizations, folders and projects, as the sandbox's control API takes them.
    #[serde(default)]
    hierarchy: Value,
    /// Allow policies of projects, folders and organizations.
    #[serde(default)]
    above: BTreeMap<String, Value>,
    /// Custom roles, and the permissions in them.
    #[serde(default)]
    roles: BTreeMap<String, Vec<String>>,
    /// Deny policies, by what they are attached to.
    #[serde(default)]
    deny: BTreeMap<String, Value>,
    /// Objects in the cluster, status included.
    #[serde(default)]
    objects: Vec<Value>,
    /// Files beside the script, by name.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// Runs as this ServiceAccount (NAMESPACE/NAME), with the rights that the objects give it.
    user: Option<String>,
    /// Arguments of one run after the other, as in a shell.
    script: Vec<String>,
}

async fn put(client: &Client, object: &Value) {
    let kind = object["kind"].as_str().unwrap();
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("shop");
    let mut object = object.clone();
    let version = match kind {
        "ServiceAccount" | "Pod" => "v1",
        "Lease" => "coordination.k8s.io/v1",
        k if k.starts_with("Role") => "rbac.authorization.k8s.io/v1",
        _ => "run-invoker.dev/v1alpha1",
    };
    object["apiVersion"] = json!(version);
    let resource = match kind {
        "InvokerPolicy" => ApiResource::erase::<InvokerPolicy>(&()),
        "InvokerGuardrail" => ApiResource::erase::<InvokerGuardrail>(&()),
        "InvokerChange" => ApiResource::erase::<InvokerChange>(&()),
        "InvokerAccessRequest" => ApiResource::erase::<InvokerAccessRequest>(&()),
        "InvokerApproval" => ApiResource::erase::<InvokerApproval>(&()),
        "InvokerLedger" => ApiResource::erase::<InvokerLedger>(&()),
        "Role" => ApiResource::erase::<k8s_openapi::api::rbac::v1::Role>(&()),
        "RoleBinding" => ApiResource::erase::<k8s_openapi::api::rbac::v1::RoleBinding>(&()),
        "Pod" => ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()),
        "Lease" => ApiResource::erase::<k8s_openapi::api::coordination::v1::Lease>(&()),
        "ServiceAccount" => ApiResource::erase::<k8s_openapi::api::core::v1::ServiceAccount>(&()),
        other => panic!("{other}"),
    };
    let api: Api<DynamicObject> = if ["InvokerGuardrail", "InvokerLedger"].contains(&kind) {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    };
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    // The sandbox's Pods have their status inline.
    let status = if kind == "Pod" {
        None
    } else {
        object.as_object_mut().unwrap().remove("status")
    };
    api.patch(
        &name,
        &PatchParams::apply("tests").force(),
        &Patch::Apply(&object),
    )
    .await
    .unwrap();
    if let Some(status) = status {
        api.patch_status(
            &name,
            &PatchParams::default(),
            &Patch::Merge(json!({"status": status})),
        )
        .await
        .unwrap();
    }
}

/// The real program against a sandbox.
struct Plugin {
    folder: PathBuf,
    endpoint: String,
}

struct Ran {
    stdout: String,
    stderr: String,
    code: i32,
}

impl Plugin {
    fn new(sandbox: &Sandbox) -> Self {
        let folder = common::own_path("cli");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("kubeconfig"), sandbox.kubeconfig()).unwrap();
        Self {
            folder,
            endpoint: sandbox.run_url(),
        }
    }

    async fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[("RUN_INVOKER_ANONYMOUS", "true")])
            .await
    }

    async fn run_with(&self, args: &[&str], environment: &[(&str, &str)]) -> Ran {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-invoker"))
            .args(args)
            .current_dir(&self.folder)
            .env_clear()
            .env("KUBECONFIG", self.folder.join("kubeconfig"))
            .env("RUN_INVOKER_CLOUD_RUN_ENDPOINT", &self.endpoint)
            // As on a terminal of this width.
            .env("COLUMNS", "80")
            .envs(environment.iter().copied())
            .env("KUBECTL_INVOKER_NOW", NOW)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Ran {
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            code: output.status.code().unwrap(),
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Words of a command line; quotes hold words together, and are a word where nothing is in them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

async fn transcript(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("case.yaml")).unwrap();
    let value: Value =
        serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let case: Case =
        serde_json::from_value(value).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    // Etags have the time of the change in them, and the hash of an approval has the etag in it.
    sandbox.run.clock.freeze(NOW.parse().unwrap());
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    common::namespace(&client, "shop").await;
    case.services.iter().for_each(|s| deploy(&sandbox, s));
    for (project, bindings) in &case.projects {
        sandbox.run.set_project_bindings(project, bindings);
    }
    for (what, body) in [("hierarchy", &case.hierarchy), ("world", &case.world)] {
        if !body.is_null() {
            common::control(&sandbox, what, body).await;
        }
    }
    for (name, permissions) in &case.roles {
        let role = json!({"name": name, "permissions": permissions});
        common::control(&sandbox, "roles", &role).await;
    }
    for (resource, bindings) in &case.above {
        let policy = json!({"resource": resource, "bindings": bindings});
        common::control(&sandbox, "policies", &policy).await;
    }
    for (resource, policies) in &case.deny {
        let attached = json!({"resource": resource, "policies": policies});
        common::control(&sandbox, "deny", &attached).await;
    }
    let namespaces: BTreeSet<&str> = case
        .objects
        .iter()
        .filter_map(|o| o["metadata"]["namespace"].as_str())
        .filter(|n| !["shop", "default"].contains(n))
        .collect();
    for name in namespaces {
        common::namespace(&client, name).await;
    }
    for object in &case.objects {
        put(&client, object).await;
    }
    let plugin = Plugin::new(&sandbox);
    if let Some((namespace, name)) = case.user.as_ref().and_then(|u| u.split_once('/')) {
        fs::write(
            plugin.folder.join("kubeconfig"),
            sandbox.kubeconfig_of(namespace, name),
        )
        .unwrap();
    }
    for (name, content) in &case.files {
        let path = plugin.folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let mut out = format!("{}\n", case.description);
    for line in &case.script {
        let args = words(line);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let width = if line.contains("--help") { "100" } else { "80" };
        let environment = [("RUN_INVOKER_ANONYMOUS", "true"), ("COLUMNS", width)];
        let ran = plugin.run_with(&args, &environment).await;
        out.push_str(&format!("\n$ kubectl invoker {line}\n{}", ran.stdout));
        for line in ran.stderr.lines() {
            out.push_str(&format!("[stderr] {line}\n"));
        }
        out.push_str(&format!("[exit {}]\n", ran.code));
        if line.contains("--help") {
            continue;
        }
        for line in ran.stdout.lines().filter(|_| {
            !["-o ", "export", "complet"]
                .iter()
                .any(|w| line.contains(w))
        }) {
            // A member or a command is one word, and is not broken; a table of names is rather wider.
            let long_word = line.split_whitespace().any(|w| w.chars().count() > 50)
                || ran.stdout.starts_with("CHANGE ");
            assert!(
                line.chars().count() <= 80 || long_word || line.contains("gcloud "),
                "wider than 80 columns: {line}"
            );
        }
    }
    // Ports and the like differ from run to run.
    out.replace(&plugin.folder.display().to_string(), "FOLDER")
        .replace(&plugin.endpoint, "CLOUD_RUN")
        .replace(&sandbox.kube_url(), "API_SERVER")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn transcripts_are_golden() {
    let only = std::env::var("CASE").ok();
    let mut folders: Vec<PathBuf> = fs::read_dir(repository("tests/cli"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() >= 10);
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if only.as_ref().is_none_or(|o| *o == name) {
            insta::assert_snapshot!(
                format!("cli_{}", name.replace('-', "_")),
                transcript(&folder).await
            );
        }
    }
}

/// Deterministic numbers: every failure can be played again by its seed.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below
    }
}

fn random_bindings(dice: &mut Dice) -> Value {
    let members = [
        "user:a@acme.com",
        "user:B@Acme.com",
        "group:g@acme.com",
        "serviceAccount:x@acme-prod.iam.gserviceaccount.com",
        "domain:acme.com",
        "allUsers",
        "deleted:user:gone@acme.com?uid=7",
        "projectOwner:acme-prod",
    ];
    let conditions = [
        Value::Null,
        Value::Null,
        json!({"title": "office", "expression": "request.time.getHours() < 18"}),
        json!({"title": "office", "expression": "request.time.getHours() < 20"}),
        json!({"title": "run-invoker-expires", "expression": "request.time < timestamp(\"2099-01-01T00:00:00Z\")"}),
        json!({"title": "run-invoker-expires", "expression": "request.time < timestamp(\"2020-01-01T00:00:00Z\")"}),
        json!({"title": "run-invoker-expires", "expression": "request.time < timestamp(\"2099-01-01T01:00:00+01:00\")", "description": "by hand"}),
    ];
    let roles = [
        "roles/run.invoker",
        "roles/run.invoker",
        "roles/run.servicesInvoker",
        "roles/run.developer",
    ];
    let mut bindings = Vec::new();
    let mut used = BTreeSet::new();
    for _ in 0..dice.roll(5) {
        let (role, condition) = (
            roles[dice.roll(roles.len())],
            &conditions[dice.roll(conditions.len())],
        );
        if !used.insert((role, condition.to_string())) {
            continue;
        }
        let mut list: BTreeSet<&str> = (0..=dice.roll(3))
            .map(|_| members[dice.roll(members.len())])
            .collect();
        if !condition.is_null() {
            list.remove("allUsers");
        }
        if list.is_empty() {
            continue;
        }
        let mut binding = json!({"role": role, "members": list});
        if !condition.is_null() {
            binding["condition"] = condition.clone();
        }
        bindings.push(binding);
    }
    json!(bindings)
}

async fn looked_at(client: &Client) {
    let api: Api<InvokerPolicy> = Api::all(client.clone());
    eventually(
        Duration::from_secs(30),
        "every policy was looked at",
        || async {
            for policy in api
                .list(&ListParams::default())
                .await
                .map_err(|e| e.to_string())?
            {
                let status = policy.status.clone().unwrap_or_default();
                let wanted = policy
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|a| a.get(REQUESTED_AT));
                if status.observed_generation != policy.metadata.generation
                    || status.last_handled_requested_at.as_ref() != wanted
                {
                    return Err(format!("{:?}", policy.metadata.name));
                }
            }
            Ok(())
        },
    )
    .await;
}

/// What IAM holds becomes policies; these are applied, and neither differ nor write, in audit and
/// then enforced.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_export_writes_is_no_drift() {
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let sandbox = Sandbox::start(Default::default()).await.unwrap();
        let client = common::client(&sandbox.kubeconfig()).await;
        common::install(&client).await;
        for n in 0..8 {
            let region = ["europe-west1", "us-central1"][dice.roll(2)];
            sandbox
                .run
                .deploy("acme-prod", region, &format!("s{n}"), &[]);
            sandbox.run.set_bindings(
                "acme-prod",
                region,
                &format!("s{n}"),
                &random_bindings(&mut dice),
            );
        }
        let plugin = Plugin::new(&sandbox);
        let mut args = vec!["export", "--project", "acme-prod", "-n", "default"];
        if seed % 2 == 1 {
            args.push("--group");
        }
        let first = plugin.run(&args).await;
        assert_eq!(first.code, 0, "{}", first.stderr);
        let second = plugin.run(&args).await;
        assert_eq!(
            first.stdout, second.stdout,
            "seed {seed}: not deterministic"
        );
        let mut setup = Setup::default();
        setup.settings.limits.public = true;
        let operator = Operator::start(client.clone(), sandbox.run_url(), &setup).await;
        for document in first.stdout.split("\n---\n") {
            let policy: Value = serde_saphyr::from_str(document).unwrap();
            put(&client, &policy).await;
        }
        looked_at(&client).await;
        let no_drift = async |when: &str| {
            let api: Api<InvokerPolicy> = Api::all(client.clone());
            for policy in api.list(&ListParams::default()).await.unwrap() {
                let status = policy.status.unwrap_or_default();
                let summary = status.summary.unwrap();
                assert_eq!(
                    (summary.missing, summary.unexpected),
                    (0, 0),
                    "seed {seed}, {when}: {:?} {:#?}\n{}",
                    policy.metadata.name,
                    status.services,
                    first.stdout
                );
            }
        };
        no_drift("audited").await;
        let api: Api<InvokerPolicy> = Api::all(client.clone());
        for policy in api.list(&ListParams::default()).await.unwrap() {
            let own: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
            let enforce = json!({"spec": {"mode": "Enforce"}});
            own.patch(
                &policy.metadata.name.unwrap(),
                &PatchParams::default(),
                &Patch::Merge(enforce),
            )
            .await
            .unwrap();
        }
        looked_at(&client).await;
        no_drift("enforced").await;
        let writes = sandbox
            .journal
            .since(0, |e| e.path().ends_with(":setIamPolicy"));
        assert!(
            writes.is_empty(),
            "seed {seed}: applying the export wrote to IAM"
        );
        operator.stop().await;
    }
}

fn random_policies(dice: &mut Dice) -> Vec<Value> {
    let members = [
        "user:a@acme.com",
        "user:b@acme.com",
        "group:g@acme.com",
        "serviceAccount:x@acme-prod.iam.gserviceaccount.com",
        "allUsers",
    ];
    (0..4)
        .map(|n| {
            let services: BTreeSet<usize> = (0..=dice.roll(3)).map(|_| dice.roll(6)).collect();
            let services: Vec<Value> = if dice.roll(5) == 0 {
                vec![json!({"selector": {"matchLabels": {"team": "shop"}}})]
            } else {
                services.iter().map(|s| json!({"name": format!("s{s}"), "region": "europe-west1"})).collect()
            };
            let invokers: BTreeSet<&str> = (0..=dice.roll(3)).map(|_| members[dice.roll(members.len())]).collect();
            let invokers: Vec<Value> = invokers.iter().map(|m| json!({"member": m})).collect();
            let pick = |dice: &mut Dice, of: [&str; 3]| of[dice.roll(3)].to_owned();
            json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": format!("p{n}"), "namespace": "default"},
                "spec": {"project": "acme-prod", "services": services, "invokers": invokers, "suspend": dice.roll(8) == 0,
                    "mode": pick(dice, ["Enforce", "Enforce", "Audit"]), "membership": pick(dice, ["Authoritative", "Authoritative", "Additive"])}})
        })
        .collect()
}

/// Region, service, sign and grant.
type Changes = BTreeSet<(String, String)>;

fn grants_of(policy: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for b in policy["bindings"].as_array().into_iter().flatten() {
        let role = b["role"].as_str().unwrap();
        for m in b["members"].as_array().into_iter().flatten() {
            found.insert(format!(
                "{role} {} {}",
                m.as_str().unwrap(),
                b["condition"]["expression"].as_str().unwrap_or_default()
            ));
        }
    }
    found
}

/// What `plan` prints is exactly what the operator then does to IAM, on random states.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_plan_is_what_the_operator_then_does() {
    let mut changed = 0;
    for seed in 100..124 {
        let mut dice = Dice(seed);
        let sandbox = Sandbox::start(Default::default()).await.unwrap();
        let client = common::client(&sandbox.kubeconfig()).await;
        common::install(&client).await;
        for n in 0..6 {
            let labels: &[(&str, &str)] = if dice.roll(2) == 0 {
                &[("team", "shop")]
            } else {
                &[]
            };
            sandbox
                .run
                .deploy("acme-prod", "europe-west1", &format!("s{n}"), labels);
            // A leftover of a deleted identity can make IAM refuse a write, which no plan can know.
            let mut bindings = random_bindings(&mut dice);
            for b in bindings.as_array_mut().unwrap() {
                let members = b["members"].as_array_mut().unwrap();
                members.retain(|m| !m.as_str().unwrap().starts_with("deleted:"));
            }
            bindings
                .as_array_mut()
                .unwrap()
                .retain(|b| b["members"].as_array().is_some_and(|m| !m.is_empty()));
            sandbox
                .run
                .set_bindings("acme-prod", "europe-west1", &format!("s{n}"), &bindings);
        }
        if dice.roll(2) == 0 {
            put(&client, &json!({"kind": "InvokerGuardrail", "metadata": {"name": "g"}, "spec": {"services": ["s0", "s1", "s2", "s3"], "maxRemovals": 2}})).await;
        }
        let plugin = Plugin::new(&sandbox);
        let policies = random_policies(&mut dice);
        let text: Vec<String> = policies
            .iter()
            .map(|p| serde_saphyr::to_string(p).unwrap())
            .collect();
        fs::write(plugin.folder.join("policies.yaml"), text.join("---\n")).unwrap();
        let ran = plugin
            .run(&["plan", "-f", "policies.yaml", "-o", "json"])
            .await;
        let plan: Value = serde_json::from_str(&ran.stdout)
            .unwrap_or_else(|e| panic!("seed {seed}: {e}: {}", ran.stderr));
        assert!(
            sandbox
                .journal
                .since(0, |e| e.api == Side::Run
                    && e.path().ends_with(":setIamPolicy"))
                .is_empty()
        );
        let mut planned = Changes::new();
        for s in plan["services"].as_array().unwrap() {
            for c in s["changes"].as_array().into_iter().flatten() {
                let sign = match c["action"].as_str().unwrap() {
                    "grant" => "+",
                    "revoke" => "-",
                    _ => continue,
                };
                let (role, member) = (c["role"].as_str().unwrap(), c["member"].as_str().unwrap());
                planned.insert((
                    s["service"].as_str().unwrap().into(),
                    format!("{sign} {role} {member} {}", c["condition"].is_null()),
                ));
            }
        }
        let live = || {
            (0..6)
                .map(|n| {
                    (
                        format!("s{n}"),
                        grants_of(
                            &sandbox
                                .run
                                .policy("acme-prod", "europe-west1", &format!("s{n}"))
                                .unwrap(),
                        ),
                    )
                })
                .collect::<BTreeMap<_, _>>()
        };
        let before = live();
        // All at once: what the operator does on the way from one policy to the next is another
        // plan.
        for policy in &policies {
            put(&client, policy).await;
        }
        let operator = Operator::start(client.clone(), sandbox.run_url(), &Setup::default()).await;
        looked_at(&client).await;
        let after = live();
        let mut done = Changes::new();
        for (service, then) in &after {
            let was = &before[service];
            let lines = then
                .difference(was)
                .map(|g| ("+", g))
                .chain(was.difference(then).map(|g| ("-", g)));
            for (sign, grant) in lines {
                let mut parts = grant.splitn(3, ' ');
                let (role, member, condition) = (
                    parts.next().unwrap(),
                    parts.next().unwrap(),
                    parts.next().unwrap(),
                );
                done.insert((
                    service.clone(),
                    format!("{sign} {role} {member} {}", condition.is_empty()),
                ));
            }
        }
        let (only_planned, only_done): (Vec<_>, Vec<_>) = (
            planned.difference(&done).collect(),
            done.difference(&planned).collect(),
        );
        assert!(
            only_planned.is_empty() && only_done.is_empty(),
            "seed {seed}: planned and not done: {only_planned:#?}; done and not planned: {only_done:#?}\n{}",
            text.join("---\n")
        );
        changed += done.len();
        // And then there is nothing left to plan but what is held or audited.
        let again = plugin.run(&["plan", "-o", "json"]).await;
        let rest: Value = serde_json::from_str(&again.stdout).unwrap();
        assert_eq!(
            (&rest["summary"]["grants"], &rest["summary"]["revokes"]),
            (&json!(0), &json!(0)),
            "seed {seed}"
        );
        operator.stop().await;
    }
    assert!(
        changed > 60,
        "only {changed} changes: the states are too tame"
    );
}

/// A thousand services: within the budget of calls, and small.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_plan_over_a_thousand_services_is_small_and_within_the_budget() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let plugin = Plugin::new(&sandbox);
    let mut text = String::new();
    for n in 0..1000 {
        let (project, region) = (
            format!("acme-{}", n / 250),
            ["europe-west1", "us-central1"][n % 2],
        );
        sandbox.run.deploy(&project, region, &format!("s{n}"), &[]);
        text.push_str(&format!(
            "---\napiVersion: run-invoker.dev/v1alpha1\nkind: InvokerPolicy\nmetadata: {{name: s{n}}}\nspec: {{project: {project}, mode: Enforce, services: [{{name: s{n}, region: {region}}}], invokers: [{{member: \"user:a@acme.com\"}}]}}\n"
        ));
    }
    fs::write(plugin.folder.join("all.yaml"), text).unwrap();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-invoker"))
        .args(["plan", "--offline", "-f", "all.yaml", "-o", "json"])
        .current_dir(&plugin.folder)
        .env("RUN_INVOKER_CLOUD_RUN_ENDPOINT", &plugin.endpoint)
        .env("RUN_INVOKER_ANONYMOUS", "true")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id().unwrap());
    let mut stdout = child.stdout.take().unwrap();
    let reader = tokio::spawn(async move {
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut text)
            .await
            .unwrap();
        text
    });
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        if let Ok(text) = fs::read_to_string(&status)
            && let Some(line) = text.lines().find(|l| l.starts_with("VmHWM"))
        {
            peak = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let plan: Value = serde_json::from_str(&reader.await.unwrap()).unwrap();
    assert_eq!(plan["summary"]["grants"], 1000);
    let reads = sandbox
        .journal
        .since(0, |e| e.path().ends_with(":getIamPolicy"))
        .len();
    let lists = sandbox
        .journal
        .since(0, |e| e.path().ends_with("/services"))
        .len();
    assert_eq!(
        (reads, lists),
        (1000, 4),
        "one read for each service, and one list for each project"
    );
    println!(
        "a plan over 1,000 services: peak {} MiB (debug build)",
        peak / 1024
    );
    assert!(peak < 100 * 1024, "{peak} KiB");
}

/// kubectl itself asks our script while somebody types.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kubectl_completes_the_plugin() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let plugin = Plugin::new(&sandbox);
    let script = plugin.run(&["completion", "kubectl"]).await.stdout;
    let path = plugin.folder.join("kubectl_complete-invoker");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_kubectl-invoker"));
    let folders = [&plugin.folder, program.parent().unwrap()].map(|f| f.display().to_string());
    let rest = std::env::var("PATH").unwrap_or_default();
    let complete = async |words: &[&str]| {
        let output = tokio::process::Command::new("kubectl")
            .arg("__complete")
            .arg("invoker")
            .args(words)
            .env("PATH", format!("{}:{rest}", folders.join(":")))
            .env("KUBECONFIG", plugin.folder.join("kubeconfig"))
            .output()
            .await
            .expect("kubectl; make tools fetches it");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let found = complete(&["re"]).await;
    for command in ["reconcile", "resume"] {
        assert!(found.contains(command), "{found}");
    }
    let found = complete(&["status", "--all"]).await;
    assert!(found.contains("--all-namespaces"), "{found}");
    assert!(found.ends_with(":4\n"), "{found}");
}

/// Stored under an older definition, one object cannot be read: it is named, and the others are shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_object_that_cannot_be_read_hides_no_other() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    common::loosen_policies(&client).await;
    common::namespace(&client, "shop").await;
    let policy = |name: &str, interval: Value| {
        json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"project": "acme-prod", "interval": interval, "services": [{"name": "web", "region": "europe-west1"}], "invokers": []}})
    };
    put(&client, &policy("fine", json!("5m"))).await;
    put(&client, &policy("broken", json!(7))).await;
    let plugin = Plugin::new(&sandbox);
    for command in ["status", "drift"] {
        let ran = plugin.run(&[command, "-A"]).await;
        let named = "note: InvokerPolicy shop/broken cannot be read and is left out";
        assert!(ran.stderr.contains(named), "{command}: {}", ran.stderr);
        assert_ne!(ran.code, 1, "{command}: {}", ran.stderr);
    }
    let ran = plugin.run(&["status", "-A"]).await;
    assert!(ran.stdout.contains("fine"), "{}", ran.stdout);
}

/// Without a terminal nothing wraps: a program reads it, or `less -S`.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_piped_does_not_wrap() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    let message = "a message that is rather long ".repeat(20);
    let condition = json!({"type": "Ready", "status": "True", "reason": "InSync", "message": message.trim(),
        "lastTransitionTime": NOW, "observedGeneration": 1});
    let name = format!("web-{}", "0123456789".repeat(5));
    let policy = json!({"kind": "InvokerPolicy", "metadata": {"name": name, "namespace": "default"},
        "spec": {"project": "acme-prod", "services": [{"name": "web", "region": "europe-west1"}], "invokers": [{"member": "user:a@acme.com"}]},
        "status": {"conditions": [condition]}});
    put(&client, &policy).await;
    let plugin = Plugin::new(&sandbox);
    let lines = async |columns: &'static str| {
        let environment = [("COLUMNS", columns)];
        let ran = plugin.run_with(&["status", &name], &environment).await;
        assert!(ran.stdout.contains(&name), "{}", ran.stdout);
        ran.stdout.lines().count()
    };
    assert_eq!(lines("").await, 5);
    assert!(lines("80").await > 10);
}

/// With a real terminal, its width counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_width_is_that_of_the_terminal() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    let plugin = Plugin::new(&sandbox);
    let script = "import os, pty, sys, fcntl, struct, termios
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 40, int(sys.argv[1]), 0, 0))
    os.execv(sys.argv[2], sys.argv[2:])
text = b''
while True:
    try:
        part = os.read(fd, 65536)
    except OSError:
        break
    if not part:
        break
    text += part
sys.stdout.write(text.decode().replace('\\r', ''))";
    let widest = async |columns: &str| {
        let output = tokio::process::Command::new("python3")
            .args(["-c", script, columns, env!("CARGO_BIN_EXE_kubectl-invoker")])
            .args(["doctor", "--color", "never"])
            .env_remove("COLUMNS")
            .env("KUBECONFIG", plugin.folder.join("kubeconfig"))
            .env("RUN_INVOKER_CLOUD_RUN_ENDPOINT", &plugin.endpoint)
            .env("RUN_INVOKER_ANONYMOUS", "true")
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("invokerpolicies.run-invoker.dev"), "{text}");
        text.lines().map(|l| l.chars().count()).max().unwrap()
    };
    let (narrow, wide) = (widest("60").await, widest("160").await);
    assert!(
        narrow <= 60 && (100..=160).contains(&wide),
        "{narrow} {wide}"
    );
}

/// Drift that came and was corrected between two looks is shown, by its record.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn drift_that_was_corrected_at_once_is_seen_by_whoever_watches() {
    let (project, region) = ("acme-prod", "europe-west1");
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    sandbox.run.deploy(project, region, "web", &[]);
    let policy = json!({"kind": "InvokerPolicy", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"project": project, "services": [{"name": "web", "region": region}], "mode": "Enforce", "interval": "10s", "invokers": [{"member": "user:a@acme.com"}]}});
    put(&client, &policy).await;
    let operator = Operator::start(client.clone(), sandbox.run_url(), &Setup::default()).await;
    looked_at(&client).await;
    let plugin = Plugin::new(&sandbox);
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-invoker"))
        .args(["drift", "--watch", "-A"])
        .env("KUBECONFIG", plugin.folder.join("kubeconfig"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap());
    let mut shown = String::new();
    let until = async |lines: &mut tokio::io::BufReader<_>, shown: &mut String, wanted: &str| {
        let read = async {
            while !shown.contains(wanted) {
                tokio::io::AsyncBufReadExt::read_line(lines, shown)
                    .await
                    .unwrap();
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(40), read).await;
        assert!(done.is_ok(), "{wanted:?} was not shown: {shown}");
    };
    until(&mut lines, &mut shown, "no drift").await;
    sandbox.run.add_member(
        project,
        region,
        "web",
        "roles/run.invoker",
        "user:x@evil.org",
    );
    let again = plugin.run(&["reconcile", "-A"]).await;
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(
        again
            .stdout
            .starts_with("default/web reconciled: Ready=True"),
        "{}",
        again.stdout
    );
    until(&mut lines, &mut shown, "- user:x@evil.org (revoked)").await;
    assert!(shown.contains("drift corrected"), "{shown}");
    operator.stop().await;
}

/// On the real clock: the end of access is one, and so is that of an approval.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_waits_sees_a_request_end_and_history_says_who_agreed() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    sandbox.run.deploy("acme-prod", "europe-west1", "web", &[]);
    let rail = json!({"kind": "InvokerGuardrail", "metadata": {"name": "g"}, "spec": {"requests": {"maxDuration": "1h"}}});
    put(&client, &rail).await;
    let operator = Operator::start(client.clone(), sandbox.run_url(), &Setup::default()).await;
    let plugin = Plugin::new(&sandbox);
    let command = |arguments: &[&str]| {
        let endpoint = &plugin.endpoint;
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-invoker"));
        command
            .args(arguments)
            .args(["-n", "default"])
            .env("KUBECONFIG", plugin.folder.join("kubeconfig"))
            .env("COLUMNS", "1000")
            .env("RUN_INVOKER_CLOUD_RUN_ENDPOINT", endpoint)
            .env("RUN_INVOKER_ANONYMOUS", "true")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    };
    let ask = "request --service web --region europe-west1 --project acme-prod --for 10s --reason INC-1 --member user:ada@acme.com --name inc-1 --wait";
    let mut asks = command(&ask.split(' ').collect::<Vec<_>>());
    let child = asks.stdout(Stdio::piped()).spawn().unwrap();
    eventually(Duration::from_secs(20), "it is pending", || async {
        let shown = command(&["requests", "--pending", "-o", "name"]).output();
        let shown = String::from_utf8(shown.await.unwrap().stdout).unwrap();
        match shown.trim() {
            "invokeraccessrequest.run-invoker.dev/inc-1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    eventually(Duration::from_secs(20), "it was looked at", || async {
        let mut again = command(&[
            "requests",
            "inc-1",
            "-o",
            "jsonpath={.requests[0].status.plan}",
        ]);
        let shown = again.output().await.unwrap().stdout;
        let shown = String::from_utf8_lossy(&shown).into_owned();
        // Until then the phase is the default of the definition.
        if shown.trim().len() == 40 {
            Ok(())
        } else {
            Err(shown)
        }
    })
    .await;
    let mut agree = command(&["approve", "inc-1", "--yes", "--wait", "--reason", "CHG-1"]);
    let agreed = agree.output().await.unwrap();
    let text = String::from_utf8_lossy(&agreed.stdout);
    assert!(
        agreed.status.success() && text.contains(": Used: "),
        "{text}"
    );
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output());
    let ended = ended.await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{text}");
    let steps: Vec<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix("inc-1: ")?.split(':').next())
        .collect();
    // It looks a few times a second, so a step that is over at once may be missed.
    assert!(steps.contains(&"Active"), "{text}");
    assert_eq!(steps.last(), Some(&"Ended"), "{text}");
    eventually(
        Duration::from_secs(20),
        "history says who agreed",
        || async {
            let shown = command(&["history"]).output().await.unwrap().stdout;
            let shown = String::from_utf8_lossy(&shown).into_owned();
            let whole = shown.contains("by kubernetes-admin (inc-1-") && shown.contains("): CHG-1");
            if whole { Ok(()) } else { Err(shown) }
        },
    )
    .await;
    operator.stop().await;
}

/// The page that `make browser` opens.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_page_is_written() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    let mut dice = Dice(7);
    for n in 0..14 {
        let region = ["europe-west1", "us-central1"][n % 2];
        sandbox
            .run
            .deploy("acme-prod", region, &format!("svc-{n}"), &[]);
        sandbox.run.set_bindings(
            "acme-prod",
            region,
            &format!("svc-{n}"),
            &random_bindings(&mut dice),
        );
    }
    sandbox
        .run
        .deploy("acme-prod", "europe-west1", "archive", &[]);
    sandbox.run.add_member(
        "acme-prod",
        "europe-west1",
        "archive",
        "roles/run.invoker",
        "allUsers",
    );
    let policy = json!({"kind": "InvokerPolicy", "metadata": {"name": "p", "namespace": "default"}, "spec": {"project": "acme-prod",
        "services": [{"selector": {"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}}], "invokers": [{"member": "user:a@acme.com"}]}});
    put(&client, &policy).await;
    let plugin = Plugin::new(&sandbox);
    let ran = plugin
        .run(&["access", "--project", "acme-prod", "-o", "html"])
        .await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for part in [
        "<title>Who can invoke what</title>",
        "allUsers",
        "prefers-color-scheme: dark",
        "aria-sort",
    ] {
        assert!(ran.stdout.contains(part), "{part}");
    }
    // Whole in itself.
    assert!(
        !ran.stdout.contains("http://")
            && !ran.stdout.contains("https://")
            && !ran.stdout.contains("src=")
    );
    let folder = repository("target/access");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("access.html"), ran.stdout).unwrap();
}

/// The fix that `diagnose` names for a service that a policy manages is a patch of that policy;
/// applied, it is what the operator carries out, and a second diagnosis finds nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_fix_that_diagnose_names_holds() {
    let (project, region, caller) = ("acme-prod", "europe-west1", "user:b@acme.com");
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    sandbox.run.deploy(project, region, "web", &[]);
    let policy = json!({"kind": "InvokerPolicy", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"project": project, "services": [{"name": "web", "region": region}], "mode": "Enforce", "invokers": [{"member": "user:a@acme.com"}]}});
    put(&client, &policy).await;
    let operator = Operator::start(client.clone(), sandbox.run_url(), &Setup::default()).await;
    looked_at(&client).await;
    let plugin = Plugin::new(&sandbox);
    let service = ["--project", project, "--region", region, "--service", "web"];
    let args = [&["diagnose", "-o", "json", "--as", caller][..], &service].concat();
    let diagnose = async || {
        let ran = plugin.run(&args).await;
        let found: Value = serde_json::from_str(&ran.stdout).unwrap();
        (ran.code, found)
    };
    let (code, found) = diagnose().await;
    assert_eq!(
        (code, &found["cause"]),
        (2, &json!("NotGranted")),
        "{found}"
    );
    let fix = &found["fix"];
    assert!(fix["policy"].is_null() && fix["gcloud"].is_null(), "{fix}");
    assert_eq!(fix["patch"]["policy"], "default/web");
    let path = "/apis/run-invoker.dev/v1alpha1/namespaces/default/invokerpolicies/web";
    let request = http::Request::patch(path)
        .header("content-type", "application/json-patch+json")
        .body(fix["patch"]["operations"].to_string().into_bytes())
        .unwrap();
    client.request::<Value>(request).await.unwrap();
    eventually(Duration::from_secs(20), "it is granted", || async {
        let members = sandbox
            .run
            .members(project, region, "web", "roles/run.invoker");
        let granted = members.iter().any(|m| m == caller);
        granted.then_some(()).ok_or_else(|| format!("{members:?}"))
    })
    .await;
    let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
    let again = json!({"metadata": {"annotations": {REQUESTED_AT: "1"}}});
    api.patch("web", &PatchParams::default(), &Patch::Merge(again))
        .await
        .unwrap();
    looked_at(&client).await;
    let members = sandbox
        .run
        .members(project, region, "web", "roles/run.invoker");
    assert_eq!(members, ["user:a@acme.com", caller], "it stays");
    operator.stop().await;
}

/// Two lines, once, whatever the command would have asked: of credentials that are not there, and
/// of those that nobody takes any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn credentials_that_do_not_work_are_said_in_two_lines() {
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let plugin = Plugin::new(&sandbox);
    let expired = plugin.folder.join("expired.json");
    // Nothing there gives a token for it.
    let login = json!({"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r",
        "token_uri": format!("{}/token", sandbox.run_url())});
    fs::write(&expired, login.to_string()).unwrap();
    let expired = expired.display().to_string();
    let service = [
        "--project",
        "acme-prod",
        "--region",
        "europe-west1",
        "--service",
        "web",
    ];
    let diagnose = [&["diagnose", "--offline"][..], &service].concat();
    for credentials in ["nowhere.json", &expired] {
        let environment = [("GOOGLE_APPLICATION_CREDENTIALS", credentials)];
        for args in [
            &diagnose[..],
            &["access", "--project", "acme-prod", "--offline"],
        ] {
            let ran = plugin.run_with(args, &environment).await;
            let lines: Vec<&str> = ran.stderr.lines().collect();
            assert!(
                ran.code == 1 && ran.stdout.is_empty() && lines.len() == 2,
                "{args:?}: {} {}",
                ran.stdout,
                ran.stderr
            );
            assert!(
                lines[0].starts_with("error: Google credentials are missing or have expired: ")
            );
            assert!(lines[1].starts_with("run gcloud auth application-default login"));
        }
    }
}

/// What the API server refuses at apply, `plan -f` refuses as well, with the same words.
#[test]
fn files_are_refused_in_the_words_of_the_api_server() {
    let text = fs::read_to_string(repository(
        "tests/scenarios/refuses-bad-input/scenario.yaml",
    ))
    .unwrap();
    let scenario: Value = serde_saphyr::from_str(&text).unwrap();
    let mut seen = 0;
    for step in scenario["steps"].as_array().unwrap() {
        let refuse = &step["refuse"];
        if refuse.is_null() {
            continue;
        }
        let mut object = refuse["object"].clone();
        let kind = object["kind"]
            .as_str()
            .unwrap_or("InvokerPolicy")
            .to_owned();
        if !kind.starts_with("Invoker") {
            continue;
        }
        object["apiVersion"] = json!("run-invoker.dev/v1alpha1");
        object["kind"] = json!(kind);
        let found = run_invoker::cli::files::check(&kind, &object).join("\n");
        for words in refuse["contains"].as_array().unwrap() {
            let words = words.as_str().unwrap();
            // What cannot be changed is known only where the old object is.
            if words.contains("cannot be changed") {
                continue;
            }
            seen += 1;
            assert!(
                found.contains(words),
                "{object}\nwanted {words:?}\nfound {found:?}"
            );
        }
    }
    assert!(seen >= 15, "only {seen}");
}
