//! What all searches together show.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    InheritedGrant, Level, Page, SearchScope,
    places::{Ancestors, Places, Shown},
};
use crate::{fault::Fault, iam::InvokingRoles};

/// What one search of a scope showed, to its last page.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    /// By resource.
    grants: HashMap<Arc<str>, Vec<InheritedGrant>>,
    places: Places,
    /// Roles that carry `run.routes.invoke`, which only a search shows.
    roles: BTreeSet<Arc<str>>,
}

impl Found {
    fn add(&mut self, page: Page) {
        for grant in page.grants {
            let here = self.grants.entry(grant.resource.clone()).or_default();
            here.push(grant);
        }
        page.places.into_iter().for_each(|p| self.places.add(p));
        self.roles.extend(page.roles);
    }

    fn sorted(mut self) -> Self {
        for grants in self.grants.values_mut() {
            grants.sort();
            grants.dedup();
        }
        self
    }
}

/// A search under way: nothing of it counts before its last page.
#[derive(Debug, Default)]
pub struct Search(Found);

impl Search {
    pub fn add(&mut self, page: Page) {
        self.0.add(page);
    }
}

/// What is known of each scope.
#[derive(Clone, Debug, PartialEq)]
struct Scope {
    /// What the last search that succeeded showed.
    found: Option<Found>,
    /// Why the last one did not, if so.
    fault: Option<Fault>,
}

/// What all searches show.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inherited {
    scopes: BTreeMap<Arc<str>, Scope>,
    /// What is above projects, by `projects/ID`, as the Resource Manager says, and since when.
    placed: HashMap<Arc<str>, (Ancestors, u64)>,
    /// How many times somebody told where projects are.
    learned: u64,
    roles: InvokingRoles,
}

/// What is known of a project: who may invoke in it by a grant above its services.
#[derive(Clone, Debug, PartialEq)]
pub enum Above<'a> {
    /// No scope was searched yet.
    Waiting,
    /// Nothing is known, and why.
    Unknown(&'a Fault),
    /// No search showed where the project is.
    Unplaced,
    Known {
        /// Sorted, each once.
        grants: Vec<&'a InheritedGrant>,
        /// Why a scope could not be searched at all that may show more.
        unseen: Option<&'a Fault>,
        /// What is above the project and in no scope that was searched, in words.
        unsearched: Option<String>,
        /// The last search failed somewhere: an earlier one showed this.
        stale: bool,
    },
}

impl Inherited {
    /// Nothing is known of these scopes yet.
    pub fn of(scopes: &[SearchScope]) -> Self {
        let unknown = |s: &SearchScope| {
            let scope = Scope {
                found: None,
                fault: None,
            };
            (s.as_str().into(), scope)
        };
        Self {
            scopes: scopes.iter().map(unknown).collect(),
            ..Self::default()
        }
    }

    /// Whether anything is searched at all.
    pub fn is_on(&self) -> bool {
        !self.scopes.is_empty()
    }

    /// A search came to its end. What an earlier one showed stays after one that failed. True:
    /// something is another than before.
    pub fn apply(&mut self, scope: &SearchScope, result: Result<Search, Fault>) -> bool {
        let Some(known) = self.scopes.get_mut(scope.as_str()) else {
            return false;
        };
        let next = match result {
            Ok(search) => {
                let mut found = search.0.sorted();
                self.learned += 1;
                let before = known.found.as_ref().map(|f| &f.places);
                found.places.learn(before, self.learned);
                Scope {
                    found: Some(found),
                    fault: None,
                }
            }
            Err(fault) => {
                // Each answer has an id of its own: the first of a kind stands for all.
                let first = known.fault.take().filter(|f| f.class == fault.class);
                let is_news = first.is_none();
                known.fault = Some(first.unwrap_or(fault));
                return is_news;
            }
        };
        let is_news = *known != next;
        *known = next;
        let roles = self.found().flat_map(|f| &f.roles);
        self.roles = InvokingRoles::shown(roles);
        is_news
    }

    /// What searches show of roles.
    pub fn roles(&self) -> &InvokingRoles {
        &self.roles
    }

    /// What is above a project that no search shows, as the Resource Manager says.
    pub fn place(&mut self, project: &str, above: Vec<Arc<str>>) {
        let name = format!("projects/{project}");
        self.learned += 1;
        self.placed
            .insert(name.into(), (above.into(), self.learned));
    }

    /// The project by name, and what is above it: what was learned last counts, but where the rows
    /// of a search contradict each other the Resource Manager decides.
    fn place_of(&self, name: &str) -> Option<(&Arc<str>, &Ancestors)> {
        let told = self.placed.get_key_value(name);
        let shown = self.found().filter_map(|f| f.places.get(name));
        let last = shown.max_by_key(|s| (!s.is_disputed, s.since));
        match (last, told) {
            (Some(shown), Some((_, (_, at)))) if !shown.is_disputed && shown.since > *at => {
                Some((&shown.name, &shown.above))
            }
            // Outside of every scope nothing is searched for it.
            (_, Some((name, (above, _)))) => {
                let is_below = above.iter().any(|a| self.scopes.contains_key(a));
                is_below.then_some((name, above))
            }
            (Some(Shown { name, above, .. }), None) => Some((name, above)),
            (None, None) => None,
        }
    }

    /// The project and what is above it, by name, and whether that is all; or why it is not known.
    fn path(&self, project: &str) -> Result<(Vec<&Arc<str>>, bool), Above<'_>> {
        let name = format!("projects/{project}");
        let own = self.scopes.get_key_value(&*name);
        if let Some((_, Scope { found: None, fault })) = own {
            return Err(fault.as_ref().map_or(Above::Waiting, Above::Unknown));
        }
        if let Some((name, above)) = self.place_of(&name) {
            let path = std::iter::once(name).chain(above.iter()).collect();
            return Ok((path, true));
        }
        if let Some((name, _)) = own {
            return Ok((vec![name], false));
        }
        let is_awaited = |s: &Scope| s.found.is_none() && s.fault.is_none();
        if self.scopes.values().any(is_awaited) {
            return Err(Above::Waiting);
        }
        let fault = self.scopes.values().find_map(|s| s.fault.as_ref());
        Err(fault.map_or(Above::Unplaced, Above::Unknown))
    }

    fn found(&self) -> impl Iterator<Item = &Found> {
        self.scopes.values().filter_map(|s| s.found.as_ref())
    }

    /// Grants on any resource of a path, as each search shows them.
    fn on<'a, 'p>(
        &'a self,
        path: &'p [&'a Arc<str>],
    ) -> impl Iterator<Item = &'a InheritedGrant> + use<'a, 'p> {
        let here = |f: &'a Found| path.iter().filter_map(|r| f.grants.get(*r));
        self.found().flat_map(here).flatten()
    }

    /// Who may invoke in a project by a grant above its services.
    pub fn above(&self, project: &str) -> Above<'_> {
        let (path, is_whole) = match self.path(project) {
            Ok(path) => path,
            Err(unknown) => return unknown,
        };
        let grants: BTreeSet<&InheritedGrant> = self.on(&path).collect();
        // A scope shows what is below it, and itself.
        let is_searched =
            |name: &Arc<str>| self.scopes.get(name).is_some_and(|s| s.found.is_some());
        let searched = path.iter().rposition(|name| is_searched(name));
        let above: Vec<&str> = path
            .iter()
            .skip(searched.map_or(0, |last| last + 1))
            .map(|name| &***name)
            .collect();
        let unsearched = match above.as_slice() {
            [] if is_whole => None,
            [] => Some(format!("what is above projects/{project}")),
            above => Some(above.join(", ")),
        };
        let failed = self.scopes.values().filter(|s| s.found.is_none());
        Above::Known {
            grants: grants.into_iter().collect(),
            unseen: failed.filter_map(|s| s.fault.as_ref()).next(),
            unsearched,
            stale: self
                .scopes
                .values()
                .any(|s| s.found.is_some() && s.fault.is_some()),
        }
    }

    /// Whether something is searched for a project, and no search shows where it is, or its rows
    /// contradict each other: the Resource Manager has to be asked, and asked again, because
    /// projects move.
    pub fn needs_place(&self, project: &str) -> bool {
        let name = format!("projects/{project}");
        let mut shown = self.found().filter_map(|f| f.places.get(&name)).peekable();
        if shown.peek().is_some() {
            return shown.all(|s| s.is_disputed);
        }
        let is_searched = self.found().next().is_some();
        is_searched && !self.scopes.contains_key(&*name)
    }

    /// Whether a grant above the services of a project lets everybody in.
    pub fn lets_everybody_in(&self, project: &str) -> bool {
        let Ok((path, _)) = self.path(project) else {
            return false;
        };
        self.on(&path).any(|g| g.principal.is_public())
    }

    /// Whether it is known that nobody may invoke in a project by a grant above its services.
    pub fn lets_nobody_in(&self, project: &str) -> bool {
        let everything = self
            .scopes
            .values()
            .all(|s| s.found.is_some() && s.fault.is_none());
        let nothing = |(path, _): (Vec<&Arc<str>>, bool)| self.on(&path).next().is_none();
        everything && self.path(project).is_ok_and(nothing)
    }

    /// How many principals may invoke by grants on each level, over all scopes.
    pub fn principals(&self) -> BTreeMap<Level, usize> {
        let grants = self.found().flat_map(|f| f.grants.values().flatten());
        let mut principals: BTreeMap<Level, BTreeSet<&str>> = BTreeMap::new();
        for grant in grants {
            let here = principals.entry(grant.level).or_default();
            here.insert(grant.principal.key());
        }
        Level::ALL
            .into_iter()
            .map(|l| (l, principals.get(&l).map_or(0, BTreeSet::len)))
            .collect()
    }
}
