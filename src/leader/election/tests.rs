use super::*;

#[test]
fn names_of_leases_say_which_shard_of_how_many() {
    let options = Options {
        namespace: "n".into(),
        name: "run-invoker".into(),
        identity: "a".into(),
        duration: Duration::from_millis(6500),
        renew: Duration::from_secs(2),
        grace: Duration::from_secs(1),
        now: Now(Arc::new(|| jiff::Timestamp::UNIX_EPOCH)),
        note: Note::default(),
    };
    assert_eq!(options.lease(0, 1), "run-invoker");
    assert_eq!(options.lease(2, 4), "run-invoker-2-of-4");
    assert_eq!(options.shard("run-invoker-2-of-4"), Some((2, 4)));
    assert_eq!(options.shard("run-invoker"), Some((0, 1)));
    for other in [
        "run-invoker-circuit",
        "run-invoker-members-of-4",
        "run-invokers-2-of-4",
        "else",
    ] {
        assert_eq!(options.shard(other), None, "{other}");
    }
    assert_eq!(
        options.seconds(),
        7,
        "others never wait for less than the holder believes"
    );
}
