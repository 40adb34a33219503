//! Rules for a member, in CEL: what is refused at apply is refused in the words of
//! [`crate::iam::PrincipalError`], and `tests/crds.rs` holds both to that.
//!
//! The API server reports every rule that fails, so each lets pass what one before it refuses.

use kube::core::{Message, Rule};

/// `$CLEAN`: printable ASCII without blanks. Every later rule is about such members only.
const CLEAN: &str = "self.matches('^[!-~]+$')";

/// `$PREFIXED`: begins as a member does, in any case of letters.
const PREFIXED: &str = "self.matches('(?i)^((user|group|serviceAccount|domain|principal|principalSet|deleted):|all(authenticated)?users$)')";

/// `$SPELLED`: begins so as IAM spells it.
const SPELLED: &str = "self.matches('^((user|group|serviceAccount|domain|principal|principalSet|deleted):|all(Authenticated)?Users$)')";

/// `$ALONE`: nothing behind the prefix, or no domain.
const ALONE: &str = r"self.matches('^((user|group|serviceAccount):[^@\\[]*@?|domain:)$')";

/// `$SHORT`: a domain of one word.
const SHORT: &str =
    r"self.matches('^((user|group|serviceAccount):[^@\\[]+@[^@.\\[]+|domain:[^@.]+)$')";

/// `$KNOWN`: a member as a whole.
const KNOWN: &str = r"self.matches('^(allUsers|allAuthenticatedUsers|(user|group|serviceAccount):[A-Za-z0-9.!#$%&*+/=?^_`{|}~\\x27-]+@([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?[.])+[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?|serviceAccount:[A-Za-z0-9.:-]+[.]svc[.]id[.]goog\\[[A-Za-z0-9.-]+/[A-Za-z0-9.-]+\\]|domain:([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?[.])+[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?|principal(Set)?://[!-.0-~]+(/[!-.0-~]+)+/?)$')";

fn rule(expression: &str, message: &str) -> Rule {
    let written = |text: &str| {
        text.replace("$CLEAN", CLEAN)
            .replace("$PREFIXED", PREFIXED)
            .replace("$SPELLED", SPELLED)
            .replace("$ALONE", ALONE)
            .replace("$SHORT", SHORT)
            .replace("$KNOWN", KNOWN)
    };
    Rule::new(written(expression)).message(Message::Expression(written(message)))
}

pub(super) fn is_ascii() -> Rule {
    Rule::new(r"self.matches('^[ -~\\t\\n\\f\\r]*$')").message(
        "member contains a character other than printable ASCII; write the identifier exactly as IAM shows it",
    )
}

pub(super) fn has_no_blank() -> Rule {
    rule(
        r"!self.matches('^[ -~\\t\\n\\f\\r]*$') || !self.matches('[ \\t\\n\\f\\r]')",
        r"'member contains a blank; write ' + self.replace(' ', '').replace('\t', '').replace('\n', '')",
    )
}

pub(super) fn is_not_deleted() -> Rule {
    Rule::new(format!("!{CLEAN} || !self.startsWith('deleted:')"))
        .message("member names a deleted identity; write the member without `deleted:` and `?uid=`")
}

pub(super) fn has_a_prefix() -> Rule {
    rule(
        "!$CLEAN || self.contains(':') || $PREFIXED",
        "'member has no prefix; write ' + (self.endsWith('.gserviceaccount.com') ? 'serviceAccount:' + self : self.contains('@') ? 'user:' + self + ' (or group:' + self + ')' : self.matches('^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?[.])+[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$') ? 'domain:' + self : 'user:EMAIL, group:EMAIL, serviceAccount:EMAIL or domain:NAME')",
    )
}

pub(super) fn is_spelled_as_iam_does() -> Rule {
    rule(
        "!$CLEAN || !$PREFIXED || $SPELLED",
        "'member is not spelled as IAM does, case counts; write ' + (self.matches('(?i)^allusers$') ? 'allUsers' : self.matches('(?i)^allauth') ? 'allAuthenticatedUsers' : (self.matches('(?i)^user:') ? 'user' : self.matches('(?i)^group:') ? 'group' : self.matches('(?i)^service') ? 'serviceAccount' : self.matches('(?i)^domain:') ? 'domain' : self.matches('(?i)^principals') ? 'principalSet' : self.matches('(?i)^principal:') ? 'principal' : 'deleted') + self.substring(self.indexOf(':')))",
    )
}

pub(super) fn has_a_domain() -> Rule {
    rule(
        "!$CLEAN || !$ALONE",
        "self.startsWith('domain:') ? 'member names nobody; write domain:NAME' : self.matches(':@?$') ? 'member names nobody; write ' + self.substring(0, self.indexOf(':')) + ':EMAIL' : 'member has no domain; write ' + (self.endsWith('@') ? self : self + '@') + (self.startsWith('serviceAccount:') ? 'PROJECT.iam.gserviceaccount.com' : 'DOMAIN')",
    )
}

pub(super) fn has_a_whole_domain() -> Rule {
    rule(
        "!$CLEAN || !$SHORT",
        "'member has an incomplete domain; write for example ' + self + (self.startsWith('serviceAccount:') ? '.iam.gserviceaccount.com' : '.com')",
    )
}

pub(super) fn is_known() -> Rule {
    rule(
        "!$CLEAN || self.startsWith('deleted:') || !self.contains(':') || ($PREFIXED && !$SPELLED) || $ALONE || $SHORT || $KNOWN",
        "self.matches('^(user|group|serviceAccount):') ? 'member is not a valid e-mail address after `' + self.substring(0, self.indexOf(':')) + ':`' : self.startsWith('domain:') ? 'member is not a valid domain name after `domain:`' : 'member has no known form; write user:EMAIL, group:EMAIL, serviceAccount:EMAIL, domain:NAME, principal://..., principalSet://..., allUsers or allAuthenticatedUsers'",
    )
}
