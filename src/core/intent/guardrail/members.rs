//! Patterns over members.

use wildmatch::WildMatch;

use crate::iam::{Principal, PrincipalKind};

/// A pattern over members.
///
/// A member is never matched as a bare text: `principal://…/subject/x@acme.com` ends in `@acme.com`
/// and is not one of acme's people.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum MemberGlob {
    /// `*`: every member that is not public and not a set of everybody.
    Any,
    /// No colon: the e-mail of a user, group or service account.
    Email(WildMatch),
    /// Written out before the colon, a pattern behind it.
    Kind(PrincipalKind, WildMatch),
    /// A pattern that could mean more than it says matches nothing.
    Nothing,
}

impl MemberGlob {
    pub(super) fn parse(pattern: &str) -> Self {
        use PrincipalKind as K;
        let folded = |p: &str| WildMatch::new(&p.to_ascii_lowercase());
        match pattern.split_once(':') {
            None if pattern == "*" => Self::Any,
            None => Self::Email(folded(pattern)),
            Some(("user", rest)) => Self::Kind(K::User, folded(rest)),
            Some(("group", rest)) => Self::Kind(K::Group, folded(rest)),
            Some(("serviceAccount", rest)) => Self::Kind(K::ServiceAccount, folded(rest)),
            Some(("domain", rest)) => Self::Kind(K::Domain, folded(rest)),
            // The case of these counts.
            Some(("principal", rest)) => Self::Kind(K::Federated, WildMatch::new(rest)),
            Some(("principalSet", rest)) => Self::Kind(K::FederatedSet, WildMatch::new(rest)),
            Some(_) => Self::Nothing,
        }
    }

    pub(super) fn matches(&self, principal: &Principal) -> bool {
        use PrincipalKind as K;
        let rest = principal.key().split_once(':').map_or("", |(_, rest)| rest);
        match self {
            Self::Any => !principal.is_public() && !principal.is_everybody_of_something(),
            Self::Email(glob) => {
                matches!(principal.kind(), K::User | K::Group | K::ServiceAccount)
                    && rest.contains('@')
                    && glob.matches(rest)
            }
            Self::Kind(kind, glob) => principal.kind() == *kind && glob.matches(rest),
            Self::Nothing => false,
        }
    }

    /// Whether the pattern says in so many words that it is about sets.
    pub(super) fn is_about_sets(&self) -> bool {
        matches!(self, Self::Kind(PrincipalKind::FederatedSet, _))
    }
}
