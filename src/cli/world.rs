//! All that a command plans on: policies, guardrails, ledger and links in an index like the
//! operator's, and the live state.

mod live;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::ServiceAccount, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api, Client, Resource,
    api::ListParams,
    core::{DeserializeGuard, ObjectList, PartialObjectMeta, error_boundary::InvalidObject},
};
use serde::de::DeserializeOwned;

use super::{
    WorldArgs,
    context::{Context, Kube, complain, progress},
    files::{self, Loaded},
};
use crate::{
    api::{
        InvokerAccessRequest, InvokerApproval, InvokerChange, InvokerGuardrail, InvokerLedger,
        InvokerPolicy,
    },
    cloudrun::{CloudRun, Listing, list_services},
    fault::Fault,
    iam::{Policy, RunService, ServiceInfo, is_region, nearest_region},
    index::{Index, Scope},
    intent::{
        AccessRequest, AccountKey, Agreement, ApprovalKey, GOOGLE_SERVICE_ACCOUNT, Guardrail,
        PolicyKey,
    },
    plan::Settings,
};

pub use live::Focus;

/// Objects in one page of a list.
const PAGE: u32 = 250;

/// Desired and live state, as the operator would see them.
pub struct ClusterSnapshot {
    pub index: Index,
    pub settings: Settings,
    pub now: Timestamp,
    /// What is not in here, because it may not be read.
    pub notes: Vec<String>,
    /// Approvals, those in the cluster before those in files.
    pub approvals: BTreeMap<ApprovalKey, InvokerApproval>,
    /// What was read, or why it could not be.
    pub live: BTreeMap<RunService, Result<Policy, Fault>>,
    /// The policies that were asked about, and their services; none: all.
    pub focus: Option<Focus>,
}

/// Every object of a kind, page by page.
///
/// # Errors
/// What the API server says, and what to do where the definitions are not there.
pub async fn list_all<K>(api: &Api<K>, params: ListParams) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    match list_pages(api, params).await {
        Err(kube::Error::Api(s)) if s.code == 404 => {
            anyhow::bail!(
                "the cluster does not know {}: install the chart or crds/ first, or use --offline",
                K::plural(&())
            )
        }
        other => other.with_context(|| format!("cannot list {}", K::plural(&()))),
    }
}

async fn list_pages<K>(api: &Api<K>, params: ListParams) -> Result<Vec<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut found = Vec::new();
    let mut params = params.limit(PAGE);
    loop {
        let request = kube::core::Request::new(api.resource_url()).list(&params);
        let request = request.map_err(kube::Error::BuildRequest)?;
        let page: ObjectList<DeserializeGuard<K>> =
            api.clone().into_client().request(request).await?;
        for object in page.items {
            match object.0 {
                Ok(object) => found.push(object),
                // One that cannot be read hides no other.
                Err(invalid) => complain(&unreadable::<K>(&invalid)),
            }
        }
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(next) => params = params.continue_token(&next),
            None => return Ok(found),
        }
    }
}

/// Names an object that cannot be read, and why.
fn unreadable<K: Resource<DynamicType = ()>>(invalid: &InvalidObject) -> String {
    let meta = &invalid.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let place = match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    };
    let why: String = invalid.error.to_string().chars().take(300).collect();
    format!(
        "note: {} {place} cannot be read and is left out: {why}",
        K::kind(&())
    )
}

/// The services of a project, in one region or in all.
///
/// # Errors
/// What Google says, with what to do about it.
pub async fn list_project<C: CloudRun>(
    cloud: &C,
    project: &str,
    region: Option<&str>,
) -> anyhow::Result<Listing> {
    let scope = region.map_or(Scope::AllRegions, |r| Scope::Region(r.into()));
    let listed = list_services(cloud, project, &scope).await;
    let listing = listed.with_context(|| format!("cannot list the services of {project}"))?;
    if let Some(region) = region
        && listing.services.is_empty()
    {
        known_region(region)?;
    }
    Ok(listing)
}

/// Refuses a region that is not known, where nothing was found in it.
///
/// # Errors
/// That it is not known, and which one may be meant.
pub fn known_region(region: &str) -> anyhow::Result<()> {
    if is_region(region) {
        return Ok(());
    }
    let near = nearest_region(region);
    let near = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
    anyhow::bail!(
        "{region} is no region of Cloud Run that is known, and no service was found there{near}"
    )
}

/// That a service is not there.
pub fn no_service(name: &str, region: Option<&str>, projects: &str) -> String {
    let region = region.map(|r| format!(" in {r}")).unwrap_or_default();
    format!("there is no service {name}{region} in {projects}")
}

/// The IAM policies of services, in no order, with progress on the terminal.
pub async fn read_services<C: CloudRun>(
    cloud: &C,
    services: Vec<ServiceInfo>,
) -> Vec<(ServiceInfo, Result<Policy, Fault>)> {
    let bar = progress("reading IAM", services.len());
    let read = |info: ServiceInfo| async move {
        let live = cloud.read_policy(&info.service).await;
        (info, live)
    };
    let found = futures::stream::iter(services)
        .map(read)
        .buffer_unordered(64)
        .inspect(|_| bar.inc(1))
        .collect()
        .await;
    bar.finish_and_clear();
    found
}

/// Where declarations come from.
pub struct Sources<'a> {
    pub files: &'a [PathBuf],
    pub offline: bool,
    /// Approvals count, those in files as if they were applied.
    pub approved: bool,
}

impl ClusterSnapshot {
    /// Brings declarations together. Files go before objects of the same name in the cluster.
    ///
    /// # Errors
    /// When a file or the cluster cannot be read. What is wrong inside of a file comes back with
    /// the world.
    pub async fn declared(
        context: &Context,
        args: &WorldArgs,
        sources: &Sources<'_>,
    ) -> anyhow::Result<(Self, Loaded)> {
        let kube = if sources.offline {
            None
        } else {
            Some(context.kube().await?)
        };
        let namespace = kube
            .as_ref()
            .map_or_else(|| context.offline_namespace(), |k| k.namespace.clone());
        let loaded = files::load(sources.files, &namespace)?;
        let this = Self::with(context, args, kube.as_ref(), &loaded, sources.approved).await?;
        Ok((this, loaded))
    }

    /// The same for objects that were read already. `approved`: approvals count.
    ///
    /// # Errors
    /// When the cluster cannot be read.
    pub async fn with(
        context: &Context,
        args: &WorldArgs,
        kube: Option<&Kube>,
        loaded: &Loaded,
        approved: bool,
    ) -> anyhow::Result<Self> {
        let settings = args.plan.settings();
        let mut this = Self {
            index: Index::new(settings.clone()),
            settings,
            now: context.now,
            notes: Vec::new(),
            approvals: BTreeMap::new(),
            live: BTreeMap::new(),
            focus: None,
        };
        this.fill(kube, loaded, approved).await?;
        Ok(this)
    }

    async fn fill(
        &mut self,
        kube: Option<&Kube>,
        loaded: &Loaded,
        approved: bool,
    ) -> anyhow::Result<()> {
        let mut objects = Objects {
            requests_known: true,
            ..Objects::default()
        };
        if let Some(kube) = kube {
            objects = self.list_objects(kube).await?;
        }
        objects.lay_over(loaded, self.now);
        let client = kube.map(|k| &k.client);
        self.index.begin_guardrail_list();
        for g in objects.guardrails.values() {
            self.index.apply_guardrail(Guardrail::from_object(g));
        }
        self.index.end_guardrail_list();
        self.index.begin_ledger_list();
        for entry in &objects.ledgers {
            self.index.apply_ledger(entry);
        }
        self.index.end_ledger_list();
        self.index.begin_policy_list();
        let mut rollbacks = Vec::new();
        for policy in objects.policies.values() {
            let (_, effect) = self.index.apply_policy(policy, Duration::ZERO);
            rollbacks.extend(effect.rollbacks);
        }
        self.index.end_policy_list();
        let counting = objects.approvals.values().filter(|_| approved);
        for approval in counting {
            // One that cannot be read, or that is too many, agrees to nothing for the operator either.
            if let Ok(agreement) = Agreement::from_object(approval) {
                let status = approval.status.clone().unwrap_or_default();
                let _ = self.index.apply_approval(agreement, status, self.now);
            }
        }
        self.approvals = objects.approvals;
        self.index.begin_request_list();
        for object in &objects.requests {
            if let Ok(request) = AccessRequest::from_object(object) {
                let status = object.status.clone().unwrap_or_default();
                let _ = self.index.apply_request(request, status, Duration::ZERO);
            }
        }
        if objects.requests_known {
            self.index.end_request_list();
        }
        self.link_accounts(client).await?;
        for key in rollbacks {
            self.load_rollbacks(client, &key).await?;
        }
        Ok(())
    }

    /// What is in the cluster and may be read.
    async fn list_objects(&mut self, kube: &Kube) -> anyhow::Result<Objects> {
        let client = &kube.client;
        let mut objects = Objects::default();
        let all = Api::all(client.clone());
        let found = list_all::<InvokerGuardrail>(&all, ListParams::default()).await;
        let without = "you may not list guardrails, so what they refuse is not known here";
        for g in self.permitted(found, without)? {
            objects.add_guardrail(&g);
        }
        let all = Api::all(client.clone());
        let mut found = list_all::<InvokerPolicy>(&all, ListParams::default()).await;
        if found.as_ref().is_err_and(is_forbidden) {
            self.notes.push(format!(
                "you may not list policies of every namespace; only those of {} are taken into account",
                kube.namespace
            ));
            let own = Api::namespaced(client.clone(), &kube.namespace);
            found = list_all::<InvokerPolicy>(&own, ListParams::default()).await;
        }
        for p in found? {
            objects.policies.insert(PolicyKey::of(&p.metadata), p);
        }
        let all = Api::all(client.clone());
        let found = list_all::<InvokerLedger>(&all, ListParams::default()).await;
        let without = "you may not list the ledger, so what the operator granted before counts as somebody else's here";
        objects.ledgers = self.permitted(found, without)?;
        let all = Api::all(client.clone());
        let without = "you may not list approvals, so what is approved is not known here";
        let approvals = match list_pages::<InvokerApproval>(&all, ListParams::default()).await {
            // An older installation does not have the kind.
            Err(kube::Error::Api(s)) if s.code == 404 => Vec::new(),
            found => self.permitted(found.map_err(Into::into), without)?,
        };
        let all = Api::all(client.clone());
        let without =
            "you may not list requests for access, so what is granted by them stays in every plan";
        match list_pages::<InvokerAccessRequest>(&all, ListParams::default()).await {
            // An older installation does not have the kind: nothing is granted by it.
            Err(kube::Error::Api(s)) if s.code == 404 => objects.requests_known = true,
            Ok(found) => {
                objects.requests = found;
                objects.requests_known = true;
            }
            Err(e) => objects.requests = self.permitted(Err(e.into()), without)?,
        }
        let keyed = approvals.into_iter();
        objects.approvals = keyed.map(|a| (ApprovalKey::of(&a.metadata), a)).collect();
        Ok(objects)
    }

    /// What may not be read is left out, and said.
    fn permitted<T>(
        &mut self,
        found: anyhow::Result<Vec<T>>,
        without: &str,
    ) -> anyhow::Result<Vec<T>> {
        match found {
            Err(e) if is_forbidden(&e) => {
                self.notes.push(without.to_owned());
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// Follows the ServiceAccounts that policies name.
    async fn link_accounts(&mut self, client: Option<&Client>) -> anyhow::Result<()> {
        let named: BTreeSet<AccountKey> = self
            .index
            .policies()
            .iter()
            .filter_map(|(_, r)| r.intent.accounts.as_ref())
            .flat_map(|a| a.entries.iter().map(|e| e.account.clone()))
            .collect();
        if named.is_empty() {
            return Ok(());
        }
        self.index.begin_account_list();
        for account in named {
            let Some(client) = client else { continue };
            let api: Api<PartialObjectMeta<ServiceAccount>> =
                Api::namespaced(client.clone(), &account.namespace);
            let found = api
                .get_metadata_opt(&account.name)
                .await
                .context("reading a ServiceAccount that a policy names")?;
            let email =
                found.and_then(|a| a.metadata.annotations?.get(GOOGLE_SERVICE_ACCOUNT).cloned());
            self.index.apply_account(account, email.as_deref());
        }
        self.index.end_account_list();
        Ok(())
    }

    /// Reads the records behind which a policy goes back.
    async fn load_rollbacks(
        &mut self,
        client: Option<&Client>,
        key: &PolicyKey,
    ) -> anyhow::Result<()> {
        let Some(asked) = self
            .index
            .policies()
            .get(key)
            .map(|r| r.intent.rollbacks.clone())
        else {
            return Ok(());
        };
        let mut found = Vec::new();
        for name in &asked {
            let record: Option<InvokerChange> = match client {
                Some(client) => Api::namespaced(client.clone(), &key.namespace)
                    .get_opt(name)
                    .await
                    .context("reading a record")?,
                None => None,
            };
            match record {
                Some(change) => found.push((name.clone(), change.spec)),
                None => {
                    let why = format!(
                        "there is no InvokerChange {name} in namespace {} to roll back",
                        key.namespace
                    );
                    self.index
                        .set_rollbacks(key, &asked, Err(why.into()), self.now);
                    return Ok(());
                }
            }
        }
        self.index.set_rollbacks(key, &asked, Ok(found), self.now);
        Ok(())
    }
}

/// The objects that a command goes by.
#[derive(Default)]
struct Objects {
    guardrails: BTreeMap<String, InvokerGuardrail>,
    policies: BTreeMap<PolicyKey, InvokerPolicy>,
    ledgers: Vec<InvokerLedger>,
    approvals: BTreeMap<ApprovalKey, InvokerApproval>,
    requests: Vec<InvokerAccessRequest>,
    /// Those are all that there are.
    requests_known: bool,
}

impl Objects {
    fn add_guardrail(&mut self, guardrail: &InvokerGuardrail) {
        let name = guardrail.metadata.name.clone().unwrap_or_default();
        self.guardrails.insert(name, guardrail.clone());
    }

    /// Files count as applied.
    fn lay_over(&mut self, loaded: &Loaded, now: Timestamp) {
        for file in &loaded.approvals {
            let approval = self.approvals.entry(ApprovalKey::of(&file.metadata));
            approval.or_insert_with(|| {
                let mut approval = file.clone();
                approval.metadata.creation_timestamp = Some(Time(now));
                approval
            });
        }
        for guardrail in &loaded.guardrails {
            self.add_guardrail(guardrail);
        }
        for file in &loaded.policies {
            let key = PolicyKey::of(&file.metadata);
            let policy = match self.policies.get(&key) {
                Some(stored) => applied(file, stored),
                None => {
                    let mut policy = file.clone();
                    policy.metadata.uid = Some(format!("file:{key}"));
                    policy.metadata.generation = Some(1);
                    policy
                }
            };
            self.policies.insert(key, policy);
        }
    }
}

/// A file over the object that is stored. What is applied stays the object that it was: what was
/// granted for it is still its own.
fn applied(file: &InvokerPolicy, stored: &InvokerPolicy) -> InvokerPolicy {
    let mut policy = file.clone();
    policy.status = stored.status.clone();
    let (meta, there) = (&mut policy.metadata, &stored.metadata);
    meta.uid = there.uid.clone();
    let is_changed = i64::from(stored.spec != file.spec);
    meta.generation = there.generation.map(|g| g + is_changed);
    meta.deletion_timestamp = there.deletion_timestamp.clone();
    let mut annotations = there.annotations.clone().unwrap_or_default();
    annotations.extend(meta.annotations.take().unwrap_or_default());
    meta.annotations = Some(annotations);
    policy
}

fn is_forbidden(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<kube::Error>(), Some(kube::Error::Api(s)) if s.code == 403)
}
