//! `access --effective`: who may invoke by a grant above the services, beside those on them.

use std::sync::Arc;

use super::access::{InheritedFrom, Invoker};
use crate::{
    cloudrun::{
        assets::{ancestors, search},
        google::Google,
    },
    iam::{InvokingRoles, Principal, PrincipalKind},
    inherited::{Above, Inherited, InheritedGrant, SearchScope},
    plan::PolicyOnService,
};

#[derive(Clone, Debug, clap::Args)]
pub struct EffectiveArgs {
    /// Show who may invoke by a grant on the project, a folder or the organization, too.
    #[arg(long)]
    pub effective: bool,

    /// The whole reach of one principal, by whatever grants it: implies --effective.
    #[arg(long = "as", value_name = "PRINCIPAL", conflicts_with = "member")]
    pub principal: Option<String>,

    /// What to search with --effective: organizations/NUMBER, folders/NUMBER or projects/ID; the
    /// projects alone if none is given.
    #[arg(long = "inherited-scope", value_name = "SCOPE", value_delimiter = ',', value_parser = SearchScope::parse)]
    pub scopes: Vec<SearchScope>,
}

impl EffectiveArgs {
    pub fn is_wanted(&self) -> bool {
        self.effective || self.principal.is_some()
    }

    /// The principal whose reach is asked for.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn asked(&self) -> anyhow::Result<Option<Principal>> {
        let parse = |text: &String| {
            Principal::parse(text).map_err(|e| anyhow::anyhow!("--as {text:?} {e}"))
        };
        self.principal.as_ref().map(parse).transpose()
    }
}

/// What searches showed, and what they could not.
pub struct Searched {
    inherited: Inherited,
    pub notes: Vec<String>,
    pub failed: bool,
}

/// Searches, and asks where projects are that no search shows.
pub async fn look_above(
    google: &Google,
    args: &EffectiveArgs,
    projects: &[Arc<str>],
) -> anyhow::Result<Searched> {
    let mut scopes = args.scopes.clone();
    let mut notes = Vec::new();
    if scopes.is_empty() {
        let of = |p: &Arc<str>| SearchScope::parse(&format!("projects/{p}"));
        scopes = projects
            .iter()
            .map(of)
            .collect::<Result<_, _>>()
            .map_err(anyhow::Error::msg)?;
        notes.push(
            "Grants on folders and the organization are not searched; --inherited-scope organizations/NUMBER does."
                .into(),
        );
    }
    let mut inherited = Inherited::of(&scopes);
    let mut failed = false;
    for scope in &scopes {
        let result = search(google, scope).await;
        if let Err(fault) = &result {
            failed = true;
            notes.push(format!(
                "{} could not be searched: {}; it takes roles/cloudasset.viewer and roles/iam.roleViewer there.",
                scope.as_str(),
                fault.message.trim_end_matches('.')
            ));
        }
        inherited.apply(scope, result);
    }
    for project in projects {
        if inherited.needs_place(project)
            && let Ok(above) = ancestors(google, project).await
        {
            inherited.place(project, above);
        }
        if inherited.above(project) == Above::Unplaced {
            notes.push(format!(
                "No search shows where {project} is: it is below none of the scopes, or resourcemanager.projects.get is missing."
            ));
        }
    }
    notes.push(
        "Groups are not expanded, and deny policies and principal access boundaries are not seen."
            .into(),
    );
    Ok(Searched {
        inherited,
        notes,
        failed,
    })
}

impl Searched {
    /// What the searches show of roles.
    pub fn roles(&self) -> &InvokingRoles {
        self.inherited.roles()
    }

    /// Who may invoke the services of a project from above. `claims`: the policies on one of them.
    pub fn invokers(&self, project: &str, claims: &[PolicyOnService]) -> Vec<Invoker> {
        let Above::Known { grants, .. } = self.inherited.above(project) else {
            return Vec::new();
        };
        grants.into_iter().map(|g| invoker(g, claims)).collect()
    }
}

fn invoker(grant: &InheritedGrant, claims: &[PolicyOnService]) -> Invoker {
    let lists = |c: &&PolicyOnService| {
        let mut declared = c.declared().iter();
        declared.any(|d| d.grant.principal == grant.principal)
    };
    Invoker {
        member: grant.principal.to_string(),
        role: grant.role.to_string(),
        policies: claims
            .iter()
            .filter(lists)
            .map(|c| c.intent.id.to_string())
            .collect(),
        condition: grant.conditional.then(|| "its condition holds".into()),
        until: None,
        ended: false,
        public: grant.principal.is_public(),
        // Who cannot invoke is not among those that searches show.
        cannot_invoke: false,
        // Searches show only roles that carry it.
        role_unknown: false,
        inherited_from: Some(InheritedFrom {
            level: grant.level.as_str(),
            resource: grant.resource.to_string(),
        }),
    }
}

/// Whether a member stands for a principal, as far as that can be told without looking into groups.
pub fn stands_for(member: &str, principal: &Principal) -> bool {
    let member = Principal::from_live(member);
    let email = principal.key().split_once(':').map_or("", |(_, e)| e);
    let domain = email.rsplit_once('@').map_or("", |(_, d)| d);
    let is_person = matches!(principal.kind(), PrincipalKind::User | PrincipalKind::Group);
    member.is_public()
        || member == *principal
        || (is_person && !domain.is_empty() && member.key() == format!("domain:{domain}"))
}
