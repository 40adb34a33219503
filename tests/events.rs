//! Audit events: from a change of somebody else to its correction, with the name of who made it.
//! With the real Pub/Sub emulator, and real gcloud where that makes the change.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

mod common;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use common::{Operator, Setup, eventually, which};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use run_invoker::{
    api::{ChangeReason, ChangedBy, InvokerChange, InvokerGuardrail, InvokerPolicy},
    controller::audit_events::{EventOptions, MessageResult},
    subscription::Source,
};
use sandbox::{Pubsub, Sandbox};
use serde_json::{Value, json};

const P: &str = "acme-prod";
const R: &str = "europe-west1";
const ROLE: &str = "roles/run.invoker";

/// With audit events; the safety net is far away, so that what is seen is seen because of them.
fn with_events(patience: Duration) -> Setup {
    Setup {
        events: Some(EventOptions {
            interval: Duration::from_secs(3600),
            patience,
        }),
        ..Setup::default()
    }
}

fn policy(name: &str, mode: &str, interval: &str, service: Value) -> Value {
    json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerPolicy", "metadata": {"name": name, "namespace": "default"},
        "spec": {"project": P, "services": [service], "interval": interval, "mode": mode, "invokers": [{"member": "user:a@acme.com"}]}})
}
fn named(name: &str) -> Value {
    json!({"name": name, "region": R})
}

/// A sandbox with services, a policy on each, and an operator that has settled them.
struct World {
    sandbox: Sandbox,
    client: Client,
    operator: Operator,
}

impl World {
    async fn new(services: &[String], mode: &str, setup: &Setup) -> Self {
        let sandbox = Sandbox::start(Default::default()).await.unwrap();
        let client = common::client(&sandbox.kubeconfig()).await;
        common::install(&client).await;
        let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
        for name in services {
            sandbox.run.deploy(P, R, name, &[]);
            sandbox.run.add_member(P, R, name, ROLE, "user:a@acme.com");
            let object = serde_json::from_value(policy(name, mode, "5m", named(name))).unwrap();
            api.create(&PostParams::default(), &object).await.unwrap();
        }
        let operators = common::operators_client(&sandbox.kubeconfig()).await;
        let operator = Operator::start(operators, sandbox.run_url(), setup).await;
        let this = Self {
            sandbox,
            client,
            operator,
        };
        this.settled(services.len()).await;
        this.quiet().await;
        this
    }

    /// Waits until nothing has been asked of Cloud Run for a second: what is counted from then on
    /// has its cause in the test.
    async fn quiet(&self) {
        loop {
            let from = self.mark();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.calls(from) == (0, 0, 0) {
                return;
            }
        }
    }

    async fn one(mode: &str, setup: &Setup) -> Self {
        Self::new(&["web".to_owned()], mode, setup).await
    }

    async fn settled(&self, policies: usize) {
        let api: Api<InvokerPolicy> = Api::all(self.client.clone());
        eventually(Duration::from_secs(60), "every policy is ready", || async {
            let list = api
                .list(&ListParams::default())
                .await
                .map_err(|e| e.to_string())?;
            let ready = |p: &&InvokerPolicy| {
                let conditions = p.status.iter().flat_map(|s| &s.conditions);
                conditions
                    .into_iter()
                    .any(|c| c.type_ == "Ready" && c.status == "True")
            };
            let count = list.iter().filter(ready).count();
            if count == policies {
                Ok(())
            } else {
                Err(format!("{count} of {policies}"))
            }
        })
        .await;
    }

    /// Feeds it from the emulator.
    async fn listen(&self, pubsub: &Pubsub) -> tokio::task::JoinHandle<()> {
        let anonymous = google_cloud_auth::credentials::anonymous::Builder::new().build();
        let source = Source::new(&pubsub.endpoint(), anonymous).await.unwrap();
        tokio::spawn(source.read(
            Pubsub::SUBSCRIPTION.to_owned(),
            self.operator.controller.clone(),
        ))
    }

    fn publish(&self, pubsub: &Pubsub) {
        self.sandbox
            .run
            .audit
            .publish_to(&pubsub.endpoint(), Pubsub::TOPIC);
    }

    fn mark(&self) -> u64 {
        self.sandbox.journal.last()
    }

    /// Calls to Cloud Run since then, as reads, writes and listings.
    fn calls(&self, since: u64) -> (usize, usize, usize) {
        let entries = self
            .sandbox
            .journal
            .since(since, |e| e.api == sandbox::Api::Run);
        let of = |what: &str| entries.iter().filter(|e| e.path().ends_with(what)).count();
        (of(":getIamPolicy"), of(":setIamPolicy"), of("/services"))
    }

    async fn members(&self, expected: &[&str]) {
        self.members_of("web", expected, LEASE).await;
    }

    async fn members_of(&self, name: &str, expected: &[&str], within: Duration) {
        eventually(within, &format!("{name} has {expected:?}"), || async {
            let members = self.sandbox.run.members(P, R, name, ROLE);
            if members == expected {
                Ok(())
            } else {
                Err(format!("{members:?}"))
            }
        })
        .await;
    }

    async fn changes(&self) -> Vec<InvokerChange> {
        let api: Api<InvokerChange> = Api::all(self.client.clone());
        api.list(&ListParams::default()).await.unwrap().items
    }

    async fn policy(&self, name: &str) -> InvokerPolicy {
        Api::namespaced(self.client.clone(), "default")
            .get(name)
            .await
            .unwrap()
    }

    /// Waits for an event about a policy.
    async fn noted(&self, what: &str, found: impl Fn(&String) -> bool) {
        eventually(Duration::from_secs(60), what, || async {
            let notes = self.notes().await;
            if notes.iter().any(&found) {
                Ok(())
            } else {
                Err(format!("{notes:?}"))
            }
        })
        .await;
    }

    /// Texts of the events about policies.
    async fn notes(&self) -> Vec<String> {
        let api: Api<k8s_openapi::api::events::v1::Event> = Api::all(self.client.clone());
        let list = api.list(&ListParams::default()).await.unwrap();
        list.iter()
            .map(|e| {
                format!(
                    "{}: {}",
                    e.reason.clone().unwrap_or_default(),
                    e.note.clone().unwrap_or_default()
                )
            })
            .collect()
    }

    /// Tells the operator the entries of the log from number `from` on, without Pub/Sub.
    fn tell(&self, from: usize) -> Vec<MessageResult> {
        let entries = self.sandbox.run.audit.entries();
        entries[from..]
            .iter()
            .map(|e| {
                self.operator
                    .controller
                    .handle_message(e.to_string().as_bytes())
            })
            .collect()
    }
}

const A: &str = "user:a@acme.com";

/// Pub/Sub may hold a message that it gave to a stream that ended for as long as the client extends
/// its lease, which is 60 s; then it comes again.
const LEASE: Duration = Duration::from_secs(120);

/// The way a change of a colleague goes, with everything real that can be had: gcloud makes it, the
/// emulator carries it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn drift_by_gcloud_is_healed_in_seconds_and_has_a_name() {
    let Some(pubsub) = common::pubsub().await else {
        return;
    };
    let Some(program) = which("gcloud") else {
        panic!("the emulator without gcloud")
    };
    let world = World::one("Enforce", &with_events(Duration::from_secs(300))).await;
    world.publish(&pubsub);
    let _reader = world.listen(&pubsub).await;
    let gcloud = common::gcloud(program, &world.sandbox)
        .acting_as("deploy@acme-prod.iam.gserviceaccount.com,mallory@acme.com");
    let from = world.mark();
    let binding = ["--region", R, "--member", "user:x@evil.org", "--role", ROLE];
    gcloud
        .ok(&[
            &["run", "services", "add-iam-policy-binding", "web"],
            &binding[..],
        ]
        .concat())
        .await;
    world.members(&[A]).await;
    let text = "deploy@acme-prod.iam.gserviceaccount.com (impersonated by mallory@acme.com) with gcloud at ";
    let found = |n: &String| {
        n.starts_with("DriftDetected")
            && n.contains("unexpected user:x@evil.org")
            && n.contains(text)
    };
    world.noted("the event names who", found).await;
    let change = world.changes().await.remove(0);
    let by = change.spec.drift_by.unwrap();
    assert_eq!(
        (by.principal.as_str(), by.tool.as_str()),
        ("deploy@acme-prod.iam.gserviceaccount.com", "gcloud")
    );
    assert!(
        by.user_agent.contains("add-iam-policy-binding"),
        "{}",
        by.user_agent
    );
    assert_eq!(by.method, "google.cloud.run.v1.Services.SetIamPolicy");
    // Two calls are gcloud's own. Ours: one read, one write, one read-back; the event about our own
    // write costs nothing.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.calls(from), (1 + 2, 1 + 1, 0));
}

/// Both names of the method, with and without what was added, in audit and in force, one change
/// after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_read_one_write_one_read_back_and_the_name_wherever_drift_is_told() {
    let world = World::one("Enforce", &with_events(Duration::from_secs(300))).await;
    for with_delta in [false, true] {
        world.sandbox.run.audit.set_delta(with_delta);
        let (from, told) = (world.mark(), world.sandbox.run.audit.entries().len());
        world
            .sandbox
            .run
            .add_member(P, R, "web", ROLE, "user:x@evil.org");
        assert_eq!(world.tell(told), [MessageResult::Hint]);
        world.members(&[A]).await;
        // Again, late, and with our own write behind it: all of that is known.
        eventually(Duration::from_secs(5), "read back", || async {
            if world.calls(from).0 == 2 {
                Ok(())
            } else {
                Err(format!("{:?}", world.calls(from)))
            }
        })
        .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(
            world.tell(told),
            [MessageResult::Known, MessageResult::Known],
            "the rival's and our own"
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(world.calls(from), (2, 1, 0));
    }
    let clicker = "clicker@acme.com with Google Cloud console at ";
    for change in world.changes().await {
        assert!(
            change
                .spec
                .drift_by
                .unwrap()
                .to_string()
                .starts_with(clicker)
        );
    }
    world.operator.stop().await;

    // In audit it stands, and so does the name.
    let world = World::one("Audit", &with_events(Duration::from_secs(300))).await;
    let told = world.sandbox.run.audit.entries().len();
    world.sandbox.run.remove_member(P, R, "web", ROLE, A);
    world.tell(told);
    eventually(Duration::from_secs(10), "Drifted says who", || async {
        let status = world.policy("web").await.status.unwrap();
        let drifted = status
            .conditions
            .iter()
            .find(|c| c.type_ == "Drifted")
            .unwrap();
        let entry = &status.services[0];
        let named = entry
            .drift_by
            .as_ref()
            .is_some_and(|by| by.principal == "clicker@acme.com");
        if named
            && drifted
                .message
                .contains(&format!("missing {A}, by {clicker}"))
        {
            Ok(())
        } else {
            Err(format!("{drifted:?} {entry:?}"))
        }
    })
    .await;
    // What somebody else does now is theirs, and the first one's stays the first one's.
    let told = world.sandbox.run.audit.entries().len();
    world
        .sandbox
        .run
        .add_member(P, R, "web", "roles/run.developer", "user:dev@acme.com");
    world.tell(told);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        world.policy("web").await.status.unwrap().services[0]
            .drift_by
            .is_some()
    );
    // Found by a read, and nobody told: unknown, and said so.
    world
        .sandbox
        .run
        .add_member(P, R, "web", ROLE, "user:y@evil.org");
    look(&world, "1").await;
    let found = |n: &String| n.contains("user:y@evil.org") && n.contains("actor unknown");
    // The first part of the drift has a name still; what is told is the last that is known.
    let known = |n: &String| n.contains("user:y@evil.org") && n.contains(clicker);
    world
        .noted("unknown is said as unknown", |n| found(n) || known(n))
        .await;
}

/// Asks for a look.
async fn look(world: &World, value: &str) {
    let api: Api<InvokerPolicy> = Api::namespaced(world.client.clone(), "default");
    let patch = json!({"metadata": {"annotations": {"run-invoker.dev/requested-at": value}}});
    api.patch("web", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_not_told_is_unknown() {
    let world = World::one("Enforce", &with_events(Duration::from_secs(300))).await;
    world
        .sandbox
        .run
        .add_member(P, R, "web", ROLE, "user:x@evil.org");
    look(&world, "1").await;
    world.members(&[A]).await;
    let found = |n: &String| n.contains("user:x@evil.org") && n.ends_with("actor unknown");
    world.noted("unknown is said as unknown", found).await;
    assert_eq!(world.changes().await[0].spec.drift_by, None);
}

/// Four times in a row: it is a fight, and the rival has a name, also after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fight_names_the_rival() {
    let setup = with_events(Duration::from_secs(300));
    let mut world = World::one("Enforce", &setup).await;
    for round in 0..4 {
        let told = world.sandbox.run.audit.entries().len();
        world
            .sandbox
            .run
            .add_member(P, R, "web", ROLE, "user:x@evil.org");
        world.tell(told);
        if round < 3 {
            world.members(&[A]).await;
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }
    let rival = async |world: &World| {
        eventually(
            Duration::from_secs(15),
            "Contested names the rival",
            || async {
                let status = world.policy("web").await.status.unwrap();
                let contested = status.conditions.iter().find(|c| c.type_ == "Contested");
                let message = contested.map(|c| c.message.clone()).unwrap_or_default();
                if message.contains("last made by clicker@acme.com with Google Cloud console")
                    && !message.contains("find out who")
                {
                    Ok(())
                } else {
                    Err(message)
                }
            },
        )
        .await;
    };
    rival(&world).await;
    world.operator.stop().await;
    let operators = common::operators_client(&world.sandbox.kubeconfig()).await;
    world.operator = Operator::start(operators, world.sandbox.run_url(), &setup).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    rival(&world).await;
}

/// Whatever is sent: no call for what nobody targets, few for what somebody does.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn forged_messages_cause_no_calls_or_few() {
    let world = World::new(
        &["web".to_owned(), "api".to_owned()],
        "Enforce",
        &with_events(Duration::from_secs(300)),
    )
    .await;
    let controller = &world.operator.controller;
    let entry = world
        .sandbox
        .run
        .audit
        .entries()
        .iter()
        .rfind(|e| {
            e["protoPayload"]["methodName"]
                .as_str()
                .unwrap()
                .ends_with("SetIamPolicy")
        })
        .unwrap()
        .clone();
    let forge = |name: &str, etag: &str, method: &str| {
        let mut forged = entry.clone();
        forged["protoPayload"]["resourceName"] = json!(name);
        forged["protoPayload"]["response"]["etag"] = json!(etag);
        forged["protoPayload"]["methodName"] = json!(method);
        forged.to_string().into_bytes()
    };
    let (set, delete) = (
        "google.cloud.run.v2.Services.SetIamPolicy",
        "google.cloud.run.v2.Services.DeleteService",
    );
    let from = world.mark();
    for name in [
        "projects/acme-prod/locations/europe-west1/services/nobody",
        "projects/other/locations/europe-west1/services/web",
        "namespaces/other/services/web",
    ] {
        assert_eq!(
            controller.handle_message(&forge(name, "Zm9v", set)),
            MessageResult::Foreign,
            "{name}"
        );
    }
    assert_eq!(
        controller.handle_message(&forge(
            "projects/other/locations/europe-west1/services/web",
            "Zm9v",
            delete
        )),
        MessageResult::Foreign
    );
    for junk in [
        &b""[..],
        b"{}",
        b"null",
        b"\xff\xfe",
        br#"{"protoPayload": {"methodName": 5}}"#,
    ] {
        assert_eq!(controller.handle_message(junk), MessageResult::Malformed);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.calls(from), (0, 0, 0));

    // A flood about one service, each message as new: few reads, nothing written, and the other
    // service is served.
    let web = format!("projects/{P}/locations/{R}/services/web");
    let started = Instant::now();
    for i in 0..2000 {
        controller.handle_message(&forge(&web, &format!("e{i}"), set));
    }
    let told = world.sandbox.run.audit.entries().len();
    world
        .sandbox
        .run
        .add_member(P, R, "api", ROLE, "user:x@evil.org");
    world.tell(told);
    world.members_of("api", &[A], Duration::from_secs(20)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (reads, writes, _) = world.calls(from);
    // Two for api; three for web at once and one in five seconds.
    let allowed = 2 + 3 + started.elapsed().as_secs() as usize / 5 + 1;
    assert!(reads <= allowed, "{reads} reads, {allowed} allowed");
    assert_eq!(writes, 1, "the one of api");
    // Listings that are asked for again and again: three at once, then apart.
    let from = world.mark();
    for _ in 0..500 {
        controller.handle_message(&forge(
            &web,
            "",
            "google.cloud.run.v1.Services.ReplaceService",
        ));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.calls(from).2 <= 3, "{:?}", world.calls(from));
}

/// A service that a selector newly matches, one that anyone can call, one that is deleted and made
/// again: at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_of_services_are_listed_at_once() {
    let setup = with_events(Duration::from_secs(300));
    let world = World::one("Enforce", &setup).await;
    let api: Api<InvokerPolicy> = Api::namespaced(world.client.clone(), "default");
    let selector = json!({"selector": {"matchLabels": {"tier": "front"}}, "regions": [R]});
    let object = serde_json::from_value(policy("front", "Enforce", "5m", selector)).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
    world.settled(2).await;
    let tell = |change: &dyn Fn(&Sandbox)| {
        let told = world.sandbox.run.audit.entries().len();
        change(&world.sandbox);
        assert!(world.tell(told).contains(&MessageResult::Hint));
    };
    tell(&|s| s.run.deploy(P, R, "shop", &[("tier", "front")]));
    world
        .members_of("shop", &[A], Duration::from_secs(20))
        .await;
    tell(&|s| s.run.set_invoker_iam_disabled(P, R, "web", true));
    eventually(Duration::from_secs(20), "web is exposed", || async {
        let status = world.policy("web").await.status.unwrap();
        if status.services[0].exposed {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    tell(&|s| {
        s.run.remove(P, R, "web");
        s.run.deploy(P, R, "web", &[]);
    });
    world.members_of("web", &[A], Duration::from_secs(20)).await;
    // Labels away: out of the selector, and what was granted for it goes.
    tell(&|s| s.run.deploy(P, R, "shop", &[]));
    world.members_of("shop", &[], Duration::from_secs(20)).await;
}

/// A function is deployed by methods of its own, which a selector follows like any other; its
/// completion, in another log and about a revision, asks for nothing and is nothing odd.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn functions_are_heard_of_and_completions_do_no_harm() {
    let world = World::one("Enforce", &with_events(Duration::from_secs(300))).await;
    let api: Api<InvokerPolicy> = Api::namespaced(world.client.clone(), "default");
    let selector = json!({"selector": {"matchLabels": {"tier": "front"}}, "regions": [R]});
    let object = serde_json::from_value(policy("front", "Enforce", "5m", selector)).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
    world.settled(2).await;
    let told = world.sandbox.run.audit.entries().len();
    world
        .sandbox
        .run
        .deploy_function(P, R, "on-order", &[("tier", "front")]);
    let entries = world.sandbox.run.audit.entries();
    let payload = |i: usize, field: &str| entries[told + i]["protoPayload"][field].clone();
    assert_eq!(
        payload(0, "methodName"),
        "google.cloud.serverless.internal.InternalServices.CreateInternalService"
    );
    assert_eq!(payload(1, "methodName"), "/Services.ReplaceService");
    assert_eq!(
        world.tell(told),
        [MessageResult::Hint, MessageResult::Foreign]
    );
    world
        .members_of("on-order", &[A], Duration::from_secs(20))
        .await;
    // Completions alone, again and again: no call.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let from = world.mark();
    for _ in 0..50 {
        let heard = world
            .operator
            .controller
            .handle_message(entries[told + 1].to_string().as_bytes());
        assert_eq!(heard, MessageResult::Foreign);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.calls(from), (0, 0, 0));
}

/// A guardrail takes a member away that the policy lists: that is the operator's own doing, whoever
/// the log names for it, and what somebody else does next is theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_the_operator_revoked_is_never_blamed_on_anybody() {
    for with_delta in [false, true] {
        let world = World::one("Enforce", &with_events(Duration::from_secs(300))).await;
        world.sandbox.run.audit.set_delta(with_delta);
        let api: Api<InvokerPolicy> = Api::namespaced(world.client.clone(), "default");
        let invokers = json!([{"member": A}, {"member": "user:b@acme.com"}]);
        let patch = json!({"spec": {"invokers": invokers}});
        api.patch("web", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        world.members(&[A, "user:b@acme.com"]).await;
        world.tell(0);
        let rails: Api<InvokerGuardrail> = Api::all(world.client.clone());
        let rail = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerGuardrail", "metadata": {"name": "tight"},
            "spec": {"members": [A]}});
        rails
            .create(
                &PostParams::default(),
                &serde_json::from_value(rail).unwrap(),
            )
            .await
            .unwrap();
        world.members(&[A]).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.tell(0);
        look(&world, "1").await;
        let own = |by: &ChangedBy, change: &InvokerChange| {
            by.change == change.metadata.name.clone().unwrap_or_default()
                && by.principal == "run-invoker"
        };
        eventually(Duration::from_secs(20), "it is the operator's", || async {
            let changes = world.changes().await;
            let record = changes
                .iter()
                .find(|c| c.spec.reason == ChangeReason::Guardrail)
                .ok_or("no record yet")?;
            assert_eq!(record.spec.drift_by, None);
            let status = world.policy("web").await.status.unwrap();
            let entry = &status.services[0];
            match &entry.drift_by {
                Some(by) if entry.missing == ["user:b@acme.com"] && own(by, record) => Ok(()),
                other => Err(format!("{other:?} {entry:?} {:?}", record.metadata.name)),
            }
        })
        .await;
        // Neither as an event nor as a name of somebody.
        let blamed = |n: &String| n.starts_with("DriftDetected");
        assert!(!world.notes().await.iter().any(blamed));
        // A stranger's change has the stranger's name, although ours stands beside it.
        world.quiet().await;
        let told = world.sandbox.run.audit.entries().len();
        world
            .sandbox
            .run
            .add_member(P, R, "web", ROLE, "user:x@evil.org");
        world.tell(told);
        world.members(&[A]).await;
        let found =
            |n: &String| n.contains("user:x@evil.org") && n.contains(", by clicker@acme.com with");
        world.noted("the stranger's", found).await;
        world.operator.stop().await;
    }
}

/// Ten thousand messages, half of them rubbish or about others, with real ones in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_burst_of_ten_thousand_messages() {
    let Some(pubsub) = common::pubsub().await else {
        return;
    };
    let services: Vec<String> = (0..50).map(|i| format!("s{i}")).collect();
    let world = World::new(&services, "Enforce", &with_events(Duration::from_secs(300))).await;
    let from = world.mark();
    let told = world.sandbox.run.audit.entries().len();
    let drifted: BTreeSet<usize> = (0..50).step_by(5).collect();
    for i in &drifted {
        world
            .sandbox
            .run
            .add_member(P, R, &services[*i], ROLE, "user:x@evil.org");
    }
    let real: Vec<Vec<u8>> = world.sandbox.run.audit.entries()[told..]
        .iter()
        .map(|e| e.to_string().into_bytes())
        .collect();
    let foreign = |i: usize| {
        let mut entry: Value = serde_json::from_slice(&real[0]).unwrap();
        entry["protoPayload"]["resourceName"] =
            json!(format!("projects/{P}/locations/{R}/services/other{i}"));
        entry.to_string().into_bytes()
    };
    let messages: Vec<Vec<u8>> = (0..10_000)
        .map(|i| match i % 4 {
            0 => foreign(i),
            1 => format!("{{\"rubbish\": {i}").into_bytes(),
            // Each real one five hundred times.
            _ => real[i % real.len()].clone(),
        })
        .collect();
    let _reader = world.listen(&pubsub).await;
    pubsub.publish(&messages).await.unwrap();
    for name in &services {
        world.members_of(name, &[A], Duration::from_secs(60)).await;
    }
    let metrics = &world.operator.metrics;
    let count = |label: &str| -> f64 {
        let text = metrics.render(&Default::default());
        let line = format!("run_invoker_events_total{{result=\"{label}\"}} ");
        text.lines()
            .find_map(|l| l.strip_prefix(&line))
            .map_or(0.0, |v| v.parse().unwrap())
    };
    eventually(
        Duration::from_secs(60),
        "every message was taken in",
        || async {
            let all: f64 = MessageResult::ALL.iter().map(|h| count(h.label())).sum();
            if all >= 10_000.0 {
                Ok(())
            } else {
                Err(all.to_string())
            }
        },
    )
    .await;
    assert!(count("malformed") >= 2500.0 && count("foreign") >= 2500.0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (reads, writes, lists) = world.calls(from);
    assert_eq!((writes, lists), (drifted.len(), 0));
    assert!(reads <= drifted.len() * 6, "{reads} reads");
}

/// The subscriber goes and comes, the emulator too; acknowledgements are lost with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_subscriber_and_the_emulator_come_and_go() {
    let Some(mut pubsub) = common::pubsub().await else {
        return;
    };
    let world = World::one("Enforce", &with_events(Duration::from_secs(300))).await;
    world.publish(&pubsub);
    let reader = world.listen(&pubsub).await;
    let drift = |who: &str| world.sandbox.run.add_member(P, R, "web", ROLE, who);
    drift("user:x@evil.org");
    world.members(&[A]).await;
    // Its read-back is over too, or that one would see the next change.
    world.quiet().await;
    // Nobody listens while it happens, and what was acknowledged last may come again.
    reader.abort();
    let _ = reader.await;
    drift("user:y@evil.org");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        world.sandbox.run.members(P, R, "web", ROLE).len(),
        2,
        "nobody looked"
    );
    let _reader = world.listen(&pubsub).await;
    // It may be with the one that died until its lease runs out.
    world.members(&[A]).await;
    // The emulator forgets everything when it goes.
    pubsub.down();
    let condition = || {
        world
            .operator
            .controller
            .events_condition()
            .map(|(reason, _)| reason)
    };
    assert_eq!(condition(), None);
    eventually(
        Duration::from_secs(60),
        "it is said that the subscription cannot be reached",
        || async {
            if condition() == Some("SubscriptionUnreachable") {
                Ok(())
            } else {
                Err(format!("{:?}", condition()))
            }
        },
    )
    .await;
    pubsub.up().await.unwrap();
    eventually(Duration::from_secs(60), "and that it can", || async {
        if condition().is_none() {
            Ok(())
        } else {
            Err(format!("{:?}", condition()))
        }
    })
    .await;
    let from = world.mark();
    drift("user:z@evil.org");
    world.members(&[A]).await;
    assert_eq!(world.calls(from).1, 1);
}

/// Events that do not come in: intervals shrink by themselves, the operator says so, and both end
/// when events are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn silence_shrinks_the_intervals_and_an_event_stretches_them_again() {
    let world = World::one("Enforce", &with_events(Duration::from_secs(2))).await;
    let api: Api<InvokerPolicy> = Api::namespaced(world.client.clone(), "default");
    let patch = json!({"spec": {"interval": "10s"}});
    let before = world.mark();
    api.patch("web", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    // The new declaration is a reason to look.
    eventually(
        Duration::from_secs(20),
        "looked because of the change",
        || async {
            if world.calls(before).0 > 0 {
                Ok(())
            } else {
                Err("not yet".into())
            }
        },
    )
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let from = world.mark();
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(
        world.calls(from).0,
        0,
        "with events there is no look every ten seconds"
    );
    // A drift that is found by a look, of which no event tells.
    world
        .sandbox
        .run
        .add_member(P, R, "web", ROLE, "user:x@evil.org");
    look(&world, "1").await;
    world.members(&[A]).await;
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(world.client.clone(), "default");
    eventually(Duration::from_secs(10), "the condition", || async {
        let lease = leases
            .get("run-invoker-events")
            .await
            .map_err(|e| e.to_string())?;
        let notes = lease.metadata.annotations.unwrap_or_default();
        if notes["run-invoker.dev/reason"] == "EventsMissing"
            && notes["run-invoker.dev/message"].contains(P)
        {
            Ok(())
        } else {
            Err(format!("{notes:?}"))
        }
    })
    .await;
    let reliable = || {
        world
            .operator
            .metrics
            .render(&Default::default())
            .contains("\nrun_invoker_events_reliable 1\n")
    };
    assert!(!reliable());
    // The next one is found by the interval of the policy.
    world
        .sandbox
        .run
        .add_member(P, R, "web", ROLE, "user:y@evil.org");
    world.members(&[A]).await;
    // And now events come in again.
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.tell(0);
    eventually(Duration::from_secs(10), "the condition is gone", || async {
        match leases.get_opt("run-invoker-events").await.unwrap() {
            None if reliable() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Two replicas share the shards and one subscription: what one of them gets for the other reaches
/// the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replicas_share_a_subscription() {
    let Some(pubsub) = common::pubsub().await else {
        return;
    };
    let sandbox = Sandbox::start(Default::default()).await.unwrap();
    let client = common::client(&sandbox.kubeconfig()).await;
    common::install(&client).await;
    let api: Api<InvokerPolicy> = Api::namespaced(client.clone(), "default");
    let projects: Vec<String> = (0..8).map(|i| format!("acme-{i}")).collect();
    for project in &projects {
        sandbox.run.deploy(project, R, "web", &[]);
        sandbox.run.add_member(project, R, "web", ROLE, A);
        let mut object = policy(project, "Enforce", "5m", named("web"));
        object["spec"]["project"] = json!(project);
        api.create(
            &PostParams::default(),
            &serde_json::from_value(object).unwrap(),
        )
        .await
        .unwrap();
    }
    let mut replicas = Vec::new();
    for identity in ["a", "b"] {
        let setup = Setup {
            shards: 2,
            identity: identity.into(),
            ..with_events(Duration::from_secs(300))
        };
        let operators = common::operators_client(&sandbox.kubeconfig()).await;
        replicas.push(Operator::start(operators, sandbox.run_url(), &setup).await);
    }
    eventually(Duration::from_secs(40), "each has a shard", || async {
        let held: Vec<usize> = replicas
            .iter()
            .map(|r| r.shards.terms().iter().flatten().count())
            .collect();
        if held == [1, 1] {
            Ok(())
        } else {
            Err(format!("{held:?}"))
        }
    })
    .await;
    let world = World {
        sandbox,
        client,
        operator: replicas.remove(0),
    };
    world.settled(projects.len()).await;
    world.publish(&pubsub);
    let anonymous = google_cloud_auth::credentials::anonymous::Builder::new().build();
    let source = Source::new(&pubsub.endpoint(), anonymous).await.unwrap();
    let other = tokio::spawn(source.read(
        Pubsub::SUBSCRIPTION.to_owned(),
        replicas[0].controller.clone(),
    ));
    let one = world.listen(&pubsub).await;
    let from = world.mark();
    for round in 0..2 {
        for project in &projects {
            world.sandbox.run.add_member(
                project,
                R,
                "web",
                ROLE,
                &format!("user:x{round}@evil.org"),
            );
        }
        eventually(
            Duration::from_secs(60),
            "every project is healed",
            || async {
                let left: Vec<_> = projects
                    .iter()
                    .filter(|p| world.sandbox.run.members(p, R, "web", ROLE) != [A])
                    .collect();
                if left.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{left:?}"))
                }
            },
        )
        .await;
    }
    assert_eq!(
        world.calls(from).1,
        2 * projects.len(),
        "one write for each drift"
    );
    one.abort();
    other.abort();
}
