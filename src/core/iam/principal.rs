//! Who is granted a role: parsing, and comparison as IAM compares.

use std::{cmp::Ordering, fmt, hash::Hash, sync::Arc};

/// What kind of identity a member names.
///
/// Source: <https://docs.cloud.google.com/iam/docs/principal-identifiers>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PrincipalKind {
    /// `user:E`
    User,
    /// `group:E`
    Group,
    /// `serviceAccount:E`, including the legacy GKE form `serviceAccount:P.svc.id.goog[NS/KSA]`
    ServiceAccount,
    /// `domain:D`
    Domain,
    /// `allUsers`: anyone, without any credential
    AllUsers,
    /// `allAuthenticatedUsers`: anyone with any Google account
    AllAuthenticatedUsers,
    /// `principal://…`: one federated identity
    Federated,
    /// `principalSet://…`: a set of federated identities or resources
    FederatedSet,
    /// `deleted:…`: what is left of an identity that was deleted
    Deleted,
    /// Anything else found in a live policy. It is carried, never created.
    Other,
}

/// Whether Cloud Run lets a kind of principal invoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invocation {
    Supported,
    Unsupported,
    /// Google says both.
    Disputed,
}

/// Why a declared member is refused. The text says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrincipalError {
    #[error("is empty; write for example serviceAccount:NAME@PROJECT.iam.gserviceaccount.com")]
    Empty,
    #[error("names a deleted identity; write the member without `deleted:` and `?uid=`")]
    Deleted,
    #[error(
        "contains a character other than printable ASCII; write the identifier exactly as IAM shows it"
    )]
    NotAscii,
    #[error("contains a blank; write {0}")]
    Blank(String),
    #[error("has no prefix; write {0}")]
    NoPrefix(String),
    #[error("is not spelled as IAM does, case counts; write {0}")]
    Case(String),
    #[error("names nobody; write {0}")]
    Nobody(&'static str),
    #[error("has no domain; write {0}")]
    NoDomain(String),
    #[error("has an incomplete domain; write for example {0}")]
    ShortDomain(String),
    #[error("is not a valid e-mail address after `{0}:`")]
    Email(&'static str),
    #[error("is not a valid domain name after `domain:`")]
    Domain,
    #[error(
        "has no known form; write user:EMAIL, group:EMAIL, serviceAccount:EMAIL, domain:NAME, principal://..., principalSet://..., allUsers or allAuthenticatedUsers"
    )]
    Unknown,
}

/// A member of an IAM binding.
///
/// Equality, order and hash follow IAM: the case of e-mail addresses and domains does not count,
/// the case of `principal://` and `deleted:` does. The text is kept byte for byte, because IAM can
/// refuse a member that is written back in another case than it was stored in.
#[derive(Clone)]
pub struct Principal {
    text: Arc<str>,
    key: Arc<str>,
    kind: PrincipalKind,
}

impl Principal {
    /// Parses a member that a person declared.
    ///
    /// # Errors
    /// [`PrincipalError`] for everything that IAM could not accept as a new member, including
    /// look-alikes (non-ASCII letters) and `deleted:` members.
    pub fn parse(text: &str) -> Result<Self, PrincipalError> {
        if text.is_empty() {
            return Err(PrincipalError::Empty);
        }
        let is_blank = |b: u8| b.is_ascii_whitespace();
        if !text.bytes().all(|b| b.is_ascii_graphic() || is_blank(b)) {
            return Err(PrincipalError::NotAscii);
        }
        if text.bytes().any(is_blank) {
            return Err(PrincipalError::Blank(
                text.split_ascii_whitespace().collect(),
            ));
        }
        if let Some(slip) = slip(text) {
            return Err(slip);
        }
        let principal = Self::from_live(text);
        let rest = text.split_once(':').map_or("", |(_, rest)| rest);
        match principal.kind {
            PrincipalKind::AllUsers | PrincipalKind::AllAuthenticatedUsers => {}
            PrincipalKind::User if is_email(rest) => {}
            PrincipalKind::User => return Err(PrincipalError::Email("user")),
            PrincipalKind::Group if is_email(rest) => {}
            PrincipalKind::Group => return Err(PrincipalError::Email("group")),
            PrincipalKind::ServiceAccount if is_email(rest) || is_gke_legacy(rest) => {}
            PrincipalKind::ServiceAccount => return Err(PrincipalError::Email("serviceAccount")),
            PrincipalKind::Domain if is_domain(rest) => {}
            PrincipalKind::Domain => return Err(PrincipalError::Domain),
            PrincipalKind::Federated | PrincipalKind::FederatedSet => {
                let path = rest.trim_start_matches('/');
                if path.split('/').filter(|s| !s.is_empty()).count() < 2 {
                    return Err(PrincipalError::Unknown);
                }
            }
            PrincipalKind::Deleted => return Err(PrincipalError::Deleted),
            PrincipalKind::Other => return Err(PrincipalError::Unknown),
        }
        Ok(principal)
    }

    /// Takes a member as it was read from a live policy. Never fails: what is unknown is
    /// [`PrincipalKind::Other`].
    pub fn from_live(text: &str) -> Self {
        use PrincipalKind as K;
        let kind = match text.split_once(':') {
            None if text == "allUsers" => K::AllUsers,
            None if text == "allAuthenticatedUsers" => K::AllAuthenticatedUsers,
            Some(("user", _)) => K::User,
            Some(("group", _)) => K::Group,
            Some(("serviceAccount", _)) => K::ServiceAccount,
            Some(("domain", _)) => K::Domain,
            Some(("principal", rest)) if rest.starts_with("//") => K::Federated,
            Some(("principalSet", rest)) if rest.starts_with("//") => K::FederatedSet,
            Some(("deleted", _)) => K::Deleted,
            _ => K::Other,
        };
        let text: Arc<str> = text.into();
        let key = match kind {
            K::User | K::Group | K::ServiceAccount | K::Domain => match text.split_once(':') {
                Some((prefix, rest)) if rest.bytes().any(|b| b.is_ascii_uppercase()) => {
                    format!("{prefix}:{}", rest.to_ascii_lowercase()).into()
                }
                _ => text.clone(),
            },
            _ => text.clone(),
        };
        Self { text, key, kind }
    }

    /// The member as it was written or read, byte for byte.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The form that is equal for all spellings of one principal.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The same principal over shared texts: members repeat over thousands of policies.
    pub fn shared(&self, mut share: impl FnMut(&Arc<str>) -> Arc<str>) -> Self {
        let text = share(&self.text);
        let key = if self.text == self.key {
            text.clone()
        } else {
            share(&self.key)
        };
        Self {
            text,
            key,
            kind: self.kind,
        }
    }

    /// What kind of identity this is.
    pub fn kind(&self) -> PrincipalKind {
        self.kind
    }

    /// Whether granting this makes a service callable by anyone.
    pub fn is_public(&self) -> bool {
        matches!(
            self.kind,
            PrincipalKind::AllUsers | PrincipalKind::AllAuthenticatedUsers
        )
    }

    /// Whether this is everybody of a pool, project, folder or organization: as wide as public for
    /// whoever can get in there, and easily overlooked.
    pub fn is_everybody_of_something(&self) -> bool {
        self.kind == PrincipalKind::FederatedSet
            && (self.text.ends_with("/*")
                || self.text.contains("/type/")
                || self
                    .text
                    .starts_with("principalSet://cloudresourcemanager.googleapis.com/"))
    }

    /// Whether Cloud Run lets this principal invoke at all. `run.routes.invoke` does not support
    /// federated identities; for those of workforce pools Google's pages disagree.
    ///
    /// Sources: <https://docs.cloud.google.com/iam/docs/federated-identity-supported-services>, row
    /// Cloud Run, and <https://docs.cloud.google.com/run/docs/authenticating/developers>.
    pub fn invocation(&self) -> Invocation {
        let is_federated = match self.kind {
            PrincipalKind::Federated => true,
            PrincipalKind::FederatedSet => !self.text.ends_with("/type/ServiceAccount"),
            // GKE's older spelling of a federated identity (reference §4.1).
            PrincipalKind::ServiceAccount => self.text.contains(".svc.id.goog["),
            _ => false,
        };
        if !is_federated {
            Invocation::Supported
        } else if self.text.contains("/workforcePools/") {
            Invocation::Disputed
        } else {
            Invocation::Unsupported
        }
    }
}

/// What members begin with, and the two that are whole.
const PREFIXES: [&str; 7] = [
    "user:",
    "group:",
    "serviceAccount:",
    "domain:",
    "principal:",
    "principalSet:",
    "deleted:",
];
const PUBLIC: [&str; 2] = ["allUsers", "allAuthenticatedUsers"];

/// A member that is nearly one: which part is missing or misspelled, and the likely right spelling.
fn slip(text: &str) -> Option<PrincipalError> {
    if let Some(right) = PUBLIC.iter().find(|p| p.eq_ignore_ascii_case(text)) {
        return (*right != text).then(|| PrincipalError::Case((*right).to_owned()));
    }
    let Some((prefix, rest)) = text.split_once(':') else {
        let right = if text.ends_with(".gserviceaccount.com") {
            format!("serviceAccount:{text}")
        } else if text.contains('@') {
            format!("user:{text} (or group:{text})")
        } else if is_domain(text) {
            format!("domain:{text}")
        } else {
            "user:EMAIL, group:EMAIL, serviceAccount:EMAIL or domain:NAME".to_owned()
        };
        return Some(PrincipalError::NoPrefix(right));
    };
    let is = |p: &&&str| p.trim_end_matches(':').eq_ignore_ascii_case(prefix);
    let right = PREFIXES.iter().find(is)?;
    if right.trim_end_matches(':') != prefix {
        return Some(PrincipalError::Case(format!("{right}{rest}")));
    }
    slip_of_domain(text, right, rest)
}

/// The same for what stands behind the prefix.
fn slip_of_domain(text: &str, prefix: &str, rest: &str) -> Option<PrincipalError> {
    let (nobody, domain, end) = match prefix {
        "serviceAccount:" => (
            "serviceAccount:EMAIL",
            "PROJECT.iam.gserviceaccount.com",
            ".iam.gserviceaccount.com",
        ),
        "user:" => ("user:EMAIL", "DOMAIN", ".com"),
        "group:" => ("group:EMAIL", "DOMAIN", ".com"),
        "domain:" => ("domain:NAME", "", ".com"),
        _ => return None,
    };
    let short = || Some(PrincipalError::ShortDomain(format!("{text}{end}")));
    let is_word = |text: &str| !text.is_empty() && !text.contains(['@', '.', '[']);
    if rest.is_empty() || rest == "@" {
        return Some(PrincipalError::Nobody(nobody));
    }
    if prefix == "domain:" {
        return is_word(rest).then(short).flatten();
    }
    match rest.split_once('@') {
        None if rest.contains('[') => None,
        None => Some(PrincipalError::NoDomain(format!("{text}@{domain}"))),
        Some((name, _)) if name.contains('[') => None,
        Some((_, "")) => Some(PrincipalError::NoDomain(format!("{text}{domain}"))),
        Some((_, rest)) => is_word(rest).then(short).flatten(),
    }
}

/// A conservative e-mail form: printable ASCII without delimiters that IAM gives a meaning to.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else {
        return false;
    };
    let local_ok = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b);
    !local.is_empty() && local.bytes().all(local_ok) && is_domain(domain)
}

fn is_domain(text: &str) -> bool {
    text.contains('.')
        && text.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// `PROJECT_ID.svc.id.goog[NAMESPACE/SERVICE_ACCOUNT]`.
fn is_gke_legacy(text: &str) -> bool {
    let Some((pool, rest)) = text.split_once('[') else {
        return false;
    };
    let Some((ns, ksa)) = rest.strip_suffix(']').and_then(|r| r.split_once('/')) else {
        return false;
    };
    let name = |s: &str| {
        !s.is_empty()
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    };
    pool.ends_with(".svc.id.goog") && name(ns) && name(ksa)
}

impl PartialEq for Principal {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
impl Eq for Principal {}
impl PartialOrd for Principal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Principal {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}
impl Hash for Principal {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_of_a_member_is_accepted() {
        for text in [
            "allUsers",
            "allAuthenticatedUsers",
            "user:Ada.Lovelace+x@Acme.com",
            "group:oncall@acme.com",
            "serviceAccount:web@acme-prod.iam.gserviceaccount.com",
            "serviceAccount:123-compute@developer.gserviceaccount.com",
            "serviceAccount:acme-prod.svc.id.goog[payments/web]",
            "domain:acme.com",
            "principal://iam.googleapis.com/locations/global/workforcePools/p/subject/s",
            "principalSet://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/*",
            "principalSet://cloudresourcemanager.googleapis.com/projects/1/type/ServiceAccount",
        ] {
            let parsed = Principal::parse(text);
            assert_eq!(parsed.as_ref().map(Principal::as_str), Ok(text));
        }
    }

    #[test]
    fn look_alikes_and_malformed_members_are_refused_with_what_to_do() {
        for (text, why) in [
            ("", PrincipalError::Empty),
            ("allusers", PrincipalError::Case("allUsers".into())),
            ("AllUsers", PrincipalError::Case("allUsers".into())),
            (
                "allauthenticatedusers",
                PrincipalError::Case("allAuthenticatedUsers".into()),
            ),
            (
                "ada@acme.com",
                PrincipalError::NoPrefix("user:ada@acme.com (or group:ada@acme.com)".into()),
            ),
            (
                "web@acme-prod.iam.gserviceaccount.com",
                PrincipalError::NoPrefix(
                    "serviceAccount:web@acme-prod.iam.gserviceaccount.com".into(),
                ),
            ),
            (
                "acme.com",
                PrincipalError::NoPrefix("domain:acme.com".into()),
            ),
            (
                "nonsense",
                PrincipalError::NoPrefix(
                    "user:EMAIL, group:EMAIL, serviceAccount:EMAIL or domain:NAME".into(),
                ),
            ),
            ("allUsers ", PrincipalError::Blank("allUsers".into())),
            (
                "user: ada@acme.com",
                PrincipalError::Blank("user:ada@acme.com".into()),
            ),
            ("all\u{200b}Users", PrincipalError::NotAscii),
            ("user:\u{430}da@acme.com", PrincipalError::NotAscii),
            (
                "user:ada",
                PrincipalError::NoDomain("user:ada@DOMAIN".into()),
            ),
            ("user:", PrincipalError::Nobody("user:EMAIL")),
            ("domain:", PrincipalError::Nobody("domain:NAME")),
            (
                "Group:ops@acme.com",
                PrincipalError::Case("group:ops@acme.com".into()),
            ),
            (
                "PrincipalSet://iam.googleapis.com/x/y",
                PrincipalError::Case("principalSet://iam.googleapis.com/x/y".into()),
            ),
            (
                "user:ada@",
                PrincipalError::NoDomain("user:ada@DOMAIN".into()),
            ),
            (
                "user:ada@acme",
                PrincipalError::ShortDomain("user:ada@acme.com".into()),
            ),
            ("user:@acme.com", PrincipalError::Email("user")),
            (
                "serviceAccount:web@acme-prod",
                PrincipalError::ShortDomain(
                    "serviceAccount:web@acme-prod.iam.gserviceaccount.com".into(),
                ),
            ),
            ("group:a@b@c.com", PrincipalError::Email("group")),
            (
                "serviceAccount:x",
                PrincipalError::NoDomain("serviceAccount:x@PROJECT.iam.gserviceaccount.com".into()),
            ),
            (
                "serviceaccount:x@y.com",
                PrincipalError::Case("serviceAccount:x@y.com".into()),
            ),
            (
                "domain:acme",
                PrincipalError::ShortDomain("domain:acme.com".into()),
            ),
            ("domain:-acme.com", PrincipalError::Domain),
            ("deleted:user:a@b.com?uid=1", PrincipalError::Deleted),
            ("principalSet://", PrincipalError::Unknown),
            ("projectOwner:acme", PrincipalError::Unknown),
        ] {
            assert_eq!(Principal::parse(text), Err(why), "{text:?}");
        }
    }

    #[test]
    fn case_counts_only_where_iam_says_so_and_text_survives() {
        let live = Principal::from_live("user:Ada@Acme.com");
        assert_eq!(live, Principal::from_live("user:ada@acme.com"));
        assert_eq!(live.as_str(), "user:Ada@Acme.com");
        let p = "principal://iam.googleapis.com/locations/global/workforcePools/p/subject/S";
        assert_ne!(
            Principal::from_live(p),
            Principal::from_live(&p.to_lowercase())
        );
        assert_ne!(
            Principal::from_live("deleted:user:A@b.com?uid=1"),
            Principal::from_live("deleted:user:a@b.com?uid=1")
        );
    }

    #[test]
    fn federated_identities_cannot_invoke_and_of_workforce_pools_nobody_knows() {
        for (member, invocation) in [
            (
                "principal://iam.googleapis.com/x/subject/s",
                Invocation::Unsupported,
            ),
            (
                "principalSet://iam.googleapis.com/x/*",
                Invocation::Unsupported,
            ),
            (
                "principal://iam.googleapis.com/locations/global/workforcePools/p/subject/s",
                Invocation::Disputed,
            ),
            (
                "principalSet://cloudresourcemanager.googleapis.com/projects/1/type/ServiceAccount",
                Invocation::Supported,
            ),
            ("group:a@b.com", Invocation::Supported),
        ] {
            let principal = Principal::from_live(member);
            assert_eq!(principal.invocation(), invocation, "{member}");
        }
    }
}
