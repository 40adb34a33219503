use super::state::{BURST, MAX_REMEMBERED, OUTAGE};
use super::*;

#[tokio::test(start_paused = true)]
async fn a_flood_on_one_service_is_followed_at_a_bounded_rate_and_starves_no_other() {
    let mut inner = State::default();
    let (a, b) = (
        RunService::new("p", "r", "a"),
        RunService::new("p", "r", "b"),
    );
    let started = Instant::now();
    let mut followed = 0;
    for _ in 0..6000 {
        followed += u32::from(inner.pace(&a, Instant::now()).is_none());
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    assert_eq!(started.elapsed().as_secs(), 60);
    assert!((12..=BURST + 12).contains(&followed), "{followed}");
    while inner.pace(&a, Instant::now()).is_none() {}
    assert!(
        inner
            .pace(&a, Instant::now())
            .is_some_and(|at| at > Instant::now())
    );
    assert_eq!(inner.pace(&b, Instant::now()), None);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut inner = State::default();
    let by = Arc::new(ChangedBy {
        principal: "x".into(),
        via: vec![],
        tool: String::new(),
        user_agent: String::new(),
        method: String::new(),
        change: String::new(),
        at: MicroTime(jiff::Timestamp::UNIX_EPOCH),
    });
    for i in 0..MAX_REMEMBERED + 500 {
        let set = PolicySet {
            etag_after: Some(format!("e{i}").into()),
            ..PolicySet::default()
        };
        inner.remember(&RunService::new("p", "r", format!("s{i}")), set, by.clone());
    }
    assert_eq!(
        (inner.trails.len(), inner.order.len()),
        (MAX_REMEMBERED, MAX_REMEMBERED)
    );
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_changes_nothing_and_a_long_one_all() {
    let mut inner = State::default();
    inner
        .cut
        .insert("s".into(), (Instant::now(), "refused".into()));
    tokio::time::advance(OUTAGE).await;
    assert!(inner.relied_on("p", Instant::now()));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!inner.relied_on("p", Instant::now()));
    inner.cut.clear();
    inner.dark.insert("q".into());
    assert!(inner.relied_on("p", Instant::now()) && !inner.relied_on("q", Instant::now()));
}
