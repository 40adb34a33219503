//! Searches for grants above the services: one paged query for each scope and interval, whatever the
//! number of policies and services.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Controller, due::Due, reconcile::backoff};
use crate::{
    cloudrun::{
        CloudRun,
        assets::{AssetSearch, ancestors, search},
    },
    fault::Fault,
    inherited::{Search, SearchScope},
    intent::PolicyKey,
};

/// How often somebody looks for projects that no search shows, how many of them are asked for then,
/// and after how many intervals of the searches one is asked for again.
const LOOK: Duration = Duration::from_secs(30);
const ASKED_AT_ONCE: usize = 20;
const ASKED_AGAIN: u32 = 10;

/// What there is to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Job {
    Search(SearchScope),
    /// A policy may be the first of its project, which must not wait for the next search.
    PlaceProjects,
}

/// Where grants above the services are searched for, how often, and how.
#[derive(Clone, Debug)]
pub struct InheritedOptions {
    pub scopes: Vec<SearchScope>,
    pub interval: Duration,
    pub search: Arc<dyn AssetSearch>,
}

impl<C: CloudRun> Controller<C> {
    /// Searches while anything is worked on here.
    pub(super) async fn search_inherited(self: Arc<Self>) {
        let Some(options) = self.options.inherited.clone() else {
            return std::future::pending().await;
        };
        let (mut due, mut failures, mut again) = (Due::default(), HashMap::new(), HashMap::new());
        for scope in &options.scopes {
            due.no_later(&Job::Search(scope.clone()), Instant::now());
        }
        due.no_later(&Job::PlaceProjects, Instant::now() + LOOK);
        while let Some(at) = due.wake(|_| true) {
            tokio::time::sleep_until(at).await;
            if !self.takes_part() {
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
            let Some(job) = due.take(Instant::now(), |_| true) else {
                continue;
            };
            if let Job::Search(scope) = &job {
                let result = search(options.search.as_ref(), scope).await;
                let pause = if result.is_ok() {
                    failures.remove(scope);
                    options.interval
                } else {
                    let failed = failures.entry(scope.clone()).or_default();
                    *failed += 1;
                    backoff(*failed, self.options.seed, scope.as_str()).min(options.interval)
                };
                due.no_later(&job, Instant::now() + pause);
                self.searched(scope, result);
            }
            self.place_projects(&options, &mut again).await;
            due.exactly(&Job::PlaceProjects, Instant::now() + LOOK);
        }
        // This task must not end.
        std::future::pending().await
    }

    /// Asks where projects are that no search shows: nobody has a grant there. `again`: when one is
    /// asked for again.
    async fn place_projects(
        &self,
        options: &InheritedOptions,
        again: &mut HashMap<Arc<str>, Instant>,
    ) {
        again.retain(|_, at| Instant::now() < *at);
        let unplaced = self.index.with(|i| i.unplaced_projects());
        let ours = unplaced
            .into_iter()
            .filter(|p| self.works_on(p) && !again.contains_key(p));
        for project in ours.take(ASKED_AT_ONCE).collect::<Vec<_>>() {
            let pause = match ancestors(options.search.as_ref(), &project).await {
                Ok(above) => {
                    let policies = self.index.with(|i| i.place_project(&project, above));
                    self.tell(policies);
                    options.interval * ASKED_AGAIN
                }
                Err(fault) => {
                    tracing::debug!(%project, %fault, "where a project is could not be read");
                    options.interval
                }
            };
            again.insert(project, Instant::now() + pause);
        }
    }

    fn tell(&self, policies: impl IntoIterator<Item = PolicyKey>) {
        for key in policies {
            self.statuses.add(&key, Duration::from_millis(100));
        }
    }

    fn searched(&self, scope: &SearchScope, result: Result<Search, Fault>) {
        if let Err(fault) = &result {
            tracing::warn!(scope = scope.as_str(), %fault, "grants above the services could not be searched for");
        }
        let now = self.now();
        self.metrics.inherited.searched(result.is_ok(), now);
        let (changed, principals) = self.index.with(|i| {
            let changed = i.apply_inherited(scope, result);
            (changed, i.inherited_principals())
        });
        self.metrics.inherited.principals(&principals);
        self.tell(changed);
    }
}
