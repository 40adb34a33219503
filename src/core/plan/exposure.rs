//! Whether anyone can call a service: by what, and from where.

use std::{fmt, sync::Arc};

use super::{Input, claim::PolicyOnService};
use crate::iam::{Carries, Grant, InvokingRoles, Principal, Role, ServiceInfo, describe_with};

/// Anyone can call a service, or perhaps can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// By what, and from where.
    Surely(Arc<str>),
    /// Everybody has roles of which it is not known whether they let anybody invoke.
    Perhaps(Arc<[PublicRole]>),
}

/// A role that everybody has on a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicRole {
    /// `allUsers` or `allAuthenticatedUsers`.
    pub member: Arc<str>,
    pub role: Arc<str>,
    /// From where somebody without an account could call it.
    pub from: &'static str,
}

impl PublicRole {
    fn words(&self) -> String {
        let Self { member, role, from } = self;
        format!("{member} may invoke it by {role}, {from}")
    }
}

impl Exposure {
    /// The same with what searches have shown of roles by now.
    pub fn judged(&self, roles: &InvokingRoles) -> Self {
        let Self::Perhaps(public) = self else {
            return self.clone();
        };
        let mut carrying = public
            .iter()
            .filter(|p| roles.carries(&p.role) == Carries::Yes);
        carrying
            .next()
            .map_or_else(|| self.clone(), |p| Self::Surely(p.words().into()))
    }

    pub fn is_sure(&self) -> bool {
        matches!(self, Self::Surely(_))
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let public = match self {
            Self::Surely(how) => return f.write_str(how),
            Self::Perhaps(public) => public,
        };
        for (n, PublicRole { member, role, from }) in public.iter().enumerate() {
            let and = if n > 0 { ", and " } else { "" };
            let see = describe_with(role);
            write!(
                f,
                "{and}{member} has {role}, whose permissions are not known here ({see}), {from}"
            )?;
        }
        Ok(())
    }
}

/// By what, and from where, anyone can call the service, unless that is declared and allowed, or
/// Identity-Aware Proxy asks who it is.
///
/// A policy that lists `allUsers` declares it, whichever way makes it so: the public member by any
/// role, or a switched-off check, which Google recommends for public services.
pub fn exposed(info: Option<&ServiceInfo>, input: &Input<'_>) -> Option<Exposure> {
    let from = ServiceInfo::open_to(info)?;
    let wanted = |g: &Grant| {
        let allowed = |c: &PolicyOnService| {
            c.declared()
                .iter()
                .any(|d| d.grant == *g && c.refuse(input.service, d, input.now).is_none())
        };
        input.claims.iter().any(allowed)
    };
    let sure = |how: String| Some(Exposure::Surely(how.into()));
    let is_declared = wanted(&Grant::new(Principal::from_live("allUsers"), Role::Invoker));
    let is_off = info.is_some_and(|i| i.invoker_iam_disabled);
    if is_off && !is_declared {
        return sure(format!(
            "its IAM check is switched off (invokerIamDisabled), {from}"
        ));
    }
    let public = input
        .live
        .grants()
        .into_iter()
        .find(|g| g.principal.is_public() && !wanted(g));
    if let Some(grant) = public {
        return sure(format!("{} may invoke it, {from}", grant.principal));
    }
    if is_declared {
        return None;
    }
    let roles = InvokingRoles::default();
    let public = |(p, role): &(Principal, &str)| {
        let role = PublicRole {
            member: p.as_str().into(),
            role: (*role).into(),
            from,
        };
        p.is_public().then_some(role)
    };
    let others = input.live.other_invokers(&roles);
    if let Some(other) = others.iter().find_map(public) {
        return sure(other.words());
    }
    let perhaps = input.live.perhaps_invokers(&roles);
    let perhaps: Vec<PublicRole> = perhaps.iter().filter_map(public).collect();
    (!perhaps.is_empty()).then(|| Exposure::Perhaps(perhaps.into()))
}
