//! The subscription of the audit log: entries come late, twice or never, and one replica takes each.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tokio::{sync::mpsc::UnboundedReceiver, time::Instant};

use crate::dice::Dice;

/// A message that nobody takes comes again after so long.
const AGAIN: Duration = Duration::from_secs(5);
/// So often; Pub/Sub keeps one for days, and no world lasts as long.
const TIMES: u32 = 60;

/// A message on its way.
#[derive(Debug)]
pub struct Message {
    pub data: Vec<u8>,
    tries: u32,
}

/// Messages between the log and the replicas.
#[derive(Debug)]
pub struct Post {
    entries: UnboundedReceiver<Value>,
    waiting: BTreeMap<(Instant, u64), Message>,
    dice: Dice,
    count: u64,
}

impl Post {
    pub fn new(entries: UnboundedReceiver<Value>, seed: u64) -> Self {
        let dice = Dice::new(seed);
        Self {
            entries,
            waiting: BTreeMap::new(),
            dice,
            count: 0,
        }
    }

    /// Waits for an entry of the log.
    pub async fn entry(&mut self) -> Option<Value> {
        self.entries.recv().await
    }

    /// An entry is on its way. In calm weather all arrive, and soon.
    pub fn take(&mut self, entry: &Value, calm: bool) {
        let n = self.count;
        if !calm && self.dice.roll("post lost", n) < 0.1 {
            self.count += 1;
            return;
        }
        let data = entry.to_string().into_bytes();
        let copies = if self.dice.roll("post twice", n) < 0.15 {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let late = self.dice.roll("post late", self.count);
            let longest = if !calm && late > 0.8 {
                60_000.0
            } else {
                3_000.0
            };
            let after = Duration::from_millis((late * longest) as u64);
            self.send(data.clone(), Instant::now() + after, 0);
        }
    }

    /// A message from anybody.
    pub fn publish(&mut self, text: &str) {
        self.send(text.as_bytes().to_vec(), Instant::now(), 0);
    }

    /// Nobody took it.
    pub fn give_back(&mut self, message: Message) {
        if message.tries < TIMES {
            self.send(message.data, Instant::now() + AGAIN, message.tries + 1);
        }
    }

    fn send(&mut self, data: Vec<u8>, at: Instant, tries: u32) {
        self.count += 1;
        self.waiting
            .insert((at, self.count), Message { data, tries });
    }

    /// When the next message arrives.
    pub fn next(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// A message that has arrived.
    pub fn arrived(&mut self) -> Option<Message> {
        let at = self.next().filter(|at| *at <= Instant::now())?;
        let first = self.waiting.first_entry().filter(|e| e.key().0 == at)?;
        Some(first.remove())
    }
}
