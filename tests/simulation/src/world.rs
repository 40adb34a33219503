//! One world: a story played from its beginning, the rest that everything gets at its end, and the
//! verdict.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::Method;
use judge::{By, End, Judge, Quiet, Settings, Violation, declared::Service};
use run_invoker::subscription::{Answer, MessageHandler};
use sandbox::{Apis, Clock, kube::registry::Resource};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    generate,
    net::{Cable, Net},
    post::{Message, Post},
    replica::{EVENT_INTERVAL, HOME, LEASE, PROPAGATION, Replica},
    story::{Action, Agreement, Moment, Setup, Story, What, parts},
    wrong::Wrong,
};

/// Everything begins at this moment.
pub const BEGINNING: &str = "2026-11-24T12:00:00Z";

/// The organization of every world, and a folder in it, in which one of the projects is.
pub const ORGANIZATION: &str = "organizations/123456789012";
pub const FOLDER: &str = "folders/11";

/// How long everything may take to be as it must be, once people and weather rest: fights and
/// refused members are tried again at distances of up to an hour.
const REST: Duration = Duration::from_secs(80 * 60);

/// What became of a world.
#[derive(Clone, Debug)]
pub struct Report {
    /// The first promises that were broken.
    pub violations: Vec<Violation>,
    /// Stands for everything that happened.
    pub hash: u64,
    pub journal: Vec<String>,
    pub tally: BTreeMap<&'static str, u64>,
    /// How long the world lasted, on its own clock.
    pub lasted: Duration,
    /// How long it took until everything was as it must be.
    pub settled_after: Option<Duration>,
}

/// How a world is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// The journal is kept, not only its hash.
    pub journal: bool,
    /// The operator is made to do this wrong.
    pub wrong: Option<Wrong>,
}

/// The kinds of the operator, compiled once for all worlds.
fn resources() -> Vec<Resource> {
    static KINDS: OnceLock<Vec<Resource>> = OnceLock::new();
    KINDS
        .get_or_init(|| {
            let mut all = sandbox::kube::registry::builtins();
            for crd in run_invoker::api::definitions() {
                let crd = serde_json::to_value(crd).expect("a definition is JSON");
                all.extend(
                    sandbox::kube::registry::from_definition(&crd)
                        .expect("the definitions are good"),
                );
            }
            all
        })
        .clone()
}

/// The longest that a world takes on a machine with other work, many times over.
const ENDLESS: Duration = Duration::from_secs(300);

/// Ends the process with a word if a world does not end: where something is tried again and again
/// without a pause, virtual time stands still, and nobody in that world can judge it.
fn watch(seed: u64) -> std::sync::mpsc::Sender<()> {
    let (playing, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if ended.recv_timeout(ENDLESS) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("BROKEN P0 the world of seed {seed} does not end: time stands still in it");
            std::process::exit(3);
        }
    });
    playing
}

/// Plays a story.
pub fn play(story: &Story, run: Run) -> Report {
    let _playing = watch(story.seed);
    fastrand::seed(story.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    PANICS.with(|p| p.borrow_mut().clear());
    let mut report = runtime.block_on(World::begin(story, run));
    for what in PANICS.with(|p| std::mem::take(&mut *p.borrow_mut())) {
        let at = BEGINNING.parse().expect("a time");
        report.violations.insert(
            0,
            Violation {
                rule: "P0",
                at,
                what,
            },
        );
    }
    report
}

thread_local! {
    static PANICS: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// A task that panics is caught by whoever waits for it; here it breaks the world.
pub fn watch_for_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANICS.with(|p| p.borrow_mut().push(format!("a panic: {info}")));
    }));
}

struct World {
    net: Arc<Net>,
    setup: Setup,
    replicas: BTreeMap<usize, Replica>,
    lives: u64,
    calls: Vec<Arc<AtomicU64>>,
    /// When dead replicas come back.
    back: BTreeMap<(Instant, usize), ()>,
    hashes: Vec<(String, String)>,
    /// Policy and hash of a plan that an InvokerApproval could be for, as a status had it.
    plans: Vec<(String, String)>,
    story: Story,
    /// The audit log's subscription, where there is one.
    post: Option<Post>,
}

impl World {
    async fn begin(story: &Story, run: Run) -> Report {
        let clock = Clock::following_runtime(BEGINNING.parse().expect("a time"));
        let apis = Apis::serving(clock, resources());
        let setup = story.setup.clone();
        let settings = Settings {
            max_removals: setup.max_removals,
            public: false,
            breaker: (setup.breaker, 300),
            protected: "serviceAccount:service-*@gcp-sa-*.iam.gserviceaccount.com".into(),
            lease: LEASE.into(),
            event_interval: setup.events.then_some(EVENT_INTERVAL.as_secs() as i64),
            propagation: PROPAGATION.as_secs() as i64,
            inherited: setup.inherited,
        };
        let net = Net::new(
            apis,
            Judge::new(settings),
            story.seed,
            story.weather.clone(),
            story.crashes.clone(),
            run,
        );
        if !setup.rests {
            // It is about how long things take: nothing else may take long.
            net.even.store(true, Ordering::Relaxed);
        }
        for ns in [HOME, "team-a", "team-b"] {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}});
            net.person(
                Method::POST,
                "/api/v1/namespaces",
                "application/json",
                &object,
            )
            .await;
        }
        let calls = (0..setup.replicas).map(|_| Arc::default()).collect();
        let mut world = Self {
            net,
            setup,
            replicas: BTreeMap::new(),
            lives: 0,
            calls,
            back: BTreeMap::new(),
            hashes: vec![],
            plans: vec![],
            story: story.clone(),
            post: None,
        };
        if story.setup.inherited {
            let run = &world.net.apis.run;
            run.put_organization(ORGANIZATION, None)
                .and_then(|()| run.put_folder(FOLDER, None, Some(ORGANIZATION)))
                .and_then(|()| run.put_project("acme-prod", None, Some(FOLDER)))
                .and_then(|()| run.put_project("acme-dev", None, Some(ORGANIZATION)))
                .expect("the names are good");
        }
        if story.setup.events {
            let entries = world.net.apis.run.audit.follow();
            world.post = Some(Post::new(entries, story.seed));
        }
        // What is there before anybody looks.
        let at_once: Vec<Action> = story
            .actions
            .iter()
            .filter(|a| a.at_ms == 0)
            .cloned()
            .collect();
        for action in &at_once {
            world.act(&action.what).await;
        }
        for replica in 0..world.setup.replicas {
            world.start(replica);
        }
        world.told().await;
        let mut violations = world.violations();
        let mut settled_after = None;
        if violations.is_empty() && story.setup.rests {
            (violations, settled_after) = world.rest().await;
        }
        for (_, replica) in std::mem::take(&mut world.replicas) {
            replica.die();
        }
        Report {
            violations,
            hash: world.net.hash(),
            journal: world.net.journal(),
            tally: world.net.lock().tally.clone(),
            lasted: world.net.started.elapsed(),
            settled_after,
        }
    }

    fn violations(&self) -> Vec<Violation> {
        self.net.lock().judge.violations.clone()
    }

    fn start(&mut self, replica: usize) {
        self.lives += 1;
        // A Deployment gives every pod a name of its own.
        let identity = format!("run-invoker-{replica}-{}", self.lives);
        let Some(calls) = self.calls.get(replica) else {
            return;
        };
        let cable = Cable::new(self.net.clone(), replica, self.lives, calls.clone());
        self.net
            .note(&format!("replica {replica} starts as {identity}"));
        self.net.lock().judge.begins(replica, &identity);
        if let Some(old) = self
            .replicas
            .insert(replica, Replica::start(cable, &identity, &self.setup))
        {
            old.die();
        }
    }

    /// Everything that the story tells, at its time.
    async fn told(&mut self) {
        let mut actions: Vec<Action> = self
            .story
            .actions
            .iter()
            .filter(|a| a.at_ms > 0)
            .cloned()
            .collect();
        actions.sort_by_key(|a| a.at_ms);
        let mut times: Vec<(u64, usize, u64, bool)> = Vec::new();
        for c in &self.story.crashes {
            if let Moment::At(at) = c.moment {
                times.push((at, c.replica, c.back_ms, c.pause));
            }
        }
        times.sort_unstable();
        let (mut actions, mut times) =
            (actions.into_iter().peekable(), times.into_iter().peekable());
        let end = self.net.started + Duration::from_millis(self.story.length_ms());
        while self.violations().is_empty() {
            let at = |ms: u64| self.net.started + Duration::from_millis(ms);
            let next_action = actions.peek().map(|a| at(a.at_ms));
            let next_crash = times.peek().map(|t| at(t.0));
            let next_back = self.back.first_key_value().map(|((t, _), ())| *t);
            let done = next_action.is_none() && next_crash.is_none();
            let next = [next_action, next_crash, next_back, done.then_some(end)]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next else { break };
            self.wait_until(next).await;
            if next_crash == Some(next) {
                if let Some((_, replica, back, pause)) = times.next() {
                    self.crash(replica, back, pause);
                }
            } else if next_back == Some(next) {
                if let Some(((_, replica), ())) = self.back.pop_first() {
                    self.start(replica);
                }
            } else if next_action == Some(next) {
                if let Some(action) = actions.next() {
                    self.act(&action.what).await;
                }
            } else {
                break;
            }
        }
        self.net.calm.store(true, Ordering::Relaxed);
    }

    /// Waits, buries those that die meanwhile, and brings the post.
    async fn wait_until(&mut self, until: Instant) {
        loop {
            self.bury();
            self.deliver();
            let net = self.net.clone();
            let died = net.died.notified();
            let post = self.post.as_ref().and_then(Post::next);
            let next = post.map_or(until, |p| p.min(until));
            let entry = async {
                match &mut self.post {
                    Some(post) => post.entry().await,
                    None => std::future::pending().await,
                }
            };
            let entry = tokio::select! {
                biased;
                () = sleep_until(next) => {
                    if next == until {
                        return self.bury();
                    }
                    continue;
                }
                () = died => continue,
                entry = entry => entry,
            };
            let calm = self.net.calm.load(Ordering::Relaxed);
            if let (Some(entry), Some(post)) = (entry, &mut self.post) {
                post.take(&entry, calm);
            }
        }
    }

    /// Each message that has arrived goes to one replica that takes it.
    fn deliver(&mut self) {
        let Some(mut post) = self.post.take() else {
            return;
        };
        while let Some(message) = post.arrived() {
            if self.hand_over(&message) {
                self.net.count("audit events delivered");
            } else {
                post.give_back(message);
            }
        }
        self.post = Some(post);
    }

    fn hand_over(&self, message: &Message) -> bool {
        let takes = |r: &Replica| {
            !r.cable.is_paused()
                && r.controller.listens()
                && MessageHandler::handle(&*r.controller, &message.data) == Answer::Taken
        };
        self.replicas.values().any(takes)
    }

    fn bury(&mut self) {
        let deaths = std::mem::take(&mut self.net.lock().deaths);
        for (replica, life) in deaths {
            let lives = self
                .replicas
                .get(&replica)
                .is_some_and(|r| r.cable.life == life);
            if !lives {
                continue;
            }
            let back =
                self.story.crashes.iter().find(|c| {
                    c.replica == replica && !c.pause && !matches!(c.moment, Moment::At(_))
                });
            let back = back.map_or(1000, |c| c.back_ms);
            self.crash(replica, back, false);
        }
        let ended: Vec<usize> = self
            .replicas
            .iter()
            .filter(|(_, r)| r.has_ended())
            .map(|(i, _)| *i)
            .collect();
        for replica in ended {
            let at = self.net.now();
            let what = format!("replica {replica} ended by itself");
            self.net.lock().judge.violations.push(Violation {
                rule: "P0",
                at,
                what,
            });
            self.replicas.remove(&replica);
        }
    }

    fn crash(&mut self, replica: usize, back_ms: u64, pause: bool) {
        let Some(found) = self.replicas.get(&replica) else {
            return;
        };
        if pause {
            self.net.count("pauses");
            self.net
                .note(&format!("replica {replica} is stopped for {back_ms} ms"));
            found.cable.pause(Duration::from_millis(back_ms));
            return;
        }
        self.net.count("crashes");
        self.net.note(&format!("replica {replica} dies"));
        if let Some(found) = self.replicas.remove(&replica) {
            found.die();
        }
        self.back.insert(
            (Instant::now() + Duration::from_millis(back_ms), replica),
            (),
        );
    }

    /// People and weather rest: everything must become as it should be, stay so, and be told.
    async fn rest(&mut self) -> (Vec<Violation>, Option<Duration>) {
        let began = Instant::now();
        let mut left;
        loop {
            while let Some(((at, replica), ())) = self.back.pop_first() {
                self.wait_until(at).await;
                self.start(replica);
            }
            self.wait_until(Instant::now() + Duration::from_secs(5))
                .await;
            let end = self.end();
            let now = self.net.now();
            left = self.net.lock().judge.unsettled(now, &end);
            let broken = self.violations();
            if !broken.is_empty() {
                return (broken, None);
            }
            let waited = began.elapsed();
            if left.is_empty() || waited > REST {
                break;
            }
            if waited > Duration::from_secs(120) {
                sleep(Duration::from_secs(55)).await;
            }
        }
        if !left.is_empty() {
            return (left, None);
        }
        let settled = began.elapsed();
        // What is told last, and windows that end by themselves, get their time; and access that
        // ends soon is no quiet.
        let ends = self.until_the_last_end();
        // What the audit log lost is found by the next look, and looks are spread by up to a half.
        let look = if self.setup.events {
            EVENT_INTERVAL * 3 / 2
        } else {
            Duration::ZERO
        };
        // Who is refused without a name is searched for, one write after the other.
        let search = Duration::from_secs(600) / self.setup.writes.max(1);
        let told = Duration::from_secs(150);
        self.wait_until(Instant::now() + ends + look + search + told)
            .await;
        // What was done at such an end can have one of its own.
        for _ in 0..10 {
            let ends = self.until_the_last_end();
            if ends.is_zero() {
                break;
            }
            self.wait_until(Instant::now() + ends + told).await;
        }
        let now = self.net.now();
        let writes = self.net.lock().writes.clone();
        let end = self.end();
        let lies = self.net.lock().judge.history(now, &writes, &end);
        if !lies.is_empty() {
            return (lies, Some(settled));
        }
        (self.quiet().await, Some(settled))
    }

    fn until_the_last_end(&self) -> Duration {
        let (now, end) = (self.net.now(), self.end());
        let last = self.net.lock().judge.last_end(now, &end);
        last.and_then(|e| Duration::try_from(e.duration_since(now)).ok())
            .unwrap_or_default()
    }

    /// Nothing happens, and nothing may be done but to look.
    async fn quiet(&mut self) -> Vec<Violation> {
        let intervals: Vec<i64> = self
            .net
            .lock()
            .judge
            .store
            .declared
            .readable()
            .map(|p| p.interval)
            .collect();
        let longest = intervals.into_iter().max().unwrap_or(60).min(3600);
        // Now and then a whole hour.
        let seconds = if self.story.seed.is_multiple_of(16) {
            3600
        } else {
            (longest * 3).clamp(120, 3600)
        };
        {
            let mut shared = self.net.lock();
            shared.reads.clear();
            shared.kube_writes.clear();
            shared.iam_writes = 0;
        }
        self.wait_until(Instant::now() + Duration::from_secs(seconds as u64))
            .await;
        let (end, now) = (self.end(), self.net.now());
        let mut shared = self.net.lock();
        let quiet = Quiet {
            seconds,
            reads: shared.reads.clone(),
            iam_writes: shared.iam_writes,
            kube_writes: shared.kube_writes.clone(),
        };
        let mut found = shared.judge.violations.clone();
        found.extend(shared.judge.quiet(now, &quiet, &end));
        found.extend(shared.judge.unsettled(now, &end));
        drop(shared);
        for (i, replica) in &self.replicas {
            if let Err(what) = replica.controller.health() {
                found.push(Violation {
                    rule: "P0",
                    at: now,
                    what: format!("replica {i} is not healthy: {what}"),
                });
            }
        }
        found
    }

    fn end(&self) -> End {
        let world = self.net.apis.run.world();
        let services: BTreeMap<Service, judge::Real> = self
            .net
            .apis
            .run
            .services()
            .into_iter()
            .filter_map(|s| Some((s.clone(), self.net.real(&s)?)))
            .collect();
        let kinds = ["user", "group", "serviceAccount", "domain"];
        let refused: BTreeSet<String> = world
            .unknown
            .iter()
            .flat_map(|e| {
                kinds
                    .iter()
                    .map(move |k| format!("{k}:{}", e.to_lowercase()))
            })
            .collect();
        let above = self.net.apis.run.hierarchy();
        End {
            services,
            refused,
            above,
        }
    }

    /// Somebody outside does what more than one service may show.
    fn outside_of_all(&self, act: impl FnOnce()) {
        let all = self.net.apis.run.services();
        let before: Vec<_> = all.iter().map(|s| (s.clone(), self.net.real(s))).collect();
        act();
        for (s, before) in before {
            let after = self.net.real(&s);
            let (now, judge) = (self.net.now(), &mut self.net.lock().judge);
            judge.outside(now, &s, before.as_ref(), after.as_ref());
        }
    }

    async fn act(&mut self, what: &What) {
        self.net.note(&format!("{what}"));
        let run = self.net.apis.run.clone();
        match what {
            What::Apply(object) => self.apply(object).await,
            What::Delete {
                kind,
                namespace,
                name,
            } => {
                let (status, _) = self
                    .net
                    .person(
                        Method::DELETE,
                        &path(kind, namespace, name),
                        "application/json",
                        &Value::Null,
                    )
                    .await;
                if status == 200 {
                    self.net.count(if kind == "InvokerPolicy" {
                        "policies deleted"
                    } else {
                        "other objects deleted"
                    });
                }
            }
            What::Annotate {
                namespace,
                name,
                key,
                value,
            } => self.annotate(namespace, name, key, value.as_deref()).await,
            What::Approve {
                namespace,
                name,
                how,
            } => self.approve(namespace, name, *how).await,
            What::ApproveLedger { service, how } => self.approve_ledger(service, *how).await,
            What::AnswerRequest {
                namespace,
                name,
                how,
                deny,
            } => self.answer_request(namespace, name, *how, *deny).await,
            What::Expect { namespace, name } => {
                let (end, now) = (self.end(), self.net.now());
                self.net.count("edits that had to be in force");
                self.net.lock().judge.expect(now, namespace, name, &end);
            }
            What::Message(text) => {
                if let Some(post) = &mut self.post {
                    post.publish(text);
                }
            }
            What::RollBack {
                namespace,
                name,
                newest,
            } => self.roll_back(namespace, name, *newest).await,
            What::DropFinalizer { namespace, name } => {
                let merge = json!({"metadata": {"finalizers": null}});
                self.net
                    .person(
                        Method::PATCH,
                        &path("InvokerPolicy", namespace, name),
                        "application/merge-patch+json",
                        &merge,
                    )
                    .await;
            }
            What::Force { plural, object } => {
                let group = if plural == "serviceaccounts" {
                    ""
                } else {
                    "run-invoker.dev"
                };
                let mut object = object.clone();
                // It is the object that was there, in a form that nobody reads.
                let find = |o: &Value| {
                    o["metadata"]["name"] == object["metadata"]["name"]
                        && o["metadata"]["namespace"] == object["metadata"]["namespace"]
                };
                let there = self
                    .net
                    .apis
                    .kube
                    .objects(group, plural)
                    .into_iter()
                    .find(|o| find(o));
                if let Some(finalizers) = there
                    .map(|o| o["metadata"]["finalizers"].clone())
                    .filter(|f| !f.is_null())
                {
                    object["metadata"]["finalizers"] = finalizers;
                }
                self.net.apis.kube.force(group, plural, object);
                self.net.absorb(By::Somebody);
                self.net.count("objects that nobody can read");
            }
            What::Deploy { service, labels } => {
                let s = parts(service);
                let labels: Vec<(&str, &str)> = labels
                    .iter()
                    .map(|(k, v)| (k.as_str(), v.as_str()))
                    .collect();
                self.net
                    .outside(&key(service), || run.deploy(s.0, s.1, s.2, &labels));
            }
            What::Undeploy { service } => {
                let s = parts(service);
                self.net.outside(&key(service), || {
                    run.remove(s.0, s.1, s.2);
                });
                self.net.count("services deleted");
            }
            What::Above {
                node,
                role,
                member,
                add,
            } => {
                let mut bindings = run.hierarchy()[node]["policy"]["bindings"].clone();
                if bindings.is_null() {
                    bindings = json!([]);
                }
                if let Some(list) = bindings.as_array_mut() {
                    let one = json!({"role": role, "members": [member]});
                    list.retain(|b| *b != one);
                    if *add {
                        list.push(one);
                    }
                }
                // A folder is there only where somebody searches.
                if run.set_node_bindings(node, &bindings).is_ok() {
                    self.net.count("changes of grants above");
                }
            }
            What::IamCheck { service, off } => {
                let s = parts(service);
                self.net.outside(&key(service), || {
                    run.set_invoker_iam_disabled(s.0, s.1, s.2, *off)
                });
            }
            What::Member {
                service,
                role,
                member,
                add,
                condition,
            } => {
                let nobody = |u: &String| {
                    member
                        .split_once(':')
                        .is_some_and(|(_, m)| m.eq_ignore_ascii_case(u))
                };
                if *add && run.world().unknown.iter().any(nobody) {
                    // IAM refuses it to them too.
                    return;
                }
                self.net.count("changes by rivals");
                let s = parts(service);
                self.net.outside(&key(service), || match (condition, add) {
                    (None, true) => run.add_member(s.0, s.1, s.2, role, member),
                    (None, false) => run.remove_member(s.0, s.1, s.2, role, member),
                    (Some(c), _) => {
                        let mut bindings = run
                            .policy(s.0, s.1, s.2)
                            .map_or(json!([]), |p| p["bindings"].clone());
                        if bindings.is_null() {
                            bindings = json!([]);
                        }
                        if let Some(list) = bindings.as_array_mut() {
                            list.retain(|b| !(b["role"] == role.as_str() && b["condition"] == *c));
                            if *add {
                                list.push(
                                    json!({"role": role, "members": [member], "condition": c}),
                                );
                            }
                        }
                        run.set_bindings(s.0, s.1, s.2, &bindings);
                    }
                });
            }
            What::Identity { email, exists } => run.change_world(|w| {
                if *exists {
                    w.unknown.remove(email);
                } else {
                    w.unknown.insert(email.clone());
                }
            }),
            What::DeleteIdentity { member } => {
                self.outside_of_all(|| run.delete_identity(member, 7));
            }
            What::Project { project, gone } => {
                let turn = |w: &mut sandbox::run::World| match gone {
                    true => w.gone.insert(project.clone()),
                    false => w.gone.remove(project),
                };
                self.outside_of_all(|| run.change_world(|w| _ = turn(w)));
                self.net.count(match gone {
                    true => "projects deleted",
                    false => "projects restored",
                });
            }
            What::Terse(terse) => run.change_world(|w| w.terse = *terse),
            What::ResetCircuit => {
                let target = format!(
                    "/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases/{LEASE}-circuit"
                );
                self.net
                    .person(Method::DELETE, &target, "application/json", &Value::Null)
                    .await;
            }
            What::Compact => self.net.apis.kube.compact(),
            What::Restart { replica, after_ms } => {
                if let Some(found) = self.replicas.remove(replica) {
                    self.net.count("orderly restarts");
                    found.stop().await;
                    self.back.insert(
                        (Instant::now() + Duration::from_millis(*after_ms), *replica),
                        (),
                    );
                }
            }
        }
    }

    async fn apply(&mut self, object: &Value) {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let target = path(
            &text(&object["kind"]),
            &text(&object["metadata"]["namespace"]),
            &text(&object["metadata"]["name"]),
        );
        let target = format!("{target}?fieldManager=git&force=true");
        let (status, answer) = self
            .net
            .person(
                Method::PATCH,
                &target,
                "application/apply-patch+yaml",
                object,
            )
            .await;
        match status {
            201 => self.net.count("objects created"),
            200 => self.net.count("objects changed"),
            _ => self
                .net
                .note(&format!("refused: {status} {}", answer["message"])),
        }
    }

    async fn annotate(&mut self, namespace: &str, name: &str, key: &str, value: Option<&str>) {
        let merge = json!({"metadata": {"annotations": {key: value}}});
        self.net
            .person(
                Method::PATCH,
                &path("InvokerPolicy", namespace, name),
                "application/merge-patch+json",
                &merge,
            )
            .await;
    }

    async fn status_hashes(&mut self) {
        for object in self
            .net
            .apis
            .kube
            .objects("run-invoker.dev", "invokerpolicies")
        {
            let meta = &object["metadata"];
            let place = format!(
                "{}/{}",
                meta["namespace"].as_str().unwrap_or_default(),
                meta["name"].as_str().unwrap_or_default()
            );
            let entries = object["status"]["services"]
                .as_array()
                .into_iter()
                .flatten();
            let shown = entries.filter_map(|e| {
                e["approve"]
                    .as_str()
                    .filter(|h| !h.is_empty())
                    .map(str::to_owned)
            });
            let conditions = object["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten();
            let told = conditions.filter_map(|c| {
                let (_, rest) = c["message"].as_str()?.split_once(" --hash ")?;
                Some(
                    rest.chars()
                        .take_while(char::is_ascii_hexdigit)
                        .collect::<String>(),
                )
            });
            let entries = object["status"]["services"].as_array().into_iter();
            let plans = entries.flatten().filter_map(|e| e["plan"].as_str());
            for plan in plans.filter(|p| !p.is_empty()) {
                let pair = (place.clone(), plan.to_owned());
                if !self.plans.contains(&pair) {
                    self.plans.push(pair);
                }
            }
            for hash in shown.chain(told) {
                let pair = (place.clone(), hash);
                if !self.hashes.contains(&pair) {
                    self.net.count("plans held for approval");
                    self.hashes.push(pair);
                }
            }
        }
    }

    async fn approve(&mut self, namespace: &str, name: &str, how: Agreement) {
        self.status_hashes().await;
        let place = format!("{namespace}/{name}");
        let mine: Vec<&String> = self
            .hashes
            .iter()
            .filter(|(p, _)| *p == place)
            .map(|(_, h)| h)
            .collect();
        let hash = match how {
            Agreement::Shown => mine.last().copied().cloned(),
            Agreement::Stale => mine.first().copied().cloned(),
            Agreement::Garbage => Some("deadbeef0000".to_owned()),
        };
        let mut plans = self.plans.iter().filter(|(p, _)| *p == place);
        let plan = match how {
            Agreement::Shown => plans.next_back(),
            Agreement::Stale => plans.next(),
            Agreement::Garbage => None,
        };
        let plan = plan.map(|(_, plan)| plan.clone());
        // Where the annotation would count, an approver agrees every other time.
        let by_approver = |plan: &String| hash.is_none() || plan.ends_with(|c| c < '8');
        if let Some(plan) = plan.filter(by_approver) {
            return self.approve_by_object(namespace, name, &plan).await;
        }
        if let Some(hash) = hash {
            self.net.count("approvals given");
            self.annotate(namespace, name, "run-invoker.dev/approve", Some(&hash))
                .await;
        }
    }

    /// Creates an InvokerApproval. One that is there is deleted and made again, as from a backup.
    async fn approve_by_object(&mut self, namespace: &str, policy: &str, plan: &str) {
        self.net.count("InvokerApprovals created");
        let name = format!("{policy}-{}", plan.get(..8).unwrap_or(plan));
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerApproval",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"policy": policy, "plan": plan, "reason": "simulated"}});
        self.put_approval(namespace, &name, &object).await;
    }

    async fn put_approval(&mut self, namespace: &str, name: &str, object: &Value) {
        let target = path("InvokerApproval", namespace, name);
        self.net
            .person(Method::DELETE, &target, "", &Value::Null)
            .await;
        let apply = format!("{target}?fieldManager=git&force=true");
        let content = "application/apply-patch+yaml";
        self.net
            .person(Method::PATCH, &apply, content, object)
            .await;
    }

    /// Answers a request by an InvokerApproval, with the plan that its status shows or once showed.
    async fn answer_request(&mut self, namespace: &str, name: &str, how: Agreement, deny: bool) {
        let kube = &self.net.apis.kube;
        let all = kube.objects("run-invoker.dev", "invokeraccessrequests");
        let is_it =
            |o: &Value| o["metadata"]["namespace"] == namespace && o["metadata"]["name"] == name;
        let shown = all.iter().find(|o| is_it(o));
        let shown = shown.and_then(|o| o["status"]["plan"].as_str());
        let place = format!("{namespace}/request/{name}");
        if let Some(plan) = shown {
            self.plans.push((place.clone(), plan.to_owned()));
        }
        let mut earlier = self.plans.iter().filter(|(p, _)| *p == place);
        let plan = match how {
            Agreement::Shown => shown.map(str::to_owned),
            Agreement::Stale => earlier.next().map(|(_, plan)| plan.clone()),
            Agreement::Garbage => Some("0123456789".repeat(4)),
        };
        let Some(plan) = plan else {
            return;
        };
        self.net.count("requests answered");
        let (verb, decision) = if deny {
            ("no", "Deny")
        } else {
            ("yes", "Approve")
        };
        let approval = format!("{name}-{}-{verb}", plan.get(..8).unwrap_or(&plan));
        let object = json!({"apiVersion": "run-invoker.dev/v1alpha1", "kind": "InvokerApproval",
            "metadata": {"name": approval, "namespace": namespace},
            "spec": {"request": name, "plan": plan, "reason": "simulated", "decision": decision}});
        self.put_approval(namespace, &approval, &object).await;
    }

    /// Agrees to what waits on the ledger of a service.
    async fn approve_ledger(&mut self, service: &str, how: Agreement) {
        let s = parts(service);
        let target = path("InvokerLedger", "", &format!("{}.{}.{}", s.0, s.1, s.2));
        let kube = &self.net.apis.kube;
        let ledgers = kube.objects("run-invoker.dev", "invokerledgers");
        let of = |l: &Value| {
            let spec = &l["spec"];
            spec["project"] == s.0 && spec["region"] == s.1 && spec["service"] == s.2
        };
        let found = ledgers.iter().find(|l| of(l));
        let shown = found.and_then(|l| l["spec"]["held"]["approve"].as_str());
        let hash = match how {
            Agreement::Shown | Agreement::Stale => shown.map(str::to_owned),
            Agreement::Garbage => found.map(|_| "deadbeef0000".to_owned()),
        };
        if let Some(hash) = hash {
            self.net.count("approvals given on ledgers");
            let merge = json!({"metadata": {"annotations": {"run-invoker.dev/approve": hash}}});
            let content = "application/merge-patch+json";
            self.net
                .person(Method::PATCH, &target, content, &merge)
                .await;
        }
    }

    async fn roll_back(&mut self, namespace: &str, name: &str, newest: Option<usize>) {
        let Some(n) = newest else {
            return self
                .annotate(namespace, name, "run-invoker.dev/rollback", None)
                .await;
        };
        let mut records = self
            .net
            .apis
            .kube
            .objects("run-invoker.dev", "invokerchanges");
        // What nobody wrote down is nothing that somebody wants back.
        let is_real = |r: &Value| {
            let name = r["metadata"]["name"].as_str().unwrap_or_default();
            !name.starts_with(generate::FORGED)
        };
        records.retain(|r| r["metadata"]["namespace"] == namespace && is_real(r));
        records.sort_by_key(|r| r["spec"]["at"].as_str().map(str::to_owned));
        let found = records
            .iter()
            .rev()
            .nth(n)
            .and_then(|r| r["metadata"]["name"].as_str());
        if let Some(record) = found.map(str::to_owned) {
            self.net.count("rollbacks");
            self.annotate(namespace, name, "run-invoker.dev/rollback", Some(&record))
                .await;
        }
    }
}

fn key(service: &str) -> Service {
    let (p, r, s) = parts(service);
    (p.into(), r.into(), s.into())
}

/// Path of an object.
pub fn path(kind: &str, namespace: &str, name: &str) -> String {
    let group = "/apis/run-invoker.dev/v1alpha1";
    match kind {
        "InvokerPolicy" => format!("{group}/namespaces/{namespace}/invokerpolicies/{name}"),
        "InvokerChange" => format!("{group}/namespaces/{namespace}/invokerchanges/{name}"),
        "InvokerApproval" => format!("{group}/namespaces/{namespace}/invokerapprovals/{name}"),
        "InvokerAccessRequest" => {
            format!("{group}/namespaces/{namespace}/invokeraccessrequests/{name}")
        }
        "InvokerGuardrail" => format!("{group}/invokerguardrails/{name}"),
        "InvokerLedger" => format!("{group}/invokerledgers/{name}"),
        "ServiceAccount" => format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}"),
        "Namespace" => format!("/api/v1/namespaces/{name}"),
        "CustomResourceDefinition" => {
            format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        }
        other => panic!("no idea what a {other} is"),
    }
}
