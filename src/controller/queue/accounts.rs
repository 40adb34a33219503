//! How long each project kept threads busy, and who steps back for others.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

/// A project that kept threads busy for longer than its share steps back while others have work:
/// for so many times as long.
const STEPS_BACK: u32 = 4;

/// What is owed for less than this is forgiven.
const FORGIVEN: Duration = Duration::from_millis(250);

/// Projects beyond which those that owe nothing are forgotten.
const MANY_PROJECTS: usize = 1024;

/// How long each project kept threads busy, and how many of its services are under way. Policies
/// may be as large as their author likes, and each reconcile of one costs accordingly.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    /// When what a project used is paid for.
    paid: HashMap<Arc<str>, Instant>,
    pub(super) running: HashMap<Arc<str>, usize>,
}

impl Accounts {
    pub(super) fn spent(&mut self, project: &Arc<str>, busy: Duration, now: Instant) {
        if self.paid.len() > MANY_PROJECTS {
            self.paid.retain(|_, paid| *paid > now);
        }
        let paid = self.paid.entry(project.clone()).or_insert(now);
        *paid = (*paid).max(now) + busy * STEPS_BACK;
    }

    /// Until when a project steps back, if it does.
    pub(super) fn steps_back(&self, project: &str, now: Instant) -> Option<Instant> {
        let until = *self.paid.get(project)? - FORGIVEN;
        (until > now).then_some(until)
    }

    pub(super) fn begins(&mut self, project: &Arc<str>) {
        *self.running.entry(project.clone()).or_default() += 1;
    }

    pub(super) fn ends(&mut self, project: &str) {
        if let Some(running) = self.running.get_mut(project) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(project);
            }
        }
    }

    /// Whether anybody is at work who would have to wait for one that steps back.
    pub(super) fn others_work(&self, now: Instant) -> bool {
        self.running
            .keys()
            .any(|p| self.steps_back(p, now).is_none())
    }
}
