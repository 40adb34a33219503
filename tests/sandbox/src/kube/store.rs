//! Objects, their versions, and the log of changes that watches are fed from.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde_json::Value;

/// Group and plural.
pub type Table = (String, String);
/// Namespace (empty for cluster-scoped kinds) and name.
pub type Key = (String, String);

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    pub version: u64,
    pub table: Table,
    pub kind: Kind,
    pub object: Arc<Value>,
    /// As it was before, so that a selector can tell what left it.
    pub before: Option<Arc<Value>>,
}

/// Everything that is stored.
#[derive(Debug, Default)]
pub struct Store {
    version: u64,
    tables: BTreeMap<Table, BTreeMap<Key, Arc<Value>>>,
    log: VecDeque<Change>,
    /// Changes up to this version are no longer in the log.
    compacted: u64,
    /// How many changes are kept.
    pub log_capacity: usize,
    /// Lists that are being read in chunks: token to what is left.
    chunks: BTreeMap<u64, (u64, Vec<Arc<Value>>)>,
    next_chunk: u64,
}

impl Store {
    pub fn version(&self) -> u64 {
        self.version
    }
    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    pub fn get(&self, table: &Table, key: &Key) -> Option<Arc<Value>> {
        self.tables.get(table)?.get(key).cloned()
    }

    pub fn list(&self, table: &Table, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let Some(objects) = self.tables.get(table) else {
            return vec![];
        };
        objects
            .iter()
            .filter(|(k, _)| namespace.is_none_or(|n| k.0 == n))
            .map(|(_, v)| v.clone())
            .collect()
    }

    pub fn namespace_is_empty(&self, namespace: &str) -> bool {
        self.tables
            .values()
            .all(|t| !t.keys().any(|k| k.0 == namespace))
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<(Table, Key)> {
        self.tables
            .iter()
            .flat_map(|(t, o)| {
                o.keys()
                    .filter(|k| k.0 == namespace)
                    .map(|k| (t.clone(), k.clone()))
            })
            .collect()
    }

    /// Stores an object under a new version, which is written into it.
    pub fn put(&mut self, table: &Table, key: &Key, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = Value::String(self.version.to_string());
        let object = Arc::new(object);
        let before = self
            .tables
            .entry(table.clone())
            .or_default()
            .insert(key.clone(), object.clone());
        let kind = if before.is_some() {
            Kind::Modified
        } else {
            Kind::Added
        };
        self.record(table, kind, object.clone(), before);
        object
    }

    /// Removes an object; the change carries its last state under a new version.
    pub fn remove(&mut self, table: &Table, key: &Key) -> Option<Arc<Value>> {
        let before = self.tables.get_mut(table)?.remove(key)?;
        self.version += 1;
        let mut last = (*before).clone();
        last["metadata"]["resourceVersion"] = Value::String(self.version.to_string());
        let last = Arc::new(last);
        self.record(table, Kind::Deleted, last.clone(), Some(before));
        Some(last)
    }

    fn record(
        &mut self,
        table: &Table,
        kind: Kind,
        object: Arc<Value>,
        before: Option<Arc<Value>>,
    ) {
        let capacity = if self.log_capacity == 0 {
            20_000
        } else {
            self.log_capacity
        };
        self.log.push_back(Change {
            version: self.version,
            table: table.clone(),
            kind,
            object,
            before,
        });
        while self.log.len() > capacity {
            if let Some(old) = self.log.pop_front() {
                self.compacted = old.version;
            }
        }
    }

    /// Forgets the whole log, so that every older version is gone (410).
    pub fn compact(&mut self) {
        self.compacted = self.version;
        self.log.clear();
        self.chunks.clear();
    }

    /// Changes to a table after `version`, or `None` where the log does not reach back so far.
    pub fn since(&self, table: &Table, version: u64) -> Option<Vec<Change>> {
        if version < self.compacted {
            return None;
        }
        let start = self.log.partition_point(|c| c.version <= version);
        Some(
            self.log
                .iter()
                .skip(start)
                .filter(|c| c.table == *table)
                .cloned()
                .collect(),
        )
    }

    /// Changes to every table after `version`, as far as the log reaches back.
    pub fn all_since(&self, version: u64) -> Vec<Change> {
        let start = self.log.partition_point(|c| c.version <= version);
        self.log.iter().skip(start).cloned().collect()
    }

    /// Keeps the rest of a list for its next chunk.
    pub fn keep_rest(&mut self, version: u64, rest: Vec<Arc<Value>>) -> u64 {
        self.next_chunk += 1;
        self.chunks.insert(self.next_chunk, (version, rest));
        while self.chunks.len() > 1000 {
            self.chunks.pop_first();
        }
        self.next_chunk
    }

    /// The rest of a list, as it was when its first chunk was read. A token stays good, as with the
    /// real thing.
    pub fn rest(&self, token: u64) -> Option<(u64, Vec<Arc<Value>>)> {
        self.chunks.get(&token).cloned()
    }
}
