//! What every command needs: where Kubernetes and Google are, what time it is, how to print.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use jiff::Timestamp;
use kube::{
    Api, Client, Resource,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
    core::NamespaceResourceScope,
};

use super::{
    Args, Colour,
    reach::{Server, Servers, google_identity},
    select::ObjectName,
};
use crate::{
    cloudrun::{
        Method, Observer,
        google::{self, Google},
        limit::Limited,
    },
    config::CloudArgs,
    fault::Fault,
    render::{Style, UNLIMITED, neutral::outgoing},
};

/// Whether what is printed may have colours.
static COLOURED: AtomicBool = AtomicBool::new(false);

pub struct Context {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    namespace: Option<String>,
    colour: Colour,
    /// When the command began, or the time that counts instead.
    pub now: Timestamp,
    frozen: bool,
    /// The servers that were asked, for messages.
    servers: Servers,
}

/// A Kubernetes client, and the namespace that counts when none is given.
#[derive(Clone)]
pub struct Kube {
    pub client: Client,
    pub namespace: String,
}

impl Kube {
    /// The same cluster in the namespace of a name, where it has one.
    pub fn in_namespace_of(&self, name: &ObjectName) -> Self {
        let namespace = name.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| self.namespace.clone());
        Self {
            client: self.client.clone(),
            namespace,
        }
    }

    /// The objects of the namespace, or of every namespace.
    pub fn api<K>(&self, all_namespaces: bool) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        if all_namespaces {
            Api::all(self.client.clone())
        } else {
            Api::namespaced(self.client.clone(), &self.namespace)
        }
    }
}

/// Nobody listens to the calls of a command.
struct NoopObserver;
impl Observer for NoopObserver {
    fn called(&self, _: Method, _: &'static str, _: Duration) {}
}

impl Context {
    pub fn new(args: &Args) -> Self {
        Self {
            kubeconfig: args.kubeconfig.clone(),
            context: args.context.clone(),
            namespace: args.namespace.clone(),
            colour: args.color,
            now: args.now.unwrap_or_else(Timestamp::now),
            frozen: args.now.is_some(),
            servers: Servers::default(),
        }
    }

    /// The present, for commands that go on for long.
    pub fn present(&self) -> Timestamp {
        if self.frozen {
            self.now
        } else {
            Timestamp::now()
        }
    }

    /// How to print to the standard output.
    pub fn style(&self) -> Style {
        let terminal = std::io::stdout().is_terminal();
        let wanted = match self.colour {
            Colour::Always => true,
            Colour::Never => false,
            // https://no-color.org
            Colour::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
        let of_terminal = || terminal_size::terminal_size().map(|(width, _)| width.0.into());
        let of_terminal = || if terminal { of_terminal() } else { None };
        let width = columns
            .or_else(of_terminal)
            .map_or(UNLIMITED, |w: usize| w.max(40));
        COLOURED.store(wanted, Ordering::Relaxed);
        Style {
            colour: wanted,
            width,
        }
    }

    /// The same for other words on the command line.
    pub fn pointed(
        &self,
        kubeconfig: Option<PathBuf>,
        context: Option<String>,
        namespace: Option<String>,
    ) -> Self {
        Self {
            kubeconfig: kubeconfig.or_else(|| self.kubeconfig.clone()),
            context: context.or_else(|| self.context.clone()),
            namespace: namespace.or_else(|| self.namespace.clone()),
            colour: self.colour,
            now: self.now,
            frozen: self.frozen,
            servers: Servers::default(),
        }
    }

    fn kubeconfig(&self) -> Result<Kubeconfig, KubeconfigError> {
        match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        }
    }

    /// Names of the contexts that there are.
    pub fn contexts(&self) -> Vec<String> {
        let kubeconfig = self.kubeconfig().unwrap_or_default();
        let contexts = kubeconfig.contexts.into_iter();
        contexts.map(|c| c.name).collect()
    }

    /// The namespace that counts, without reaching the cluster.
    pub fn namespace(&self) -> String {
        let of_kubeconfig = || {
            let kubeconfig = self.kubeconfig().ok()?;
            let name = self
                .context
                .as_ref()
                .or(kubeconfig.current_context.as_ref())?;
            let mut contexts = kubeconfig.contexts.iter();
            contexts
                .find(|c| c.name == *name)?
                .context
                .as_ref()?
                .namespace
                .clone()
        };
        self.namespace
            .clone()
            .or_else(of_kubeconfig)
            .unwrap_or_else(|| "default".into())
    }

    /// The namespace that was asked for with -n.
    pub fn asked_namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The namespace that was asked for, or the one that counts without a cluster.
    pub fn offline_namespace(&self) -> String {
        self.namespace.clone().unwrap_or_else(|| "default".into())
    }

    /// Reaches the cluster.
    ///
    /// # Errors
    /// What is wrong with the kubeconfig, and what to do.
    pub async fn kube(&self) -> anyhow::Result<Kube> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let read = self.kubeconfig();
        let identity = read
            .as_ref()
            .ok()
            .map(|k| identity(k, self.context.as_deref()));
        if let (Some(wanted), Ok(kubeconfig)) = (&self.context, &read) {
            known_context(wanted, kubeconfig)?;
        }
        let config = match read {
            Ok(kubeconfig) => kube::Config::from_custom_kubeconfig(kubeconfig, &options).await,
            Err(e) => Err(e),
        };
        let config = config.context(
            "no way to a cluster (set KUBECONFIG or --kubeconfig, and --context; plan also works with --offline)",
        )?;
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let server = Server {
            host: config
                .cluster_url
                .to_string()
                .trim_end_matches('/')
                .to_owned(),
            identity: identity.unwrap_or_default(),
        };
        let _ = self.servers.kubernetes.set(server);
        let client = Client::try_from(config).context("reaching the cluster")?;
        Ok(Kube { client, namespace })
    }

    /// Reaches Google, with credentials that work: what is wrong with them is said here once, and
    /// not again for each call.
    ///
    /// # Errors
    /// When there are no credentials, or they have expired.
    pub async fn google(&self, args: &CloudArgs) -> anyhow::Result<Google> {
        let server = Server {
            host: args.cloud_run_endpoint.clone(),
            identity: google_identity(args.anonymous),
        };
        let _ = self.servers.google.set(server);
        let credentials = google::credentials(args.anonymous).map_err(|f| no_credentials(&f))?;
        let google = Google::connect(google::Options {
            endpoint: args.cloud_run_endpoint.clone(),
            credentials,
            timeout: args.cloud_timeout,
            quota_project: args.quota_project.clone(),
        })
        .await?;
        google
            .authenticate()
            .await
            .map_err(|f| no_credentials(&f))?;
        Ok(google)
    }

    /// Reaches Google within the operator's budget of calls.
    ///
    /// # Errors
    /// When there are no credentials.
    pub async fn limited(&self, args: &CloudArgs) -> anyhow::Result<Limited<Google>> {
        Ok(Limited::new(
            self.google(args).await?,
            args.budget(),
            Arc::new(NoopObserver),
        ))
    }

    /// An error in words: where and as whom, and what to do.
    pub fn explain(&self, error: &anyhow::Error) -> String {
        self.servers.explain(error)
    }

    /// The servers that were asked, for messages.
    pub fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Says something that is not the answer.
    pub fn complain(&self, text: &str) {
        complain(text);
    }

    /// Asks for agreement: with `--yes`, or on a terminal.
    ///
    /// # Errors
    /// Where nobody can be asked.
    pub fn confirm(&self, question: &str, yes: bool) -> anyhow::Result<bool> {
        if yes {
            return Ok(true);
        }
        if !std::io::stdin().is_terminal() {
            anyhow::bail!("{question} stdin is not a terminal; pass --yes to agree");
        }
        let mut stderr = std::io::stderr().lock();
        write!(stderr, "{question} [y/N] ")?;
        stderr.flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

/// Refuses a context that is not there, and names those that are.
fn known_context(wanted: &str, kubeconfig: &Kubeconfig) -> anyhow::Result<()> {
    let names: Vec<&str> = kubeconfig
        .contexts
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    if names.contains(&wanted) {
        return Ok(());
    }
    let there = match names.as_slice() {
        [] => "it has none".to_owned(),
        names => format!("it has {}", names.join(", ")),
    };
    anyhow::bail!("the kubeconfig has no context {wanted}; {there}")
}

/// Whom a kubeconfig stands for, by the names in it.
fn identity(kubeconfig: &Kubeconfig, context: Option<&str>) -> String {
    let name = context.or(kubeconfig.current_context.as_deref());
    let name = name.unwrap_or_default();
    let mut contexts = kubeconfig.contexts.iter();
    let found = contexts.find(|c| c.name == name);
    let user = found.and_then(|c| c.context.as_ref()?.user.clone());
    let user = user.unwrap_or_else(|| "nobody".into());
    format!("{user} (context {name})")
}

/// Credentials for Google that are not there or do not work, in two lines.
pub fn no_credentials(fault: &Fault) -> anyhow::Error {
    let line = fault.message.lines().next().unwrap_or_default();
    let first = line.split_once(". ").map_or(line, |(first, _)| first);
    let why: String = first.chars().take(200).collect();
    anyhow::anyhow!(
        "Google credentials are missing or have expired: {why}\nrun gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS"
    )
}

/// The answer. A reader that went away is no error of ours.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout
        .write_all(outgoing(text, COLOURED.load(Ordering::Relaxed)).as_bytes())
        .and_then(|()| stdout.flush());
}

/// Progress on a terminal, from the first second on.
pub fn progress(what: &str, of: usize) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new(of as u64);
    let style = indicatif::ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    if of < 20 {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar
}

/// Says something on the standard error.
pub fn complain(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{}", outgoing(text.trim_end(), false));
}
