//! What went wrong on the way to the API server or to Google, said once: the host, as whom it was
//! asked, and what to do.

use std::{fs, path::PathBuf, sync::OnceLock};

use serde_json::Value;

use super::context::no_credentials;
use crate::{
    cloudrun::google::Side,
    fault::{Fault, FaultClass},
};

/// A server that was asked, and as whom.
#[derive(Clone, Debug)]
pub struct Server {
    pub host: String,
    pub identity: String,
}

/// The servers of a run.
#[derive(Debug, Default)]
pub struct Servers {
    pub kubernetes: OnceLock<Server>,
    pub google: OnceLock<Server>,
}

impl Servers {
    /// An error with its causes, each once.
    pub fn explain(&self, error: &anyhow::Error) -> String {
        let mut parts: Vec<String> = Vec::new();
        for cause in error.chain() {
            let kubernetes = cause.downcast_ref::<kube::Error>();
            let google = cause.downcast_ref::<Fault>();
            let part = match (kubernetes, google) {
                (Some(e), _) => of_kubernetes(e, self.kubernetes.get()),
                (_, Some(fault)) => of_google(fault, self.google.get()),
                _ => cause.to_string(),
            };
            if !parts.iter().any(|p| p.contains(&part)) {
                parts.push(part);
            }
            if kubernetes.is_some() || google.is_some() {
                break;
            }
        }
        parts.join(": ")
    }

    /// As whom Google was asked, where something could not be read.
    pub fn google_asked(&self) -> String {
        let asked = self.google.get();
        let asked = asked.map(|s| format!("{} was asked as {}", s.host, s.identity));
        format!(
            "{}; docs/google-cloud.md has the permissions",
            asked.unwrap_or_default()
        )
    }

    /// Where one of Google's other APIs is asked.
    pub fn google_host(&self, side: Side) -> String {
        let own = self.google.get().map_or("", |s| s.host.as_str());
        side.endpoint_beside(own).to_owned()
    }

    /// What one of Google's other APIs says: evidence, and what to do.
    pub fn google_refused(&self, side: Side, fault: &Fault) -> (String, &'static str) {
        let identity = self.google.get().map_or("nobody", |s| s.identity.as_str());
        let evidence = match fault.class {
            class if is_cut_off(fault) || class == FaultClass::PermissionDenied => {
                refusal(fault, &self.google_host(side), identity)
            }
            _ => fault.message.trim_end_matches('.').to_owned(),
        };
        (evidence, hint(fault.class))
    }

    /// As whom the API server was asked.
    pub fn kubernetes_asked(&self) -> String {
        let asked = self.kubernetes.get();
        let asked = asked.map(|s| format!("API server {} was asked as {}", s.host, s.identity));
        asked.unwrap_or_default()
    }
}

/// What Google says of one of many things that were asked for; the host and the identity are said
/// once for all of them ([`Servers::google_asked`]).
pub fn one_of_many(fault: &Fault) -> String {
    match fault.class {
        // Who was asked, and where the permissions are, is said below all of them.
        FaultClass::PermissionDenied => fault.message.trim_end_matches('.').to_owned(),
        _ => fault.advice_with(hint(fault.class)),
    }
}

/// What whoever runs a command should do. [`FaultClass::row`] speaks to whoever runs the operator,
/// which tries again and has an identity of its own.
pub fn hint(class: FaultClass) -> &'static str {
    match class {
        FaultClass::Conflict => "another writer changed the policy; run the command again",
        FaultClass::PermissionDenied => {
            "ask for the permission (docs/google-cloud.md), or log in as somebody else: gcloud auth application-default login"
        }
        FaultClass::ProjectNotFound => "check the project id",
        FaultClass::ApiDisabled => "enable the API that the message names",
        FaultClass::ConsumerUnavailable => {
            "the project that pays for these calls (--quota-project, or that of your credentials) has to have the API and billing on"
        }
        FaultClass::PerimeterDenied => {
            "ask to be let into the VPC Service Controls perimeter; the identifier finds the denial in the audit log"
        }
        FaultClass::QuotaExceeded => {
            "run the command again in a minute, with fewer --reads-per-minute, or raise the quota of the API"
        }
        FaultClass::Unavailable | FaultClass::Timeout | FaultClass::ForeignAnswer => {
            "check the network, the proxy and --cloud-run-endpoint"
        }
        FaultClass::Credentials => {
            "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS"
        }
        FaultClass::Kubernetes => "run the command again",
        // What is to be done there is the same for everybody.
        other => other.row().hint,
    }
}

/// Whether a fault is about the way to Google, and not about what was asked for.
pub fn is_cut_off(fault: &Fault) -> bool {
    matches!(
        fault.class,
        FaultClass::Unavailable
            | FaultClass::Timeout
            | FaultClass::Credentials
            | FaultClass::ForeignAnswer
    )
}

/// Whether it says nothing about what was asked for: nobody answered, or nobody is let in.
pub fn is_unreachable(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 401,
        _ => true,
    }
}

fn of_kubernetes(error: &kube::Error, server: Option<&Server>) -> String {
    let Some(Server { host, identity }) = server else {
        return error.to_string();
    };
    match error {
        kube::Error::Api(status) if status.code == 401 => format!(
            "the API server {host} does not accept the credentials of {identity}: log in again, or choose another --context"
        ),
        kube::Error::Api(status) if status.code == 403 => format!(
            "{} (API server {host}, as {identity}); ask an administrator of the cluster for this right",
            status.message
        ),
        kube::Error::Api(status) => status.message.clone(),
        other => format!(
            "the API server {host} cannot be reached as {identity}: {}; check --context, the VPN and the proxy (kubectl version asks the same server)",
            innermost(other)
        ),
    }
}

/// The cause behind all others.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

fn of_google(fault: &Fault, server: Option<&Server>) -> String {
    let Some(Server { host, identity }) = server else {
        return fault.advice_with(hint(fault.class));
    };
    match fault.class {
        FaultClass::Credentials => no_credentials(fault).to_string(),
        class if is_cut_off(fault) || class == FaultClass::PermissionDenied => {
            format!("{}; {}", refusal(fault, host, identity), hint(class))
        }
        class => fault.advice_with(hint(class)),
    }
}

/// Who did not answer, or does not let in, and whom.
fn refusal(fault: &Fault, host: &str, identity: &str) -> String {
    let message = fault.message.trim_end_matches('.');
    if is_cut_off(fault) {
        // The client repeats the whole URL before the cause.
        let cause = message.rsplit("client error (Connect): ").next();
        let cause = cause.unwrap_or(message);
        return format!("{host} cannot be reached as {identity}: {cause}");
    }
    format!("{host} refuses this to {identity}: {message}")
}

/// Whom Application Default Credentials stand for, as far as their file tells.
///
/// Source: <https://docs.cloud.google.com/docs/authentication/application-default-credentials>.
pub fn google_identity(anonymous: bool) -> String {
    if anonymous {
        return "nobody (--anonymous)".into();
    }
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let of_gcloud = || {
        let home = || Some(variable("HOME")?.join(".config/gcloud"));
        let folder = variable("CLOUDSDK_CONFIG").or_else(home)?;
        Some(folder.join("application_default_credentials.json"))
    };
    let Some(path) = variable("GOOGLE_APPLICATION_CREDENTIALS").or_else(of_gcloud) else {
        return "this machine's service account".into();
    };
    let read = fs::read_to_string(&path).ok();
    let Some(file) = read.and_then(|t| serde_json::from_str::<Value>(&t).ok()) else {
        return "this machine's service account".into();
    };
    let text = |key: &str| file[key].as_str().filter(|t| !t.is_empty());
    match text("client_email").or_else(|| text("account")) {
        Some(email) => email.to_owned(),
        None => format!(
            "the {} of {}",
            text("type").unwrap_or("identity"),
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn each_refusal_says_host_identity_and_what_to_do_once() {
        let servers = Servers::default();
        let set = |cell: &OnceLock<Server>, host: &str, identity: &str| {
            let (host, identity) = (host.to_owned(), identity.to_owned());
            cell.set(Server { host, identity }).unwrap();
        };
        set(
            &servers.kubernetes,
            "https://k8s:6443",
            "alice (context prod)",
        );
        set(&servers.google, "https://run.googleapis.com", "a@acme.com");
        let api = |code| {
            let status = Status::failure("no", "Forbidden").with_code(code);
            anyhow::Error::from(kube::Error::Api(status.boxed())).context("listing policies")
        };
        let google =
            |class| anyhow::Error::from(Fault::new(class, "said Google.")).context("listing");
        for (error, host, identity, advice) in [
            (
                api(401),
                "https://k8s:6443",
                "alice (context prod)",
                "log in again",
            ),
            (
                api(403),
                "https://k8s:6443",
                "alice (context prod)",
                "ask an administrator",
            ),
            (
                google(FaultClass::Unavailable),
                "https://run.googleapis.com",
                "a@acme.com",
                "check the network",
            ),
            (
                google(FaultClass::PermissionDenied),
                "https://run.googleapis.com",
                "a@acme.com",
                "ask for the permission",
            ),
        ] {
            let text = servers.explain(&error);
            for part in [host, identity, advice] {
                assert_eq!(text.matches(part).count(), 1, "{part}: {text}");
            }
        }
    }
}
