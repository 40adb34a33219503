//! `request` and `requests`: access for a time, asked for and followed.

mod check;

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ListParams, PostParams},
};
use serde::Serialize;

use super::{
    Exit,
    act::MANAGER,
    context::{Context, Kube, print},
    output::ListOutput,
    select::{Chosen, Selection, google_name},
    show::{ago, tabulated},
    world::list_all,
};
use crate::{
    api::{
        CREATED_BY, InvokerAccessRequest, InvokerAccessRequestSpec, InvokerAccessRequestStatus,
        InvokerPolicy, RequestPhase, RoleName, ServiceSpec,
    },
    config::CloudArgs,
    iam::Principal,
};

#[derive(Clone, Debug, clap::Args)]
pub struct RequestCommand {
    /// Cloud Run service; several times for several.
    #[arg(long = "service", required = true, value_name = "NAME", value_parser = google_name)]
    pub services: Vec<String>,
    /// Region of the services.
    #[arg(long, value_parser = google_name)]
    pub region: String,
    /// Google Cloud project of the services. Without it, the one for which a policy of the namespace
    /// names them.
    #[arg(long, value_parser = google_name)]
    pub project: Option<String>,
    /// For how long, from when it is approved, for example 1h or 30m.
    #[arg(long = "for", value_name = "DURATION")]
    pub duration: String,
    /// Why, for whoever approves and for the record.
    #[arg(long)]
    pub reason: String,
    /// The principal that is to invoke. Without it, you, where the cluster knows you by an e-mail
    /// address, as GKE does.
    #[arg(long, value_name = "MEMBER")]
    pub member: Option<String>,
    /// Role to grant.
    #[arg(long, value_enum, default_value = "run.invoker")]
    pub role: RequestedRole,
    /// Name of the request. Without it, one is made of the first service and the time.
    #[arg(long)]
    pub name: Option<String>,
    /// Follow the request until it ends, and say each step. Exits with 2 where it was not granted.
    #[arg(long)]
    pub wait: bool,
    #[command(flatten, next_help_heading = super::help::GOOGLE)]
    pub cloud: CloudArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RequestedRole {
    #[value(name = "run.invoker")]
    Invoker,
    #[value(name = "run.servicesInvoker")]
    ServicesInvoker,
}

#[derive(Clone, Debug, clap::Args)]
pub struct RequestsCommand {
    #[command(flatten)]
    pub chosen: Selection,
    /// Only those that wait for somebody's approval.
    #[arg(long)]
    pub pending: bool,
    /// Form of the answer; TEMPLATE as kubectl takes it, over the document of -o json.
    #[arg(short, long, default_value = "text", value_name = "FORM")]
    pub output: ListOutput,
}

/// `requests -o json`, version 1.
#[derive(Debug, Serialize)]
struct RequestsDocument<'a> {
    kind: &'static str,
    version: u32,
    requests: Vec<RequestEntry<'a>>,
}

#[derive(Debug, Serialize)]
struct RequestEntry<'a> {
    namespace: Option<String>,
    name: String,
    spec: &'a InvokerAccessRequestSpec,
    status: Option<&'a InvokerAccessRequestStatus>,
}

impl<'a> RequestEntry<'a> {
    fn of(request: &'a InvokerAccessRequest) -> Self {
        Self {
            namespace: request.namespace(),
            name: request.name_any(),
            spec: &request.spec,
            status: request.status.as_ref(),
        }
    }
}

/// Whom the API server takes the caller for; none: it does not say.
pub(super) async fn myself(kube: &Kube) -> Option<String> {
    let api: Api<SelfSubjectReview> = Api::all(kube.client.clone());
    let (params, question) = (PostParams::default(), SelfSubjectReview::default());
    let review = api.create(&params, &question).await.ok()?;
    review.status?.user_info?.username
}

/// The member of IAM that a user of the cluster is, where its name is an e-mail address.
fn member_of(username: &str) -> Option<String> {
    let kind = if username.ends_with(".gserviceaccount.com") {
        "serviceAccount"
    } else {
        "user"
    };
    let member = format!("{kind}:{username}");
    let is_address = username.contains('@') && Principal::parse(&member).is_ok();
    is_address.then_some(member)
}

/// The one project for which policies of the namespace name the services.
async fn project_of(kube: &Kube, command: &RequestCommand) -> anyhow::Result<String> {
    let api: Api<InvokerPolicy> = Api::namespaced(kube.client.clone(), &kube.namespace);
    let ask = "give the project of the services with --project";
    let Ok(policies) = list_all(&api, ListParams::default()).await else {
        anyhow::bail!(
            "policies of namespace {} cannot be read; {ask}",
            kube.namespace
        );
    };
    let names = |s: &ServiceSpec| {
        let is_one = |name: &String| command.services.contains(name);
        s.region.as_deref() == Some(&command.region) && s.name.as_ref().is_some_and(is_one)
    };
    let naming = policies
        .iter()
        .filter(|p| p.spec.services.iter().any(names));
    let projects: BTreeSet<&str> = naming.map(|p| p.spec.project.as_str()).collect();
    match projects.iter().collect::<Vec<_>>().as_slice() {
        [one] => Ok((**one).to_owned()),
        [] => anyhow::bail!(
            "no policy of namespace {} names these services; {ask}",
            kube.namespace
        ),
        _ => anyhow::bail!(
            "policies of namespace {} name such services in {}; {ask}",
            kube.namespace,
            Vec::from_iter(projects).join(", ")
        ),
    }
}

pub async fn request(context: &Context, command: &RequestCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let myself = myself(&kube).await;
    let member = command.member.clone();
    let member = match member.or_else(|| member_of(myself.as_deref()?)) {
        Some(member) => member,
        None => anyhow::bail!(
            "the cluster does not know you by an e-mail address; name the principal with --member, as in --member user:ada@acme.com"
        ),
    };
    let project = match &command.project {
        Some(project) => project.clone(),
        None => project_of(&kube, command).await?,
    };
    check::services_are_there(context, command, &project).await?;
    let service = |name: &String| ServiceSpec {
        name: Some(name.clone()),
        region: Some(command.region.clone()),
        ..ServiceSpec::default()
    };
    let spec = InvokerAccessRequestSpec {
        project,
        services: command.services.iter().map(service).collect(),
        member,
        duration: command.duration.clone(),
        reason: command.reason.clone(),
        role: match command.role {
            RequestedRole::Invoker => RoleName::Invoker,
            RequestedRole::ServicesInvoker => RoleName::ServicesInvoker,
        },
    };
    let made = || {
        let service: String = command.services[0].chars().take(28).collect();
        // Two people ask in the same second.
        let who = crate::intent::digest(2, [spec.member.as_str()]);
        format!("{service}-{}-{who}", context.now.strftime("%Y%m%d-%H%M%S"))
    };
    let name = command.name.clone().unwrap_or_else(made);
    let mut object = InvokerAccessRequest::new(&name, spec);
    // Where admission checks the name, it has to be there; where it does not, it counts for nothing.
    object.metadata.annotations = myself.map(|me| [(CREATED_BY.to_owned(), me)].into());
    let api: Api<InvokerAccessRequest> = Api::namespaced(kube.client.clone(), &kube.namespace);
    let params = PostParams {
        field_manager: Some(MANAGER.into()),
        ..PostParams::default()
    };
    match api.create(&params, &object).await {
        Ok(_) => {}
        Err(kube::Error::Api(s)) if s.code == 403 && s.reason == "Forbidden" => anyhow::bail!(
            "you may not create this InvokerAccessRequest in namespace {}: {}",
            kube.namespace,
            s.message
        ),
        Err(other) => return Err(other.into()),
    }
    let spec = &object.spec;
    let asked = format!(
        "{}/{name}: asked for {} to invoke {} for {}",
        kube.namespace,
        spec.member,
        command.services.join(", "),
        spec.duration
    );
    print(&format!("{}\n", context.style().wrap(0, &asked)));
    if command.wait {
        return follow(context, &api, &name).await;
    }
    let next = format!(
        "where it stands: kubectl invoker requests {name} -n {}",
        kube.namespace
    );
    context.complain(&next);
    Ok(Exit::Nothing)
}

/// Says each step of a request until nothing follows it.
async fn follow(
    context: &Context,
    api: &Api<InvokerAccessRequest>,
    name: &str,
) -> anyhow::Result<Exit> {
    let mut last: Option<(Option<RequestPhase>, String)> = None;
    let mut was_granted = false;
    loop {
        let Some(found) = api.get_opt(name).await? else {
            let exit = if was_granted {
                Exit::Nothing
            } else {
                Exit::Differences
            };
            print(&format!("{name}: it was deleted\n"));
            return Ok(exit);
        };
        let status = found.status.unwrap_or_default();
        was_granted |= status.phase == Some(RequestPhase::Active);
        let step = (status.phase, status.message.unwrap_or_default());
        if let Some(phase) = step.0
            && last.as_ref() != Some(&step)
        {
            let line = format!("{name}: {}: {}", phase.as_str(), step.1);
            print(&format!("{}\n", context.style().wrap(0, &line)));
            last = Some(step);
            // Refused may change with the guardrails; nobody waits for that here.
            if phase.is_final() || phase == RequestPhase::Refused {
                return Ok(if was_granted && phase == RequestPhase::Ended {
                    Exit::Nothing
                } else {
                    Exit::Differences
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// One request of the namespace, if it is there.
pub(super) async fn find(kube: &Kube, name: &str) -> anyhow::Result<Option<InvokerAccessRequest>> {
    let api: Api<InvokerAccessRequest> = Api::namespaced(kube.client.clone(), &kube.namespace);
    Ok(api.get_opt(name).await?)
}

/// A request once the operator has read it, which takes a moment after it was created. Not for
/// longer than five seconds: the operator may not be running.
pub(super) async fn looked_at(
    kube: &Kube,
    mut found: InvokerAccessRequest,
) -> anyhow::Result<InvokerAccessRequest> {
    for _ in 0..25 {
        if found.status.as_ref().is_some_and(|s| s.plan.is_some()) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        if let Some(again) = find(kube, &found.name_any()).await? {
            found = again;
        }
    }
    Ok(found)
}

/// That a request is not there, and where to look.
pub(super) fn no_request(kube: &Kube, name: &str) -> String {
    format!(
        "namespace {} has no InvokerAccessRequest {name}; see kubectl invoker requests -A",
        kube.namespace
    )
}

async fn chosen(
    kube: &Kube,
    selection: &Selection,
) -> anyhow::Result<Chosen<InvokerAccessRequest>> {
    let mut chosen = Chosen::default();
    if selection.names.is_empty() {
        let api = kube.api::<InvokerAccessRequest>(selection.all_namespaces);
        chosen.found = list_all(&api, selection.list_params()).await?;
    }
    for name in &selection.names {
        let kube = kube.in_namespace_of(name);
        match find(&kube, &name.name).await? {
            Some(request) => chosen.found.push(request),
            None => chosen.absent.push(no_request(&kube, &name.name)),
        }
    }
    Ok(chosen)
}

/// Those that wait for somebody first, the longest of them first.
fn order(request: &InvokerAccessRequest) -> (RequestPhase, Timestamp, String) {
    let status = request.status.as_ref();
    let phase = status
        .and_then(|s| s.phase)
        .unwrap_or(RequestPhase::Pending);
    (phase, created(request), request.name_any())
}

fn created(request: &InvokerAccessRequest) -> Timestamp {
    let created = request.metadata.creation_timestamp.as_ref();
    created.map_or(Timestamp::MIN, |t| t.0)
}

pub async fn requests(context: &Context, command: &RequestsCommand) -> anyhow::Result<Exit> {
    let kube = context.kube().await?;
    let chosen = chosen(&kube, &command.chosen).await?;
    let exit = if chosen.complain(context) {
        Exit::Error
    } else {
        Exit::Nothing
    };
    let mut found = chosen.found;
    if command.pending {
        found.retain(|r| order(r).0 == RequestPhase::Pending);
    }
    found.sort_by_key(order);
    let document = RequestsDocument {
        kind: "Requests",
        version: 1,
        requests: found.iter().map(RequestEntry::of).collect(),
    };
    let group = InvokerAccessRequest::group(&());
    let names = found
        .iter()
        .map(|r| format!("invokeraccessrequest.{group}/{}", r.name_any()));
    if let Some(text) = command.output.for_programs(&document, names)? {
        print(&text);
        return Ok(exit);
    }
    if found.is_empty() {
        let what = if command.pending {
            "requests that wait for approval"
        } else {
            "requests"
        };
        command.chosen.say_nothing(context, what, &kube.namespace);
        return Ok(exit);
    }
    let mut head = vec![
        "request", "phase", "member", "for", "until", "age", "reason",
    ];
    if command.output == ListOutput::Wide {
        head.extend(["project", "services", "approval", "message"]);
    }
    let row = |r: &InvokerAccessRequest| row(context.now, command, r);
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    print(&tabulated(context, &command.output, &head, &rows));
    Ok(exit)
}

fn row(now: Timestamp, command: &RequestsCommand, request: &InvokerAccessRequest) -> Vec<String> {
    let (spec, status) = (&request.spec, request.status.clone().unwrap_or_default());
    let none = || "<none>".to_owned();
    let name = request.name_any();
    let shown = match request
        .namespace()
        .filter(|_| command.chosen.shows_namespaces())
    {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name,
    };
    let mut cells = vec![
        shown,
        status.phase.map_or("Pending", |p| p.as_str()).to_owned(),
        spec.member.clone(),
        spec.duration.clone(),
        status.until.map_or_else(none, |t| t.0.to_string()),
        ago(now, created(request)),
        spec.reason.clone(),
    ];
    if command.output == ListOutput::Wide {
        let service = |s: &ServiceSpec| match (&s.name, &s.region) {
            (Some(name), Some(region)) => format!("{name} ({region})"),
            _ => "by label".to_owned(),
        };
        let services: Vec<String> = spec.services.iter().map(service).collect();
        cells.push(spec.project.clone());
        cells.push(services.join(", "));
        cells.push(status.approval.unwrap_or_else(none));
        cells.push(status.message.unwrap_or_else(none));
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_known_by_an_address_need_not_be_named() {
        assert_eq!(
            member_of("ada@acme.com").as_deref(),
            Some("user:ada@acme.com")
        );
        let robot = "deploy@acme-prod.iam.gserviceaccount.com";
        assert_eq!(member_of(robot), Some(format!("serviceAccount:{robot}")));
        for unknown in [
            "kubernetes-admin",
            "system:serviceaccount:shop:web",
            "a@b@c",
            "@",
        ] {
            assert_eq!(member_of(unknown), None, "{unknown}");
        }
    }
}
