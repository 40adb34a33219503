//! What several test binaries share: where a Kubernetes API comes from, and an operator against it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "every test uses a part of it"
)]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use run_invoker::{
    api,
    cloudrun::{
        fence::Fenced,
        google,
        limit::{Budget, Limited},
    },
    cluster::Cluster,
    controller::{Controller, Options, audit_events::EventOptions, inherited::InheritedOptions},
    history::Retention,
    inherited::SearchScope,
    leader::{self, Shards},
    metrics::Metrics,
    plan::{Settings, drift::BreakerLimits},
};
use tokio::sync::watch;

/// A client for a kubeconfig.
pub async fn client(kubeconfig: &str) -> Client {
    let config = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

/// User agent of requests that only the operator makes; see [`operators_client`].
pub const OPERATOR: &str = "operator-under-test";

/// A client whose requests can be told from those of the test in the sandbox's journal.
pub async fn operators_client(kubeconfig: &str) -> Client {
    let config = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
        .await
        .unwrap();
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_static(OPERATOR),
    ));
    Client::try_from(config).unwrap()
}

/// Runs a tool that `make tools` fetches; what it printed, and whether it was content.
pub fn tool(program: &str, args: &[&str], folder: &Path) -> (bool, String) {
    let path = which(program).unwrap_or_else(|| panic!("{program} is not there; run: make tools"));
    let output = Command::new(path)
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), text)
}

/// Installs the definitions and waits until they are served.
pub async fn install(client: &Client) {
    let definitions = api::definitions();
    for crd in &definitions {
        let api: Api<DynamicObject> = Api::all_with(
            client.clone(),
            &kube::api::ApiResource::from_gvk_with_plural(
                &kube::api::GroupVersionKind::gvk(
                    "apiextensions.k8s.io",
                    "v1",
                    "CustomResourceDefinition",
                ),
                "customresourcedefinitions",
            ),
        );
        let name = format!("{}.{}", crd.spec.names.plural, crd.spec.group);
        let patch = Patch::Apply(serde_json::to_value(crd).unwrap());
        api.patch(&name, &PatchParams::apply("tests").force(), &patch)
            .await
            .unwrap();
    }
    eventually(Duration::from_secs(20), "the kinds are served", || async {
        for crd in &definitions {
            let path = format!(
                "/apis/{}/{}/{}",
                crd.spec.group, crd.spec.versions[0].name, crd.spec.names.plural
            );
            let request = http::Request::get(path).body(vec![]).unwrap();
            client
                .request::<serde_json::Value>(request)
                .await
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    })
    .await;
}

/// Makes a namespace. One of that name that is going away is waited for.
pub async fn namespace(client: &Client, name: &str) {
    let api: Api<Namespace> = Api::all(client.clone());
    eventually(
        Duration::from_secs(20),
        &format!("namespace {name} is there"),
        || async {
            let object = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            let found = api.get_opt(name).await.map_err(|e| e.to_string())?;
            match found {
                Some(n) if n.metadata.deletion_timestamp.is_some() => {
                    Err("the one before is going away".into())
                }
                Some(_) => Ok(()),
                None => api
                    .patch(name, &PatchParams::apply("tests").force(), &Patch::Apply(object))
                    .await
                    .map(|_| ())
                    .map_err(|e| e.to_string()),
            }
        },
    )
    .await;
}

/// Repeats a check until it passes; panics if it does not within this time.
pub async fn eventually<F, Fut>(within: Duration, what: &str, check: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    if let Err(why) = comes_true(within, what, check).await {
        panic!("{why}");
    }
}

/// Repeats a check until it passes, or says what was missing at the end of this time.
pub async fn comes_true<F, Fut>(within: Duration, what: &str, check: F) -> Result<(), String>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    let deadline = tokio::time::Instant::now() + within;
    loop {
        match check().await {
            Ok(()) => return Ok(()),
            Err(why) if tokio::time::Instant::now() > deadline => {
                return Err(format!("not within {within:?}: {what}: {why}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
}

/// etcd and kube-apiserver from `KUBEBUILDER_ASSETS`.
pub struct Envtest {
    etcd: Child,
    server: Option<Child>,
    assets: PathBuf,
    folder: PathBuf,
    etcd_port: u16,
    port: u16,
}

/// Puts an older definition of InvokerPolicy in place, which lets everything through.
pub async fn loosen_policies(client: &Client) {
    let loose = serde_json::json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "invokerpolicies.run-invoker.dev"},
        "spec": {"group": "run-invoker.dev", "scope": "Namespaced", "names": {"kind": "InvokerPolicy", "listKind": "InvokerPolicyList", "plural": "invokerpolicies", "singular": "invokerpolicy"},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/invokerpolicies.run-invoker.dev?fieldManager=old&force=true";
    let request = http::Request::patch(path)
        .header("content-type", "application/apply-patch+yaml")
        .body(loose.to_string().into_bytes())
        .unwrap();
    client.request::<serde_json::Value>(request).await.unwrap();
}

/// Tells the sandbox's control API something about its world.
pub async fn control(sandbox: &sandbox::Sandbox, what: &str, body: &serde_json::Value) {
    let url = format!("{}/{what}", sandbox.control_url());
    let answer = reqwest::Client::new().post(url).json(body).send().await;
    let answer = answer.unwrap();
    let status = answer.status();
    assert!(
        status.is_success(),
        "{what}: {}",
        answer.text().await.unwrap()
    );
}

/// A path that no other test has, of this process or another. A port that is free would not do: it can
/// be free for two at once.
pub fn own_path(what: &str) -> PathBuf {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("run-invoker-{what}-{}-{number}", std::process::id());
    std::env::temp_dir().join(name)
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Envtest {
    /// Starts both, if the environment says where they are; if not, says what is not tested.
    pub async fn start(what: &str) -> Option<Self> {
        let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
            println!("NOT TESTED on a real API server, KUBEBUILDER_ASSETS is not set: {what}");
            return None;
        };
        assert!(
            assets.join("kube-apiserver").exists(),
            "KUBEBUILDER_ASSETS={} has no kube-apiserver",
            assets.display()
        );
        let folder = own_path("envtest");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("tokens.csv"), tokens()).unwrap();
        let (etcd_port, peer) = (free_port(), free_port());
        let etcd = Command::new(assets.join("etcd"))
            .args([
                "--data-dir",
                folder.join("etcd").to_str().unwrap(),
                "--unsafe-no-fsync",
            ])
            .args([
                "--listen-client-urls",
                &format!("http://127.0.0.1:{etcd_port}"),
                "--advertise-client-urls",
                &format!("http://127.0.0.1:{etcd_port}"),
            ])
            .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut this = Self {
            etcd,
            server: None,
            assets,
            folder,
            etcd_port,
            port: free_port(),
        };
        this.start_server().await;
        Some(this)
    }

    pub async fn start_server(&mut self) {
        let log = std::fs::File::create(self.folder.join("apiserver.log")).unwrap();
        let program = self.assets.join("kube-apiserver");
        // A full API server always does; a small one does when told by this flag of its own.
        let flag = "--enforce-namespaces";
        let has_flag = Command::new("grep")
            .args(["-qF", &flag[2..]])
            .arg(&program)
            .status()
            .is_ok_and(|s| s.success());
        self.server = Some(
            Command::new(program)
                .args(has_flag.then_some(flag))
                .args([
                    "--etcd-servers",
                    &format!("http://127.0.0.1:{}", self.etcd_port),
                    "--secure-port",
                    &self.port.to_string(),
                ])
                .args([
                    "--bind-address",
                    "127.0.0.1",
                    "--cert-dir",
                    self.folder.join("certs").to_str().unwrap(),
                ])
                .args([
                    "--authorization-mode",
                    "RBAC",
                    "--token-auth-file",
                    self.folder.join("tokens.csv").to_str().unwrap(),
                ])
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap(),
        );
        let client = client(&self.kubeconfig()).await;
        // Built-in kinds are installed after the server answers.
        eventually(
            Duration::from_secs(60),
            "the API server is ready",
            || async {
                let request = http::Request::get("/readyz").body(vec![]).unwrap();
                let ready = client.request_text(request).await;
                ready.map(|_| ()).map_err(|e| e.to_string())
            },
        )
        .await;
    }

    pub fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().ok();
            server.wait().ok();
        }
    }

    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: e\n  cluster: {{server: \"https://127.0.0.1:{}\", insecure-skip-tls-verify: true}}\nusers:\n- name: e\n  user: {{token: sandbox}}\ncontexts:\n- name: e\n  context: {{cluster: e, user: e, namespace: default}}\ncurrent-context: e\n",
            self.port
        )
    }
}

impl Envtest {
    /// A sandbox whose Kubernetes API is this server: with the journal, the faults and the outages
    /// of the sandbox, and the same tokens.
    pub async fn behind_a_sandbox(&self) -> sandbox::Sandbox {
        let url = format!("https://127.0.0.1:{}", self.port).parse().unwrap();
        let mut config = kube::Config::new(url);
        config.accept_invalid_certs = true;
        let relay = Relay(Client::try_from(config).unwrap());
        sandbox::Sandbox::in_front_of(Arc::new(relay))
            .await
            .unwrap()
    }

    /// Forgets all history, in etcd and in the API server: watches from before get 410 Gone.
    pub async fn compact(&mut self) {
        let port = self.etcd_port;
        let etcd = |path: &str, body: serde_json::Value| {
            let url = format!("http://127.0.0.1:{port}/v3/kv/{path}");
            async move {
                let answer = reqwest::Client::new().post(url).json(&body).send();
                let answer = answer.await.unwrap().error_for_status().unwrap();
                answer.json::<serde_json::Value>().await.unwrap()
            }
        };
        self.stop_server();
        let now = etcd("range", serde_json::json!({"key": "AA=="})).await;
        let revision = &now["header"]["revision"];
        etcd("compaction", serde_json::json!({"revision": revision})).await;
        self.start_server().await;
    }
}

/// Who may log in: an admin with the token of the sandbox's admin, and ServiceAccounts with the
/// tokens that the sandbox has for them. (No kubelet asks for the tokens that a cluster would make.)
fn tokens() -> String {
    let mut lines = "sandbox,admin,admin,\"system:masters\"\n".to_owned();
    for (namespace, name) in [
        ("platform", "run-invoker"),
        ("team-a", "editor"),
        ("team-a", "viewer"),
        ("team-a", "approver"),
        ("team-a", "requester"),
        ("team-b", "editor"),
    ] {
        lines += &format!(
            "sa:{namespace}:{name},system:serviceaccount:{namespace}:{name},{namespace}-{name},\"system:serviceaccounts,system:serviceaccounts:{namespace}\"\n"
        );
    }
    lines
}

/// Hands each request to a real API server, with the credentials that it came with.
struct Relay(Client);

impl sandbox::Handler for Relay {
    fn handle(
        self: Arc<Self>,
        call: sandbox::Call,
    ) -> BoxFuture<'static, http::Response<axum::body::Body>> {
        /// What is about one connection only.
        const HOP: [http::HeaderName; 4] = [
            http::header::HOST,
            http::header::CONNECTION,
            http::header::CONTENT_LENGTH,
            http::header::TRANSFER_ENCODING,
        ];
        Box::pin(async move {
            let mut request = http::Request::new(kube::client::Body::from(call.body));
            *request.method_mut() = call.method;
            *request.uri_mut() = call.target.parse().unwrap();
            *request.headers_mut() = call.headers;
            for name in &HOP {
                request.headers_mut().remove(name);
            }
            match self.0.send(request).await {
                Ok(mut response) => {
                    for name in &HOP {
                        response.headers_mut().remove(name);
                    }
                    response.map(axum::body::Body::new)
                }
                Err(e) => sandbox::exchange::json(
                    502,
                    &serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 502, "message": e.to_string()}),
                ),
            }
        })
    }
}

impl Drop for Envtest {
    fn drop(&mut self) {
        self.stop_server();
        self.etcd.kill().ok();
        self.etcd.wait().ok();
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// How an operator under test is set up.
#[derive(Clone)]
pub struct Setup {
    pub settings: Settings,
    pub propagation: Duration,
    pub breaker: BreakerLimits,
    pub retention: Retention,
    pub budget: Budget,
    pub timeout: Duration,
    pub stuck_after: Duration,
    /// The operator's own namespace.
    pub home: String,
    pub lease: String,
    pub identity: String,
    pub shards: usize,
    /// The project that pays for the operator's calls.
    pub quota_project: Option<String>,
    /// Where grants above the services are searched for, every second.
    pub inherited: Vec<SearchScope>,
    /// Audit events; how they come in is for the test.
    pub events: Option<EventOptions>,
    /// Moves the operator's wall clock.
    pub offset: Arc<AtomicI64>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            propagation: Duration::from_secs(420),
            breaker: BreakerLimits::default(),
            // Some scenarios move the clock by decades.
            retention: Retention {
                age: SignedDuration::MAX,
                ..Retention::default()
            },
            budget: Budget {
                reads_per_minute: 60_000,
                writes_per_minute: 60_000,
                concurrency: 64,
            },
            timeout: Duration::from_secs(3),
            stuck_after: Duration::from_secs(60),
            home: "default".into(),
            lease: "run-invoker".into(),
            identity: "under-test".into(),
            shards: 1,
            quota_project: None,
            inherited: Vec::new(),
            events: None,
            offset: Arc::default(),
        }
    }
}

/// The operator's own code in this process: everything but `main`.
pub struct Operator {
    pub controller: Arc<Controller<Fenced<google::Google>>>,
    pub metrics: Arc<Metrics>,
    pub shards: Arc<Shards>,
    stop: watch::Sender<bool>,
    retire: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Operator {
    pub async fn start(client: Client, run_url: String, setup: &Setup) -> Self {
        let metrics = Metrics::new(true).unwrap();
        let google = google::Google::connect(google::Options {
            endpoint: run_url,
            credentials: google_cloud_auth::credentials::anonymous::Builder::new().build(),
            timeout: setup.timeout,
            quota_project: setup.quota_project.clone(),
        })
        .await
        .unwrap();
        let inherited = (!setup.inherited.is_empty()).then(|| InheritedOptions {
            scopes: setup.inherited.clone(),
            interval: Duration::from_secs(1),
            search: Arc::new(google.clone()),
        });
        let shards = Shards::new(setup.shards);
        let permit = shards.clone();
        let fenced = Fenced::new(google, Arc::new(move |project: &str| permit.holds(project)));
        let offset = setup.offset.clone();
        let controller = Controller::new(
            Limited::new(fenced, setup.budget, metrics.clone()),
            Cluster::new(
                client.clone(),
                &setup.identity,
                setup.home.clone(),
                &setup.lease,
                Duration::from_secs(5),
            ),
            Options {
                settings: setup.settings.clone(),
                propagation: setup.propagation,
                breaker: setup.breaker,
                events: setup.events,
                inherited,
                retention: setup.retention,
                workers: 64,
                now: Arc::new(move || {
                    Timestamp::now() + SignedDuration::from_secs(offset.load(Ordering::Relaxed))
                }),
                seed: 7,
                stuck_after: setup.stuck_after,
                stamped: true,
                grace: Duration::from_secs(10),
            },
            metrics.clone(),
            shards.clone(),
        );
        let (stop, stopped) = watch::channel(false);
        let (retire, retired) = watch::channel(false);
        let lease = leader::Options {
            namespace: setup.home.clone(),
            name: setup.lease.clone(),
            identity: setup.identity.clone(),
            duration: Duration::from_secs(3),
            renew: Duration::from_millis(750),
            grace: Duration::from_secs(5),
            now: leader::Now(Arc::new(Timestamp::now)),
            note: controller.clone().lease_note(),
        };
        let running = controller.clone();
        let tasks = vec![
            tokio::spawn(leader::run(client, lease, shards.clone(), retired)),
            tokio::spawn(async move { running.run(stopped).await }),
        ];
        Self {
            controller,
            metrics,
            shards,
            stop,
            retire,
            tasks,
        }
    }

    /// As SIGTERM does: finish, then give the Lease up.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(work) = self.tasks.pop() {
            work.await.ok();
        }
        self.retire.send_replace(true);
        if let Some(lease) = self.tasks.pop() {
            lease.await.ok();
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Where a program is, if it is installed.
pub fn which(program: &str) -> Option<PathBuf> {
    let local = repository("bin").join(program);
    if local.exists() {
        return Some(local);
    }
    std::env::var_os("PATH").and_then(|p| {
        std::env::split_paths(&p)
            .map(|d| d.join(program))
            .find(|p| p.is_file())
    })
}

/// A program with its environment.
pub struct Shell {
    pub program: PathBuf,
    pub env: Vec<(String, String)>,
}

impl Shell {
    /// Calls Google as somebody: an e-mail, and those who impersonate it.
    pub fn acting_as(self, who: &str) -> Self {
        let token = &self
            .env
            .iter()
            .find(|(k, _)| k == "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")
            .unwrap()
            .1;
        std::fs::write(token, format!("as:{who}")).unwrap();
        self
    }

    pub async fn run(&self, args: &[&str], stdin: &str) -> (bool, String) {
        use tokio::io::AsyncWriteExt as _;
        let mut child = tokio::process::Command::new(&self.program)
            .args(args)
            .envs(self.env.iter().cloned())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(stdin.as_bytes())
            .await
            .unwrap();
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
            .await
            .unwrap()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.success(), text)
    }
    pub async fn ok(&self, args: &[&str]) -> String {
        let (fine, text) = self.run(args, "").await;
        assert!(fine, "{args:?}: {text}");
        text
    }
}

/// The real gcloud, pointed at the sandbox.
pub fn gcloud(program: PathBuf, sandbox: &sandbox::Sandbox) -> Shell {
    let home = own_path("gcloud");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(home.join("token"), "sandbox").unwrap();
    let text = |s: &str| s.to_owned();
    let env = [
        (
            "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
            home.join("token").display().to_string(),
        ),
        ("CLOUDSDK_CORE_PROJECT", text("acme-prod")),
        ("CLOUDSDK_CONFIG", home.join("config").display().to_string()),
        ("CLOUDSDK_CORE_DISABLE_PROMPTS", text("1")),
        ("CLOUDSDK_CORE_CHECK_GCE_METADATA", text("false")),
        ("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", text("true")),
        (
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK",
            text("true"),
        ),
    ];
    // The sandbox serves all of Google's APIs at one address.
    let endpoints = [
        "CLOUDASSET",
        "CLOUDRESOURCEMANAGER",
        "IAM",
        "IAP",
        "POLICYTROUBLESHOOTER",
        "RUN",
    ]
    .map(|api| {
        let name = format!("CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}");
        (name, format!("{}/", sandbox.run_url()))
    });
    Shell {
        program,
        env: env
            .map(|(k, v)| (k.to_owned(), v))
            .into_iter()
            .chain(endpoints)
            .collect(),
    }
}

/// The Pub/Sub emulator of the gcloud SDK. `None`: it is not installed; on CI it must be.
pub async fn pubsub() -> Option<sandbox::Pubsub> {
    let found = sandbox::Pubsub::start().await.unwrap();
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "the Pub/Sub emulator of the gcloud SDK is not installed, and on CI this test must run"
        );
        println!("NOT TESTED: the Pub/Sub emulator of the gcloud SDK is not installed");
    }
    found
}

/// A service of the world of a scenario or a transcript.
#[derive(serde::Deserialize, Clone)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deployed {
    /// `project/region/name`
    service: String,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    bindings: serde_json::Value,
    /// So many users who may only see the service.
    #[serde(default)]
    viewers: usize,
    #[serde(default)]
    invoker_iam_disabled: bool,
    /// Fields of the v2 service that stand for themselves.
    #[serde(default)]
    front: serde_json::Value,
    /// Who may pass Identity-Aware Proxy.
    #[serde(default)]
    iap: serde_json::Value,
}

pub fn deploy(sandbox: &sandbox::Sandbox, s: &Deployed) {
    let parts: Vec<&str> = s.service.split('/').collect();
    let [p, r, n] = parts.as_slice() else {
        panic!("{}", s.service)
    };
    let labels: Vec<(&str, &str)> = s
        .labels
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    sandbox.run.deploy(p, r, n, &labels);
    sandbox
        .run
        .set_invoker_iam_disabled(p, r, n, s.invoker_iam_disabled);
    if !s.bindings.is_null() {
        sandbox.run.set_bindings(p, r, n, &s.bindings);
    }
    for viewer in 0..s.viewers {
        let member = format!("user:viewer-{viewer}@acme.com");
        sandbox.run.add_member(p, r, n, "roles/run.viewer", &member);
    }
    if !s.front.is_null() {
        sandbox.run.set_front(p, r, n, &s.front);
    }
    if !s.iap.is_null() {
        sandbox.run.set_iap_bindings(p, r, n, &s.iap);
    }
}
