//! The shortest story that still breaks a promise: what does not matter is left out, bit by bit.

use crate::{
    story::{Setup, Story},
    world::{Run, play},
};

/// Shortens a story while it still breaks the rule; gives up after so many tries.
pub fn shrink(story: &Story, rule: &str, tries: usize) -> Story {
    let mut best = story.clone();
    let mut left = tries;
    let mut breaks = |candidate: &Story| {
        if left == 0 {
            return false;
        }
        left -= 1;
        play(candidate, Run::default())
            .violations
            .iter()
            .any(|v| v.rule == rule)
    };
    loop {
        let before = best.clone();
        for field in 0..3 {
            let mut chunk = length(&best, field).div_ceil(2).max(1);
            while length(&best, field) > 0 {
                let mut i = 0;
                while i < length(&best, field) {
                    let mut candidate = best.clone();
                    cut(&mut candidate, field, i, chunk);
                    if breaks(&candidate) {
                        best = candidate;
                    } else {
                        i += chunk;
                    }
                }
                if chunk == 1 {
                    break;
                }
                chunk /= 2;
            }
        }
        let plain = Setup {
            max_removals: best.setup.max_removals,
            breaker: best.setup.breaker,
            ..Setup::default()
        };
        for setup in [Setup::default(), plain] {
            let candidate = Story {
                setup,
                ..best.clone()
            };
            if candidate != best && breaks(&candidate) {
                best = candidate;
                break;
            }
        }
        if best == before {
            return best;
        }
    }
}

fn length(story: &Story, field: usize) -> usize {
    match field {
        0 => story.weather.len(),
        1 => story.crashes.len(),
        _ => story.actions.len(),
    }
}

fn cut(story: &mut Story, field: usize, from: usize, n: usize) {
    fn drain<T>(list: &mut Vec<T>, from: usize, n: usize) {
        let to = (from + n).min(list.len());
        list.drain(from..to);
    }
    match field {
        0 => drain(&mut story.weather, from, n),
        1 => drain(&mut story.crashes, from, n),
        _ => drain(&mut story.actions, from, n),
    }
}
