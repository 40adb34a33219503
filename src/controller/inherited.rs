//! Searches for grants above the services: one paged query for each scope and interval, whatever the
//! number of policies and services.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Controller, reconcile::backoff};
use crate::{
    cloudrun::{
        CloudRun,
        assets::{AssetSearch, search},
    },
    fault::Fault,
    inherited::{Search, SearchScope, read_ancestry},
    intent::PolicyKey,
};

/// Projects whose place is asked for after one search, and after how many searches it is again.
const ASKED_AT_ONCE: usize = 20;
const ASKED_AGAIN: u32 = 10;

/// Where grants above the services are searched for, how often, and how.
#[derive(Clone, Debug)]
pub struct InheritedOptions {
    pub scopes: Vec<SearchScope>,
    pub interval: Duration,
    pub search: Arc<dyn AssetSearch>,
}

/// When a scope is searched next.
struct Due {
    scope: SearchScope,
    at: Instant,
    failures: u32,
}

impl<C: CloudRun> Controller<C> {
    /// Searches while anything is worked on here.
    pub(super) async fn search_inherited(self: Arc<Self>) {
        let Some(options) = self.options.inherited.clone() else {
            return std::future::pending().await;
        };
        let begin = |scope: &SearchScope| Due {
            scope: scope.clone(),
            at: Instant::now(),
            failures: 0,
        };
        let mut asked = HashMap::new();
        let mut scopes: Vec<Due> = options.scopes.iter().map(begin).collect();
        loop {
            let Some(next) = scopes.iter_mut().min_by_key(|d| d.at) else {
                return std::future::pending().await;
            };
            tokio::time::sleep_until(next.at).await;
            if !self.takes_part() {
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
            let result = search(options.search.as_ref(), &next.scope).await;
            next.failures = if result.is_ok() { 0 } else { next.failures + 1 };
            let pause = match next.failures {
                0 => options.interval,
                n => backoff(n, self.options.seed, next.scope.as_str()).min(options.interval),
            };
            next.at = Instant::now() + pause;
            self.searched(&next.scope, result);
            self.place_projects(&options, &mut asked).await;
        }
    }

    /// Asks once in a while where projects are that no search shows: nobody has a grant there.
    async fn place_projects(
        &self,
        options: &InheritedOptions,
        asked: &mut HashMap<Arc<str>, Instant>,
    ) {
        let again = options.interval * ASKED_AGAIN;
        asked.retain(|_, at| at.elapsed() < again);
        let unplaced = self.index.with(|i| i.unplaced_projects());
        let ours = unplaced
            .into_iter()
            .filter(|p| self.works_on(p) && !asked.contains_key(p));
        for project in ours.take(ASKED_AT_ONCE).collect::<Vec<_>>() {
            asked.insert(project.clone(), Instant::now());
            let above = match options.search.ancestry(&project).await {
                Ok(answer) => read_ancestry(&answer),
                Err(fault) => Err(fault.to_string()),
            };
            match above {
                Ok(above) => {
                    let policies = self.index.with(|i| i.place_project(&project, above));
                    self.tell(policies);
                }
                Err(why) => {
                    tracing::debug!(%project, why, "where a project is could not be read");
                }
            }
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
