//! Approvals that are reviewed with a change: what `plan --approvals` writes lets exactly the
//! reviewed plan through when it arrives, in whatever order, and nothing else.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use std::{collections::BTreeSet, fs, path::PathBuf, process::Stdio, time::Duration};

use common::{Envtest, Operator, Setup, eventually};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use run_invoker::api::{
    ApprovalState, InvokerApproval, InvokerChange, InvokerGuardrail, InvokerPolicy,
};
use sandbox::Sandbox;
use serde_json::{Value, json};

const PLACE: (&str, &str, &str) = ("acme-prod", "europe-west1", "web");

/// A repository with a policy, a cluster where an older state of it is enforced, and Google.
struct Ground {
    sandbox: Sandbox,
    client: Client,
    folder: PathBuf,
    operator: Operator,
    /// Kept for as long as the test goes on.
    _real: Option<Envtest>,
}

impl Ground {
    async fn new(name: &str, real: Option<Envtest>) -> Self {
        let sandbox = match &real {
            Some(real) => real.behind_a_sandbox().await,
            None => Sandbox::start(Default::default()).await.unwrap(),
        };
        let client = common::client(&sandbox.kubeconfig()).await;
        common::install(&client).await;
        common::namespace(&client, "team-a").await;
        let folder = std::env::temp_dir().join(format!(
            "run-invoker-approvals-{name}-{}-{}",
            std::process::id(),
            common::free_port()
        ));
        fs::create_dir_all(folder.join("repo")).unwrap();
        fs::write(folder.join("kubeconfig"), sandbox.kubeconfig()).unwrap();
        sandbox.run.deploy(PLACE.0, PLACE.1, PLACE.2, &[]);
        for n in 1..=4 {
            member(&sandbox, &format!("user:x{n}@acme.com"));
        }
        let mut setup = Setup::default();
        setup.settings.limits.max_removals = 2;
        let operator = Operator::start(client.clone(), sandbox.run_url(), &setup).await;
        let this = Self {
            sandbox,
            client,
            folder,
            operator,
            _real: real,
        };
        let rail = json!({"kind": "InvokerGuardrail", "metadata": {"name": "payments"}, "spec": {"approvals": "Approver"}});
        this.apply(&rail).await;
        this.apply(&policy("Additive", &[])).await;
        this.ready("True", "InSync").await;
        this
    }

    async fn apply(&self, object: &Value) {
        let mut object = object.clone();
        object["apiVersion"] = json!("run-invoker.dev/v1alpha1");
        let kind = object["kind"].as_str().unwrap().to_owned();
        let resource = match kind.as_str() {
            "InvokerPolicy" => ApiResource::erase::<InvokerPolicy>(&()),
            "InvokerApproval" => ApiResource::erase::<InvokerApproval>(&()),
            "InvokerGuardrail" => ApiResource::erase::<InvokerGuardrail>(&()),
            other => panic!("{other}"),
        };
        let api: Api<DynamicObject> = match kind.as_str() {
            "InvokerGuardrail" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), "team-a", &resource),
        };
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let params = PatchParams::apply("git").force();
        api.patch(&name, &params, &Patch::Apply(object))
            .await
            .unwrap();
    }

    /// Plans in the repository, with the operator's limits.
    async fn plugin(&self, args: &[&str]) -> (String, i32) {
        self.run(&[args, &["--max-removals", "2"]].concat()).await
    }

    /// Runs the plugin; what it prints, and its exit code.
    async fn run(&self, args: &[&str]) -> (String, i32) {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-invoker"))
            .args(args)
            .current_dir(self.folder.join("repo"))
            .env("KUBECONFIG", self.folder.join("kubeconfig"))
            .env("RUN_INVOKER_CLOUD_RUN_ENDPOINT", self.sandbox.run_url())
            .env("RUN_INVOKER_ANONYMOUS", "true")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let all = text(&output.stdout) + &text(&output.stderr);
        (all, output.status.code().unwrap())
    }

    /// What a pull request with this policy holds: the approvals that the plugin wrote beside it.
    async fn review(&self, policy: &Value) -> Vec<Value> {
        let mut full = policy.clone();
        full["apiVersion"] = json!("run-invoker.dev/v1alpha1");
        full["metadata"]["namespace"] = json!("team-a");
        let text = serde_json::to_string(&full).unwrap();
        fs::write(self.folder.join("repo/policy.json"), text).unwrap();
        let args = [
            "plan",
            "-f",
            ".",
            "--approvals",
            "approvals.yaml",
            "--reason",
            "PR 7",
        ];
        let (text, code) = self.plugin(&args).await;
        assert_eq!(code, 2, "{text}");
        assert!(text.contains("1 approvals in approvals.yaml"), "{text}");
        self.written()
    }

    fn written(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.join("repo/approvals.yaml")).unwrap();
        let documents = text.split("---\n").skip(1);
        documents
            .map(|d| serde_saphyr::from_str(d).unwrap())
            .collect()
    }

    async fn ready(&self, status: &str, reason: &str) {
        let api: Api<InvokerPolicy> = Api::namespaced(self.client.clone(), "team-a");
        eventually(Duration::from_secs(15), reason, || async {
            let policy = api.get("web").await.map_err(|e| e.to_string())?;
            let conditions = policy.status.unwrap_or_default().conditions;
            let ready = conditions.iter().find(|c| c.type_ == "Ready");
            let is_it = ready.is_some_and(|c| {
                c.status == status
                    && c.reason == reason
                    && Some(c.observed_generation) == policy.metadata.generation
            });
            is_it.then_some(()).ok_or(format!("{ready:?}"))
        })
        .await;
    }

    async fn approval(&self, name: &str, state: ApprovalState, words: &str) {
        let api: Api<InvokerApproval> = Api::namespaced(self.client.clone(), "team-a");
        eventually(Duration::from_secs(15), words, || async {
            let status = api.get(name).await.map_err(|e| e.to_string())?.status;
            let found = status.unwrap_or_default();
            let says = found.message.clone().unwrap_or_default();
            let is_it = found.state == Some(state) && says.contains(words);
            is_it.then_some(()).ok_or(format!("{found:?}"))
        })
        .await;
    }

    fn members(&self) -> BTreeSet<String> {
        let members = self
            .sandbox
            .run
            .members(PLACE.0, PLACE.1, PLACE.2, "roles/run.invoker");
        members.into_iter().collect()
    }

    async fn end(self) {
        self.operator.stop().await;
        fs::remove_dir_all(&self.folder).ok();
    }
}

fn member(sandbox: &Sandbox, member: &str) {
    sandbox
        .run
        .add_member(PLACE.0, PLACE.1, PLACE.2, "roles/run.invoker", member);
}

fn policy(membership: &str, more: &[&str]) -> Value {
    let members = ["user:a@acme.com"].iter().chain(more);
    let invokers: Vec<Value> = members.map(|m| json!({"member": m})).collect();
    json!({"kind": "InvokerPolicy", "metadata": {"name": "web"}, "spec": {"project": PLACE.0, "mode": "Enforce",
        "services": [{"name": PLACE.2, "region": PLACE.1}], "membership": membership, "invokers": invokers}})
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

/// The policy and the approval of its review arrive in this order.
async fn arrives(real: Option<Envtest>, approval_first: bool) {
    let ground = Ground::new("order", real).await;
    let merged = policy("Authoritative", &["user:b@acme.com"]);
    let approvals = ground.review(&merged).await;
    let effect = approvals[0]["spec"]["effect"].as_array().unwrap();
    assert_eq!(
        effect[0],
        "revoke user:x1@acme.com on acme-prod/europe-west1/web"
    );
    assert_eq!(approvals[0]["spec"]["reason"], "PR 7");
    // Reviewed: with the approvals the plan goes through, and the pull request shows by what.
    let (text, _) = ground.plugin(&["plan", "-f", ".", "-o", "markdown"]).await;
    assert!(
        text.contains("Approved with this change") && text.contains("PR 7"),
        "{text}"
    );
    // The same change again, and another time: the file stays as it is.
    assert_eq!(ground.review(&merged).await, approvals);
    if approval_first {
        ground.apply(&approvals[0]).await;
        let name = name(&approvals[0]);
        ground
            .approval(&name, ApprovalState::Waiting, "holds no plan now")
            .await;
        ground.apply(&merged).await;
    } else {
        ground.apply(&merged).await;
        ground.ready("False", "ApprovalRequired").await;
        ground.apply(&approvals[0]).await;
    }
    ground.ready("True", "InSync").await;
    let wanted = ["user:a@acme.com", "user:b@acme.com"].map(str::to_owned);
    assert_eq!(ground.members(), wanted.into());
    let used = name(&approvals[0]);
    ground
        .approval(&used, ApprovalState::Used, "it let its plan through")
        .await;
    let changes: Api<InvokerChange> = Api::namespaced(ground.client.clone(), "team-a");
    let changes = changes.list(&Default::default()).await.unwrap().items;
    let by = changes.iter().flat_map(|c| &c.spec.approvals);
    let by: Vec<(&str, &str)> = by.map(|a| (&*a.name, &*a.reason)).collect();
    assert_eq!(by, [(used.as_str(), "PR 7")]);
    ground.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_approval_of_a_review_works_in_any_order_of_arrival() {
    arrives(None, true).await;
    arrives(None, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_approval_of_a_review_works_on_a_real_api_server() {
    if let Some(real) = Envtest::start("approvals").await {
        arrives(Some(real), true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_plan_that_became_another_one_waits_and_says_what_changed() {
    let ground = Ground::new("changed", None).await;
    let merged = policy("Authoritative", &[]);
    let approvals = ground.review(&merged).await;
    // Between the review and the merge.
    member(&ground.sandbox, "user:x5@acme.com");
    ground.sandbox.run.remove_member(
        PLACE.0,
        PLACE.1,
        PLACE.2,
        "roles/run.invoker",
        "user:x1@acme.com",
    );
    ground.apply(&approvals[0]).await;
    ground.apply(&merged).await;
    ground.ready("False", "ApprovalRequired").await;
    let words = "since it was approved also: revoke user:x5@acme.com on acme-prod/europe-west1/web, no more: revoke user:x1@acme.com on acme-prod/europe-west1/web";
    let first = name(&approvals[0]);
    ground.approval(&first, ApprovalState::Stale, words).await;
    assert_eq!(ground.members().len(), 5, "{:?}", ground.members());
    // What somebody was shown is not what the hash is of.
    let second = ground.review(&merged).await;
    let mut forged = second[0].clone();
    forged["metadata"]["name"] = json!("forged");
    forged["spec"]["effect"] = json!(["revoke user:x2@acme.com on acme-prod/europe-west1/web"]);
    ground.apply(&forged).await;
    let words = "spec.effect is not what this plan does";
    ground
        .approval("forged", ApprovalState::Refused, words)
        .await;
    ground.ready("False", "ApprovalRequired").await;
    assert_ne!(second[0]["spec"]["plan"], approvals[0]["spec"]["plan"]);
    // An approver who looks at what waits now.
    let args = "approve web -n team-a --reason CHG-9 --yes --wait";
    let (text, code) = ground.run(&args.split(' ').collect::<Vec<_>>()).await;
    assert!(
        code == 0 && text.contains("Used: it let its plan through"),
        "{text}"
    );
    ground.ready("True", "InSync").await;
    let (text, _) = ground.run(&["history", "-n", "team-a"]).await;
    assert!(
        text.contains("Approved") && text.contains("CHG-9"),
        "{text}"
    );
    assert_eq!(ground.members(), ["user:a@acme.com".to_owned()].into());
    ground.end().await;
}
