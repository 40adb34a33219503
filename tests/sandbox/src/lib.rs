//! The sandbox: a Kubernetes API and a Cloud Run Admin API in one process.
//!
//! An independent witness: it shares no code with run-invoker and is written from Kubernetes' and
//! Google's documents. Real `kubectl`, `gcloud`, kube-rs and Google's SDKs talk to it unchanged.
//! Faults can be ordered on both APIs, and every request is entered in a journal, so that tests can
//! count calls.
#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test that fails panics"))]

pub mod clock;
pub mod control;
pub mod exchange;
pub mod faults;
pub mod google;
pub mod journal;
pub mod kube;
pub mod pubsub;
mod quota;
pub mod run;
pub mod server;

use std::{net::SocketAddr, sync::Arc};

pub use clock::Clock;
pub use exchange::{Call, Cut, Exchange, Handler, Line};
pub use faults::{Fault, Faults, Rule};
pub use journal::{Api, Entry, Journal};
pub use pubsub::Pubsub;

/// Both APIs and what stands around them, without a socket.
#[derive(Clone)]
pub struct Apis {
    pub kube: Arc<kube::Kube>,
    pub run: Arc<run::Run>,
    pub journal: Arc<Journal>,
    pub faults: Arc<Faults>,
    pub clock: Clock,
    kube_line: Line,
    run_line: Line,
}

impl Apis {
    /// An empty cluster and an empty Cloud Run.
    pub fn new(clock: Clock) -> Self {
        Self::serving(clock, kube::registry::builtins())
    }

    /// The same with kinds that were compiled before.
    pub fn serving(clock: Clock, resources: Vec<kube::registry::Resource>) -> Self {
        Self {
            kube: Arc::new(kube::Kube::serving(clock.clone(), resources)),
            run: Arc::new(run::Run::new(clock.clone())),
            journal: Arc::default(),
            faults: Arc::default(),
            clock,
            kube_line: Line::default(),
            run_line: Line::default(),
        }
    }

    fn exchange(&self, api: Api, handler: Arc<dyn Handler>, line: Line) -> Exchange {
        let (journal, faults, clock) = (
            self.journal.clone(),
            self.faults.clone(),
            self.clock.clone(),
        );
        Exchange {
            api,
            handler,
            journal,
            faults,
            clock,
            line,
        }
    }

    /// The Kubernetes API.
    pub fn kube_exchange(&self) -> Exchange {
        self.kube_exchange_with(self.kube.clone())
    }

    /// Another Kubernetes API, with this one's journal, faults and outages.
    pub fn kube_exchange_with(&self, handler: Arc<dyn Handler>) -> Exchange {
        self.exchange(Api::Kube, handler, self.kube_line.clone())
    }

    /// The Cloud Run Admin API.
    pub fn run_exchange(&self) -> Exchange {
        self.exchange(Api::Run, self.run.clone(), self.run_line.clone())
    }

    /// The control API.
    pub fn control_exchange(&self) -> Exchange {
        let (kube, run) = (self.kube.clone(), self.run.clone());
        let (journal, faults) = (self.journal.clone(), self.faults.clone());
        let control = control::Control::new(kube, run, journal, faults, self.kube_line.clone());
        self.exchange(Api::Control, Arc::new(control), Line::default())
    }
}

/// What to listen on.
#[derive(Clone, Debug)]
pub struct Options {
    pub kube: SocketAddr,
    pub run: SocketAddr,
    pub control: SocketAddr,
}

impl Default for Options {
    /// Free ports on the loopback address.
    fn default() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            kube: any,
            run: any,
            control: any,
        }
    }
}

/// A running sandbox. Dropping it stops the servers.
pub struct Sandbox {
    pub kube: Arc<kube::Kube>,
    pub run: Arc<run::Run>,
    pub journal: Arc<Journal>,
    pub faults: Arc<Faults>,
    apis: Apis,
    kube_server: server::Server,
    run_server: server::Server,
    control_server: server::Server,
}

impl Sandbox {
    /// Starts both APIs and the control API.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn start(options: Options) -> std::io::Result<Self> {
        let apis = Apis::new(Clock::default());
        let kube = apis.kube_exchange();
        Self::serve(options, apis, kube).await
    }

    /// Starts with another Kubernetes API behind the one of the sandbox, such as a real one:
    /// requests to it are in the journal and meet the ordered faults and outages as well.
    ///
    /// # Errors
    /// When no address can be listened on.
    pub async fn in_front_of(handler: Arc<dyn Handler>) -> std::io::Result<Self> {
        let apis = Apis::new(Clock::default());
        let kube = apis.kube_exchange_with(handler);
        Self::serve(Options::default(), apis, kube).await
    }

    async fn serve(options: Options, apis: Apis, kube: Exchange) -> std::io::Result<Self> {
        let kube_server = server::Server::start(options.kube, kube).await?;
        let run_server = server::Server::start(options.run, apis.run_exchange()).await?;
        let control_server =
            server::Server::start(options.control, apis.control_exchange()).await?;
        let (kube, run) = (apis.kube.clone(), apis.run.clone());
        let (journal, faults) = (apis.journal.clone(), apis.faults.clone());
        Ok(Self {
            kube,
            run,
            journal,
            faults,
            apis,
            kube_server,
            run_server,
            control_server,
        })
    }

    /// Both APIs without their sockets.
    pub fn apis(&self) -> &Apis {
        &self.apis
    }

    /// Base URL of the Kubernetes API.
    pub fn kube_url(&self) -> String {
        format!("http://{}", self.kube_server.address())
    }

    /// Base URL of the Cloud Run Admin API.
    pub fn run_url(&self) -> String {
        format!("http://{}", self.run_server.address())
    }

    /// Base URL of the control API.
    pub fn control_url(&self) -> String {
        format!("http://{}", self.control_server.address())
    }

    /// A kubeconfig for the Kubernetes API.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_with("sandbox")
    }

    /// A kubeconfig of a ServiceAccount: it may do what the roles bound to it allow.
    pub fn kubeconfig_of(&self, namespace: &str, service_account: &str) -> String {
        self.kubeconfig_with(&format!("sa:{namespace}:{service_account}"))
    }

    fn kubeconfig_with(&self, token: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: sandbox\n  cluster: {{server: \"{}\"}}\nusers:\n- name: sandbox\n  user: {{token: \"{token}\"}}\ncontexts:\n- name: sandbox\n  context: {{cluster: sandbox, user: sandbox, namespace: default}}\ncurrent-context: sandbox\n",
            self.kube_url()
        )
    }

    /// Cuts every connection to the Kubernetes API and refuses new ones for a while, as a restart
    /// does.
    pub async fn restart_kube(&self, down: std::time::Duration) {
        self.apis.kube_line.outage(down).await;
    }

    /// The same for the Cloud Run API.
    pub async fn restart_run(&self, down: std::time::Duration) {
        self.apis.run_line.outage(down).await;
    }
}
