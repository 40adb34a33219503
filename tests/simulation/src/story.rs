//! A story is all that happens to one operator: data, so that it can be told, kept, and made
//! shorter.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How the operator is set up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    pub replicas: usize,
    pub shards: usize,
    pub lease_ms: u64,
    pub renew_ms: u64,
    pub max_removals: usize,
    pub breaker: usize,
    /// Calls per minute and place.
    pub reads: u32,
    pub writes: u32,
    /// Audit events are used.
    pub events: bool,
    /// Grants above the services are searched for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherited: bool,
    /// Whether everything is given the time to become as it must be, and is looked at then.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub rests: bool,
}

fn yes() -> bool {
    true
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            replicas: 1,
            shards: 1,
            lease_ms: 15_000,
            renew_ms: 5_000,
            max_removals: 20,
            breaker: 50,
            reads: 300,
            writes: 60,
            events: false,
            inherited: false,
            rests: true,
        }
    }
}

/// How somebody agrees to a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Agreement {
    /// With the hash that the status shows now.
    Shown,
    /// With one that was shown earlier.
    Stale,
    Garbage,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// An object as `kubectl apply --server-side` sends it.
    Apply(Value),
    Delete {
        kind: String,
        namespace: String,
        name: String,
    },
    Annotate {
        namespace: String,
        name: String,
        key: String,
        value: Option<String>,
    },
    Approve {
        namespace: String,
        name: String,
        how: Agreement,
    },
    /// Somebody agrees to what waits on a ledger, where no policy is left that could ask.
    ApproveLedger {
        service: String,
        how: Agreement,
    },
    /// Somebody who may approve answers a request.
    AnswerRequest {
        namespace: String,
        name: String,
        how: Agreement,
        deny: bool,
    },
    /// What the policy declares must be in force by now.
    Expect {
        namespace: String,
        name: String,
    },
    /// A message on the audit log's subscription that Google did not write.
    Message(String),
    /// Goes back behind the newest but so many records of the namespace; `None` ends that.
    RollBack {
        namespace: String,
        name: String,
        newest: Option<usize>,
    },
    /// Somebody takes the finalizer off by hand.
    DropFinalizer {
        namespace: String,
        name: String,
    },
    /// An object that is in the store although no check would let it in now.
    Force {
        plural: String,
        object: Value,
    },
    Deploy {
        service: String,
        labels: Vec<(String, String)>,
    },
    Undeploy {
        service: String,
    },
    IamCheck {
        service: String,
        off: bool,
    },
    /// A project is deleted with all that is in it, or restored as it was.
    Project {
        project: String,
        gone: bool,
    },
    /// A rival, in one step.
    Member {
        service: String,
        role: String,
        member: String,
        add: bool,
        condition: Option<Value>,
    },
    /// Somebody grants on a project, a folder or the organization, or takes that away.
    Above {
        node: String,
        role: String,
        member: String,
        add: bool,
    },
    /// An identity begins to exist, or was never there.
    Identity {
        email: String,
        exists: bool,
    },
    /// An identity is deleted: its members turn into leftovers.
    DeleteIdentity {
        member: String,
    },
    /// IAM names refused members, or does not.
    Terse(bool),
    ResetCircuit,
    /// Older watches get 410.
    Compact,
    /// Replica stops in an orderly way; comes back after so long.
    Restart {
        replica: usize,
        after_ms: u64,
    },
}

/// Something that happens at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    pub at_ms: u64,
    pub what: What,
}

/// Which of the two APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    Kube,
    Run,
}

/// How a request is hurt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Harm {
    /// Takes so much longer, either way.
    Slow(u64),
    /// Answered with this instead of being carried out.
    Refused {
        status: u16,
        body: String,
        headers: Vec<(String, String)>,
    },
    /// The connection is cut before anything happens.
    Dropped,
    /// Carried out, and the answer lost.
    Lost,
    /// Carried out, and the answer comes after the client gave up.
    Late,
    /// Neither carried out nor answered.
    Hung,
    /// A watch: nothing more comes for so long, then it is too old (410).
    Stalled(u64),
    /// A watch: it ends.
    Ended,
}

/// Weather over a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Storm {
    pub from_ms: u64,
    pub to_ms: u64,
    pub side: Side,
    /// Only requests whose method and path contain this; all if empty.
    pub only: String,
    pub replica: Option<usize>,
    /// Only this request of a replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nth: Option<u64>,
    /// How many of the requests are hurt, in percent.
    pub percent: u8,
    pub harm: Harm,
}

/// When a replica dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Moment {
    At(u64),
    /// At its nth request, before it is sent.
    Before(u64),
    /// At its nth request, after it was carried out.
    After(u64),
}

/// The end of a replica, or a pause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Crash {
    pub replica: usize,
    pub moment: Moment,
    /// Comes back after so long.
    pub back_ms: u64,
    /// Not dead: stopped for this time, and then going on as if nothing had been.
    pub pause: bool,
}

/// All that happens in one world.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// Of the small dice: latencies, jitter.
    pub seed: u64,
    #[serde(default)]
    pub setup: Setup,
    #[serde(default)]
    pub actions: Vec<Action>,
    #[serde(default)]
    pub weather: Vec<Storm>,
    #[serde(default)]
    pub crashes: Vec<Crash>,
}

impl Story {
    /// When everything that is told has happened.
    pub fn length_ms(&self) -> u64 {
        let actions = self.actions.iter().map(|a| a.at_ms);
        let weather = self.weather.iter().map(|s| s.to_ms);
        let crashes = self.crashes.iter().map(|c| match c.moment {
            Moment::At(at) => at + c.back_ms,
            Moment::Before(_) | Moment::After(_) => 0,
        });
        actions.chain(weather).chain(crashes).max().unwrap_or(0)
    }
}

/// `acme-prod/europe-west1/web` taken apart.
pub fn parts(service: &str) -> (&str, &str, &str) {
    let mut p = service.split('/');
    (
        p.next().unwrap_or_default(),
        p.next().unwrap_or_default(),
        p.next().unwrap_or_default(),
    )
}

fn brief(object: &Value) -> String {
    let (kind, meta, spec) = (&object["kind"], &object["metadata"], &object["spec"]);
    let name = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let place = match meta["namespace"].as_str() {
        Some(ns) => format!("{ns}/{}", name(&meta["name"])),
        None => name(&meta["name"]),
    };
    let details = if spec.is_null() {
        meta["annotations"].to_string()
    } else {
        spec.to_string()
    };
    format!("{} {place} {details}", name(kind))
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply(object) => write!(f, "somebody applies {}", brief(object)),
            Self::Delete {
                kind,
                namespace,
                name,
            } => write!(f, "somebody deletes {kind} {namespace}/{name}"),
            Self::Annotate {
                namespace,
                name,
                key,
                value,
            } => {
                write!(f, "somebody annotates {namespace}/{name}: {key}={value:?}")
            }
            Self::Approve {
                namespace,
                name,
                how,
            } => write!(f, "somebody approves {namespace}/{name} ({how:?} hash)"),
            Self::ApproveLedger { service, how } => {
                write!(
                    f,
                    "somebody approves what waits on the ledger of {service} ({how:?} hash)"
                )
            }
            Self::AnswerRequest {
                namespace,
                name,
                how,
                deny,
            } => {
                let verb = if *deny { "denies" } else { "approves" };
                write!(
                    f,
                    "somebody {verb} request {namespace}/{name} ({how:?} hash)"
                )
            }
            Self::Expect { namespace, name } => {
                write!(f, "what {namespace}/{name} declares is in force by now")
            }
            Self::Message(text) => write!(f, "somebody publishes {text} as an audit event"),
            Self::RollBack {
                namespace,
                name,
                newest: Some(n),
            } => {
                write!(
                    f,
                    "somebody rolls {namespace}/{name} back behind record {n} from the end"
                )
            }
            Self::RollBack {
                namespace,
                name,
                newest: None,
            } => write!(f, "the rollback of {namespace}/{name} ends"),
            Self::DropFinalizer { namespace, name } => {
                write!(f, "somebody removes the finalizer of {namespace}/{name}")
            }
            Self::Force { plural, object } => write!(f, "in the store lies, of {plural}: {object}"),
            Self::Deploy { service, labels } => {
                write!(f, "{service} is deployed with labels {labels:?}")
            }
            Self::Undeploy { service } => write!(f, "{service} is deleted"),
            Self::Above {
                node,
                role,
                member,
                add,
            } => {
                let verb = if *add { "grants" } else { "takes" };
                write!(f, "somebody {verb} {member} {role} on {node}")
            }
            Self::IamCheck { service, off } => {
                write!(
                    f,
                    "the IAM check of {service} is switched {}",
                    if *off { "off" } else { "on" }
                )
            }
            Self::Project {
                project,
                gone: true,
            } => write!(f, "project {project} is deleted"),
            Self::Project {
                project,
                gone: false,
            } => write!(f, "project {project} is restored"),
            Self::Member {
                service,
                role,
                member,
                add,
                condition,
            } => write!(
                f,
                "a rival {} {member} ({role}{}) on {service}",
                if *add { "adds" } else { "removes" },
                condition
                    .as_ref()
                    .map_or(String::new(), |c| format!(", if {}", c["title"]))
            ),
            Self::Identity { email, exists } => {
                write!(
                    f,
                    "{email} {}",
                    if *exists {
                        "begins to exist"
                    } else {
                        "does not exist"
                    }
                )
            }
            Self::DeleteIdentity { member } => write!(f, "{member} is deleted"),
            Self::Terse(true) => f.write_str("IAM does not name refused members"),
            Self::Terse(false) => f.write_str("IAM names refused members"),
            Self::ResetCircuit => f.write_str("somebody resets the circuit breaker"),
            Self::Compact => f.write_str("the watch history is compacted"),
            Self::Restart { replica, after_ms } => {
                write!(
                    f,
                    "replica {replica} is stopped and comes back after {after_ms} ms"
                )
            }
        }
    }
}

fn time(ms: u64) -> String {
    format!("{:>8.3} s", ms as f64 / 1000.0)
}

/// The story in words.
impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.setup;
        if s != &Setup::default() {
            writeln!(f, "setup: {s:?}")?;
        }
        let mut lines: Vec<(u64, String)> = self
            .actions
            .iter()
            .map(|a| (a.at_ms, a.what.to_string()))
            .collect();
        lines.extend(self.weather.iter().map(|s| {
            let who = s
                .replica
                .map_or("every replica".to_owned(), |r| format!("replica {r}"));
            let what = if s.only.is_empty() {
                String::new()
            } else {
                format!(" {}", s.only)
            };
            let until = time(s.to_ms);
            (
                s.from_ms,
                format!(
                    "until {until}, {}% of the {:?} requests{what} of {who} suffer {:?}",
                    s.percent, s.side, s.harm
                ),
            )
        }));
        for c in &self.crashes {
            let verb = if c.pause {
                "is stopped, going on"
            } else {
                "dies, back"
            };
            let (at, moment) = match c.moment {
                Moment::At(at) => (at, String::new()),
                Moment::Before(n) => (0, format!(" (before its request {n})")),
                Moment::After(n) => (0, format!(" (after its request {n} was carried out)")),
            };
            lines.push((
                at,
                format!(
                    "replica {} {verb} after {} ms{moment}",
                    c.replica, c.back_ms
                ),
            ));
        }
        lines.sort_by_key(|(at, _)| *at);
        for (at, line) in lines {
            writeln!(f, "{}  {line}", time(at))?;
        }
        Ok(())
    }
}
