//! What listings of projects showed: which services there are, with which labels. Unknown is not
//! gone: a project that was not listed, or a region that did not answer, says nothing about which
//! services a selector means.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::names::Interner;
use crate::{
    fault::Fault,
    iam::{Ingress, RunService, ServiceInfo},
};

/// The services of a project, as far as they could be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub services: Vec<ServiceInfo>,
    /// Regions that did not answer: what is in them is unknown, not gone.
    pub unreachable: BTreeSet<String>,
}

/// Where services are listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One region, by the v2 API.
    Region(Arc<str>),
    /// Every region at once, by the v1 API: v2 has no such call.
    AllRegions,
}

/// What listing a project showed.
#[derive(Debug, Default)]
pub struct Project {
    pub(super) services: HashMap<RunService, ServiceInfo>,
    fault: Option<Fault>,
    /// A listing was answered, well or badly, since this process began.
    answered: bool,
    /// A listing went through since this process began.
    listed: bool,
    /// Regions that no listing has reached since this process began.
    unseen: BTreeSet<String>,
    /// Number of the last listing that was taken in.
    number: u64,
}

/// What a listing changes.
#[derive(Debug, Default)]
pub struct Shown {
    /// Services that were not there at the last listing, or that nobody was about then.
    pub came: BTreeSet<RunService>,
    /// Services that went, or are others now.
    pub changed: BTreeSet<RunService>,
    /// Something became known that no listing had shown before: what waits for it is to be
    /// reconciled.
    pub answers: bool,
    /// The first answer, or the first after a failure: statuses change.
    pub first: bool,
}

impl Project {
    /// Whether what is not known in a region is not there, as opposed to not seen yet.
    pub fn knows(&self, region: &str) -> bool {
        self.listed && !self.unseen.contains(region)
    }

    /// Whether what is not known anywhere is not there.
    pub fn knows_all(&self) -> bool {
        self.listed && self.unseen.is_empty()
    }

    /// Why it could not be listed, if so.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    pub fn is_answered(&self) -> bool {
        self.answered
    }

    pub fn info(&self, service: &RunService) -> Option<&ServiceInfo> {
        self.services.get(service)
    }

    /// Listing number `number` failed. Returns whether that is news.
    pub fn fail(&mut self, number: u64, fault: Fault) -> bool {
        if number < self.number {
            return false;
        }
        self.number = number;
        let news = self.fault.as_ref().is_none_or(|f| f.class != fault.class) || !self.answered;
        // One that repeats is as it was reported, but for the id of its request.
        if self
            .fault
            .as_ref()
            .is_none_or(|known| !known.says_the_same(&fault))
        {
            self.fault = Some(fault);
        }
        self.answered = true;
        news
    }

    /// Takes in listing number `number`; `None` if a newer one was taken in before.
    pub fn show(
        &mut self,
        project: &Arc<str>,
        number: u64,
        listing: Listing,
        names: &mut Interner,
    ) -> Option<Shown> {
        if number < self.number {
            return None;
        }
        self.number = number;
        let first = !self.answered || self.fault.is_some();
        let never = !std::mem::replace(&mut self.listed, true);
        if never {
            self.unseen = listing.unreachable.clone();
        }
        let answers = never || self.unseen.iter().any(|r| !listing.unreachable.contains(r));
        self.unseen.retain(|r| listing.unreachable.contains(r));
        self.fault = None;
        self.answered = true;
        let mut found: HashMap<RunService, ServiceInfo> =
            HashMap::with_capacity(listing.services.len());
        for mut info in listing.services {
            let (region, name) = (info.service.region.clone(), info.service.name.clone());
            let service = RunService::new(project.clone(), region, name);
            info.service = names.share_service(&service);
            info.labels = names.share_labels(&info.labels);
            found.insert(info.service.clone(), info);
        }
        // A region that did not answer is unknown, not empty.
        let before = std::mem::take(&mut self.services);
        for (service, info) in before
            .iter()
            .filter(|(s, _)| listing.unreachable.contains(&*s.region))
        {
            found.entry(service.clone()).or_insert_with(|| info.clone());
        }
        // The first listing after a start says nothing new about services that are read anyway.
        let is_new = |s: &&RunService| !first && !before.contains_key(*s);
        let came = found.keys().filter(is_new).cloned().collect();
        let changed = changed_services(&before, &found);
        self.services = found;
        Some(Shown {
            came,
            changed,
            answers,
            first,
        })
    }
}

type Services = HashMap<RunService, ServiceInfo>;

/// Services that were made anew or are gone, or that others can reach now. Until a service was
/// shown it was taken for what a service is unless somebody says otherwise.
fn changed_services(before: &Services, found: &Services) -> BTreeSet<RunService> {
    let has_changed = |(service, info): &(&RunService, &ServiceInfo)| match before.get(service) {
        Some(old) => old.uid != info.uid || Faces::of(old) != Faces::of(info),
        None => Faces::of(info) != Faces::default(),
    };
    let changed = found.iter().filter(has_changed).map(|(service, _)| service);
    let gone = before.keys().filter(|s| !found.contains_key(*s));
    changed.chain(gone).cloned().collect()
}

/// What decides who can reach a service, besides its IAM policy.
#[derive(Debug, Default, PartialEq, Eq)]
struct Faces {
    invoker_iam_disabled: bool,
    ingress: Ingress,
    iap: bool,
}

impl Faces {
    fn of(info: &ServiceInfo) -> Self {
        Self {
            invoker_iam_disabled: info.invoker_iam_disabled,
            ingress: info.ingress,
            iap: info.iap,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultClass;

    fn info(region: &str, name: &str, uid: &str) -> ServiceInfo {
        ServiceInfo {
            service: RunService::new("p", region, name),
            uid: uid.into(),
            labels: Default::default(),
            invoker_iam_disabled: false,
            ingress: Ingress::All,
            iap: false,
        }
    }
    fn listing(services: Vec<ServiceInfo>, unreachable: &[&str]) -> Listing {
        Listing {
            services,
            unreachable: unreachable.iter().map(|r| (*r).to_owned()).collect(),
        }
    }
    fn show(p: &mut Project, number: u64, l: Listing) -> Vec<String> {
        let shown = p.show(&"p".into(), number, l, &mut Interner::default());
        shown
            .map(|s| {
                s.changed
                    .union(&s.came)
                    .map(|s| s.name.to_string())
                    .collect()
            })
            .unwrap_or_default()
    }

    #[test]
    fn an_older_listing_does_not_win_over_a_newer_one() {
        let mut p = Project::default();
        show(&mut p, 2, listing(vec![info("r", "new", "1")], &[]));
        assert!(show(&mut p, 1, listing(vec![info("r", "old", "1")], &[])).is_empty());
        assert!(p.info(&RunService::new("p", "r", "new")).is_some());
        assert!(
            !p.fail(1, Fault::new(FaultClass::Timeout, "late")),
            "nor does its failure"
        );
        assert!(p.fault().is_none());
    }

    #[test]
    fn what_came_went_or_was_made_again_is_named() {
        let mut p = Project::default();
        assert!(
            show(
                &mut p,
                1,
                listing(vec![info("r", "a", "1"), info("r", "b", "1")], &[])
            )
            .is_empty()
        );
        assert_eq!(
            show(
                &mut p,
                2,
                listing(vec![info("r", "a", "2"), info("r", "c", "1")], &[])
            ),
            ["a", "b", "c"]
        );
        assert!(
            show(
                &mut p,
                3,
                listing(vec![info("r", "a", "2"), info("r", "c", "1")], &[])
            )
            .is_empty()
        );
    }

    /// What is not listed yet is taken for open to the internet under its IAM: what is otherwise is
    /// news, also in the first listing.
    #[test]
    fn another_face_than_was_assumed_is_news() {
        let mut p = Project::default();
        let inside = |name: &str| ServiceInfo {
            ingress: Ingress::Internal,
            ..info("r", name, "1")
        };
        let services = || vec![info("r", "a", "1"), inside("b")];
        assert_eq!(show(&mut p, 1, listing(services(), &[])), ["b"]);
        assert!(show(&mut p, 2, listing(services(), &[])).is_empty());
        let iap = ServiceInfo {
            iap: true,
            ..info("r", "a", "1")
        };
        assert_eq!(show(&mut p, 3, listing(vec![iap, inside("b")], &[])), ["a"]);
    }

    #[test]
    fn a_region_that_did_not_answer_is_unknown_and_not_empty() {
        let mut p = Project::default();
        assert!(!p.knows("r"));
        show(&mut p, 1, listing(vec![info("r", "a", "1")], &["far"]));
        assert!(p.knows("r") && !p.knows("far"));
        assert!(show(&mut p, 2, listing(vec![], &["r", "far"])).is_empty());
        assert!(p.info(&RunService::new("p", "r", "a")).is_some());
        let shown = p
            .show(
                &"p".into(),
                3,
                listing(vec![], &[]),
                &mut Interner::default(),
            )
            .unwrap();
        assert!(shown.answers && p.knows("far"));
    }

    #[test]
    fn a_failure_is_news_once() {
        let mut p = Project::default();
        let fault = || Fault::new(FaultClass::PermissionDenied, "no");
        assert!(p.fail(1, fault()) && !p.fail(2, fault()));
        assert!(p.is_answered() && !p.knows("r"));
        assert!(
            p.show(
                &"p".into(),
                3,
                listing(vec![], &[]),
                &mut Interner::default()
            )
            .unwrap()
            .first
        );
    }
}
