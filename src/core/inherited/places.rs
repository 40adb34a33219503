//! Where one search shows projects in the hierarchy.
//!
//! Every row says where its project is, and rows are indexed one by one: after a project moved, some
//! may say what was true before. The rows carry no time, so one of the project itself counts more
//! than those of services in it; rows of one kind that differ are disputed.

use std::{collections::HashMap, sync::Arc};

use super::page::Place;

/// The names of folders and the organization above a project, the nearest first.
pub(super) type Ancestors = Arc<[Arc<str>]>;

/// Where a project is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shown {
    /// `projects/ID`.
    pub name: Arc<str>,
    pub above: Ancestors,
    /// A row of the project itself says so.
    own: bool,
    /// Rows that count the same say something else.
    pub is_disputed: bool,
    /// When it was learned, counted in what was learned at all.
    pub since: u64,
}

/// Where the projects of a search are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Places {
    /// By `projects/ID`.
    shown: HashMap<Arc<str>, Shown>,
    /// `projects/ID` by `projects/NUMBER`.
    names: HashMap<Arc<str>, Arc<str>>,
}

impl Places {
    pub fn add(&mut self, place: Place) {
        let name: Arc<str> = format!("projects/{}", place.project).into();
        self.names.insert(place.number, name.clone());
        let next = Shown {
            name: name.clone(),
            above: place.ancestors,
            own: place.own,
            is_disputed: false,
            since: 0,
        };
        match self.shown.get_mut(&name) {
            Some(known) if known.own && !next.own => {}
            Some(known) if known.own == next.own => {
                known.is_disputed |= known.above != next.above;
            }
            _ => {
                self.shown.insert(name, next);
            }
        }
    }

    /// By `projects/ID` or `projects/NUMBER`.
    pub fn get(&self, name: &str) -> Option<&Shown> {
        let name = self.names.get(name).map_or(name, |n| n);
        self.shown.get(name)
    }

    /// The search is over: what it shows as `before` was learned then, all else now.
    pub fn learn(&mut self, before: Option<&Self>, now: u64) {
        for shown in self.shown.values_mut() {
            let old = before.and_then(|b| b.shown.get(&shown.name));
            let same = old.filter(|o| o.above == shown.above && o.is_disputed == shown.is_disputed);
            shown.since = same.map_or(now, |o| o.since);
        }
    }
}
